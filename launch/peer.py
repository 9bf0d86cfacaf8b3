"""The three networks in plain PyTorch: an oracle that shares no code with ours, and their peer in the benchmark.

Written from the networks' descriptions, and U-Net 3+ from the semantics of its authors' code, with torch's own layers:
NCHW, every map resampled first and convolved then, none of the rearrangements by which ``dagm_jax`` is fast. Layers
have the names of ours, by which :func:`copy_weights` copies parameters and running statistics; the two then give the
same outputs, gradients and new statistics. Needs PyTorch: ``pip install -e '.[peer]'``.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from dagm_jax.types import NetworkOutput

Config = CustomUNetConfig | ConvAutoencoderConfig | UNet3PlusConfig
Norm = Literal["batch", "group", "none"]


def build(config: Config, *, in_channels: int, out_channels: int) -> CustomUNet | ConvAutoencoder | UNet3Plus:
    """The twin of ``config.build(...)``, with PyTorch's initial weights."""
    networks: dict[type, Any] = {
        CustomUNetConfig: CustomUNet,
        ConvAutoencoderConfig: ConvAutoencoder,
        UNet3PlusConfig: UNet3Plus,
    }
    return networks[type(config)](config, in_channels=in_channels, out_channels=out_channels)  # type: ignore[no-any-return]


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """Batch norm keeping .9 of the running statistics; group norm with the largest even groups of up to 8; nothing."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    if kind == "group":
        size = max(s for s in range(1, 9) if channels % s == 0)
        return nn.GroupNorm(channels // size, channels, eps=1e-5)
    return nn.Identity()


def conv_norm_relu(in_channels: int, out_channels: int, norm: Norm, bias: bool) -> nn.Sequential:
    """Conv3x3 → norm → ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
    return nn.Sequential(OrderedDict(conv=conv, norm=make_norm(norm, out_channels), relu=nn.ReLU()))


def block(in_channels: int, out_channels: int, norm: Norm, bias: bool = False) -> nn.Sequential:
    """Two layers, the first of which changes the number of channels; ``bias``: beside a norm too."""
    layers = (
        conv_norm_relu(c, out_channels, norm, bias or norm == "none") for c in (in_channels, out_channels)
    )
    return nn.Sequential(OrderedDict(zip(("first", "second"), layers, strict=True)))


def bilinear_up(in_channels: int, out_channels: int) -> nn.Sequential:
    """Bilinear up-sampling by 2, then Conv3x3."""
    up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(OrderedDict(up=up, conv=nn.Conv2d(in_channels, out_channels, 3, padding=1)))


def resample(x: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """From the size of level ``source`` to that of level ``target``, 0 being the finest: max-pool or bilinear."""
    factor = 2 ** abs(source - target)
    if source < target:
        return functional.max_pool2d(x, factor, ceil_mode=True)
    if source > target:
        return functional.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    return x


def encode(encoder: nn.ModuleList, x: torch.Tensor) -> list[torch.Tensor]:
    """The maps of all stages, the finest first, with 2x2 max-pooling between them."""
    maps: list[torch.Tensor] = []
    for stage in encoder:
        maps.append(stage(resample(maps[-1], 0, 1) if maps else x))
    return maps


class CustomUNet(nn.Module):
    """Twin of the customised U-Net: [b c h w] → NetworkOutput with logits [b d h w], h and w multiples of 16."""

    def __init__(self, config: CustomUNetConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.autocast = config.compute_dtype == "bfloat16"
        c = [config.base_channels * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(block(a, b, config.norm) for a, b in pairwise([in_channels, *c]))
        self.extras: list[list[int]] = []
        self.ups, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in range(4):
            transposes = config.up == "conv_transpose"
            up = partial(nn.ConvTranspose2d, kernel_size=2, stride=2) if transposes else bilinear_up
            self.ups.append(up(c[level + 1], c[level]))
            sources = {
                "none": [],
                "previous_encoder": [level - 1],
                "next_encoder": [level + 1],
                "both": [level - 1, level + 1],
                "all_shallower": [*range(level)],
            }[config.extra_skips]
            self.extras.append([source for source in sources if source >= 0])
            seen = c[level] + c[level] + sum(c[source] for source in self.extras[level])
            self.decoder.append(block(seen, c[level], config.norm))
        self.head = nn.Conv2d(c[0], out_channels, 1)

    def forward(self, x: torch.Tensor) -> NetworkOutput:
        """Logits alone."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            maps = encode(self.encoder, x)
            x = maps[-1]
            for level in (3, 2, 1, 0):
                skips = [resample(maps[source], source, level) for source in self.extras[level]]
                x = self.decoder[level](torch.cat([self.ups[level](x), maps[level], *skips], dim=1))
            return NetworkOutput(self.head(x).float())


class ConvAutoencoder(nn.Module):
    """Twin of the convolutional auto-encoder: [b c h w] → NetworkOutput with logits [b d h w]."""

    def __init__(self, config: ConvAutoencoderConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.autocast = config.compute_dtype == "bfloat16"
        c = [config.base_channels * 2**level for level in range(4)]
        self.encoder = nn.ModuleList(block(a, b, config.norm) for a, b in pairwise([in_channels, *c]))
        self.bottleneck = nn.Conv2d(c[-1], config.bottleneck_channels, 1)
        # From the finest level down, like the encoder; run from the coarsest up.
        below = pairwise([*c, config.bottleneck_channels])
        self.ups = nn.ModuleList(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in below)
        self.decoder = nn.ModuleList(block(width, width, config.norm) for width in c)
        self.head = nn.Conv2d(c[0], out_channels, 1)

    def forward(self, x: torch.Tensor) -> NetworkOutput:
        """Logits alone."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            x = self.bottleneck(resample(encode(self.encoder, x)[-1], 0, 1))
            for level in (3, 2, 1, 0):
                x = self.decoder[level](self.ups[level](x))
            return NetworkOutput(self.head(x).float())


class FullScaleStage(nn.Module):
    """A decoder stage of U-Net 3+: one branch from each of the five levels, fused."""

    def __init__(self, level: int, channels: list[int], width: int) -> None:
        super().__init__()
        self.level = level
        self.branches = nn.ModuleList(conv_norm_relu(c, width, "batch", bias=True) for c in channels)
        self.fusion = conv_norm_relu(5 * width, 5 * width, "batch", bias=True)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        seen = [branch(resample(maps[j], j, self.level)) for j, branch in enumerate(self.branches)]
        return self.fusion(torch.cat(seen, dim=1))  # type: ignore[no-any-return]


class UNet3Plus(nn.Module):
    """Twin of U-Net 3+: [b c h w] → NetworkOutput with logits [b d h w] of five heads and class logits [b 2].

    The authors' code goes on to a sigmoid after every head, and a sigmoid and an argmax after the class logits.
    """

    def __init__(self, config: UNet3PlusConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.autocast = config.compute_dtype == "bfloat16"
        base = config.base_channels
        c = [base * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(block(a, b, "batch", bias=True) for a, b in pairwise([in_channels, *c]))
        self.decoder = nn.ModuleList(
            FullScaleStage(level, [*c[: level + 1], *[5 * base] * (3 - level), c[-1]], base)
            for level in range(4)
        )
        widths = [*[5 * base] * 4, c[-1]] if config.deep_supervision else [5 * base]
        self.heads = nn.ModuleList(nn.Conv2d(width, out_channels, 3, padding=1) for width in widths)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(c[-1], 2, 1) if config.classification_guided else None

    def forward(self, x: torch.Tensor) -> NetworkOutput:
        """All logits; as in ours, the class logits are not applied to the maps here."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            maps = encode(self.encoder, x)
            class_logits = None
            if self.classifier is not None:
                class_logits = self.classifier(self.dropout(maps[-1])).amax((2, 3)).float()
            # From the coarse end, every map of the encoder gives way to the decoder's of its level.
            for level in (3, 2, 1, 0):
                maps[level] = self.decoder[level](maps)
            logits = [resample(head(maps[i]), i, 0).float() for i, head in enumerate(self.heads)]
            return NetworkOutput(logits[0], tuple(logits[1:]), class_logits)


# Last part of a name in flax → in torch.
TENSORS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def copy_weights(model: nnx.Module, twin: nn.Module) -> None:
    """Sets all parameters and running statistics of ``twin`` to those of ``model``, a network of the same config.

    Raises RuntimeError unless both have tensors of the same names and shapes. The twin's counters of batches, which
    ours has none of and PyTorch reads only where ``momentum`` is None, become 0.
    """
    parts, tensors = dict(twin.named_modules()), {}
    for path, variable in nnx.iter_graph(model):
        if isinstance(variable, nnx.Variable):
            *parents, last = map(str, path)
            # flax's group norm stands in a layer of ours.
            module = ".".join(parents).replace(".norm.norm", ".norm")
            if isinstance(parts.get(module), nn.Sequential):
                # A layer of our U-Net 3+ is its convolution.
                module += ".conv"
            array = np.asarray(variable[...])
            if array.ndim == 4:
                # From rows, columns, in, out to out, in, rows, columns; transposed: from in, rows, columns, out.
                is_transposed = isinstance(parts.get(module), nn.ConvTranspose2d)
                array = array.transpose((0, 3, 1, 2) if is_transposed else (3, 2, 0, 1))
            tensors[f"{module}.{TENSORS.get(last, last)}"] = torch.from_numpy(array.copy())
    counters = (name for name, _ in twin.named_buffers() if name.endswith(".num_batches_tracked"))
    twin.load_state_dict(tensors | {name: torch.tensor(0) for name in counters})

"""The three networks in plain PyTorch: an oracle that shares no code with ours, and what they are timed beside.

Written from the networks' descriptions, and U-Net 3+ from the semantics of its authors' code, with torch's own layers:
NCHW, every map resampled first and convolved then, none of the rearrangements by which ``dagm_jax`` is fast.
:func:`copy_weights` takes a ``dagm_jax`` network's parameters and running statistics over; the two then give the same
outputs, gradients and new statistics. Needs PyTorch: ``pip install -e '.[peer]'``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from flax import nnx
from torch import nn

import dagm_jax.models.conv_autoencoder as conv_autoencoder
import dagm_jax.models.custom_unet as custom_unet
import dagm_jax.models.unet3plus as unet3plus
from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from dagm_jax.types import NetworkOutput

Config = CustomUNetConfig | ConvAutoencoderConfig | UNet3PlusConfig


def build(config: Config, *, in_channels: int, out_channels: int) -> CustomUNet | ConvAutoencoder | UNet3Plus:
    """The twin of ``config.build(...)``, with PyTorch's initial weights."""
    match config:
        case CustomUNetConfig():
            return CustomUNet(config, in_channels=in_channels, out_channels=out_channels)
        case ConvAutoencoderConfig():
            return ConvAutoencoder(config, in_channels=in_channels, out_channels=out_channels)
        case UNet3PlusConfig():
            return UNet3Plus(config, in_channels=in_channels, out_channels=out_channels)


# --- layers -------------------------------------------------------------------------------------------------


def make_norm(kind: Literal["batch", "group", "none"], channels: int) -> nn.Module:
    """Batch norm keeping .9 of the running statistics; group norm with the largest even groups of up to 8; nothing."""
    if kind == "batch":
        return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.1)
    if kind == "group":
        size = max(s for s in range(1, 9) if channels % s == 0)
        return nn.GroupNorm(channels // size, channels, eps=1e-5)
    return nn.Identity()


class Block(nn.Sequential):
    """Two times Conv3x3 → norm → ReLU; the convolutions have a bias only without a norm."""

    def __init__(self, in_channels: int, out_channels: int, norm: Literal["batch", "group", "none"]) -> None:
        bias = norm == "none"
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
            make_norm(norm, out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias),
            make_norm(norm, out_channels),
            nn.ReLU(),
        )


def conv_bn_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Conv3x3 with bias, batch norm and ReLU, as U-Net 3+ has them."""
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels, eps=1e-5, momentum=0.1),
        nn.ReLU(),
    ]


def resample(source: int, target: int) -> nn.Module:
    """From the size of level ``source`` to that of level ``target``, 0 being the finest: max-pool or bilinear."""
    if source < target:
        factor = 2 ** (target - source)
        return nn.MaxPool2d(factor, factor, ceil_mode=True)
    if source > target:
        return nn.Upsample(scale_factor=2 ** (source - target), mode="bilinear", align_corners=False)
    return nn.Identity()


# --- networks -----------------------------------------------------------------------------------------------


class CustomUNet(nn.Module):
    """Twin of the customised U-Net: [b c h w] → NetworkOutput with logits [b d h w], h and w multiples of 16."""

    def __init__(self, config: CustomUNetConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.autocast = config.compute_dtype == "bfloat16"
        c = [config.base_channels * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(
            Block(before, width, config.norm) for before, width in zip([in_channels, *c[:-1]], c, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.ups, self.extras, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(4):
            if config.up == "conv_transpose":
                self.ups.append(nn.ConvTranspose2d(c[level + 1], c[level], 2, stride=2))
            else:
                conv = nn.Conv2d(c[level + 1], c[level], 3, padding=1)
                self.ups.append(nn.Sequential(resample(level + 1, level), conv))
            sources = {
                "none": [],
                "previous_encoder": [level - 1],
                "next_encoder": [level + 1],
                "both": [level - 1, level + 1],
                "all_shallower": [*range(level)],
            }[config.extra_skips]
            sources = [source for source in sources if source >= 0]
            self.extras.append(nn.ModuleDict({str(source): resample(source, level) for source in sources}))
            seen = c[level] + c[level] + sum(c[source] for source in sources)
            self.decoder.append(Block(seen, c[level], config.norm))
        self.head = nn.Conv2d(c[0], out_channels, 1)

    def forward(self, x: torch.Tensor) -> NetworkOutput:
        """Logits alone."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            maps = [self.encoder[0](x)]
            for stage in self.encoder[1:]:
                maps.append(stage(self.pool(maps[-1])))
            x = maps[-1]
            for level in (3, 2, 1, 0):
                extras: Any = self.extras[level]
                skips = [to_size(maps[int(source)]) for source, to_size in extras.items()]
                x = self.decoder[level](torch.cat([self.ups[level](x), maps[level], *skips], dim=1))
            return NetworkOutput(self.head(x).float())


class ConvAutoencoder(nn.Module):
    """Twin of the convolutional auto-encoder: [b c h w] → NetworkOutput with logits [b d h w]."""

    def __init__(self, config: ConvAutoencoderConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.autocast = config.compute_dtype == "bfloat16"
        c = [config.base_channels * 2**level for level in range(4)]
        down: list[nn.Module] = []
        for before, width in zip([in_channels, *c[:-1]], c, strict=True):
            down += [Block(before, width, config.norm), nn.MaxPool2d(2)]
        self.encoder = nn.Sequential(*down, nn.Conv2d(c[-1], config.bottleneck_channels, 1))
        up: list[nn.Module] = []
        for before, width in zip([config.bottleneck_channels, *c[:0:-1]], c[::-1], strict=True):
            up += [nn.ConvTranspose2d(before, width, 2, stride=2), Block(width, width, config.norm)]
        self.decoder = nn.Sequential(*up, nn.Conv2d(c[0], out_channels, 1))

    def forward(self, x: torch.Tensor) -> NetworkOutput:
        """Logits alone."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            return NetworkOutput(self.decoder(self.encoder(x)).float())


class UNet3Plus(nn.Module):
    """Twin of U-Net 3+: [b c h w] → NetworkOutput with logits [b d h w] of five heads and class logits [b 2].

    The authors' code goes on to a sigmoid after every head, and a sigmoid and an argmax after the class logits.
    """

    def __init__(self, config: UNet3PlusConfig, *, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.autocast = config.compute_dtype == "bfloat16"
        base = config.base_channels
        c = [base * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(
            nn.Sequential(*conv_bn_relu(before, width), *conv_bn_relu(width, width))
            for before, width in zip([in_channels, *c[:-1]], c, strict=True)
        )
        self.pool = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.branches, self.fusions = nn.ModuleList(), nn.ModuleList()
        for target in range(4):
            channels = [*c[: target + 1], *[5 * base] * (3 - target), c[-1]]
            self.branches.append(
                nn.ModuleList(
                    nn.Sequential(resample(source, target), *conv_bn_relu(width, base))
                    for source, width in enumerate(channels)
                )
            )
            self.fusions.append(nn.Sequential(*conv_bn_relu(5 * base, 5 * base)))
        widths = [*[5 * base] * 4, c[-1]] if config.deep_supervision else [5 * base]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, out_channels, 3, padding=1), resample(level, 0))
            for level, width in enumerate(widths)
        )
        self.classifier: nn.Sequential | None = None
        if config.classification_guided:
            self.classifier = nn.Sequential(
                nn.Dropout(0.5), nn.Conv2d(c[-1], 2, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()
            )

    def forward(self, x: torch.Tensor) -> NetworkOutput:
        """All logits; as in ours, the class logits are not applied to the maps here."""
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            maps = [self.encoder[0](x)]
            for stage in self.encoder[1:]:
                maps.append(stage(self.pool(maps[-1])))
            class_logits = None if self.classifier is None else self.classifier(maps[-1]).float()
            # From the coarse end, every map of the encoder gives way to the decoder's of its level.
            for target in (3, 2, 1, 0):
                branches: Any = self.branches[target]
                seen = [branch(m) for branch, m in zip(branches, maps, strict=True)]
                maps[target] = self.fusions[target](torch.cat(seen, dim=1))
            logits = [head(m).float() for head, m in zip(self.heads, maps, strict=False)]
            return NetworkOutput(logits[0], tuple(logits[1:]), class_logits)


# --- weights ------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """A variable of ours, the order of its axes that gives torch's layout, and the tensor that it belongs to."""

    ours: nnx.Variable[Any]
    axes: tuple[int, ...]
    theirs: Any


def copy_weights(model: nnx.Module, twin: nn.Module) -> None:
    """Sets all parameters and running statistics of ``twin`` to those of ``model``, a network of the same config.

    Raises ValueError, having set nothing, unless every variable of ours is read and every parameter and buffer of the
    twin is set, both exactly once and in the same shape. The twin's counters of batches, which ours has none of and
    PyTorch reads only where ``momentum`` is None, become 0.
    """
    pairs = list(_pair_networks(model, twin))
    tensors = dict(chain(twin.named_parameters(), twin.named_buffers()))
    counters = [tensors.pop(name) for name in list(tensors) if name.endswith(".num_batches_tracked")]
    variables = {
        ".".join(map(str, path)): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Variable)
    }
    _check_each_once("variable of `model`", variables, [pair.ours for pair in pairs])
    _check_each_once("parameter and buffer of `twin`", tensors, [pair.theirs for pair in pairs])
    arrays = {id(pair.theirs): np.asarray(pair.ours[...]).transpose(pair.axes) for pair in pairs}
    # All shapes first; copy_ alone would broadcast.
    for name, tensor in tensors.items():
        if arrays[id(tensor)].shape != tuple(tensor.shape):
            raise ValueError(
                f"`twin`'s {name} (of shape {tuple(tensor.shape)}) must have the shape that `model`'s has, "
                f"{arrays[id(tensor)].shape}; build both with the same config, in_channels and out_channels"
            )
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.copy_(torch.from_numpy(arrays[id(tensor)].copy()))
        for counter in counters:
            counter.zero_()


def _check_each_once(what: str, named: dict[str, Any], paired: list[Any]) -> None:
    times = Counter(map(id, paired))
    wrong = [f"{name} is {times[id(item)]} times" for name, item in named.items() if times[id(item)] != 1]
    if wrong:
        raise ValueError(f"every {what} must be copied exactly once; {', '.join(wrong)}")


def _pair_networks(model: nnx.Module, twin: nn.Module) -> Iterator[Pair]:
    match model, twin:
        case custom_unet.CustomUNet(), CustomUNet():
            return _pair_custom_unets(model, twin)
        case conv_autoencoder.ConvAutoencoder(), ConvAutoencoder():
            return _pair_autoencoders(model, twin)
        case unet3plus.UNet3Plus(), UNet3Plus():
            return _pair_unet3pluses(model, twin)
    raise ValueError(
        f"`twin` (a {type(twin).__name__}) must be the twin of `model` (a {type(model).__name__}); "
        "make it with launch.peer.build"
    )


def _pair_custom_unets(ours: Any, theirs: Any) -> Iterator[Pair]:
    for a, b in zip([*ours.encoder, *ours.decoder], [*theirs.encoder, *theirs.decoder], strict=True):
        yield from _pair_blocks(a, b)
    for a, b in zip(ours.ups, theirs.ups, strict=True):
        yield from _pair_ups(a, b)
    yield from _pair_convs(ours.head, theirs.head)


def _pair_autoencoders(ours: Any, theirs: Any) -> Iterator[Pair]:
    *encoder, bottleneck = theirs.encoder
    *decoder, head = theirs.decoder
    # Ours counts levels from the finest; the twin's decoder stands in the order of its work.
    blocks = [*encoder[::2], *decoder[1::2][::-1]]
    for a, b in zip([*ours.encoder, *ours.decoder], blocks, strict=True):
        yield from _pair_blocks(a, b)
    for a, b in zip(ours.ups, decoder[::2][::-1], strict=True):
        yield from _pair_ups(a, b)
    yield from _pair_convs(ours.bottleneck, bottleneck)
    yield from _pair_convs(ours.head, head)


def _pair_unet3pluses(ours: Any, theirs: Any) -> Iterator[Pair]:
    # Ours keeps kernel and bias in the layer itself, beside the norm.
    for a, (conv1, norm1, _, conv2, norm2, _) in zip(ours.encoder, theirs.encoder, strict=True):
        yield from _pair_layers(a.first, a.first.norm, conv1, norm1)
        yield from _pair_layers(a.second, a.second.norm, conv2, norm2)
    for a, branches, (conv, norm, _) in zip(ours.decoder, theirs.branches, theirs.fusions, strict=True):
        yield from _pair_layers(a.fusion, a.fusion.norm, conv, norm)
        for branch, (_, conv, norm, _) in zip(a.branches, branches, strict=True):
            yield from _pair_layers(branch, branch.norm, conv, norm)
    for a, (conv, _) in zip(ours.heads, theirs.heads, strict=False):
        yield from _pair_convs(a, conv)
    if ours.classifier is not None and theirs.classifier is not None:
        yield from _pair_convs(ours.classifier, theirs.classifier[1])


def _pair_blocks(ours: Any, theirs: Any) -> Iterator[Pair]:
    conv1, norm1, _, conv2, norm2, _ = theirs
    yield from _pair_layers(ours.first.conv, ours.first.norm, conv1, norm1)
    yield from _pair_layers(ours.second.conv, ours.second.norm, conv2, norm2)


def _pair_layers(our_conv: Any, our_norm: Any, conv: nn.Module, norm: nn.Module) -> Iterator[Pair]:
    yield from _pair_convs(our_conv, conv)
    if isinstance(norm, nn.Identity):
        return
    if isinstance(norm, nn.BatchNorm2d):
        yield Pair(our_norm.mean, (0,), norm.running_mean)
        yield Pair(our_norm.var, (0,), norm.running_var)
    else:
        our_norm = our_norm.norm
    yield Pair(our_norm.scale, (0,), norm.weight)
    yield Pair(our_norm.bias, (0,), norm.bias)


def _pair_convs(ours: Any, theirs: Any) -> Iterator[Pair]:
    """From rows, columns, in, out to out, in, rows, columns."""
    yield Pair(ours.kernel, (3, 2, 0, 1), theirs.weight)
    if ours.bias is not None and theirs.bias is not None:
        yield Pair(ours.bias, (0,), theirs.bias)


def _pair_ups(ours: Any, theirs: Any) -> Iterator[Pair]:
    if isinstance(theirs, nn.Sequential):
        yield from _pair_convs(ours.conv, theirs[1])
    else:
        # From in, rows, columns, out to in, out, rows, columns.
        yield Pair(ours.kernel, (0, 3, 1, 2), theirs.weight)
        yield Pair(ours.bias, (0,), theirs.bias)

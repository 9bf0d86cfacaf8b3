"""U-Net 3+ in plain PyTorch, and its weights copied into ours: an oracle that shares no code with the network.

Written from the semantics of the authors' code (UNet_3Plus and its deep-supervision variant): every branch is resampled
first, by max-pool in ceil mode or by bilinear up-sampling without aligned corners, and convolved then.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import torch
from torch import nn

NUM_LEVELS = 5


def conv_bn_relu(c: int, d: int) -> list[nn.Module]:
    return [nn.Conv2d(c, d, 3, padding=1), nn.BatchNorm2d(d), nn.ReLU()]


def resample(source: int, target: int) -> nn.Module:
    """From the size of level ``source`` to that of level ``target``; 0 is the finest."""
    if source < target:
        factor = 2 ** (target - source)
        return nn.MaxPool2d(factor, factor, ceil_mode=True)
    if source > target:
        return nn.Upsample(scale_factor=2 ** (source - target), mode="bilinear", align_corners=False)
    return nn.Identity()


class TorchUNet3Plus(nn.Module):
    """NCHW → the five logits d1…d5, up-sampled to the input's size, and the two class logits [b 2]."""

    def __init__(self, base: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = [base * 2**level for level in range(NUM_LEVELS)]
        fused = NUM_LEVELS * base
        self.encoder = nn.ModuleList(
            nn.Sequential(*conv_bn_relu(c, d), *conv_bn_relu(d, d))
            for c, d in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        self.branches, self.fusions = nn.ModuleList(), nn.ModuleList()
        for target in range(NUM_LEVELS - 1):
            channels = [*widths[: target + 1], *[fused] * (3 - target), widths[-1]]
            self.branches.append(
                nn.ModuleList(
                    nn.Sequential(resample(source, target), *conv_bn_relu(c, base))
                    for source, c in enumerate(channels)
                )
            )
            self.fusions.append(nn.Sequential(*conv_bn_relu(fused, fused)))
        self.heads = nn.ModuleList(
            nn.Conv2d(c, out_channels, 3, padding=1) for c in [*[fused] * 4, widths[-1]]
        )
        self.to_full_size = nn.ModuleList(resample(level, 0) for level in range(NUM_LEVELS))
        # The authors' code puts a sigmoid after this, and an argmax; ours stops at the logits.
        self.classifier = nn.Sequential(
            nn.Dropout(0.5), nn.Conv2d(widths[-1], 2, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()
        )

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        maps = []
        for level, stage in enumerate(self.encoder):
            x = stage(self.pool(x) if level else x)
            maps.append(x)
        class_logits = self.classifier(x)
        # From the coarse end, every map of the encoder gives way to the decoder's of its level.
        for target in reversed(range(NUM_LEVELS - 1)):
            seen = [branch(m) for branch, m in zip(self.branches[target], maps, strict=True)]
            maps[target] = self.fusions[target](torch.cat(seen, dim=1))
        heads = zip(self.heads, self.to_full_size, maps, strict=True)
        return [up(head(m)) for head, up, m in heads], class_logits


def randomise(twin: TorchUNet3Plus, seed: int) -> None:
    """Random weights, biases, norms and running statistics, of sizes that keep the maps of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in twin.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.normal_(1, 0.2, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.3, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)


def array(tensor: torch.Tensor) -> Any:
    return jnp.asarray(tensor.detach().numpy())


def copy_conv(conv: nn.Module, layer: Any) -> None:
    layer.kernel[...] = array(conv.weight).transpose(2, 3, 1, 0)
    layer.bias[...] = array(conv.bias)


def copy_layer(conv: nn.Module, norm: nn.Module, layer: Any) -> None:
    copy_conv(conv, layer)
    layer.norm.scale[...], layer.norm.bias[...] = array(norm.weight), array(norm.bias)
    layer.norm.mean[...], layer.norm.var[...] = array(norm.running_mean), array(norm.running_var)


def copy_weights(twin: TorchUNet3Plus, model: Any) -> None:
    """The twin's weights and running statistics into a ``dagm_jax`` UNet3Plus of the same widths."""
    for theirs, ours in zip(twin.encoder, model.encoder, strict=True):
        copy_layer(theirs[0], theirs[1], ours.first)
        copy_layer(theirs[3], theirs[4], ours.second)
    for branches, fusion, ours in zip(twin.branches, twin.fusions, model.decoder, strict=True):
        for theirs, layer in zip(branches, ours.branches, strict=True):
            copy_layer(theirs[1], theirs[2], layer)
        copy_layer(fusion[0], fusion[1], ours.fusion)
    for theirs, layer in zip(twin.heads, model.heads, strict=False):
        copy_conv(theirs, layer)
    if model.classifier is not None:
        copy_conv(twin.classifier[1], model.classifier)

"""NVIDIA's TinyUNet, for its speed beside the printed one; the main job does not train it.

Written from the description of its authors' program: widths 32, 32, 64, 128 and 256; convolutions with bias and ReLU,
no norms; nearest up-sampling and a 2x2 convolution, with ReLU, on the way up. Its task here is the package's own
(segmentation by BCE + soft Dice, AdamW), where the authors minimise cross-entropy or Dice by RMSProp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from dagm_jax.config import RunConfig
from dagm_jax.data.config import SlicingConfig
from dagm_jax.models.blocks import max_pool
from dagm_jax.models.initial import he_normal
from dagm_jax.types import NetworkOutput
from launch.bench.plan import TINY_UNET

PRINTED = (
    "Printed by the authors of tiny_unet: training 255 images/s (A100, AMP, batch 16), inference 823 images/s (A100, "
    "FP16, batch 16)"
)


@dataclass(frozen=True)
class TinyUNetConfig:
    """Shape of the network: ``base_channels`` at the two finest levels, 2, 4 and 8 times as many below."""

    base_channels: int = 32
    compute_dtype: Literal["float32", "bfloat16"] = "float32"

    name: ClassVar[str] = TINY_UNET

    def build(
        self, *, in_channels: int, out_channels: int, axis_name: str | None = None, rngs: nnx.Rngs
    ) -> TinyUNet:
        """The network of this shape, freshly initialised; without norms there is nothing to sum over an axis."""
        del axis_name
        return TinyUNet(self, in_channels=in_channels, out_channels=out_channels, rngs=rngs)


def on_whole_images(config: RunConfig) -> RunConfig:
    """``config`` with this network in its authors' protocol: images are one slice, of one channel."""
    model: Any = TinyUNetConfig()
    return replace(config, model=model, slicing=SlicingConfig(mode="whole"), in_channels=1)


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2h 2w c"]:
    """Every pixel four times."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


class TinyUNet(nnx.Module):
    """U-Net on ``[b h w in_channels]`` → NetworkOutput of logits ``[b h w out_channels]``; h, w multiples of 16.

    Five levels of two convolutions 3x3. On the way up a level's first convolution keeps the width and its second
    halves it, before the map is up-sampled.
    """

    def __init__(
        self, config: TinyUNetConfig, *, in_channels: int, out_channels: int, rngs: nnx.Rngs
    ) -> None:
        dtype = jnp.dtype(config.compute_dtype)
        conv = partial(nnx.Conv, padding="SAME", dtype=dtype, kernel_init=he_normal, rngs=rngs)
        c = [config.base_channels * factor for factor in (1, 1, 2, 4, 8)]
        self.dtype = dtype

        def stage(before: int, first: int, second: int) -> nnx.Sequential:
            return nnx.Sequential(
                conv(before, first, (3, 3)), nnx.relu, conv(first, second, (3, 3)), nnx.relu
            )

        self.encoder = nnx.List(
            [stage(before, width, width) for before, width in pairwise([in_channels, *c])]
        )
        # Widths from the coarse end: of the skips, of the maps that meet them, and of a level's output.
        skips, handed, ends = c[3::-1], [w // 2 for w in c[:0:-1]], [*(w // 2 for w in c[3:0:-1]), c[0]]
        below = [c[-1], *ends[:-1]]
        self.ups = nnx.List([conv(a, b, (2, 2)) for a, b in zip(below, handed, strict=True)])
        widths = zip(handed, skips, ends, strict=True)
        self.decoder = nnx.List([stage(up + skip, skip, end) for up, skip, end in widths])
        self.head = conv(c[0], out_channels, (1, 1))

    def __call__(
        self, x: Float[Array, "b h w c"], *, train: bool, key: PRNGKeyArray | None = None
    ) -> NetworkOutput:
        """The output, the same in training and evaluation; nothing is drawn."""
        del train, key
        maps: list[Array] = []
        x = x.astype(self.dtype)
        for stage in self.encoder:
            x = stage(max_pool(x) if maps else x)
            maps.append(x)
        for up, stage, skip in zip(self.ups, self.decoder, maps[-2::-1], strict=True):
            x = nnx.relu(up(upsample_nearest(x)))
            x = stage(jnp.concatenate([x, skip], axis=-1))
        return NetworkOutput(self.head(x).astype(jnp.float32))

"""The paper's customised U-Net: every decoder stage also sees the encoder stage before its own."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, PRNGKeyArray

from dagm_jax.models.blocks import (
    Block,
    Conv,
    ConvTranspose2x2,
    LayerOptions,
    UpConv,
    check_multiple,
    max_pool,
    upsample,
)
from dagm_jax.models.config import CustomUNetConfig
from dagm_jax.models.convolution import Map
from dagm_jax.types import NetworkOutput, at_least_float32

NUM_LEVELS = 5


class CustomUNet(nnx.Module):
    """Five-level U-Net on ``[b h w in_channels]`` → logits ``[b h w out_channels]``; h and w multiples of 16.

    Encoder E1…E5 with max-pools P1…P4. For i = 4…1: U_i = up(D_{i+1}), S_i = P_{i-1} (the previous encoder stage,
    pooled to the size of E_i; none for i = 1), D_i = Block(c_i)(concat[U_i, E_i, S_i]); 1x1 head.
    Other ``extra_skips`` replace S_i: none; E_{i+1} up-sampled (``next_encoder``); both; all of P of E_1…E_{i-1}.
    """

    def __init__(
        self,
        config: CustomUNetConfig,
        *,
        in_channels: int,
        out_channels: int,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        dtype = jnp.dtype(config.compute_dtype)
        widths = [config.base_channels * 2**level for level in range(NUM_LEVELS)]

        block = partial(Block, options=LayerOptions(config.norm, dtype, axis_name), rngs=rngs)
        up = ConvTranspose2x2 if config.up == "conv_transpose" else UpConv
        self.extra_skips = config.extra_skips
        self.dtype = dtype
        self.max_pool = max_pool
        self.encoder = nnx.List([block(c, width) for c, width in pairwise([in_channels, *widths])])
        # decoder[i] and ups[i] make D_{i+1}: index 0 is the finest level, as in the encoder.
        self.ups = nnx.List([up(c, width, dtype=dtype, rngs=rngs) for width, c in pairwise(widths)])
        extra = [sum(widths[j] for j in self._extra_levels(i)) for i in range(NUM_LEVELS - 1)]
        self.decoder = nnx.List([block(2 * widths[i] + c, widths[i]) for i, c in enumerate(extra)])
        self.head = Conv(widths[0], out_channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Map, *, train: bool, key: PRNGKeyArray | None = None) -> NetworkOutput:
        """The output; ``key`` belongs to every network's signature, and this one draws nothing."""
        del key
        check_multiple(x)
        encoded: list[Array] = []
        pooled: list[Array] = []
        x = x.astype(self.dtype)
        for stage in self.encoder:
            x = stage(x, train=train)
            encoded.append(x)
            if len(encoded) < NUM_LEVELS:
                x = self.max_pool(x)
                pooled.append(x)
        for i in reversed(range(NUM_LEVELS - 1)):
            extra = [self._extra_skip(i, j, encoded, pooled) for j in self._extra_levels(i)]
            x = jnp.concatenate([self.ups[i](x), encoded[i], *extra], axis=-1)
            x = self.decoder[i](x, train=train)
        return NetworkOutput(at_least_float32(self.head(x)))

    def _extra_levels(self, i: int) -> list[int]:
        """Encoder levels (0 = finest) that decoder stage ``i`` sees besides its own."""
        previous, following = ([i - 1] if i > 0 else []), [i + 1]
        return {
            "previous_encoder": previous,
            "none": [],
            "next_encoder": following,
            "both": previous + following,
            "all_shallower": list(range(i)),
        }[self.extra_skips]

    def _extra_skip(self, i: int, j: int, encoded: list[Array], pooled: list[Array]) -> Array:
        if j > i:
            return upsample(encoded[j], 2)
        # pooled[j] is E_{j+1} at half its size; go on from there, so that no pooling is done twice.
        return pooled[j] if j == i - 1 else self.max_pool(pooled[j], 2 ** (i - j - 1))

"""The paper's convolutional auto-encoder: what its bottleneck does not hold cannot be drawn."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from dagm_jax.models.blocks import Block, Conv, ConvTranspose2x2, LayerOptions, check_multiple, max_pool
from dagm_jax.models.config import ConvAutoencoderConfig
from dagm_jax.models.convolution import Map
from dagm_jax.types import NetworkOutput, at_least_float32

NUM_LEVELS = 4


class ConvAutoencoder(nnx.Module):
    """Auto-encoder on ``[b h w in_channels]`` → NetworkOutput of logits ``[b h w out_channels]``; h, w multiples of 16.

    Four times Block(c_i) and max-pool; 1x1 convolution with bias and no norm to the bottleneck, ``[b h/16 w/16 z]``;
    for i = 4…1 ConvTranspose 2x2 to c_i and Block(c_i); 1x1 head. No skips.
    """

    def __init__(
        self,
        config: ConvAutoencoderConfig,
        *,
        in_channels: int,
        out_channels: int,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        dtype = jnp.dtype(config.compute_dtype)
        widths = [config.base_channels * 2**level for level in range(NUM_LEVELS)]
        z = config.bottleneck_channels
        block = partial(Block, options=LayerOptions(config.norm, dtype, axis_name), rngs=rngs)
        up = partial(ConvTranspose2x2, dtype=dtype, rngs=rngs)
        self.dtype = dtype
        self.max_pool = max_pool
        self.encoder = nnx.List([block(c, width) for c, width in pairwise([in_channels, *widths])])
        self.bottleneck = Conv(widths[-1], z, 1, dtype=dtype, rngs=rngs)
        # ups[i] and decoder[i] work at the size of encoder[i]: index 0 is the finest level.
        self.ups = nnx.List([up(c, width) for width, c in pairwise([*widths, z])])
        self.decoder = nnx.List([block(width, width) for width in widths])
        self.head = Conv(widths[0], out_channels, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: Map, *, train: bool, key: PRNGKeyArray | None = None) -> NetworkOutput:
        """The output; ``key`` belongs to every network's signature, and this one draws nothing."""
        del key
        x = self.encode(x, train=train)
        for up, stage in reversed(list(zip(self.ups, self.decoder, strict=True))):
            x = stage(up(x), train=train)
        return NetworkOutput(at_least_float32(self.head(x)))

    def encode(self, x: Map, *, train: bool) -> Float[Array, "b h/16 w/16 z"]:
        """The bottleneck."""
        check_multiple(x)
        x = x.astype(self.dtype)
        for stage in self.encoder:
            x = self.max_pool(stage(x, train=train))
        return self.bottleneck(x)

"""Layers as the operations that formats of networks, such as ONNX, have for them.

A sequence of others in their place hinders runtimes, which keep maps in an order of their own between the operations
that they know. XLA's CPU backend is faster with the layers' own forms.
"""

from __future__ import annotations

import jax
from flax import nnx
from jaxtyping import Array, Float

from dagm_jax.models.blocks import add_bias
from dagm_jax.models.convolution import DIMENSIONS, Map


def pool_windows(x: Map, factor: int = 2) -> Map:
    """`models.blocks.max_pool` by flax's pooling."""
    pooled: Map = nnx.max_pool(x, window_shape=(factor, factor), strides=(factor, factor))  # type: ignore[no-untyped-call]
    return pooled


def expand(x: Map, kernel: Float[Array, "c 2 2 d"], bias: Float[Array, " d"]) -> Map:
    """`models.blocks.expand` by JAX's transposed convolution, which places the taps of a kernel the other way round."""
    turned = kernel[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    y = jax.lax.conv_transpose(x, turned, (2, 2), "VALID", dimension_numbers=DIMENSIONS)
    return add_bias(y, bias)


# Functions in the place of those that layers hold, see `Network.forms`.
STANDARD = (("max_pool", pool_windows), ("expand", expand))

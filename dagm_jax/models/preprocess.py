"""Normalisation of a network's input: grey levels to mean 0 and spread 1, in equal channels."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def normalize(
    image: UInt8[Array, "b h w 1"], mean: float, std: float, num_channels: int
) -> Float[Array, "b h w c"]:
    """(grey - ``mean``) / ``std`` in ``num_channels`` equal channels; float32, or float64 where that is switched on."""
    x = (image.astype(jnp.result_type(float)) - mean) / std
    return jnp.broadcast_to(x, (*x.shape[:-1], num_channels))

"""Layers in evaluation mode, written a second time by XLA's general operations; parameters are nested dicts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def count(model: nnx.Module) -> int:
    """The number of trainable parameters."""
    return sum(int(np.prod(p.shape)) for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def conv(x: Any, layer: dict[str, Any]) -> jax.Array:
    dims = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, layer["kernel"], (1, 1), "SAME", dimension_numbers=dims)
    return y + layer["bias"] if "bias" in layer else y


def norm_relu(x: Any, norm: dict[str, Any], running: dict[str, Any]) -> jax.Array:
    x = (x - running["mean"]) / jnp.sqrt(running["var"] + 1e-5) * norm["scale"] + norm["bias"]
    return jnp.maximum(x, 0)


def block(x: Any, layers: dict[str, Any], stats: dict[str, Any]) -> jax.Array:
    for name in ("first", "second"):
        x = norm_relu(conv(x, layers[name]["conv"]), layers[name]["norm"], stats[name]["norm"])
    return x


def pool(x: Any, factor: int = 2) -> jax.Array:
    window = (1, factor, factor, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def resize(x: Any, factor: int) -> jax.Array:
    b, h, w, c = x.shape
    return jax.image.resize(x, (b, h * factor, w * factor, c), "linear", antialias=False)


def up(x: Any, layer: dict[str, Any]) -> jax.Array:
    """The transposed convolution, or the convolution of the resized map."""
    if "conv" in layer:
        return conv(resize(x, 2), layer["conv"])
    # lax correlates over the dilated input, which turns the taps by 180 degrees.
    turned = layer["kernel"].transpose(1, 2, 0, 3)[::-1, ::-1]
    return jax.lax.conv_transpose(x, turned, (2, 2), "VALID") + layer["bias"]

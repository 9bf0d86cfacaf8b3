"""Post-processing of a network's maps: smoothing, deviation from the median, and the image score.

One function for evaluation, the inspector and exported files.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped
from numpy.typing import NDArray

from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.tasks.base import ScoreKind

# Limit of the Gaussian's reach in multiples of sigma, that of scipy.ndimage.
TRUNCATE = 4.0
# Limit of halvings of [0, 1], which find the median to 6e-8.
BISECTIONS = 24


@partial(jax.jit, static_argnames=("config", "score_kind"))
def postprocess(
    maps: Float[Array, "b h w"],
    slice_scores: Float[Array, "b n"],
    size: Int[Array, "b 2"] | None,
    config: VerdictConfig,
    score_kind: ScoreKind,
) -> tuple[Float[Array, "b h w"], Float[Array, " b"]]:
    """(final maps float32, image scores float32), of maps whose images fill the upper left ``size`` of the frame.

    size: (h, w) in px of each image; None where every image fills its frame. Values of a final map beyond ``size`` have
    no meaning. Pixels beyond ``size`` touch neither the values inside nor the score.
    """
    # A weighted mean may leave the range of its parts by a rounding.
    maps = jnp.clip(smooth(maps.astype(jnp.float32), size, config.smoothing_px), 0.0, 1.0)
    if score_kind == "deviation":
        maps = jnp.abs(maps - median(*_pixels(maps, size, 2.0))[:, None, None])
    if score_kind == "slices":
        num_top = 1 if config.score == "max" else min(config.top_slices, slice_scores.shape[1])
        return maps, jax.lax.top_k(slice_scores.astype(jnp.float32), num_top)[0].mean(axis=1)
    return maps, image_score(*_pixels(maps, size, -1.0), config)


def _pixels(
    maps: Float[Array, "b h w"], size: Int[Array, "b 2"] | None, beyond: float
) -> tuple[Float[Array, "b n"], Int[Array, "b 1"]]:
    """(all pixels of each frame, those beyond ``size`` replaced by the value ``beyond``; number of those inside)."""
    b, height, width = maps.shape
    if size is None:
        return maps.reshape(b, height * width), jnp.full((1, 1), height * width)
    pixels = jnp.where(inside((height, width), size), maps, beyond)
    return pixels.reshape(b, height * width), size.prod(axis=1, keepdims=True)


def inside(shape: tuple[int, ...], size: Int[Array, "b 2"]) -> Bool[Array, "b h w"]:
    """Whether each pixel of frames of ``shape`` (h, w) belongs to its image, which fills the upper left ``size``."""
    rows, columns = (jnp.arange(length) < size[:, dim, None] for dim, length in enumerate(shape))
    return rows[:, :, None] & columns[:, None, :]


def smooth(
    maps: Float[Array, "b h w"], size: Int[Array, "b 2"] | None, sigma: float
) -> Float[Array, "b h w"]:
    """The maps under a Gaussian of ``sigma`` px, unchanged for 0.

    Weights exp(-d²/2σ²), cut at int(4σ + 0.5) px and normalised, applied along columns, then rows; beyond its borders
    an image is continued by its mirror image with the edge pixel repeated (scipy's "reflect", numpy's "symmetric").
    """
    if sigma == 0:
        return maps
    weights = gaussian(sigma)
    radius = len(weights) // 2
    for dim in (1, 2):
        length = maps.shape[dim]
        wide = mirrored(maps, dim, radius, None if size is None else size[:, dim - 1])
        # XLA fuses this sum of shifted slices into one loop; its convolutions are slower here.
        parts = [
            weight * jax.lax.slice_in_dim(wide, start, start + length, axis=dim)
            for start, weight in enumerate(weights)
        ]
        maps = sum(parts[1:], parts[0])
    return maps


def gaussian(sigma: float) -> NDArray[np.float32]:
    """The weights of `smooth`, float32 [2·radius + 1]; a single 1 for 0."""
    radius = int(TRUNCATE * sigma + 0.5)
    weights = np.exp(-((np.arange(-radius, radius + 1) / (sigma or 1)) ** 2) / 2)
    return np.asarray(weights / weights.sum(), np.float32)


def mirrored(
    x: Shaped[Array, "b h w"], dim: int, radius: int, length: Int[Array, " b"] | None
) -> Shaped[Array, "b ..."]:
    """``x`` continued at both ends of ``dim`` by ``radius`` pixels of its own mirror images, the edge repeated.

    length: of each image, beyond which its mirror images begin; None for the whole of ``dim``.
    """
    if length is None and isinstance(x.shape[dim], int):
        return jnp.pad(x, [(radius, radius) if d == dim else (0, 0) for d in range(x.ndim)], "symmetric")
    # Symbolic sizes are known when the program runs.
    place = jnp.arange(x.shape[dim] + 2 * radius) - radius
    if length is None:
        return x.take(reflected(place, x.shape[dim]), axis=dim, mode="clip")
    continued: Array = jax.vmap(lambda one, end: one.take(reflected(place, end), axis=dim - 1, mode="clip"))(
        x, length
    )
    return continued


def reflected(place: Any, length: Any) -> Any:
    """Where in [0, length) each place lies on the endless row of mirror images of ``length`` pixels."""
    offset = place % (2 * length)
    return offset - (offset >= length) * (2 * offset - 2 * length + 1)


def median(pixels: Float[Array, "b n"], count: Int[Array, "b 1"]) -> Float[Array, " b"]:
    """The median of each map's pixels, to 2^-24; ``count`` of them lie in [0, 1], the others above.

    The lower of the two middle pixels is found by bisection: XLA's CPU backend takes ten times as long to sort. Written
    without a loop, because jax2onnx converts none over a symbolic batch.
    """

    def num_up_to(level: Array) -> Array:
        return (pixels <= level).sum(axis=1, keepdims=True)

    low, high = jnp.zeros_like(pixels[:, :1]), jnp.ones_like(pixels[:, :1])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_high = num_up_to(middle) > (count - 1) // 2
        low, high = jnp.where(is_high, low, middle), jnp.where(is_high, middle, high)
    above = jnp.where(pixels > high, pixels, 2.0).min(axis=1, keepdims=True)
    upper = jnp.where(num_up_to(high) > count // 2, high, above)
    found: Array = ((high + upper) / 2)[:, 0]
    return found


def image_score(
    pixels: Float[Array, "b n"], count: Int[Array, "b 1"], config: VerdictConfig
) -> Float[Array, " b"]:
    """The score of each map from its pixels, ``count`` of which count and the others lie below; higher: more defective.

    "max" is the highest pixel, "top_mean" the mean of the highest max(1, round(top_fraction · count)).
    """
    if config.score == "max":
        return pixels.max(axis=1)
    total = pixels.shape[1]
    # The number of pixels from which on the k-th highest counts: products in float32 would round ties another way.
    rounded = np.maximum(np.round(config.top_fraction * np.arange(total + 1)), 1)
    least = np.searchsorted(rounded, np.arange(1, int(rounded[-1]) + 1))
    highest = jax.lax.top_k(pixels, len(least))[0]
    is_top = count >= least
    return jnp.where(is_top, highest, 0).sum(axis=1) / is_top.sum(axis=1)

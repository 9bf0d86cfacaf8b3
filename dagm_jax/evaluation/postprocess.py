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

from dagm_jax.evaluation.threshold import VerdictConfig
from dagm_jax.tasks.base import ScoreKind

# Reach of the Gaussian in multiples of sigma, that of scipy.ndimage.
TRUNCATE = 4.0
# Halvings of [0, 1] that find the median to 6e-8.
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
    valid = valid_pixels(maps.shape, size)
    maps = smooth(maps.astype(jnp.float32), size, config.smoothing_px)
    if score_kind == "deviation":
        maps = jnp.abs(maps - median(maps, valid)[:, None, None])
    if score_kind == "slices":
        num_top = 1 if config.score == "max" else min(config.top_slices, slice_scores.shape[1])
        return maps, jax.lax.top_k(slice_scores.astype(jnp.float32), num_top)[0].mean(axis=1)
    return maps, image_score(maps, valid, config)


def valid_pixels(shape: tuple[int, ...], size: Int[Array, "b 2"] | None) -> Bool[Array, "b h w"] | None:
    """True inside of each image; None where all pixels of the frame are."""
    if size is None:
        return None
    rows, columns = (jnp.arange(shape[dim]) < size[:, dim - 1, None] for dim in (1, 2))
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
    radius = int(TRUNCATE * sigma + 0.5)
    weights = np.exp(-((np.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    weights = np.asarray(weights / weights.sum(), np.float32)
    for dim in (1, 2):
        length = maps.shape[dim]
        wide = mirrored(maps, dim, radius, radius, None if size is None else size[:, dim - 1])
        # XLA fuses this sum of shifted slices into one loop; its convolutions are slower here.
        parts = [
            weight * jax.lax.slice_in_dim(wide, start, start + length, axis=dim)
            for start, weight in enumerate(weights)
        ]
        maps = sum(parts[1:], parts[0])
    return maps


def mirrored(
    x: Shaped[Array, "b h w"], dim: int, before: int, after: int, length: Int[Array, " b"] | None = None
) -> Shaped[Array, "b ..."]:
    """``x`` continued along ``dim`` by its own mirror images, the edge repeated.

    length: of each image, beyond which its mirror images begin; None for the whole of ``dim``.
    """
    place = np.arange(-before, x.shape[dim] + after)
    if length is None:
        return x.take(_reflected(place, x.shape[dim]), axis=dim, mode="clip") if before or after else x
    continued: Array = jax.vmap(lambda one, end: one.take(_reflected(place, end), axis=dim - 1, mode="clip"))(
        x, length
    )
    return continued


def _reflected(place: Any, length: Any) -> Any:
    """Where in [0, length) each place lies on the endless row of mirror images of ``length`` pixels."""
    offset = place % (2 * length)
    return offset - (offset >= length) * (2 * offset - 2 * length + 1)


def median(maps: Float[Array, "b h w"], valid: Bool[Array, "b h w"] | None) -> Float[Array, " b"]:
    """The median of each map's valid pixels, which lie in [0, 1], to 2^-24.

    The lower of the two middle pixels is found by bisection: XLA's CPU backend takes ten times as long to sort. Full
    frames, those of exported files, are sorted: jax2onnx converts no loop over a symbolic batch.
    """
    if valid is None:
        num = maps.shape[1] * maps.shape[2]
        highest = jax.lax.top_k(maps.reshape(maps.shape[0], num), num // 2 + 1)[0]
        return (highest[:, (num - 1) // 2] + highest[:, num // 2]) / 2
    count = valid.sum(axis=(1, 2))
    # 2: above every pixel that counts.
    values = jnp.where(valid, maps, 2.0).reshape(maps.shape[0], -1)

    def num_up_to(level: Array) -> Array:
        return (values <= level[:, None]).sum(axis=1)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        is_high = num_up_to(middle) > (count - 1) // 2
        return jnp.where(is_high, low, middle), jnp.where(is_high, middle, high)

    ends = jnp.zeros(count.shape), jnp.ones(count.shape)
    lower = jax.lax.fori_loop(0, BISECTIONS, halve, ends)[1]
    above = jnp.where(values > lower[:, None], values, 2.0).min(axis=1)
    upper = jnp.where(num_up_to(lower) > count // 2, lower, above)
    middle: Array = (lower + upper) / 2
    return middle


def image_score(
    maps: Float[Array, "b h w"], valid: Bool[Array, "b h w"] | None, config: VerdictConfig
) -> Float[Array, " b"]:
    """The score of each map's valid pixels; higher is more defective.

    "max" is the highest pixel, "top_mean" the mean of the highest max(1, round(top_fraction · pixels)).
    """
    inside = maps if valid is None else jnp.where(valid, maps, -jnp.inf)
    if config.score == "max":
        return inside.max(axis=(1, 2))
    total = maps.shape[1] * maps.shape[2]
    num_top = max(1, round(config.top_fraction * total))
    highest = jax.lax.top_k(inside.reshape(maps.shape[0], total), num_top)[0]
    if valid is None:
        return highest.mean(axis=1)
    # The number of pixels from which on the k-th highest counts: products in float32 would round ties another way.
    least = np.searchsorted(np.round(config.top_fraction * np.arange(total + 1)), np.arange(1, num_top + 1))
    count = jnp.maximum(1, (valid.sum(axis=(1, 2))[:, None] >= least).sum(axis=1))
    return jnp.where(jnp.arange(num_top) < count[:, None], highest, 0).sum(axis=1) / count

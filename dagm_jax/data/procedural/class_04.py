"""Class 4: light relief with creases that radiate from one star point; the defect is a dark blurred scratch."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.ndimage

from dagm_jax.data.procedural.fields import kept, smooth_noise, wave_noise
from dagm_jax.data.procedural.marks import around, bump, damage, off_arc, ramp, semi_axes
from dagm_jax.data.procedural.relief import add_frame, engrave, ground_gain, shade
from dagm_jax.types import Ellipse

_LIGHT_RAD = 0.8  # light from the upper left: creases that run towards it hardly show
_STAR = (0.518, 0.513)  # row and column of the star point, as a share of the size; ± 2 px between images
_NUM_RAYS = 170
_CLEAR_PX = 75  # no defect's middle comes this near to the star point


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Light relief float32 [h w]: ground + 170 lit grooves from the star point + slow light + disc + frame.

    The ground: fine bumps of about 3 px, sd 7.
    """
    row, col = np.array(_STAR) * size_px + rng.uniform(-2, 2, 2)
    grooves = _rays(rng, row, col, size_px)
    image = wave_noise(rng, ground_gain(size_px, _LIGHT_RAD, 1.6, sd=7.0, white=0.3, blur_px=0.8))
    image += np.float32(460) * shade(grooves, 1.9, _LIGHT_RAD, ambient=0.05)
    image += np.float32(1.5) * smooth_noise(rng, size_px, 120)
    image += _slow_light(size_px)
    image += np.float32(180.0 + 6.5 * rng.standard_normal())
    core, u, v = around(size_px, row, col, 45, 0.0)
    r = np.hypot(u, v)
    image[core] += np.float32(16) * bump(r, 40) * _blotches(rng, r.shape)
    # The rays meet in a flat grey disc.
    disc = ramp(np.float32(12) + np.float32(2) * _blotches(rng, r.shape) - r, 4.0)
    grey = np.float32(103) + np.float32(5) * rng.standard_normal(r.shape, np.float32)
    image[core] += disc * (grey - image[core])
    add_frame(rng, image, mean=72, sd=5)
    return image


def _blotches(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Blots float32 [h w] of about 5 px, mean 0, sd 1: the star's core is torn, not turned on a lathe."""
    blots = scipy.ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 2.2)
    return np.asarray(blots * np.float32(1 / blots.std()))


def _rays(rng: np.random.Generator, row: float, col: float, size_px: int) -> np.ndarray:
    """Height map float32 [h w] of the grooves, their depth about 1 per px of length.

    Ray: angle t + bend (r/256)^2 at radius r, from 10-60 px to a random end, shallower outwards.
    """
    angle = rng.uniform(0, 2 * np.pi, _NUM_RAYS)[:, None]
    bend = rng.normal(0, 0.09, _NUM_RAYS)[:, None]
    first, last = rng.uniform(10, 60, _NUM_RAYS)[:, None], rng.uniform(60, 380, _NUM_RAYS)[:, None]
    depth = rng.uniform(0.4, 1.4, _NUM_RAYS)[:, None]
    r = np.arange(8, 380, 1.0)[None, :]
    turned = angle + bend * (r / 256) ** 2
    depths = depth * np.clip((last - r) / (0.5 * last), 0, 1) * np.clip((r - first) / 8, 0, 1)
    kept = depths > 0
    rows, cols = row + r * np.sin(turned), col + r * np.cos(turned)
    return engrave(rows[kept], cols[kept], -depths[kept], size_px)


@lru_cache(maxsize=4)
def _slow_light(size_px: int) -> np.ndarray:
    """The background of class 4, whatever the seed, float32 [h w]: dark about the star, light at lower right.

    At r px from the star point -60 exp(-(r - 10)/12) - 10 exp(-(r - 10)/75), plus a ramp of ±8 along the diagonal:
    read off the mean of the real images. Ten px from the star point is where its disc begins.
    """
    line = np.arange(size_px, dtype=np.float32)
    rows, cols = (line - np.float32(share * size_px) for share in _STAR)
    beyond = np.maximum(np.hypot(rows[:, None], cols[None, :]) - 10, 0)
    across = np.linspace(-4, 4, size_px, dtype=np.float32)
    return kept(np.add.outer(across, across) - 60 * np.exp(-beyond / 12) - 10 * np.exp(-beyond / 75))


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a dark scratch across the rays, about 3 px wide and slightly bowed, and its ellipse.

    Its direction is at most 40 degrees off the tangent of the circle about the star point.
    """
    size_px = clean.shape[0]
    semi_a, semi_b = semi_axes(rng, (22, 38, 60, 74, 92, 128, 157), (22, 24, 27, 30, 33, 37, 40))
    half = float(np.clip(semi_a * rng.uniform(0.75, 0.92), 16, 100))
    row, col, angle = _spot_across(rng, size_px, half)
    sag = float(rng.uniform(0.02, 0.14)) * half * float(rng.choice((-1, 1)))
    window, u, v = around(size_px, row, col, half + 6, angle)
    share = bump(off_arc(u, v, half, sag), float(rng.uniform(3.2, 4.4))) * ramp(half - np.abs(u), 10.0)
    pixels = clean[window] - np.float32(rng.uniform(48, 80)) * share
    return damage(clean, window, pixels, share > 0, Ellipse(semi_a, semi_b, angle, col + 1, row + 1))


def _spot_across(rng: np.random.Generator, size_px: int, half: float) -> tuple[float, float, float]:
    """(row, column, angle) of a scratch of ``half`` its length: away from the star point, across the rays."""
    margin = min(0.5 * half + 8, size_px / 4)
    clear = min(_CLEAR_PX, size_px / 4)
    star = np.array(_STAR) * size_px
    row, col = star
    while np.hypot(row - star[0], col - star[1]) < clear:
        row, col = rng.uniform(margin, size_px - 1 - margin, 2)
    outward = float(np.arctan2(row - star[0], col - star[1]))
    return float(row), float(col), outward + np.pi / 2 + float(rng.uniform(-0.7, 0.7))

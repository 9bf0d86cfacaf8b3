"""Class 3: cloudy cloth over slow shading; the defect is a cluster of small saturated white specks."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.ndimage

from dagm_jax.data.procedural.fields import (
    cloud_gain,
    frequencies,
    kept,
    shared_field,
    spline_row,
    wave_noise,
)
from dagm_jax.data.procedural.marks import around, bump, damage, ramp, semi_axes, spot
from dagm_jax.types import Ellipse


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Cloth float32 [h w]: shared shading (sd 24) + own cloud (sd 20) + faint columns and rows, smudges, threads.

    The smudges (darker by up to 35) and the light threads (by up to 85) are no defects.
    """
    image = np.float32(rng.uniform(0.9, 1.1)) * wave_noise(
        rng, cloud_gain(size_px, 45, 34, 1.94, 0.04, sd=20.5, white=0.1)
    )
    image += _shading(seed, size_px)
    image += np.float32(3.5) * spline_row(rng, size_px, 5)
    image += np.float32(3.5) * spline_row(rng, size_px, 5)[:, None]
    image += np.float32(132 + 4.5 * rng.standard_normal())
    for _ in range(rng.poisson(4 * (size_px / 512) ** 2)):
        _smudge(rng, image)
    for _ in range(1 + rng.poisson(5 * (size_px / 512) ** 2)):
        _thread(rng, image)
    return image


@lru_cache(maxsize=4)
def _shading(seed: int, size_px: int) -> np.ndarray:
    """The shading that all images of (seed, class 3) share, float32 [h w], sd about 24: light left, dark right.

    A ramp (sd 18) and random waves (sd 16.5) without a slope of their own: half of them constant columns, the others
    60 px long; most about 90 px wide, some 12 px.
    """
    fx, fy = frequencies(size_px)
    across = np.exp(-2 * (np.pi * 90 * fx) ** 2) + 0.03 * np.exp(-2 * (np.pi * 12 * fx) ** 2)
    across *= fx != 0
    along = np.exp(-2 * (np.pi * 60 * fy) ** 2) * (fy != 0)
    along *= 0.5 / along.sum()
    along[0] = 0.5
    fall = np.linspace(3**0.5, -(3**0.5), size_px, dtype=np.float32)
    waves = shared_field(seed, 3, np.sqrt(along * across), sd=1.0)
    waves = waves - (waves * fall).mean() * fall
    return kept(np.float32(18) * fall + np.float32(16.5) / waves.std() * waves)


def _smudge(rng: np.random.Generator, image: np.ndarray) -> None:
    """Darken a spot of 12-40 px softly, in place."""
    row, col = rng.uniform(0, image.shape[0], 2)
    reach = float(rng.uniform(6, 20))
    window, u, v = around(image.shape[0], row, col, reach, float(rng.uniform(-0.5, 0.5)))
    depth, slim = rng.uniform((10, 1), (35, 2.5)).astype(np.float32)
    image[window] -= depth * bump(np.hypot(u, v * slim), reach)


def _thread(rng: np.random.Generator, image: np.ndarray) -> None:
    """Lighten a nearly horizontal line, 10-60 px long and 1-2 px wide, by up to 85, in place."""
    row, col = rng.uniform(0, image.shape[0], 2)
    half = float(rng.uniform(5, 30))
    window, u, v = around(image.shape[0], row, col, half, float(rng.uniform(-0.12, 0.12)))
    light = bump(v, float(rng.uniform(1.5, 3.0))) * bump(u, half)
    image[window] += np.float32(rng.uniform(15, 85)) * light


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a cluster of white specks, 10-40 px across, and its loose ellipse.

    A speck is where rough noise rises above a bar that grows from the middle of one to three lumps outwards.
    """
    semi_a, semi_b = semi_axes(rng, (21, 27.4, 35, 45, 57, 78, 103), (10, 13.9, 18.4, 21.7, 27, 36.3, 46))
    row, col = spot(rng, clean.shape[0], max(38.0, 0.8 * semi_a))
    angle = float(rng.normal(0.1, 0.5))
    half = min(20.0, 0.6 * semi_a)
    window, u, v = around(clean.shape[0], row, col, half + 4, angle)
    lumps = np.zeros_like(u)
    for n in range(rng.integers(1, 4)):
        reach = half * float(rng.uniform(0.45, 0.7))
        off = (half - reach) * float(rng.uniform(-1, 1)) * min(n, 1)
        slim = np.float32(rng.uniform(1, 1.9) * max(1.0, reach / (0.6 * semi_b)))
        lumps = np.maximum(lumps, bump(np.hypot(u - np.float32(off), v * slim), reach))
    rough = scipy.ndimage.gaussian_filter(rng.standard_normal(u.shape, np.float32), 0.65)
    share = ramp(rough * np.float32(1 / rough.std()) + np.float32(3.2) * lumps - np.float32(1.7), 0.7)
    share *= lumps > 0
    # The bar's height is chance: the middle of the first lump is a speck whatever the noise says.
    share = np.maximum(share, ramp(2.3 - np.hypot(u, v), 1.0))
    pixels = clean[window] + share * (np.float32(rng.uniform(232, 262)) - clean[window])
    return damage(clean, window, pixels, share > 0, Ellipse(semi_a, semi_b, angle, col + 1, row + 1))

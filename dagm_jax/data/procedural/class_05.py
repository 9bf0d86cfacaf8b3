"""Class 5: isotropic fractal grey noise; the defect is a small turned patch of dark parallel lines."""

from __future__ import annotations

import numpy as np

from dagm_jax.data.procedural.fields import cloud_gain, shared_clouds, wave_noise
from dagm_jax.data.procedural.marks import around, damage, from_quantiles, ramp, spot
from dagm_jax.types import Ellipse


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Noise float32 [h w]: shared clouds (sd 17) + own grain (sd 22 to 25) + own level (mean 124, sd 4.5)."""
    grain = cloud_gain(size_px, 11.6, 14.4, 1.72, 0.011, sd=23.5)
    image = np.float32(rng.uniform(0.94, 1.06)) * wave_noise(rng, grain)
    image += shared_clouds(seed, 5, size_px, sd=17.0)
    image += np.float32(124 + 4.5 * rng.standard_normal())
    return image


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with 6-9 dark lines, 1 px wide and 3.5-5.5 px apart, and an ellipse of a = 1.75 b.

    The lines run nearly across the ellipse's long axis; the patch is 30-50 px long.
    """
    semi_b = from_quantiles(float(rng.uniform()), (21, 23, 27, 30.5, 34, 38.5, 41))
    row, col = spot(rng, clean.shape[0], 1.3 * semi_b)
    angle = float(rng.uniform(-np.pi / 2, np.pi / 2))
    count = int(rng.integers(6, 10))
    pitch = float(np.clip(1.2 * semi_b / (count - 1), 3.5, 5.5))
    half = float(rng.uniform(0.42, 0.6)) * semi_b
    window, u, v = around(clean.shape[0], row, col, 1.75 * semi_b, angle + float(rng.normal(0, 0.06)))
    place = u * np.float32(1 / pitch) + np.float32((count - 1) / 2)
    nearest = np.clip(np.rint(place), 0, count - 1)
    # Lines of uneven length and blackness, as if drawn by hand.
    ends, dark = half + rng.uniform(-2, 2, count), rng.uniform(20, 50, count)
    which = nearest.astype(np.int64)
    share = ramp(1.2 - np.abs(place - nearest) * np.float32(pitch), 1.0)
    share *= ramp(ends.astype(np.float32)[which] - np.abs(v), 1.0)
    pixels = clean[window] + np.float32(0.9) * share * (dark.astype(np.float32)[which] - clean[window])
    return damage(clean, window, pixels, share > 0, Ellipse(1.75 * semi_b, semi_b, angle, col + 1, row + 1))

"""Class 8: cloudy grey over broad vertical stripes; the defect is a tiny scratch, black with a white edge."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from dagm_jax.data.procedural.fields import cloud_gain, frequencies, shared_field, spline_row, wave_noise
from dagm_jax.data.procedural.marks import around, damage
from dagm_jax.types import Ellipse


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Cloudy grey over the broad vertical stripes that all images of a seed share: float32 [h w].

    Shared background (sd 30) + own cloud (sd 19.5) + own fine vertical streaks (sd 7.5) + own level (sd 3).
    """
    image = wave_noise(rng, cloud_gain(size_px, 14.8, 10, 4.46, 0.024, sd=19.5, white=0.1))
    image += np.float32(7.5) * spline_row(rng, size_px, 7)
    image += _background(seed, size_px)
    image += np.float32(110 + 3 * rng.standard_normal())
    return image


@lru_cache(maxsize=4)
def _background(seed: int, size_px: int) -> np.ndarray:
    """The stripes that all images of (seed, class 8) share: float32 [h w], mean 0, sd 30.2, read-only.

    Power over fx: Gaussian, stripes about 18 px wide; over fy: 68 % constant columns, the rest about 50 px long.
    """
    fx, fy = frequencies(size_px)
    across = np.exp(-2 * (np.pi * 18 * fx) ** 2) * (fx != 0)
    along = np.exp(-2 * (np.pi * 50 * fy) ** 2) * (fy != 0)
    along *= 0.32 / along.sum()
    along[0] = 0.68
    return shared_field(seed, 8, np.sqrt(along * across), sd=30.2)


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a tiny arc scratch in it (15-60 px long, black with a white edge), and its slim ellipse.

    Arc: v = s (1 - (2u/L)^2) - s/2 over the chord |u| <= L/2. Black where |d| < 0.8 px, white beyond it on
    one side; the white fades in and out along the arc, so that the scratch keeps the local mean.
    """
    size_px = clean.shape[0]
    row, col = rng.uniform(0.04, 0.96, 2) * size_px
    angle = float(rng.uniform(0, np.pi))
    length = 15 + 45 * float(rng.uniform(0, 1)) ** 1.7
    sag = length * float(rng.uniform(-0.14, 0.14))
    window, u, v = around(size_px, row, col, length / 2 + 4, angle)
    curve = np.float32(sag) * (np.float32(0.5) - (u * np.float32(2 / length)) ** 2)
    off_arc = v - curve
    taper = np.clip(np.float32(length / 2) - np.abs(u), 0, 1)
    black = taper * np.clip(3 * (np.float32(0.8) - np.abs(off_arc)), 0, 1)
    side = np.float32(rng.choice((-1, 1)))
    fading = np.float32(0.75) + np.float32(0.25) * np.cos(u * np.float32(rng.uniform(0.1, 0.9)))
    edge = np.clip(3 * (np.float32(0.7) - np.abs(off_arc * side - np.float32(1.2))), 0, 1)
    white = taper * fading * edge * (1 - black)
    pixels = clean[window] + black * (np.float32(rng.uniform(5, 25)) - clean[window])
    pixels += white * (np.float32(rng.uniform(190, 240)) - pixels)
    semi_a = length / 2 * float(rng.uniform(1.4, 2.6)) + 2
    semi_b = min(semi_a, 8.5 * math.exp(0.5 * rng.standard_normal()))
    off = rng.uniform(-0.05, 0.05, 2) * length
    wanted = Ellipse(semi_a, semi_b, angle, float(col + off[1] + 1), float(row + off[0] + 1))
    return damage(clean, window, pixels, (black > 0) | (white > 0), wanted)

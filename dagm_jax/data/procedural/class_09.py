"""Class 9: band-limited blob noise; the defect is a small dark ring with a bright centre."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dagm_jax.data.procedural.fields import frequencies, gain_of, wave_noise
from dagm_jax.data.procedural.marks import around, bump, damage, ramp, spot
from dagm_jax.types import Ellipse


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Blobs float32 [h w], mean 125 ± 5, sd 28, among them natural ones like a defect's parts: spots, half rings."""
    image = wave_noise(rng, _blob_gain(size_px))
    image += np.float32(125 + 5 * rng.standard_normal())
    for _ in range(rng.poisson(14 * (size_px / 512) ** 2)):
        _stray_blob(rng, image)
    return image


@lru_cache(maxsize=4)
def _blob_gain(size_px: int) -> np.ndarray:
    """Gain float32 [h, w//2 + 1]: 88 % of the power in a band about 1/26 cycles per px, 12 % in fine grain.

    The band's correlation falls to 1/e within 6 to 8 px.
    """
    fx, fy = frequencies(size_px)
    f = np.hypot(fx, fy)
    band = np.exp(-(((f - 0.038) / 0.02) ** 2)) * (f > 0)
    grain = np.exp(-2 * (np.pi * 1.0 * f) ** 2)
    return gain_of(0.88 * band / band.sum() + 0.12 * grain / grain.sum(), sd=28.0)


def _stray_blob(rng: np.random.Generator, image: np.ndarray) -> None:
    """A natural spot as large and as strong as a defect, in place: dark, light, or half a ring; never a whole one."""
    row, col = rng.uniform(0, image.shape[0], 2)
    outer = float(rng.uniform(4, 7.5))
    window, u, v = around(image.shape[0], row, col, outer, float(rng.uniform(0, 2 * np.pi)))
    r = np.hypot(u, v)
    strength = np.float32(rng.uniform(50, 110))
    kind = rng.integers(3)
    if kind == 0:
        image[window] -= strength * bump(r, outer)
    elif kind == 1:
        image[window] += strength * bump(r, 0.7 * outer)
    else:
        image[window] -= strength * bump(r - np.float32(outer - 2.4), 2.4) * ramp(u + 1, 3.0)


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a dark ring, 10-15 px across, about a bright centre, and an ellipse of radius about 17 px."""
    size_px = clean.shape[0]
    row, col = spot(rng, size_px, 14)
    outer = float(rng.uniform(5, 7.5))
    window, u, v = around(size_px, row, col, outer, float(rng.uniform(0, np.pi)))
    r = np.hypot(u, v * np.float32(rng.uniform(1, 1.12)))
    ring, middle = bump(r - np.float32(outer - 2.7), 2.7), bump(r, outer - 2.2)
    # Both pull towards a grey value of their own, so that the ring is whole wherever it lies.
    pixels = clean[window] + np.float32(0.9) * ring * (np.float32(rng.uniform(25, 50)) - clean[window])
    pixels += np.float32(0.9) * middle * (np.float32(rng.uniform(180, 215)) - pixels)
    semi_a, semi_b = 17.5 * rng.uniform(0.9, 1.1, 2)
    off = rng.uniform(-3, 3, 2)
    angle = float(rng.uniform(0, np.pi))
    wanted = Ellipse(float(semi_a), float(semi_b), angle, float(col + off[1] + 1), float(row + off[0] + 1))
    return damage(clean, window, pixels, r < np.float32(outer), wanted)

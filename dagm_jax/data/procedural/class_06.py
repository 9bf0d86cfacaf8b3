"""Class 6: black and white speckle in clumps; the defect is a long soft dark band."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dagm_jax.data.procedural.fields import (
    bimodal,
    frequencies,
    gain_of,
    shared_field,
    spline_row,
    wave_noise,
)
from dagm_jax.data.procedural.marks import local
from dagm_jax.types import Ellipse

_SEMI_A, _SEMI_B = 260.0, 30.0  # of every ellipse of this class
_LONG, _WIDE = 250.0, 28.5  # semi-axes beyond which the band changes nothing


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Speckle float32 [h w]: 255 / (1 + exp(-(level + 1.7 z))), z own clumps + faint rows, columns, shared clouds."""
    z = wave_noise(rng, _clump_gain(size_px))
    z += np.float32(0.12) * spline_row(rng, size_px, 3)
    z += np.float32(0.12) * spline_row(rng, size_px, 3)[:, None]
    z += _clouds(seed, size_px)
    return bimodal(z, level=-0.80 + 0.12 * rng.standard_normal(), slope=1.70)


@lru_cache(maxsize=4)
def _clump_gain(size_px: int) -> np.ndarray:
    """Gain float32 [h, w//2 + 1] of the clumps' Fourier coefficients.

    88 % of the power goes as (1 + (14.3 f)^2)^-1.82, the rest as exp(-(117 f)^2), f in cycles/px: fitted to
    the real images' autocorrelation, as it is before the steep curve is applied.
    """
    fx, fy = frequencies(size_px)
    square = fx**2 + fy**2
    small, large = (1 + 14.3**2 * square) ** -1.82, np.exp(-(117**2) * square)
    return gain_of(0.88 * small / small.sum() + 0.12 * large / large.sum(), sd=0.97)


@lru_cache(maxsize=4)
def _clouds(seed: int, size_px: int) -> np.ndarray:
    """The faint clouds that all images of (seed, class 6) share, float32 [h w], sd 0.12, about 60 px wide."""
    fx, fy = frequencies(size_px)
    power = np.exp(-2 * (np.pi * 30) ** 2 * (fx**2 + fy**2))
    power[0, 0] = 0
    return shared_field(seed, 6, np.sqrt(power), sd=0.12)


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a band in which few white grains are left, and its ellipse a = 260, b = 30.

    The speckle's curve is undone and its logit l lowered by d s^1.2 with d = 2.4 to 3.2, s = 1 - (u/250)^2 -
    (v/28.5)^2, but never below 0.3 l - 2.8: the band is as dark as the speckle's dark grains, not darker.
    """
    size_px = clean.shape[0]
    row, col = rng.uniform(0.18, 0.82, 2) * size_px
    angle = float(rng.uniform(-np.pi / 2, np.pi / 2))
    u, v = local((slice(0, size_px), slice(0, size_px)), row, col, angle)
    inside = 1 - np.square(u * np.float32(1 / _LONG)) - np.square(v * np.float32(1 / _WIDE))
    touched = inside > 0
    share = inside[touched] ** np.float32(1.2)
    grey = np.clip(clean[touched], 0.2, 254.8)
    damaged = clean.copy()
    logit = np.log(grey / (255 - grey))
    floor = np.minimum(logit, np.float32(0.3) * logit - np.float32(2.8))
    lowered = np.maximum(logit - np.float32(rng.uniform(2.4, 3.2)) * share, floor)
    damaged[touched] = bimodal(lowered, level=0.0, slope=1.0)
    return damaged, Ellipse(_SEMI_A, _SEMI_B, angle, float(col + 1), float(row + 1))

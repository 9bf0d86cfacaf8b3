"""Class 1: dark fine moiré of concentric arcs; the defect is a patch where the texture is wiped out."""

from __future__ import annotations

import math

import numpy as np
import scipy.ndimage

from dagm_jax.data.procedural.fields import shared_clouds, smooth_noise
from dagm_jax.data.procedural.marks import around, damage
from dagm_jax.types import Ellipse

_STEPS_PER_PX = 24  # of a tabulated ring profile; reading it at the nearest step adds a little grain
_WAVES = 8  # of a family of rings; with fewer, single rings stand out


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Dark fine moiré of concentric arcs, mirrored about a row and a column: float32 [h w].

    The grey value is m (1 + c z)^2 with z roughly normal, which gives the real images' skewed histogram. z is
    0.9 rings + 0.4 white noise + slow brightness, partly shared; as that is part of z, contrast grows with it.
    """
    center = int(rng.integers(size_px // 4, size_px * 3 // 4 + 1))
    reach = max(center, size_px - 1 - center) + 1
    fold = np.abs(np.arange(size_px) - center)
    folded = _rings(rng, reach)
    folded += np.float32(0.2) * smooth_noise(rng, reach, 18)
    z = np.take(np.take(folded, fold, axis=0), fold, axis=1)
    z += _glow(rng, size_px, center)
    z += np.float32(0.40) * rng.standard_normal((size_px, size_px), np.float32)
    z += np.float32(0.25) * smooth_noise(rng, size_px, 100)
    z += shared_clouds(seed, 1, size_px, sd=0.16)
    mean = 70.0 + 3.8 * rng.standard_normal()
    z *= np.float32(0.19)
    z += 1
    z *= z
    z *= np.float32(mean / float(z.mean()))
    return z


def _rings(rng: np.random.Generator, reach: int) -> np.ndarray:
    """One quadrant of the moiré, float32 [reach reach], variance about 0.8.

    Sums of cos(2 pi (f rho + g rho^2 / 2)) with rho^2 = X^2 + q Y^2 and local frequencies f + g rho far
    above the sampling limit of 0.5 cycles per px: the pixel grid folds the rings into arcs about many
    places. The profile over rho is tabulated: far cheaper than a cosine for each pixel and each wave. Most
    of what folds to slow waves is taken out again, as real images hardly show any. A little smoothing along
    each axis, of another strength in every image, gives neighbours the real images' slight correlation.
    """
    squares = np.arange(reach, dtype=np.float32) ** 2
    total = np.zeros((reach, reach), np.float32)
    for _ in range(3):
        q = float(rng.uniform(0.75, 1.33))
        start = rng.uniform(0.3, 2.5, _WAVES)
        growth = rng.uniform(-1.5, 4.0, _WAVES) / 512
        phase = rng.uniform(0, 1, _WAVES)
        rho = np.arange(math.ceil(reach * math.sqrt(1 + q) * _STEPS_PER_PX) + 2)[:, None] / _STEPS_PER_PX
        turns = (rho * (start + rho * (growth / 2)) + phase).astype(np.float32)
        profile = np.cos(np.float32(2 * np.pi) * turns).sum(axis=1) * np.float32((0.56 / _WAVES) ** 0.5)
        place = np.sqrt(squares[None, :] + np.float32(q) * squares[:, None]) * np.float32(_STEPS_PER_PX)
        total += np.take(profile, place.astype(np.int32))
    total -= np.float32(0.85) * scipy.ndimage.uniform_filter(total, 5, mode="mirror")
    across, down = rng.uniform(0.02, 0.22, 2).astype(np.float32)
    total[:, 1:-1] += across * (total[:, :-2] + total[:, 2:])
    total[1:-1] += down * (total[:-2] + total[2:])
    return total


def _glow(rng: np.random.Generator, size_px: int, center: int) -> np.ndarray:
    """The slow light in the corner far from the centre, float32 [h w]: g + 0.5 sqrt(g) cos(2 pi r / p).

    g is Gaussian in rows and columns about a point beyond that corner, r the distance from the point: arcs of
    period p = 14 to 34 px that reach further than the light itself.
    """
    line = np.arange(size_px, dtype=np.float32)
    beyond = rng.uniform(-0.05, 0.3, 2)
    far = 1 + beyond if center < size_px / 2 else -beyond
    row, col = (line - np.float32(part * size_px) for part in far)
    height = np.float32(rng.uniform(1.2, 3.4))
    root = [np.exp(-0.25 * (d / np.float32(rng.uniform(0.15, 0.36) * size_px)) ** 2) for d in (row, col)]
    sqrt_g = root[0][:, None] * (np.sqrt(height) * root[1][None, :])
    steps = (np.hypot(row[:, None], col[None, :]) * np.float32(8)).astype(np.int32)
    period = 8 * float(rng.uniform(14, 34))
    wave = np.cos(np.arange(2 * 8 * size_px) * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi))
    return np.asarray(sqrt_g * (sqrt_g + np.float32(0.5) * np.take(wave.astype(np.float32), steps)))


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a smooth amoeba of 40-80 px that holds only the local mean, and its loose ellipse.

    Outline: r(theta) = rho(theta) (1 + sum_k w_k cos(k theta + p_k)) about an ellipse rho; edge 1.5 px soft.
    """
    size_px = clean.shape[0]
    row, col = rng.uniform(0.07, 0.93, 2) * size_px
    angle = float(rng.uniform(0, np.pi))
    half_long = float(rng.uniform(20, 40))
    half_wide = half_long * float(rng.uniform(0.6, 1.0))
    window, u, v = around(size_px, row, col, 1.5 * half_long, angle)
    theta = np.arctan2(v / np.float32(half_wide), u / np.float32(half_long))
    wobble = np.ones_like(theta)
    for k, most in ((1, 0.06), (2, 0.12), (3, 0.14), (4, 0.06), (5, 0.04)):
        wobble += np.float32(rng.uniform(0, most)) * np.cos(k * theta + np.float32(rng.uniform(0, 2 * np.pi)))
    inward = (wobble - np.hypot(u / np.float32(half_long), v / np.float32(half_wide))) * np.float32(half_wide)
    share = np.clip(inward / np.float32(1.5) + np.float32(0.5), 0, 1)
    grain = np.float32(5.0) * rng.standard_normal(share.shape, np.float32)
    wiped = scipy.ndimage.gaussian_filter(clean[window], 8, mode="nearest", truncate=2.5) + grain
    pixels = clean[window] + share * (wiped - clean[window])
    semi_a = float(np.clip(half_long * rng.uniform(1.4, 2.6), 33, 94))
    semi_b = float(np.clip(half_wide * rng.uniform(1.4, 2.6), 23, 93))
    off = rng.uniform(-0.12, 0.12, 2) * half_long
    tilt = angle + float(rng.uniform(-0.3, 0.3))
    wanted = Ellipse(semi_a, semi_b, tilt, float(col + off[1] + 1), float(row + off[0] + 1))
    return damage(clean, window, pixels, share > 0, wanted)

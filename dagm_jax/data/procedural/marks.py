"""Where a defect lies and what is weak about its label: windows, local coordinates, strokes, loose ellipses."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from dagm_jax.types import Ellipse

Window = tuple[slice, slice]


def around(
    size_px: int, row: float, col: float, reach: float, angle: float
) -> tuple[Window, np.ndarray, np.ndarray]:
    """(window, u, v): the pixels within ``reach`` of a point, clipped to the image, and their `local` coordinates."""
    rows, cols = (
        slice(max(0, math.floor(center - reach)), min(size_px, math.ceil(center + reach) + 1))
        for center in (row, col)
    )
    return (rows, cols), *local((rows, cols), row, col, angle)


def local(window: Window, row: float, col: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (u along ``angle``, v across), float32 [h w] of the window, of each pixel about a point."""
    dx = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(col)
    dy = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(row)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return dx * cos + dy * sin, dy * cos - dx * sin


def damage(
    clean: np.ndarray, window: Window, pixels: np.ndarray, touched: np.ndarray, wanted: Ellipse
) -> tuple[np.ndarray, Ellipse]:
    """The clean image with these pixels in its window, and the wanted ellipse.

    The ellipse is scaled up as little as it takes to hold every touched pixel (bool [h w] of the window).
    """
    damaged = clean.copy()
    damaged[window] = pixels
    row, col = wanted.center_y - 1, wanted.center_x - 1
    u, v = local(window, row, col, wanted.angle_rad)
    reach = np.sqrt((u / wanted.semi_a) ** 2 + (v / wanted.semi_b) ** 2)[touched]
    grow = 1.02 * max(1.0, float(reach.max(initial=0.0)))
    return damaged, replace(wanted, semi_a=wanted.semi_a * grow, semi_b=wanted.semi_b * grow)


def from_quantiles(share: float, values: tuple[float, ...]) -> float:
    """The value below which ``share`` of a distribution lies, linear between its quantiles at 0, 5, 25 … 100 %."""
    return float(np.interp(share, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), values))


def semi_axes(
    rng: np.random.Generator, a: tuple[float, ...], b: tuple[float, ...], rho: float = 0.45
) -> tuple[float, float]:
    """Semi-axes (a, b <= a) px: a Gaussian copula of correlation ``rho`` over the quantiles of the real ellipses.

    a, b: their values in px at 0, 5, 25, 50, 75, 95 and 100 %.
    """
    first, second = rng.standard_normal(2)
    second = rho * first + math.sqrt(1 - rho**2) * second
    semi_a, semi_b = (
        from_quantiles(0.5 * math.erfc(-z / math.sqrt(2)), values) for z, values in ((first, a), (second, b))
    )
    return semi_a, min(semi_a, semi_b)


def spot(rng: np.random.Generator, size_px: int, margin_px: float) -> tuple[float, float]:
    """A random (row, column) at least ``margin_px`` from the border, or a third of the image where that is less."""
    margin = min(margin_px, size_px / 3)
    row, col = rng.uniform(margin, size_px - 1 - margin, 2)
    return float(row), float(col)


def off_arc(u: np.ndarray, v: np.ndarray, half_chord: float, sag: float) -> np.ndarray:
    """Distance px of (u, v) to the arc of a circle through (±half_chord, -sag/2) and (0, sag/2), < 0 inside.

    |sag| < half_chord, so that the arc is less than half the circle; the other half is infinitely far.
    """
    if abs(sag) < 0.5:
        return v
    radius = np.float32((half_chord**2 + sag**2) / (2 * abs(sag)))
    rise = v * np.float32(math.copysign(1, sag)) - (np.float32(abs(sag) / 2) - radius)
    return np.where(rise > 0, np.hypot(u, rise) - radius, np.float32(np.inf))


def ramp(distance: np.ndarray, soft_px: float) -> np.ndarray:
    """Share of a soft edge: 0 where distance <= 0, 1 where it is ``soft_px`` or more, linear between."""
    return (distance * np.float32(1 / soft_px)).clip(0, 1)


def bump(distance: np.ndarray, reach: float) -> np.ndarray:
    """(1 - (distance/reach)^2)^2 within the reach, 0 beyond it: a Gaussian's shape with an end."""
    return (1 - (distance * np.float32(1 / reach)) ** 2).clip(0, None) ** 2

"""The weak label's shape: a filled ellipse in DAGM's convention, as a mask."""

from __future__ import annotations

import math

import numpy as np

from dagm_jax.types import Ellipse


def rasterise(ellipse: Ellipse, shape: tuple[int, int]) -> np.ndarray:
    """The filled ellipse as bool [h w], clipped at the border.

    For the 0-based pixel (c, r): dx = c + 1 - x, dy = r + 1 - y, u = dx cos t + dy sin t,
    v = -dx sin t + dy cos t; inside where (u/a)^2 + (v/b)^2 <= 1. The centre (x, y) counts from 1: with this
    formula in float64 the official masks come out pixel for pixel.
    """
    mask = np.zeros(shape, bool)
    reach = math.ceil(max(ellipse.semi_a, ellipse.semi_b)) + 2
    r0, r1 = _window(ellipse.center_y - 1, reach, shape[0])
    c0, c1 = _window(ellipse.center_x - 1, reach, shape[1])
    dx = np.arange(c0, c1)[None, :] + 1 - ellipse.center_x
    dy = np.arange(r0, r1)[:, None] + 1 - ellipse.center_y
    cos, sin = math.cos(ellipse.angle_rad), math.sin(ellipse.angle_rad)
    u = dx * cos + dy * sin
    v = -dx * sin + dy * cos
    mask[r0:r1, c0:c1] = (u / ellipse.semi_a) ** 2 + (v / ellipse.semi_b) ** 2 <= 1
    return mask


def _window(center: float, reach: int, length: int) -> tuple[int, int]:
    """Start and stop of the pixels within ``reach`` of ``center``, clipped to [0, length]."""
    start = min(max(math.floor(center) - reach, 0), length)
    stop = min(max(math.ceil(center) + reach + 1, start), length)
    return start, stop

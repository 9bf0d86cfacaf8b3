"""A weak label, an ellipse in DAGM's convention, as a mask."""

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
    rows, cols = (
        slice(max(math.floor(center) - reach, 0), max(math.ceil(center) + reach + 1, 0))
        for center in (ellipse.center_y - 1, ellipse.center_x - 1)
    )
    dy = np.arange(shape[0])[rows, None] + 1 - ellipse.center_y
    dx = np.arange(shape[1])[None, cols] + 1 - ellipse.center_x
    cos, sin = math.cos(ellipse.angle_rad), math.sin(ellipse.angle_rad)
    u = dx * cos + dy * sin
    v = -dx * sin + dy * cos
    mask[rows, cols] = (u / ellipse.semi_a) ** 2 + (v / ellipse.semi_b) ** 2 <= 1
    return mask

"""Class 10: relief of curves that fan out from the bottom edge; the defect is a straight thin dark scratch."""

from __future__ import annotations

import numpy as np

from dagm_jax.data.procedural.fields import smooth_noise, wave_noise
from dagm_jax.data.procedural.marks import around, damage, ramp, semi_axes, spot
from dagm_jax.data.procedural.relief import add_frame, engrave, ground_gain, shade
from dagm_jax.types import Ellipse

_LIGHT_RAD = 0.42  # light from the left and a little above
_NUM_CURVES = 42
_SPAN_PX = 512  # between the two foci; a smaller image is a crop about the bottom's middle


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Relief float32 [h w], mean 161 ± 5: oblique wrinkles of 4 to 15 px (sd 11) + lit curves + slow light + frame."""
    image = wave_noise(rng, ground_gain(size_px, 0.95, 2.1, sd=11.0, white=0.04))
    image += np.float32(720) * shade(_curves(rng, size_px), 1.75, _LIGHT_RAD, ambient=0.12)
    image += np.float32(5) * smooth_noise(rng, size_px, 150)
    image += np.float32(161 + 5 * rng.standard_normal())
    add_frame(rng, image, mean=68, sd=6)
    return image


def _curves(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Height map float32 [h w] of about 42 curves per 512 px, ridges and grooves.

    Hyperbolas with the bottom corners as foci (half distance f): x = p sqrt(1 + y^2 / (f^2 - p^2)) at y px above the
    bottom edge: upright in the middle, tight about the corners. Some come in close pairs, some end early.
    """
    span = max(_SPAN_PX, size_px)
    count = round(_NUM_CURVES * span / _SPAN_PX)
    focus = span / 2 * float(rng.uniform(0.96, 1.0))
    p = np.linspace(-0.985, 0.985, count) + rng.normal(0, 0.67 / count, count)
    pairs = rng.choice(count, count // 4, replace=False)
    p[pairs] = p[(pairs + 1) % count] + rng.uniform(0.85, 1.45, pairs.size) / count
    p = (np.clip(p, -0.99, 0.99) * focus)[:, None]
    # Denser at the bottom, where the outer curves are flat: neighbours are about 1 px apart along every curve.
    y = np.linspace(0, 1, round(2.35 * span))[None, :] ** 1.3 * (span + 4)
    cols = size_px / 2 + float(rng.uniform(-6, 14)) + p * np.sqrt(1 + y**2 / (focus**2 - p**2))
    rows = np.broadcast_to(size_px - 1 - y, cols.shape)
    steps = np.hypot(np.gradient(rows, axis=1), np.gradient(cols, axis=1))
    depth = rng.uniform(0.55, 1.15, count) * np.where(rng.uniform(0, 1, count) < 0.35, 1, -1)
    ends = np.where(rng.uniform(0, 1, count) < 0.25, rng.uniform(0.2, 0.9, count), 2) * span
    heights = depth[:, None] * steps * (y < ends[:, None])
    return engrave(rows.ravel(), cols.ravel(), heights.ravel(), size_px)


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a straight dark scratch, 2 px wide and 80-150 px long, and its slim ellipse."""
    size_px = clean.shape[0]
    semi_a, semi_b = semi_axes(rng, (60, 61, 65, 70, 75, 79, 80), (12, 12.4, 13.6, 15, 16.4, 17.6, 18))
    row, col = spot(rng, size_px, 0.75 * semi_a)
    half = float(np.clip(semi_a * rng.uniform(0.65, 0.95), 40, 75))
    # Mostly across the curves: along them a scratch is a crease like any other.
    angle = float(rng.normal(0, 0.55))
    window, u, v = around(size_px, row, col, half + 2, angle)
    share = ramp(1.5 - np.abs(v), 1.0) * ramp(half - np.abs(u), 6.0)
    pixels = clean[window] + np.float32(0.85) * share * (np.float32(rng.uniform(45, 75)) - clean[window])
    off = rng.uniform(-0.05, 0.05, 2) * semi_b
    tilt = angle + float(rng.normal(0, 0.03))
    wanted = Ellipse(semi_a, semi_b, tilt, float(col + off[1] + 1), float(row + off[0] + 1))
    return damage(clean, window, pixels, share > 0, wanted)

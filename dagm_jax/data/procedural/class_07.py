"""Class 7: light embossed plaster with short dark vertical spindles; the defect is a patch of faint creases."""

from __future__ import annotations

import numpy as np

from dagm_jax.data.procedural.fields import smooth_noise, wave_noise
from dagm_jax.data.procedural.marks import around, damage, ramp, semi_axes, spot
from dagm_jax.data.procedural.relief import add_frame, engrave, ground_gain, shade
from dagm_jax.types import Ellipse

_LIGHT_RAD = 0.6


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Plaster float32 [h w], mean 172 ± 5: lit ground (bumps of 4 to 20 px, sd 11) + slow light + spindles + frame."""
    image = wave_noise(rng, ground_gain(size_px, _LIGHT_RAD, 1.9, sd=11.0, white=0.06))
    image += np.float32(4) * smooth_noise(rng, size_px, 90)
    image += np.float32(260) * shade(_spindles(rng, size_px), 1.2, 0.0, ambient=0.5)
    image += np.float32(174 + 5 * rng.standard_normal())
    add_frame(rng, image, mean=70, sd=5)
    return image


def _spindles(rng: np.random.Generator, size_px: int) -> np.ndarray:
    """Height map float32 [h w] of vertical grooves, 10-36 px long, deepest in their middle, about 90 per 512x512."""
    count = round(110 * (size_px / 512) ** 2)
    row, col = rng.uniform(0, size_px, (2, count, 1))
    half = rng.uniform(5, 18, count)[:, None]
    lean, depth = rng.normal(0, 0.06, count)[:, None], rng.uniform(0.4, 1.6, count)[:, None]
    along = np.linspace(-1, 1, 73)[None, :]
    rows, cols = row + half * along, col + half * along * lean
    depths = -depth * (1 - along**2) * half / 36
    return engrave(rows.ravel(), cols.ravel(), depths.ravel(), size_px)


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a patch of crossing creases, 60-90 px long, lit as the ground is, and a large loose ellipse."""
    size_px = clean.shape[0]
    semi_a, semi_b = semi_axes(rng, (44, 52, 62, 72, 85, 110, 130), (26, 28, 32, 37, 43, 55, 68))
    half_long = float(min(rng.uniform(34, 46), 0.85 * semi_a))
    half_wide = float(min(half_long * rng.uniform(0.5, 0.75), 0.75 * semi_b))
    row, col = spot(rng, size_px, semi_b)
    angle = float(rng.uniform(-np.pi / 2, np.pi / 2))
    window, u, v = around(size_px, row, col, half_long, angle)
    inside = 1 - np.hypot(u * np.float32(1 / half_long), v * np.float32(1 / half_wide))
    share = ramp(inside, 0.12)
    creases = _creases(rng, half_long, half_wide, angle)
    top, left = round(row) - creases.shape[0] // 2, round(col) - creases.shape[0] // 2
    lit = shade(creases, 1.3, _LIGHT_RAD, ambient=0.2)
    lit = lit[window[0].start - top : window[0].stop - top, window[1].start - left : window[1].stop - left]
    # Where creases cross, their light adds up: the curve keeps it within what spindles and ground hold.
    pixels = clean[window] + share * np.float32(38) * np.tanh(np.float32(rng.uniform(6, 8)) * lit)
    off = rng.uniform(-0.1, 0.1, 2) * semi_b
    wanted = Ellipse(semi_a, semi_b, angle, float(col + off[1] + 1), float(row + off[0] + 1))
    return damage(clean, window, pixels, share > 0, wanted)


def _creases(rng: np.random.Generator, half_long: float, half_wide: float, angle: float) -> np.ndarray:
    """Height map float32 [n n] about its middle of 18 to 26 creases that join random points of an ellipse's inside.

    n is odd and holds twice half_long and a margin on either side.
    """
    size = 2 * (int(np.ceil(half_long)) + 4) + 1
    count = int(rng.integers(18, 27))
    radius, turn = np.sqrt(rng.uniform(0.3, 1.0, (2, count, 1))), rng.uniform(0, 2 * np.pi, (2, count, 1))
    along, across = half_long * radius * np.cos(turn), half_wide * radius * np.sin(turn)
    t = np.linspace(0, 1, 180)[None, :]
    bow = rng.normal(0, 4, (count, 1)) * np.sin(np.pi * t)
    u = along[0] + t * (along[1] - along[0])
    v = across[0] + t * (across[1] - across[0]) + bow
    rows = size // 2 + u * np.sin(angle) + v * np.cos(angle)
    cols = size // 2 + u * np.cos(angle) - v * np.sin(angle)
    spacing = np.hypot(along[1] - along[0], across[1] - across[0]) / 180
    heights = rng.choice((-1.0, 1.0), (count, 1)) * rng.uniform(0.5, 1.2, (count, 1)) * spacing
    return engrave(rows.ravel(), cols.ravel(), np.broadcast_to(heights, rows.shape).ravel(), size)

"""Class 2: fibres one pixel wide, nearly vertical; the defect is a thin dark arc across them."""

from __future__ import annotations

import numpy as np

from dagm_jax.data.procedural.fields import bimodal, frequencies, gain_of, wave_noise
from dagm_jax.data.procedural.marks import around, damage, off_arc, ramp, semi_axes, spot
from dagm_jax.types import Ellipse

_SLANT = 0.13  # most columns that a fibre drifts by per row; the real images hold 0 to about 0.14
_FIBRE_PX = 7.6  # along a fibre the correlation at d px is (1 + d/7.6) exp(-d/7.6)
_FINENESS = 0.45  # cycles per px across, to which waves are as strong as exp(-1/2)


def texture(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Fibres of one slant for the whole image, float32 [h w]: 255 / (1 + exp(-(level + 1.2 z))), z Gaussian."""
    z = wave_noise(rng, _fibre_gain(float(rng.uniform(-_SLANT, _SLANT)), size_px))
    return bimodal(z, level=-0.58 + 0.21 * rng.standard_normal(), slope=1.17)


def _fibre_gain(slant: float, size_px: int) -> np.ndarray:
    """Gain float32 [h, w//2 + 1] of fibres finer than the pixels: a slanted one breaks up into beads, as real ones do.

    A wave of frequency F across, of power exp(-F^2 / (2 0.45^2)), lies at fy = -slant F; the pixels show F - 1, F and
    F + 1 as the same fx. Their powers are scaled to the same sum for every fx, which makes the rows white.
    """
    fx, fy = (f.astype(np.float32) for f in frequencies(size_px))
    aliases = [fx - 1, fx, fx + 1]
    shares = [np.exp(-(f**2) / np.float32(2 * _FINENESS**2)) for f in aliases]
    power = np.zeros(np.broadcast_shapes(fx.shape, fy.shape), np.float32)
    for f, share in zip(aliases, shares, strict=True):
        along = np.float32(2 * np.pi * _FIBRE_PX) * (fy + np.float32(slant) * f)
        power += share / sum(shares) / np.square(1 + np.square(along))
    return gain_of(power, sd=1.0)


def defect(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with an arc of a circle, 2-3 px wide and nearly black, and the ellipse about its bow.

    Half the chord is 0.7 to 0.9 of a; the sag takes what is left of the ellipse's width.
    """
    semi_a, semi_b = semi_axes(
        rng, (23, 24, 37, 60, 70, 81, 104), (5, 8.8, 10.3, 12.5, 16.7, 31, 52), rho=0.25
    )
    row, col = spot(rng, clean.shape[0], semi_a)
    angle = float(rng.uniform(-np.pi / 2, np.pi / 2))
    half_chord = semi_a * float(rng.uniform(0.7, 0.9))
    room = 2 * (semi_b - 2) * float(np.sqrt(1 - (half_chord / semi_a) ** 2))
    sag = min(room * float(rng.uniform(0.5, 1.0)), 0.9 * half_chord) * float(rng.choice((-1, 1)))
    window, u, v = around(clean.shape[0], row, col, semi_a + 4, angle)
    half_width = float(rng.uniform(1.2, 1.6))
    share = ramp(half_width + 0.5 - np.abs(off_arc(u, v, half_chord, sag)), 1.0)
    share *= ramp(half_chord - np.abs(u), 6.0)
    pixels = clean[window] + share * (np.float32(rng.uniform(2, 14)) - clean[window])
    return damage(clean, window, pixels, share > 0, Ellipse(semi_a, semi_b, angle, col + 1, row + 1))

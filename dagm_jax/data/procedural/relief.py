"""Embossed surfaces (classes 4, 7 and 10): curves drawn into a height map, light from the side, a dark frame."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.ndimage

from dagm_jax.data.procedural.fields import frequencies, gain_of


def engrave(rows: np.ndarray, cols: np.ndarray, heights: np.ndarray, size_px: int) -> np.ndarray:
    """Height map float32 [h w]: each point's height shared out among its four pixels; points outside are dropped.

    rows, cols, heights: float [points]; a curve is a row of points about half a pixel apart.
    """
    inside = (rows > 0) & (rows < size_px - 1) & (cols > 0) & (cols < size_px - 1)
    rows, cols, heights = rows[inside], cols[inside], heights[inside]
    top, left = rows.astype(np.int64), cols.astype(np.int64)
    down, right = rows - top, cols - left
    place = top * size_px + left
    places = np.concatenate([place, place + 1, place + size_px, place + size_px + 1])
    shares = [(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right]
    weights = np.concatenate([heights * share for share in shares])
    flat = np.bincount(places, weights, minlength=size_px * size_px)
    return flat.astype(np.float32).reshape(size_px, size_px)


def shade(height: np.ndarray, blur_px: float, light_rad: float, ambient: float) -> np.ndarray:
    """Light on a height map, float32 [h w]: slope of the blurred map against the light + ambient * blurred map.

    One flank of a groove is bright, the other dark; where it runs towards the light, only the ambient part is left,
    which darkens the grooves and lightens the ridges.
    """
    smooth = scipy.ndimage.gaussian_filter(height, blur_px, mode="nearest", truncate=3)
    lit: np.ndarray = np.float32(ambient) * smooth
    lit[:, 1:-1] += np.float32(np.cos(light_rad) / 2) * (smooth[:, 2:] - smooth[:, :-2])
    lit[1:-1] += np.float32(np.sin(light_rad) / 2) * (smooth[2:] - smooth[:-2])
    return lit


@lru_cache(maxsize=8)
def ground_gain(
    size_px: int, light_rad: float, slope: float, sd: float, white: float, blur_px: float = 0.0
) -> np.ndarray:
    """Gain float32 [h, w//2 + 1] of lit ground; white as in `gain_of`.

    Power of the height map (1 + (30 f)^2)^-slope exp(-2 (pi blur f)^2), which light multiplies by the square of each
    wave's frequency along it.
    """
    fx, fy = frequencies(size_px)
    square = fx**2 + fy**2
    power = (np.cos(light_rad) * fx + np.sin(light_rad) * fy) ** 2 * (1 + 30**2 * square) ** -slope
    return gain_of(power * np.exp(-2 * (np.pi * blur_px) ** 2 * square), sd, white)


def add_frame(rng: np.random.Generator, image: np.ndarray, mean: float, sd: float) -> None:
    """Draw the dark frame of one pixel into the image float32 [h w], in place; black corners."""
    size_px = image.shape[0]
    sides = np.float32(mean) + np.float32(sd) * rng.standard_normal((4, size_px), np.float32)
    image[0], image[-1], image[:, 0], image[:, -1] = sides
    image[:: size_px - 1, :: size_px - 1] = 2


def keep_frame(damaged: np.ndarray, clean: np.ndarray) -> None:
    """Put the clean image's frame back over a defect that reaches it, in place."""
    for line in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        damaged[line] = clean[line]

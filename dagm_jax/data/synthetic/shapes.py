"""Outlines of synthetic defects: opacity float32 [h w] in [0, 1], somewhere in the picture.

Lengths and widths are those of scratches, specks and stains that people mark; no family is fitted to a data set.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Shape = tuple[int, int]
Opacity = NDArray[np.float32]


def stroke(shape: Shape, rng: np.random.Generator) -> Opacity:
    """A scratch: a line or an arc 10 to 250 px long and 1 to 8 px wide, solid or dotted (CutPaste's scar, curved)."""
    length = int(np.exp(rng.uniform(np.log(10), np.log(250))))
    width, bend = np.exp(rng.uniform(0, np.log(8))), rng.normal(0, 1.5)
    heading = (
        rng.uniform(0, 2 * np.pi) + bend * np.arange(length) / length + rng.normal(0, 0.02, length).cumsum()
    )
    path = np.stack([np.sin(heading), np.cos(heading)], axis=1).cumsum(axis=0)
    path += [rng.uniform(0, edge) for edge in shape] - path[length // 2]
    if rng.random() < 0.25:
        period = int(rng.integers(4, 16))
        path = path[np.arange(length) % period < max(1, period // 2)]
    return _around(path, width / 2, shape)


def specks(shape: Shape, rng: np.random.Generator) -> Opacity:
    """Dots of 1 to 5 px radius, one or a cluster of up to twelve."""
    number = 1 if rng.random() < 0.5 else int(rng.integers(2, 13))
    middle = np.array([rng.uniform(0, edge) for edge in shape])
    points = middle + rng.normal(0, 4 * number, (number, 2)) * (number > 1)
    return _around(points, np.exp(rng.uniform(0, np.log(5))), shape)


def ring(shape: Shape, rng: np.random.Generator) -> Opacity:
    """An ellipse with half axes of 4 to 40 px: a disc, or its outline of 1 to 5 px."""
    distance, reach = _ellipse(shape, rng)
    if rng.random() < 0.5:
        return _soft(reach * (1 - distance))
    return _soft(np.exp(rng.uniform(0, np.log(5))) / 2 - np.abs(reach * (1 - distance)))


def hatching(shape: Shape, rng: np.random.Generator) -> Opacity:
    """Parallel lines every 4 to 14 px in an ellipse."""
    distance, reach = _ellipse(shape, rng)
    rows, columns = np.indices(shape, np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 14)
    lines = np.cos(2 * np.pi * (rows * np.sin(angle) + columns * np.cos(angle)) / period)
    return _soft(reach * (1 - distance)) * _soft(period * (lines - rng.uniform(0, 0.7)) / 4)


def blob(shape: Shape, rng: np.random.Generator) -> Opacity:
    """A stain: an ellipse with an outline moved by smooth noise (DRAEM thresholds Perlin noise)."""
    distance, _ = _ellipse(shape, rng)
    coarse = int(np.exp(rng.uniform(np.log(4), np.log(24))))
    knots = rng.normal(size=[edge // coarse + 2 for edge in shape])
    noise = ndimage.zoom(knots, coarse, order=1)[: shape[0], : shape[1]]
    return _soft(coarse * (1 - distance + rng.uniform(0.2, 0.6) * noise))


ShapeFunction = Callable[[Shape, np.random.Generator], Opacity]
SHAPES: tuple[ShapeFunction, ...] = (stroke, specks, ring, hatching, blob)


def _around(points: NDArray[np.float64], radius: float, shape: Shape) -> Opacity:
    """1 within ``radius`` px of the points that lie in the picture, falling to 0 within one px."""
    places = points.round().astype(int)
    places = places[((places >= 0) & (places < shape)).all(axis=1)]
    if not len(places):
        return np.zeros(shape, np.float32)
    is_far = np.ones(shape, bool)
    is_far[tuple(places.T)] = False
    return _soft(radius - ndimage.distance_transform_edt(is_far))


def _ellipse(shape: Shape, rng: np.random.Generator) -> tuple[NDArray[np.float32], float]:
    """(distance from the middle of an ellipse as a share of that of its outline, the shorter half axis in px)."""
    middle = [rng.uniform(0, edge) for edge in shape]
    a, b = np.exp(rng.uniform(np.log(4), np.log(40), 2))
    rows, columns = np.indices(shape, np.float32)
    rows, columns, angle = rows - middle[0], columns - middle[1], rng.uniform(0, np.pi)
    u, v = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
    return np.hypot(u / a, v / b), float(min(a, b))


def _soft(inside_px: NDArray[np.floating]) -> Opacity:
    """Opacity by the distance inside of an outline: 1/2 on it, 0 and 1 half a px to either side."""
    return np.clip(inside_px + 0.5, 0, 1).astype(np.float32)  # type: ignore[no-any-return]

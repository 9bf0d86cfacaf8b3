"""The picture of a verdict: the image tinted by its map, with its defect mask outlined; and the boxes of that mask."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dagm_jax.types import Verdict

# Orange and vermilion of Okabe and Ito, told apart by colour-blind readers and both far from grey.
TINT, OUTLINE = (230, 159, 0), (213, 94, 0)
_STRONGEST_TINT = 0.6
# Corners touch: a scratch drawn one pixel wide is one component.
_NEIGHBOURS = np.ones((3, 3), bool)

Box = tuple[int, int, int, int]


def boxes_of(mask: NDArray[np.bool_]) -> list[Box]:
    """(left, top, width, height) in px of each connected component of the mask [h w], from the top down."""
    labelled, _ = ndimage.label(mask, structure=_NEIGHBOURS)
    return [
        (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for rows, columns in ndimage.find_objects(labelled)
    ]


def draw_overlay(image: NDArray[np.uint8], verdict: Verdict, pixel_threshold: float) -> NDArray[np.uint8]:
    """The image [h w] as RGB uint8 [h w 3]: tinted the more, the nearer the map comes to the pixel threshold.

    The outline, two pixels wide, lies just inside the mask.
    """
    full = max(pixel_threshold, float(np.finfo(np.float32).tiny))
    # The cube leaves the image its own look where a network that has learnt little is half sure everywhere.
    alpha = (_STRONGEST_TINT * np.clip(verdict.map / full, 0, 1) ** 3)[..., None]
    picture = image[..., None] * (1 - alpha) + np.array(TINT, np.float32) * alpha
    inner = ndimage.binary_erosion(verdict.mask, _NEIGHBOURS, iterations=2, border_value=1)
    picture[verdict.mask & ~inner] = OUTLINE
    return np.rint(picture).astype(np.uint8)


def write_overlay(path: Path, image: NDArray[np.uint8], verdict: Verdict, pixel_threshold: float) -> None:
    """Puts the overlay into ``path`` as a PNG."""
    picture = Image.fromarray(draw_overlay(image, verdict, pixel_threshold))
    # The fastest level: textures are noise, which the others hardly make smaller.
    picture.save(path, format="PNG", compress_level=1)

"""An image with its score map laid over it, drawn alike in figures, on the report page and by `predict`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

# Tint: orange of Okabe and Ito, which colour-blind readers distinguish from grey.
TINT, PREDICTED_LINE, TRUE_LINE = (230, 159, 0), (255, 255, 255), (86, 224, 255)
# Opacity of the highest scores.
STRONGEST_TINT = 0.6
# Step of opacities, of 255: rounded to what the eye distinguishes, a layer compresses to a third.
_OPACITY_STEP = 16

UInt8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def boxes_of(mask: Mask) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) in px of each connected component of the mask [h w], from the top down."""
    # Corners touch, so that a scratch one pixel wide is one component.
    labelled, _ = ndimage.label(mask, structure=np.ones((3, 3), bool))
    return [
        (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for rows, columns in ndimage.find_objects(labelled)
    ]


def draw_overlay(under: UInt8, layer: UInt8) -> UInt8:
    """The image under its layer, both of `draw_layers`: RGB, uint8 [h w 3]."""
    picture = Image.fromarray(under).convert("RGBA")
    picture.alpha_composite(Image.fromarray(layer))
    return np.asarray(picture.convert("RGB"))


def draw_layers(
    image: UInt8,
    score_map: NDArray[np.floating],
    pixel_threshold: float,
    true_mask: Mask | None = None,
    side_px: int | None = None,
) -> tuple[UInt8, UInt8]:
    """The image, uint8 [h w], and the layer over it, red, green, blue and opacity, uint8 [h w 4].

    The tint's opacity grows with the score map, half of the scale below the pixel threshold and half above; a white
    line bounds the pixels at or above the threshold, a light blue one ``true_mask``. Both are shrunk until the longer
    side is at most ``side_px``: the image by means; of the map and the mask each cell keeps its highest value, so that
    a defect of one pixel is still seen. Raises ValueError for unequal sizes.
    """
    for name, array in (("map", score_map), ("mask", true_mask)):
        if array is not None and array.shape != image.shape:
            raise ValueError(f"the {name} {array.shape} must have the size of its image {image.shape}")
    scale = min(1.0, (side_px or max(image.shape)) / max(image.shape))
    height, width = (max(1, round(length * scale)) for length in image.shape)
    heat = np.nan_to_num(_highest(score_map, height, width))
    anchors = ([0, pixel_threshold, 1], [0, 0.5, 1]) if 0 < pixel_threshold < 1 else ([0, 1], [0, 1])
    opacity = STRONGEST_TINT * np.interp(heat, *anchors) ** 1.5
    layer = np.full((height, width, 4), (*TINT, 0), np.uint8)
    layer[..., 3] = np.round(255 * opacity / _OPACITY_STEP) * _OPACITY_STEP
    layer[_outline(heat >= pixel_threshold)] = (*PREDICTED_LINE, 255)
    if true_mask is not None:
        layer[_outline(_highest(true_mask, height, width))] = (*TRUE_LINE, 255)
    shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    return np.asarray(shrunk), layer


def write_overlay(path: Path, image: UInt8, score_map: NDArray[np.floating], pixel_threshold: float) -> None:
    """Writes the overlay at full size into ``path`` as a PNG."""
    picture = Image.fromarray(draw_overlay(*draw_layers(image, score_map, pixel_threshold)))
    # The fastest level: slower ones hardly compress textures.
    picture.save(path, format="PNG", compress_level=1)


def write_batch(path: Path, images: UInt8, masks: Mask, inside: Mask | None) -> None:
    """Writes the slices [b h w] of a batch side by side as a PNG: their masks outlined, tinted beyond the image."""
    beyond = np.zeros(images.shape) if inside is None else np.where(inside, 0.0, 0.4)
    cells = [
        np.pad(draw_overlay(*draw_layers(image, tint, 0.5, mask)), ((2, 2), (2, 2), (0, 0)))
        for image, tint, mask in zip(images, beyond, masks, strict=True)
    ]
    height, width, _ = cells[0].shape
    in_row = math.ceil(math.sqrt(len(cells) * height / width))
    cells += [np.zeros_like(cells[0])] * (-len(cells) % in_row)
    rows = [np.concatenate(cells[k : k + in_row], axis=1) for k in range(0, len(cells), in_row)]
    Image.fromarray(np.concatenate(rows)).save(path, format="PNG", compress_level=1)


def _highest(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The highest value in each cell of a grid of ``height`` x ``width`` cells, no finer than the array."""
    if values.shape == (height, width):
        return values
    rows, columns = (
        np.arange(n) * length // n for n, length in zip((height, width), values.shape, strict=True)
    )
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1))


def _outline(mask: Mask) -> Mask:
    """The mask's pixels near its border, thicker in larger pictures; the picture's own edge is no border."""
    line_px = max(1, round(max(mask.shape) / 300))
    return np.asarray(mask & ~ndimage.binary_erosion(mask, iterations=line_px, border_value=1))

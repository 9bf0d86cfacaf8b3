"""A picture of many images: a row for each class, small, with the outline of each mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dagm_jax.console import console
from dagm_jax.data.images.load import load
from dagm_jax.storage import replacing
from dagm_jax.types import Sample
from dagm_jax.visualization.overlay import draw_layers, draw_overlay

CELL_PX = 128
_GAP_PX, _TITLE_PX = 4, 16
# Images of a row.
NUM_DEFECTIVE, NUM_GOOD = 6, 2


def write_sheet(rows: Mapping[str, Sequence[Sample]], path: Path, cell_px: int = CELL_PX) -> None:
    """Writes the sheet of some samples of each title as PNG, and prints where it is."""
    sheet = draw_sheet({title: choose(samples) for title, samples in rows.items()}, cell_px)
    with replacing(path, "xb") as stream:
        sheet.save(stream, format="PNG")
    console.print(f"contact sheet: {path}")


def choose(samples: Sequence[Sample]) -> list[Sample]:
    """Up to six defective and two good samples, evenly spread over those that there are."""
    chosen: list[Sample] = []
    for label, count in ((1, NUM_DEFECTIVE), (0, NUM_GOOD)):
        fitting = [sample for sample in samples if sample.label == label]
        places = np.linspace(0, len(fitting) - 1, min(count, len(fitting))).round().astype(int)
        chosen += [fitting[place] for place in places]
    return chosen


def draw_sheet(rows: Mapping[str, Sequence[Sample]], cell_px: int = CELL_PX) -> Image.Image:
    """The sheet, RGB: a line of text for each title, and the samples shrunk to cells, masks outlined. Raises BadImage.

    A mask of the whole image stands for none, as of defective images without one.
    """
    columns = max(len(samples) for samples in rows.values())
    step = cell_px + _GAP_PX
    sheet = Image.new("RGB", (columns * step + _GAP_PX, len(rows) * (step + _TITLE_PX) + _GAP_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for row, (title, samples) in enumerate(rows.items()):
        top = row * (step + _TITLE_PX) + _GAP_PX
        pen.text((_GAP_PX, top), title, fill="black")
        for column, sample in enumerate(samples):
            image, mask = load(sample, None)
            layers = draw_layers(image, np.zeros(image.shape), 1.0, None if mask.all() else mask, cell_px)
            sheet.paste(Image.fromarray(draw_overlay(*layers)), (column * step + _GAP_PX, top + _TITLE_PX))
    return sheet

"""Tests of tables with boxes around defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dagm_jax.data.formats.boxes import read_boxes
from dagm_jax.errors import UserError
from dagm_jax.evaluation.metrics import boxes_touched
from dagm_jax.types import Box, Sample

HEADER = "image,kind,left,top,right,bottom\n"
SAMPLES = [
    Sample(name, 1, label, None, Path(name), None)
    for name, label in (("good/7.png", 0), ("defect/7.png", 1), ("a/8.png", 1), ("b/8.png", 1), ("8.png", 1))
]
SHAPES = {"defect/7.png": (50, 60), "a/8.png": (50, 60)}


def read(folder: Path, text: str) -> dict[str, tuple[Box, ...]]:
    (folder / "boxes.csv").write_text(text)
    return read_boxes(folder / "boxes.csv", SAMPLES, SHAPES)


def test_boxes_belong_to_the_defective_image_that_is_named(tmp_path: Path) -> None:
    """Would catch: boxes of the good image of the same name, edges in another order than the header's, a lost row."""
    found = read(tmp_path, HEADER + "7,open,1,2,60,50\n7.png,,5,6,7,8\na/8,short,0,0,1,1\n8.png,,0,0,999,1\n")
    first = (Box("open", 1, 2, 60, 50), Box("", 5, 6, 7, 8))
    last = (Box("", 0, 0, 999, 1),)
    assert found == {"defect/7.png": first, "a/8.png": (Box("short", 0, 0, 1, 1),), "8.png": last}
    assert read(tmp_path, "bottom,right,top,left,image\n4,3,2,1,7\n") == {
        "defect/7.png": (Box("", 1, 2, 3, 4),)
    }


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "image,left,top\n",
            r"`data\.boxes` .* must name image, left, top, right, bottom, and if wanted kind",
        ),
        (HEADER, r"`data\.boxes` \(=.*boxes\.csv\) holds no boxes"),
        (HEADER + "9,,0,0,1,1\n", r"line 2: image '9' is the name of 0 defective images"),
        (HEADER + "good/7.png,,0,0,1,1\n", r"image 'good/7\.png' is the name of 0 .*did you mean 7\.png"),
        (HEADER + "8,,0,0,1,1\n", r"line 2: image '8' is the name of 3 .*, such as 8\.png and a/8\.png"),
        (HEADER + "7,,0,0,1,x\n", r"line 2: edges must be whole numbers"),
        (HEADER + "7,,0,-1,1,1\n", r"line 2: edges must be whole numbers"),
        (HEADER + f"7,,0,0,1,{'9' * 5000}\n", r"line 2: edges must be whole numbers"),
        (HEADER + "7,,5,0,5,1\n", r"line 2: box \(5, 0, 5, 1\) is not inside the image of 60x50 px"),
        (HEADER + "7,,0,0,50,60\n", r"line 2: box \(0, 0, 50, 60\) is not inside the image of 60x50 px"),
    ],
)
def test_tables_that_mean_nothing_are_refused(text: str, match: str, tmp_path: Path) -> None:
    """Would catch: boxes that are dropped in silence, and a recall over fewer of them than there are."""
    with pytest.raises(UserError, match=match):
        read(tmp_path, text)
    with pytest.raises(UserError, match=r"`data\.boxes` .*cannot be read"):
        read_boxes(Path("no\0name"), SAMPLES, SHAPES)


def test_boxes_that_a_map_touches() -> None:
    """Would catch: rows and columns exchanged, an edge counted as inside, a part beside a box taken for none of it."""
    prediction = np.zeros((10, 20), bool)
    prediction[2:5, 11:14] = prediction[8, 0] = True
    boxes = [Box("", 13, 4, 20, 10), Box("", 0, 0, 11, 8), Box("", 14, 0, 20, 4), Box("", 18, 5, 40, 40)]
    assert boxes_touched(prediction, boxes) == ([True, False, False, False], 1)
    assert boxes_touched(prediction, []) == ([], 2)

"""Tests of tables with boxes around defects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dagm_jax.data.config import DataConfig
from dagm_jax.data.dataset import find_images
from dagm_jax.data.formats.boxes import add_boxes
from dagm_jax.errors import UserError
from dagm_jax.evaluation.metrics import boxes_touched
from dagm_jax.types import Box, Sample

HEADER = "image,kind,left,top,right,bottom\n"
SAMPLES = [
    Sample(name, 1, label, None, Path(name), None)
    for name, label in (("good/7.png", 0), ("defect/7.png", 1), ("a/8.png", 1), ("b/8.png", 1))
]


def read(folder: Path, text: str) -> list[tuple[Box, ...]]:
    (folder / "boxes.csv").write_text(text)
    return [sample.boxes for sample in add_boxes(SAMPLES, folder / "boxes.csv")]


def test_boxes_belong_to_the_defective_image_that_is_named(tmp_path: Path) -> None:
    """Would catch: boxes of the good image of the same name, edges in another order than the header's, a lost row."""
    found = read(tmp_path, HEADER + "7,open,1,2,30,40\n7.png,,5,6,7,8\na/8.png,short,0,0,1,1\n")
    first = (Box("open", 1, 2, 30, 40), Box("", 5, 6, 7, 8))
    assert found == [(), first, (Box("short", 0, 0, 1, 1),), ()]
    assert read(tmp_path, "bottom,right,top,left,image\n4,3,2,1,7\n")[1] == (Box("", 1, 2, 3, 4),)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "image,left,top,right\n",
            r"`data\.boxes` .* it must name image, left, top, right, bottom, and if wanted kind",
        ),
        (HEADER, r"`data\.boxes` \(=.*boxes\.csv\) holds no boxes"),
        (HEADER + "9,,0,0,1,1\n", r"line 2: image '9' is the name of 0 defective images"),
        (
            HEADER + "good/7.png,,0,0,1,1\n",
            r"line 2: image 'good/7\.png' is the name of 0 .*did you mean 7\.png",
        ),
        (
            HEADER + "8,,0,0,1,1\n",
            r"line 2: image '8' is the name of 2 defective images; name its folder too",
        ),
        (HEADER + "7,,0,0,1,x\n", r"line 2: edges must be whole numbers"),
        (HEADER + "7,,0,-1,1,1\n", r"line 2: edges must be whole numbers"),
        (HEADER + "7,,5,0,5,1\n", r"line 2: right and bottom must lie beyond left and top"),
    ],
)
def test_tables_that_mean_nothing_are_refused(text: str, match: str, tmp_path: Path) -> None:
    """Would catch: boxes that are dropped in silence, and a recall over fewer of them than there are."""
    with pytest.raises(UserError, match=match):
        read(tmp_path, text)


def test_a_run_reads_the_table_that_its_configuration_names(tmp_path: Path) -> None:
    """Would catch: `data.boxes` that nothing reads."""
    for folder in ("good", "defect"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.png").write_bytes(b"")
    (tmp_path / "boxes.csv").write_text(HEADER + "1,,0,0,2,2\n")
    config = DataConfig(root=str(tmp_path), boxes=str(tmp_path / "boxes.csv"))
    manifest, _ = find_images(config, 0)
    assert [(one.label, len(one.boxes)) for one in manifest.samples] == [(0, 0), (1, 1)]
    with pytest.raises(UserError, match=r"`data\.boxes` .*cannot be read"):
        find_images(DataConfig(root=str(tmp_path), boxes=str(tmp_path / "missing.csv")), 0)


def test_boxes_that_a_map_touches() -> None:
    """Would catch: rows and columns exchanged, an edge counted as inside, a part beside a box taken for none of it."""
    prediction = np.zeros((10, 20), bool)
    prediction[2:5, 11:14] = prediction[8, 0] = True
    boxes = [Box("", 13, 4, 20, 10), Box("", 0, 0, 11, 8), Box("", 14, 0, 20, 4), Box("", 18, 5, 40, 40)]
    assert boxes_touched(prediction, boxes) == ([True, False, False, False], 1)
    assert boxes_touched(prediction, []) == ([], 2)

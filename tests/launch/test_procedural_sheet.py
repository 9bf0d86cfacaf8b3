"""Tests of the contact sheet: what stands beside what, and numbers that are those of the pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dagm_jax.types import UserError
from launch import procedural_sheet
from launch.procedural_sheet import ROWS, TILE_PX, Picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two striped images of class 2 in layout A, 255 and 0 in turns: upright without a mask, flat with one."""
    folder = tmp_path / "dagm" / "Class2" / "Train"
    (folder / "Label").mkdir(parents=True)
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(folder / "0001.PNG")
    Image.fromarray(stripes.T.copy()).save(folder / "0002.PNG")
    mask = np.zeros((512, 512), np.uint8)
    mask[100:200, 300:420] = 255
    Image.fromarray(mask).save(folder / "Label" / "0002_label.PNG")
    return tmp_path / "dagm"


def test_real_images_come_with_their_masks_first(root: Path) -> None:
    """Catches masks taken for images, a mask that goes to another image, and a defect that the sheet does not show."""
    first, second = procedural_sheet.find_real([root / "none", root], 2)
    assert first.mask[100:200, 300:420].all() and first.mask.sum() == 100 * 120
    assert (first.image[0] == 255).all() and (first.image[1] == 0).all()
    assert not second.mask.any()
    assert procedural_sheet.find_real([root], 7) == []


def test_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a command that fails, a class without its row or tile, swapped axes, and numbers of other pictures.

    Upright stripes: along a row -1 at an odd lag and 1 at an even one, along a column always 1.
    """
    (root / "Class2" / "Train" / "0002.PNG").unlink()
    output = root.parent / "new" / "sheet.png"
    procedural_sheet.main(
        ["sheet", f"--root={root}", f"--output={output}", "--classes=2,9", "--num_images=2", "--rounds=1"]
    )
    printed = capsys.readouterr().out
    assert "| 2 real | 1 | 128 ± 0 | 128 | -1.00 1.00 1.00 1.00 | 1.00 1.00 1.00 1.00 |" in printed
    for name in ("2 procedural", "9 procedural"):
        assert f"| {name} | 2 |" in printed
    assert "9 real" not in printed and "images/s, averaged over these classes" in printed
    sheet = np.asarray(Image.open(output).convert("RGB"))
    first_row = sheet[20 : TILE_PX + 10]
    left, right = np.array_split(first_row[:, -2 * TILE_PX :], 2, axis=1)
    assert (right == 255).all(), "nothing real of class 9"
    assert left.std() > 0
    assert sheet.shape[0] > len(ROWS) * TILE_PX
    red = (sheet[..., 0] > 200) & (sheet[..., 1] < 90)
    assert red.any(), "no ellipse is drawn"


def test_detail_shows_the_defect_as_it_is() -> None:
    """Catches swapped coordinates, a scaled cut-out, and one that runs over the border."""
    image, mask = np.zeros((512, 512), np.uint8), np.zeros((512, 512), bool)
    image[480, 60] = 200
    mask[470:491, 50:71] = True
    cut = procedural_sheet.detail(Picture(image, mask))
    assert cut.shape == (TILE_PX, TILE_PX, 3)
    row, col, _ = np.argwhere(cut == 200)[0]
    assert (row, col) == (480 - (512 - TILE_PX), 60)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--root=/nowhere/at/all", r"`--root` \(=/nowhere/at/all\) must be a folder"),
        ("--classes=11", r"`--classes` \(=11\) must be of 1, 2"),
        ("--num_images=1", r"command line: .*num_images"),
        ("--colour=1", r"command line: .*colour"),
        ("stray", r"command line: 'stray' is not a flag"),
    ],
)
def test_mistakes_get_one_line(argument: str, message: str) -> None:
    """Catches a trace back for a mistyped flag."""
    with pytest.raises(UserError, match=message) as caught:
        procedural_sheet.main(["sheet", argument])
    assert "\n" not in str(caught.value)

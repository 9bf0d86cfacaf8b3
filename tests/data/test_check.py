"""The check of a folder: it finds what training finds, and says what is odd."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_run
from PIL import Image

from dagm_jax import cli
from dagm_jax.data.cache import build_cache
from dagm_jax.data.check import Findings, check_images
from dagm_jax.data.config import DataConfig
from dagm_jax.data.dataset import find_images
from dagm_jax.data.images.load import find_white, with_white
from dagm_jax.types import Photo


def check(root: Path) -> Findings:
    manifest, shape = find_images(DataConfig(root=str(root)), 0)
    photos = [one.image for one in manifest.samples if isinstance(one.image, Photo)]
    return check_images(manifest, with_white(manifest.samples, find_white(photos)), shape)


def mixed_folder(root: Path) -> Path:
    """Own images with a copy, a damaged one, a defect without a mask, an empty mask, a 16-bit image and a text."""
    small_run.write_own(root, num_good=6, num_defective=5)
    good = sorted((root / "good").iterdir())
    (root / "good" / "copy.png").write_bytes(good[0].read_bytes())
    (root / "good" / "cut.png").write_bytes(good[1].read_bytes()[:60])
    (root / "good" / "notes.txt").write_text("x")
    Image.fromarray(np.full((40, 50), 4000, np.uint16)).save(root / "good" / "deep.png")
    masks = sorted((root / "masks").iterdir())
    masks[0].unlink()
    Image.fromarray(np.zeros_like(np.asarray(Image.open(masks[1])))).save(masks[1])
    return root


def test_the_check_finds_what_training_finds(tmp_path: Path) -> None:
    """Would catch: a check that passes what training leaves out, or the reverse; a white level left untold."""
    root = mixed_folder(tmp_path / "own")
    manifest, shape = find_images(DataConfig(root=str(root)), 0)
    whole, cache = build_cache(manifest, tmp_path / "cache", shape)
    found = check(root)
    assert (found.samples, found.skipped, found.shapes) == (whole.samples, whole.skipped, cache.shapes)
    for i, share in enumerate(found.mask_shares):
        has_mask = whole.samples[i].label == 1 and whole.samples[i].mask is not None
        assert share == (pytest.approx(cache.mask(i).mean()) if has_mask else None)
    rows = dict(found.rows())
    assert rows["good images"] == "7" and rows["defective images"] == "4, 3 of them with masks"
    assert rows["white of 16-bit images"] == "4095" and rows["left out"] == "4"


def test_odd_sets_are_warned_of(tmp_path: Path) -> None:
    """Would catch: inverted masks that teach the whole part as defect, and one huge image, without a word."""
    root = small_run.write_own(tmp_path / "own", num_good=3, num_defective=3)
    assert "warning" not in dict(check(root).rows())
    for path in (root / "masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert "inverted" in dict(check(root).rows())["warning"]
    root = small_run.write_own(tmp_path / "more", num_good=3, num_defective=3)
    Image.fromarray(np.arange(400 * 500, dtype=np.uint32).astype(np.uint8).reshape(400, 500)).save(
        root / "good/x.png"
    )
    assert "times the pixels of the median" in dict(check(root).rows())["warning"]


def test_the_command_prints_it_and_draws_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch: a sheet of images of equal sizes alone, files left out in silence, and a set without a usable
    image that ends well."""
    root, sheet = mixed_folder(tmp_path / "own"), tmp_path / "sheet.png"
    assert cli.run(["data", f"--check={root}", f"--sheet={sheet}"]) == 0
    out = capsys.readouterr().out
    assert "folders good and defect" in out and "defective images" in out
    assert "left out: good/notes.txt: not an image file" in out
    with Image.open(sheet) as picture:
        assert picture.width > 4 * cli.SHEET_CELL_PX and picture.height > cli.SHEET_CELL_PX
    (tmp_path / "bad/good").mkdir(parents=True)
    (tmp_path / "bad/good/a.png").write_bytes(b"x")
    with pytest.raises(cli.UserError, match="no image can be used"):
        cli.run(["data", f"--check={tmp_path / 'bad'}", f"--sheet={sheet}"])

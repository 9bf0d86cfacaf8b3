"""Tests of the writer of layout A: what the reader of layouts and the published format say about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.data.images.load import load
from launch.prepare.procedural_images import write_split


def test_the_label_file_is_the_published_format_byte_for_byte(tmp_path: Path) -> None:
    """Would catch: LF, a missing first line or trailing tab, a mask named for a good image."""
    image = np.zeros((8, 8), np.uint8)
    write_split(tmp_path / "Train", [(1151, image, None), (1152, image, image > 1)])
    assert (tmp_path / "Train/Label/Labels.txt").read_bytes() == (
        b"1\r\n1151\t0\t1151.PNG\t0\t0\t\r\n1152\t1\t1152.PNG\t0\t1152_label.PNG\r\n"
    )


def test_what_is_written_is_read_back_pixel_for_pixel(tmp_path: Path) -> None:
    """Would catch: masks of 0 and 1, lossy images, numbers that the reader does not take."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 16, 16), np.uint8)
    mask = rng.random((16, 16)) < 0.3
    write_split(tmp_path / "Class4" / "Test", [(1, images[0], None), (2, images[1], mask)])
    write_split(tmp_path / "Class4" / "Train", [(3, images[2], ~mask)])
    manifest = read_tree(tmp_path, (4,))
    assert manifest.skipped == ()
    assert [(r.image_id, r.label, r.half) for r in manifest.samples] == [
        ("Class4/Train/0003", 1, "train"),
        ("Class4/Test/0001", 0, "test"),
        ("Class4/Test/0002", 1, "test"),
    ]
    for sample, image, expected in zip(
        manifest.samples, images[[2, 0, 1]], (~mask, mask & False, mask), strict=True
    ):
        found, found_mask = load(sample, None)
        np.testing.assert_array_equal(found, image)
        np.testing.assert_array_equal(found_mask, expected)

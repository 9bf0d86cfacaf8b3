"""The picture of one image's way: which strips it shows, that map and contour lie right, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dagm_jax import pipeline_figure
from dagm_jax.evaluation.predictor import Prediction
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.experiment import draw_pipeline
from dagm_jax.figures import RED
from dagm_jax.main import read_config
from dagm_jax.pipeline_figure import CONTOUR, GREEN, MAX_STRIPS, ImagePath, lay_out, plot_pipeline
from dagm_jax.trained_model import make_slicers

SIDE = 128


def make(defective: bool = True) -> ImagePath:
    """A dark image with a bright defect at the top right."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[10:30, 80:110] = True
    source = np.where(mask, 255, 40).astype(np.uint8)
    strips = np.stack([source[:, k : k + 16] for k in range(0, SIDE - 15, 8)])
    return ImagePath(source, np.rot90(source), strips, mask.astype(np.float32), mask, 0.9, 0.4, defective)


def num_near(path: Path, colour: str) -> int:
    """How many pixels lie near a colour "#rrggbb"."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    wanted = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
    return int(np.sum(np.all(np.abs(pixels - wanted) <= 12, axis=-1)))


def test_strips_are_spread_evenly_with_gaps() -> None:
    """Catches the first eight strips only, and strips that touch, which would look like the image."""
    strips = np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 10), np.uint8)
    row = lay_out(strips)[0]
    assert row.shape == (MAX_STRIPS * 10 + (MAX_STRIPS - 1) * 2,)
    assert row[~np.isnan(row)][::10].tolist() == [0, 4, 8, 12, 17, 21, 25, 29]
    assert np.isnan(row[10:12]).all()
    assert lay_out(strips[:1]).shape == (4, 10)


def test_a_right_verdict_is_green_and_a_wrong_one_red(tmp_path: Path) -> None:
    """Catches colours that follow the verdict instead of its truth."""
    right, wrong, good = tmp_path / "right.png", tmp_path / "wrong.png", tmp_path / "good.png"
    plot_pipeline(make(), right)
    plot_pipeline(make(defective=False), wrong, "an image")
    plot_pipeline(replace(make(defective=False), mask=np.zeros((SIDE, SIDE), bool)), good)
    for path, is_green in ((right, True), (wrong, False), (good, True)):
        assert (num_near(path, GREEN) > 100) == is_green and (num_near(path, RED) > 100) != is_green
        assert path.stat().st_size < 150_000
    assert num_near(right, CONTOUR) > num_near(good, CONTOUR) + 50


def test_an_even_map_is_dark(tmp_path: Path) -> None:
    """Catches a colour scale from minimum to maximum, which makes a found defect of the noise of a good image."""
    quiet = replace(make(), map=np.full((SIDE, SIDE), 0.01, np.float32), score=0.01, defective=False)
    plot_pipeline(quiet, tmp_path / "quiet.png")
    plot_pipeline(make(), tmp_path / "loud.png")
    # The bright end of "inferno"; each has it in its colour bar.
    assert num_near(tmp_path / "loud.png", "#FCFFA4") > num_near(tmp_path / "quiet.png", "#FCFFA4") + 500
    plot_pipeline(
        replace(quiet, map=np.zeros((SIDE, SIDE), np.float32), threshold=0.0), tmp_path / "zero.png"
    )


def test_shapes_are_checked() -> None:
    """Catches a map of another size stretched over its image, and a picture without strips."""
    with pytest.raises(ValueError, match=r"`map` \(64, 64\) must have the shape of `source` \(128, 128\)"):
        replace(make(), map=np.zeros((64, 64), np.float32))
    with pytest.raises(ValueError, match=r"`strips` \(0, 4, 4\) must be"):
        replace(make(), strips=np.zeros((0, 4, 4), np.uint8))


def test_strips_are_those_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: strips in the mirror images that judging alone shows, as if training saw them."""
    config = read_config("configs/custom_unet.py:segmentation,small", [])
    slicer, _ = make_slicers(config, SIDE, SIDE)
    assert slicer.mirrored
    shown: list[ImagePath] = []
    monkeypatch.setattr(pipeline_figure, "plot_pipeline", lambda image, path, title: shown.append(image))
    source = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    example = Prediction(source, source > 200, source / np.float32(255), 0.9, 0.1, 1, 1)
    draw_pipeline(example, Thresholds(0.4, 0.4, "f1"), slicer, config, tmp_path)
    (image,) = shown
    expected = [image.turned[:, left : left + slicer.slice_px] for left in slicer.vertical_edges]
    np.testing.assert_array_equal(image.strips, expected)

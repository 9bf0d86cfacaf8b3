"""Figures as files: valid, small, whole, without global state; what is drawn is checked by its pixels."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from dagm_jax.command_line import read_config
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.evaluation.predictor import Prediction
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.experiment.report import draw_pipeline
from dagm_jax.experiment.trained_model import make_slicers
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.types import GalleryItem
from dagm_jax.visualization import figures
from dagm_jax.visualization.figures import ImagePath

LABELS = [0] * 20 + [1] * 5
SCORES = [*np.linspace(1e-7, 0.1, 20), *np.linspace(0.6, 1.0, 5)]


plot_gallery = partial(figures.plot_gallery, pixel_threshold=0.5)


def _item(seed: int = 0, correct: bool = True, side_px: int = 512) -> GalleryItem:
    """White noise, which compresses worst, with an ellipse and a map above it."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side_px, :side_px] / side_px
    mask = ((rows - 0.4) / 0.1) ** 2 + ((columns - 0.6) / 0.2) ** 2 <= 1
    image = rng.integers(0, 256, mask.shape, dtype=np.uint8)
    return GalleryItem(image, mask.astype(np.float32), mask, f"{seed:04d} · score 0.9", correct)


def example(defective: bool = True) -> ImagePath:
    """A dark image with a bright defect at the top right."""
    mask = np.zeros((128, 128), bool)
    mask[10:30, 80:110] = True
    source = np.where(mask, 255, 40).astype(np.uint8)
    strips = np.stack([source[:, k : k + 16] for k in range(0, 113, 8)])
    return ImagePath(source, np.rot90(source), strips, mask * np.float32(1), mask, 0.9, 0.4, 0.5, defective)


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def _num_near(path: Path, colour: str) -> int:
    """How many pixels lie within 12 of a colour "#rrggbb" in each channel."""
    wanted = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
    return int(np.sum(np.all(np.abs(_pixels(path) - wanted) <= 12, axis=-1)))


def test_each_figure_is_a_png_in_a_new_folder(tmp_path: Path) -> None:
    """Would catch: a figure that is not written, is blank, or needs its folder made by hand."""
    folder = tmp_path / "figures" / "class1"
    history = [
        {"step": 0, "kind": "train", "loss": 1.0, "accuracy": 0.5},
        {"step": 10, "kind": "train", "loss": 0.5, "accuracy": 0.8},
        {"step": 10, "kind": "validation", "loss": 0.6, "accuracy": None},
    ]
    figures.plot_curves(history, folder / "curves.png")
    figures.plot_confusion(ImageCounts(3, 1, 2, 9), folder / "confusion.png", "class 1")
    figures.plot_roc_pr(LABELS, SCORES, folder / "roc.png")
    figures.plot_score_histogram(LABELS, SCORES, 0.3, str(folder / "scores.png"))
    figures.plot_pipeline(example(), folder / "pipeline.png", "title")
    plot_gallery([_item(side_px=64)], path=folder / "gallery.png")
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png", "curves.png", "gallery.png", "pipeline.png", "roc.png", "scores.png"
    ]  # fmt: skip
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and _pixels(path).std() > 5
        assert path.stat().st_size < 100_000


def test_no_global_state(tmp_path: Path) -> None:
    """Would catch: pyplot (figures that pile up, a display) and settings changed for the user's own plots."""
    code = (
        "import sys; from dagm_jax.visualization import figures; from dagm_jax.evaluation.metrics import ImageCounts;"
        "figures.plot_confusion(ImageCounts(1, 1, 1, 1), sys.argv[1], 't');"
        "assert 'matplotlib.pyplot' not in sys.modules and 'jax' not in sys.modules"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True, cwd=root)
    before = dict(matplotlib.rcParams)
    figures.plot_roc_pr(LABELS, SCORES, tmp_path / "roc.png")
    assert dict(matplotlib.rcParams) == before


def test_the_same_numbers_give_the_same_file(tmp_path: Path) -> None:
    """Would catch: a time stamp or a random draw in the picture: documents would change on every run."""
    for name in ("a.png", "b.png"):
        plot_gallery([_item(side_px=64)], path=tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_gallery_of_eight_is_small(tmp_path: Path) -> None:
    """Would catch: a gallery at full size: eight 512x512 images of white noise stay under 400 kB."""
    plot_gallery([_item(seed) for seed in range(8)], path=tmp_path / "gallery.png")
    assert (tmp_path / "gallery.png").stat().st_size < 400_000


def test_only_wrong_predictions_are_red(tmp_path: Path) -> None:
    """Would catch: frames on the right ones, and a palette that loses the frame's or the contour's colour."""
    right, wrong = tmp_path / "right.png", tmp_path / "wrong.png"
    blank = np.zeros((512, 512), np.float32)
    items = [replace(_item(seed), map=blank) for seed in range(2)]
    plot_gallery(items, path=right)
    plot_gallery([items[0], replace(items[1], correct=False)], path=wrong)
    assert _num_near(wrong, figures.RED) > _num_near(right, figures.RED) + 1000
    bare = tmp_path / "bare.png"
    plot_gallery([replace(item, mask=np.zeros_like(item.mask)) for item in items], path=bare)
    assert _num_near(right, "#56E0FF") > _num_near(bare, "#56E0FF") + 100


def test_map_and_contour_lie_where_the_mask_is(tmp_path: Path) -> None:
    """Would catch: rows and columns exchanged or a flipped axis: on black, only the mask is bright."""
    mask = np.zeros((512, 512), bool)
    mask[40:120, 300:480] = True
    item = GalleryItem(np.zeros((512, 512), np.uint8), mask.astype(np.float32), mask, "x", True)
    plot_gallery([item], path=tmp_path / "one.png")
    pixels = _pixels(tmp_path / "one.png")
    black = pixels.sum(axis=2) < 30
    # The two panels are the rows that are mostly black, left of the colour bar.
    rows = np.flatnonzero(black.mean(axis=1) > 0.2)
    columns = np.flatnonzero(black.mean(axis=0) > 0.6)
    start = rows[np.flatnonzero(np.diff(rows) > 1)[-1] + 1]
    panel = pixels[start : rows[-1], columns[0] : columns[-1]]
    lit_rows, lit_columns = np.nonzero(panel.sum(axis=2) > 500)
    height, width = panel.shape[:2]
    found = np.array([lit_rows.min() / height, lit_rows.max() / height,
                      lit_columns.min() / width, lit_columns.max() / width])  # fmt: skip
    np.testing.assert_allclose(found, np.array([40, 120, 300, 480]) / 512, atol=0.03)


def test_gallery_errors() -> None:
    """Would catch: items dropped silently, and a map of another size stretched over its image."""
    item = _item(side_px=64)
    for items in ([], [item] * 9):
        with pytest.raises(ValueError, match=rf"`items` \({len(items)}\) must be 1 to 8 images"):
            plot_gallery(items, path="never.png")
    with pytest.raises(ValueError, match=r"the map \(32, 32\) must have the size of its image"):
        plot_gallery([replace(item, map=np.zeros((32, 32), np.float32))], path="never.png")


@pytest.mark.filterwarnings("error")
def test_edges_of_the_score_histogram(tmp_path: Path) -> None:
    """Would catch: a failure on one class, on equal scores, on a threshold above 1, on residual scores."""
    cases = [
        ([0, 0], [0.0, 0.0], np.nextafter(1, 2)),
        ([1], [0.4], 0.4),
        ([0, 0, 1], [0.2, 0.21, 0.22], 0.215),
        ([0, 1], [3.0, 8.0], 5.0),
    ]
    for labels, scores, threshold in cases:
        figures.plot_score_histogram(labels, scores, float(threshold), tmp_path / "scores.png")


@pytest.mark.filterwarnings("error")
def test_curves_without_accuracy_or_rows(tmp_path: Path) -> None:
    """Would catch: a failure on the first log line of a run, and on a task that has no accuracy."""
    figures.plot_curves([], tmp_path / "curves.png")
    figures.plot_curves([{"step": 0, "kind": "train", "loss": 0.7}], tmp_path / "curves.png")


def test_roc_needs_both_classes(tmp_path: Path) -> None:
    """Would catch: an empty picture for a part without defects."""
    with pytest.raises(ValueError, match="must hold both classes"):
        figures.plot_roc_pr([0, 0], [0.1, 0.2], tmp_path / "roc.png")


def test_strips_are_spread_evenly_with_gaps() -> None:
    """Would catch: the first eight strips only, and strips that touch, which would look like the image."""
    strips = np.arange(30, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 10), np.uint8)
    row = figures.lay_out(strips)[0]
    assert row.shape == (figures.MAX_STRIPS * 10 + (figures.MAX_STRIPS - 1) * 2,)
    assert row[row < 255][::10].tolist() == [0, 4, 8, 12, 17, 21, 25, 29]
    assert (row[10:12] == 255).all()
    assert figures.lay_out(strips[:1]).shape == (4, 10)


def test_a_right_prediction_is_green_and_a_wrong_one_red(tmp_path: Path) -> None:
    """Would catch: colours that follow the prediction instead of its truth; a true defect without its outline."""
    right, wrong, good = tmp_path / "right.png", tmp_path / "wrong.png", tmp_path / "good.png"
    nothing = np.zeros((128, 128), bool)
    figures.plot_pipeline(example(), right, "an image")
    figures.plot_pipeline(example(defective=False), wrong, "an image")
    figures.plot_pipeline(replace(example(defective=False), mask=nothing), good, "an image")
    for path, is_green in ((right, True), (wrong, False), (good, True)):
        assert (_num_near(path, figures.GREEN) > 100) == is_green
        assert (_num_near(path, figures.RED) > 100) != is_green
        assert path.stat().st_size < 150_000
    assert _num_near(right, "#56E0FF") > _num_near(good, "#56E0FF") + 50


def test_an_even_map_has_no_tint(tmp_path: Path) -> None:
    """Would catch: a scale from minimum to maximum, which makes a found defect of the noise of a good image."""
    quiet = replace(example(), map=np.full((128, 128), 0.01, np.float32), score=0.01, defective=False)
    figures.plot_pipeline(quiet, tmp_path / "quiet.png", "")
    pixels = _pixels(tmp_path / "quiet.png")
    right_half = pixels[:, pixels.shape[1] * 3 // 5 : pixels.shape[1] * 4 // 5]
    assert np.sum(np.ptp(right_half, axis=-1) > 40) < 800, "the outline alone has a colour"


def test_strips_are_those_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: strips in the mirror images that inference alone shows, as if training saw them."""
    config = read_config("configs/custom_unet.py:segmentation,small", [])
    slicer, _ = make_slicers(config, 128, 128)
    assert slicer.mirrored
    shown: list[ImagePath] = []
    monkeypatch.setattr(figures, "plot_pipeline", lambda image, path, title: shown.append(image))
    source = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    prediction = Prediction(source, source > 200, source / np.float32(255), 0.9, 0.1, 1, 1)
    draw_pipeline(prediction, Thresholds(0.4, 0.4, "f1"), slicer, config, Workdir(tmp_path))
    (image,) = shown
    expected = [image.turned[:, left : left + slicer.slice_px] for left in slicer.vertical_edges]
    np.testing.assert_array_equal(image.strips, expected)

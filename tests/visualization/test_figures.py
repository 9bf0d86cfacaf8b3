"""Figures as files: valid, small, whole, without global state; what is drawn is checked by its pixels."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.types import GalleryItem
from dagm_jax.visualization import figures

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
    plot_gallery([_item(side_px=64)], path=folder / "gallery.png")
    assert sorted(path.name for path in folder.iterdir()) == [
        "confusion.png", "curves.png", "gallery.png", "roc.png"
    ]  # fmt: skip
    for path in folder.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and _pixels(path).std() > 5
        assert path.stat().st_size < 100_000


def test_no_global_state(tmp_path: Path) -> None:
    """Would catch: settings changed for the user's own plots; that nobody uses pyplot is in `test_architecture`."""
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
    with pytest.raises(ValueError, match=r"the map \(32, 32\) must have the size of its image"):
        plot_gallery([replace(item, map=np.zeros((32, 32), np.float32))], path="never.png")
    for items in ([], [item] * 9):
        with pytest.raises(ValueError, match=rf"`items` \({len(items)}\) must be 1 to 8 images"):
            plot_gallery(items, path="never.png")


@pytest.mark.filterwarnings("error")
def test_curves_without_accuracy_or_rows(tmp_path: Path) -> None:
    """Would catch: a failure on the first log line of a run, and on a task that has no accuracy."""
    figures.plot_curves([], tmp_path / "curves.png")
    figures.plot_curves([{"step": 0, "kind": "train", "loss": 0.7}], tmp_path / "curves.png")

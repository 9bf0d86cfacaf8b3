"""Tests of the published truth about DAGM 2007 and of the check of a folder against it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_dagm
from PIL import Image

from dagm_jax.data.config import DataConfig
from dagm_jax.data.dataset import find_images
from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.data.verify import Truth, check_pixels, check_whole, read_truth
from dagm_jax.errors import UserError
from dagm_jax.types import Ellipse, Sample

# The table of the data set's facts, by hand: (train images, defective, test images, defective).
COUNTS = {
    1: (575, 79, 575, 71),
    2: (575, 66, 575, 84),
    3: (575, 66, 575, 84),
    4: (575, 82, 575, 68),
    5: (575, 70, 575, 80),
    6: (575, 83, 575, 67),
    7: (1150, 150, 1150, 150),
    8: (1150, 150, 1150, 150),
    9: (1150, 150, 1150, 150),
    10: (1150, 150, 1150, 150),
}


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return read_truth(small_dagm.write_truth(tmp_path_factory.mktemp("truth") / "truth.json"))


def whole(root: Path, truth: Truth, class_id: int = 1) -> tuple[Sample, ...]:
    return check_whole(read_tree(root, (class_id,)), class_id, truth)


def test_the_shipped_table_has_the_published_counts() -> None:
    """Would catch: a table with a class swapped, cut off, or its splits exchanged (Test is the LOW half)."""
    table = read_truth()
    assert table.keys() == COUNTS.keys()
    for class_id, (num_train, train_defective, num_test, test_defective) in COUNTS.items():
        halves = (("Train", num_test + 1, num_train, train_defective), ("Test", 1, num_test, test_defective))
        for half, first, number, defective in halves:
            labels = {name: label for name, label in table[class_id].items() if f"/{half}/" in name}
            assert list(labels) == [f"Class{class_id}/{half}/{n:04d}" for n in range(first, first + number)]
            assert sum(labels.values()) == defective
    assert sum(len(images) for images in table.values()) == 16_100


def test_the_shipped_table_is_the_reference_list(real: Path) -> None:
    """Would catch: a number that changed on its way into the package."""
    reference = json.loads((real / "defective_index.json").read_text())
    for class_id, labels in read_truth().items():
        for split in ("train", "test"):
            defective = [
                int(name[-4:]) for name in labels if f"/{split.capitalize()}/" in name and labels[name]
            ]
            assert defective == reference[f"Class{class_id}"][f"{split}_defective"]


def test_layout_a_comes_out_in_order_under_official_ids(tmp_path: Path, truth: Truth) -> None:
    """Would catch: splits swapped, test before train, images lost."""
    samples = whole(small_dagm.layout_a(tmp_path), truth)
    assert [r.image_id for r in samples] == [
        *(f"Class1/Train/{n:04d}" for n in range(11, 23)),
        *(f"Class1/Test/{n:04d}" for n in range(1, 11)),
    ]
    assert {r.half for r in samples[:12]} == {"train"} and {r.half for r in samples[12:]} == {"test"}
    assert [int(r.image_id[-4:]) for r in samples if r.label] == [11, 14, 15, 16, 18, 21, 22, 2, 3, 5, 9]


def test_layout_b_is_refused(tmp_path: Path, truth: Truth) -> None:
    """Would catch: numbers of layout B taken for the official ones, so that images change their split."""
    small_dagm.save(tmp_path / "Class1" / "1.png", small_dagm.picture_of(1, 1))
    with pytest.raises(UserError, match=r"class 1 is there in layout B .* take layout A"):
        whole(tmp_path, truth)


def relabel(root: Path) -> None:
    """Image 14 loses its defect in the label file."""
    path = root / "Class1/Train/Label/Labels.txt"
    text = path.read_bytes().replace(b"14\t1\t0014.PNG\t0\t0014_label.PNG", b"14\t0\t0014.PNG\t0\t0\t")
    path.write_bytes(text)


def swap_splits(root: Path) -> None:
    folder = root / "Class1"
    (folder / "Train").rename(folder / "x")
    (folder / "Test").rename(folder / "Train")
    (folder / "x").rename(folder / "Test")


def add_stranger(root: Path) -> None:
    small_dagm.save(root / "Class1/Train/0023.PNG", small_dagm.picture_of(1, 3))
    with (root / "Class1/Train/Label/Labels.txt").open("ab") as file:
        file.write(b"23\t0\t0023.PNG\t0\t0\t\r\n")


@pytest.mark.parametrize(
    ("damage", "messages"),
    [
        (lambda root: (root / "Class1/Test/0004.PNG").unlink(), ["1 missing: Class1/Test/0004;"]),
        (
            lambda root: (root / "Class1/Train/Label/0015_label.PNG").unlink(),
            [
                "1 missing: Class1/Train/0015;",
                "left out: Class1/Train/0015.PNG (labelled defective, but Label/0015_label",
            ],
        ),
        (relabel, ["1 labelled otherwise: Class1/Train/0014 (is good, should be defective)"]),
        (add_stranger, ["1 not part of the data set: Class1/Train/0023"]),
        (swap_splits, ["22 not part of the data set: Class1/Train/0001", "22 missing", "and 17 more"]),
    ],
    ids=["image gone", "mask gone", "label changed", "image added", "splits swapped"],
)
def test_every_difference_is_one_line_that_names_the_files(
    tmp_path: Path, truth: Truth, damage: Callable[[Path], None], messages: list[str]
) -> None:
    """Would catch: a damaged class accepted as the data set, a list of thousands of names, a cause without files."""
    damage(small_dagm.layout_a(tmp_path))
    with pytest.raises(UserError, match="class 1 differs from the published data set") as caught:
        whole(tmp_path, truth)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    for message in messages:
        assert message in text


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("Class1/Test/0001.PNG", np.zeros((256, 512), np.uint8), "0001.PNG: size 256x512"),
        ("Class1/Test/0001.PNG", np.zeros((512, 512), np.uint16), "0001.PNG: 16-bit"),
        (
            "Class1/Test/Label/0002_label.PNG",
            np.full((512, 512), 254, np.uint8),
            "0002_label.PNG: mask holds 254",
        ),
        ("Class1/Test/Label/0002_label.PNG", np.zeros((512, 512), np.uint8), "mask is empty"),
        ("Class1/Test/Label/0002_label.PNG", np.zeros((9, 9), np.uint8), "0002_label.PNG: size 9x9"),
    ],
    ids=["size", "depth", "grey mask", "empty mask", "mask size"],
)
def test_pixels_that_are_not_as_published_are_named(
    tmp_path: Path, name: str, pixels: np.ndarray, message: str
) -> None:
    """Would catch: a redistribution that was scaled, converted or anti-aliased, passed off as the data set."""
    small_dagm.save(small_dagm.layout_a(tmp_path) / name, pixels)
    with pytest.raises(UserError, match=r"1 of 22 images differ") as caught:
        check_pixels(read_tree(tmp_path, (1,)).samples)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_many_bad_files_make_a_short_message(tmp_path: Path) -> None:
    """Would catch: a check that refuses official images, a message of a thousand lines, one of the first file alone."""
    samples = read_tree(small_dagm.layout_a(tmp_path), (1,)).samples
    check_pixels(samples)
    for number in range(1, 10):
        (tmp_path / f"Class1/Test/{number:04d}.PNG").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"9 of 22 images differ.*0001\.PNG.*and 4 more"):
        check_pixels(samples)


def test_half_of_real_class_8_is_no_data_set_but_fit_for_the_main_job(real: Path) -> None:
    """Would catch: a builder that calls part of a class the data set, and a main job that insists on whole ones."""
    manifest, _ = find_images(DataConfig(root=str(real), classes=(8,)), 0)
    assert len(manifest.samples) == 500
    with pytest.raises(UserError, match=r"1800 missing: Class8/Train/1151, .* and 1,795 more"):
        check_whole(manifest, 8, read_truth())


def test_real_masks_are_the_ellipses_of_the_same_rank_in_layout_b(real: Path) -> None:
    """Would catch: a wrong tie between A's numbers and B's names; masks and ellipses are independent files."""
    compared = 0
    for class_id in (1, 2, 3):
        rows = (real / "mpi_labels" / f"Class{class_id}_def.labels.txt").read_text().split("\n")
        ellipses = {row.split()[0]: row.split()[1:] for row in rows if row.strip()}
        labels = read_truth()[class_id]
        defective = sorted(int(name[-4:]) for name in labels if labels[name])
        for mask in (real / "samples" / f"Class{class_id}").rglob("*_label.PNG"):
            name = sorted(ellipses)[defective.index(int(mask.name[:4]))]
            ellipse = Ellipse(*(float(value) for value in ellipses[name]))
            np.testing.assert_array_equal(ellipse.rasterise((512, 512)), np.asarray(Image.open(mask)) > 0)
            compared += 1
    assert compared >= 5

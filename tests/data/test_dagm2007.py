"""Tests of the TFDS builder without TensorFlow: what goes in comes out, from folders and downloads, or is refused."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_dagm
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from shell import run_python

from dagm_jax.data.dagm2007.dagm2007_dataset_builder import Builder, box_of
from dagm_jax.data.verify import read_truth
from dagm_jax.errors import UserError

DUMMY_TRUTH = read_truth(small_dagm.DUMMY_DATA / "truth.json")


@pytest.fixture(autouse=True)
def _small_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Builder, "TRUTH", read_truth(small_dagm.write_truth(tmp_path / "truth.json")))


def prepare(data_dir: Path, config: str = "class1", source: Path | None = None, **options: Any) -> Builder:
    builder: Builder = tfds.builder(f"dagm2007/{config}", data_dir=data_dir)
    builder.download_and_prepare(
        file_format="array_record",
        download_config=tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False),
        **options,
    )
    return builder


def essence(example: dict[str, Any]) -> tuple[object, ...]:
    """An example as a value that can be compared."""
    arrays = (example[name].tobytes() for name in ("image", "mask", "ellipse_box"))
    return (*arrays, int(example["label"]), int(example["class_id"]), example["image_id"])


def everything(builder: Any) -> dict[str, list[tuple[object, ...]]]:
    return {
        half: [essence(example) for example in builder.as_data_source(half)] for half in ("train", "test")
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dagm.layout_a(tmp_path_factory.mktemp("layout_a"))


def test_each_image_comes_out_with_its_mask_label_number_and_box(tmp_path: Path, source: Path) -> None:
    """Would catch: halves swapped, masks of other images, boxes off by one or with x and y exchanged.

    Expected values are computed here from numbers alone: the grey value and the ellipse of an image tell its number.
    """
    prepare(tmp_path / "out", source=source)
    data = tfds.data_source("dagm2007/class1", data_dir=tmp_path / "out")
    assert {half: len(data[half]) for half in data} == {"train": 12, "test": 10}
    for half, first in (("train", 11), ("test", 1)):
        for place in range(len(data[half])):
            number = first + place
            found = data[half][place]
            assert found["image_id"] == f"Class1/{half.capitalize()}/{number:04d}".encode()
            assert found["class_id"] == 1
            assert found["label"] == int(number in small_dagm.DEFECTIVE)
            np.testing.assert_array_equal(found["image"][..., 0], small_dagm.picture_of(1, number))
            mask = small_dagm.mask_of(number) if found["label"] else np.zeros((512, 512), bool)
            assert found["mask"].dtype == np.uint8
            np.testing.assert_array_equal(found["mask"][..., 0], np.where(mask, 255, 0))
            rows, cols = np.nonzero(mask)
            box = [0, 0, 0, 0]
            if rows.size:
                box = [rows.min(), cols.min(), rows.max() + 1, cols.max() + 1]
            np.testing.assert_array_equal(found["ellipse_box"] * 512, np.float32(box))


def test_grey_images_in_another_mode_come_out_as_grey(tmp_path: Path) -> None:
    """Would catch: bytes of an RGB or palette PNG stored as they are, which TensorFlow and Pillow read differently."""
    small_dagm.layout_a(tmp_path / "in")
    path = tmp_path / "in/Class1/Test/0001.PNG"
    picture = Image.open(path)
    before = np.asarray(picture)
    picture.convert("RGB").save(path)
    builder = prepare(tmp_path / "out", source=tmp_path / "in")
    data = builder.as_data_source("test", decoders={"image": tfds.decode.SkipDecoding()})
    with Image.open(BytesIO(data[0]["image"])) as stored:
        assert stored.mode == "L"
        np.testing.assert_array_equal(np.asarray(stored), before)


def test_all_holds_the_classes_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: classes of the configuration `all` mixed up or left out. Runs on the builder's dummy data."""
    monkeypatch.setattr(Builder, "TRUTH", DUMMY_TRUTH)
    builder = prepare(tmp_path, "all", source=small_dagm.DUMMY_DATA)
    ids = [example["image_id"].decode() for example in builder.as_data_source("train")]
    assert ids == [f"Class{c}/Train/{n:04d}" for c in range(1, 11) for n in (3, 4, 5)]


def test_works_where_tensorflow_cannot_be_imported(tmp_path: Path, source: Path) -> None:
    """Would catch: a call that needs TensorFlow, hidden on machines that have it; and a missing registration."""
    code = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] == "tensorflow" else find(name, *rest)
import tensorflow_datasets as tfds
from dagm_jax.data.verify import read_truth
import dagm_jax.data.dagm2007 as package
package.Builder.TRUTH = read_truth(__import__("pathlib").Path({str(tmp_path / "truth.json")!r}))
builder = tfds.builder("dagm2007/class1", data_dir={str(tmp_path / "out")!r})
config = tfds.download.DownloadConfig(manual_dir={str(source)!r})
builder.download_and_prepare(file_format="array_record", download_config=config)
data = tfds.data_source("dagm2007/class1", data_dir={str(tmp_path / "out")!r}, split="test")
assert data[1]["label"] == 1 and data[1]["image"].shape == (512, 512, 1)
assert builder.info.redistribution_info.license == "CC BY 4.0" and "Wieler" in builder.info.citation
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 29)), min_size=1, max_size=12))
def test_the_box_is_the_smallest_that_holds_every_set_pixel(points: list[tuple[int, int]]) -> None:
    """Would catch: an upper edge off by one, rows and columns exchanged, height and width exchanged."""
    mask = np.zeros((20, 30), bool)
    for row, col in points:
        mask[row, col] = True
    box = box_of(mask)
    top, left, bottom, right = (
        round(value * size)
        for value, size in ((box.ymin, 20), (box.xmin, 30), (box.ymax, 20), (box.xmax, 30))
    )
    assert mask[top:bottom, left:right].sum() == mask.sum() == len(set(points))
    inner = mask[top:bottom, left:right]
    assert inner[0].any() and inner[-1].any() and inner[:, 0].any() and inner[:, -1].any()


def test_a_class_that_is_not_as_published_leaves_no_set(tmp_path: Path) -> None:
    """Would catch: a set that is written first and checked later; a builder that checks names alone."""
    small_dagm.layout_a(tmp_path / "in")
    small_dagm.save(tmp_path / "in/Class1/Test/Label/0002_label.PNG", np.full((512, 512), 177, np.uint8))
    with pytest.raises(UserError, match=r"0002_label\.PNG: mask holds 177"):
        prepare(tmp_path / "out", source=tmp_path / "in")
    (tmp_path / "in/Class1/Test/0004.PNG").unlink()
    with pytest.raises(UserError, match="1 missing: Class1/Test/0004"):
        prepare(tmp_path / "out", source=tmp_path / "in")
    assert not list((tmp_path / "out").rglob("*array_record*")) + list((tmp_path / "out").rglob("1.0.0"))


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose ClassN.zip the builder downloads, over HTTP from this machine."""
    folder = tmp_path / "web"
    folder.mkdir()
    with small_dagm.serve(folder) as url:
        monkeypatch.setattr(Builder, "URL", url)
        yield folder


@pytest.mark.parametrize("below", ["", "Class1"])
def test_a_download_gives_the_same_set_as_a_folder_and_is_kept(
    tmp_path: Path, source: Path, web: Path, below: str
) -> None:
    """Would catch: archives with or without a ClassN folder in them that come out empty; hundreds of megabytes
    downloaded again after every interruption."""
    small_dagm.zip_of(source / "Class1", web / "Class1.zip", source / below)
    expected = everything(prepare(tmp_path / "folder", source=source))
    assert everything(prepare(tmp_path / "one", download_dir=tmp_path / "downloads")) == expected
    (web / "Class1.zip").unlink()
    assert everything(prepare(tmp_path / "two", download_dir=tmp_path / "downloads")) == expected


def test_a_hostile_download_writes_nothing_outside(tmp_path: Path, web: Path) -> None:
    """Would catch: an extraction that was built but is not used."""
    with zipfile.ZipFile(web / "Class1.zip", "w") as archive:
        archive.writestr("../../../../evil.txt", "1")
    with pytest.raises(UserError, match="leads out of"):
        prepare(tmp_path / "out")
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_download_that_fails_says_what_to_do(tmp_path: Path, web: Path) -> None:
    """Would catch: TFDS's traceback in place of the address and a way out."""
    with pytest.raises(
        UserError, match=r"http://.*/Class1\.zip could not be downloaded \(.*404.*\); try again"
    ):
        prepare(tmp_path / "out")

"""Tests of reading prepared TFDS sets: the same manifest as on the folders they come from, or one line why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_dagm
import tensorflow_datasets as tfds

from dagm_jax.data.cache import build_cache, fingerprint
from dagm_jax.data.config import DataConfig
from dagm_jax.data.dagm2007.dagm2007_dataset_builder import Builder
from dagm_jax.data.dataset import find_images
from dagm_jax.data.formats.tfds_reader import prepared_versions, read_example
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import load
from dagm_jax.data.verify import read_truth
from dagm_jax.errors import UserError
from dagm_jax.types import Manifest, Stored

SHAPE = (512, 512)
SHARD = "dagm2007-train.array_record-00000-of-00001"


def write_set(data_dir: Path, config: str, source: Path, truth: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "TRUTH", read_truth(truth))
        builder = Builder(data_dir=data_dir, config=config)
        download_config = tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False)
        builder.download_and_prepare(file_format="array_record", download_config=download_config)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classes 1 and 8 in layout A."""
    root = tmp_path_factory.mktemp("source")
    return small_dagm.layout_a(small_dagm.layout_a(root, 1), 8)


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS data folder with class1 and class8, not to be changed."""
    root = tmp_path_factory.mktemp("whole")
    truth = small_dagm.write_truth(root / "truth.json", (1, 8))
    for config in ("class1", "class8"):
        write_set(root, config, source, truth)
    return root


@pytest.fixture
def prepared(whole: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "prepared"))


def find(root: Path, *classes: int) -> Manifest:
    return find_images(DataConfig(root=str(root), classes=classes or (8,)), 0)[0]


def essence(manifest: Manifest) -> list[tuple[object, ...]]:
    """The manifest without places."""
    return [(r.image_id, r.class_id, r.label, r.half, r.mask is None) for r in manifest.samples]


def test_a_set_gives_the_manifest_of_its_source(whole: Path, source: Path) -> None:
    """Would catch: order, ids, labels or splits that depend on where the images lie; a folder not recognised; of
    several classes those of one set alone, or in the order in which they were asked for."""
    manifest = find(whole)
    assert essence(manifest) == essence(find(source))
    assert manifest.skipped == ()
    what = f"DAGM 2007, prepared TFDS set, from {whole}: class 8: 22 images (11 defective); 0 skipped"
    assert manifest.description == what
    assert essence(find(whole, 8, 1)) == essence(find(source, 8, 1))


def test_pixels_are_those_of_the_source(whole: Path, source: Path, tmp_path: Path) -> None:
    """Would catch: masks of other records, and a path of decoding of its own for stored images."""
    manifest, cache = build_cache(find(whole), tmp_path / "a", SHAPE)
    expected, expected_cache = build_cache(find(source), tmp_path / "b", SHAPE)
    assert essence(manifest) == essence(expected)
    for i in range(len(manifest.samples)):
        for found, wanted in zip(cache[i], expected_cache[i], strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_records_are_read_alone_and_in_any_order(whole: Path) -> None:
    """Would catch: a stream in place of random access: wrong images when it is not read from the start."""
    stored = [sample.image for sample in find(whole).samples]
    for place in (21, 0, 12, 11, 5, 21):
        one = stored[place]
        assert isinstance(one, Stored)
        number = place + 11 if place < 12 else place - 11
        assert read_example(one)[0].image_id.endswith(f"/{number:04d}")


def test_a_class_can_come_from_the_set_of_all(tmp_path: Path) -> None:
    """Would catch: `all` ignored, or its classes not told apart."""
    write_set(tmp_path, "all", small_dagm.DUMMY_DATA, small_dagm.DUMMY_DATA / "truth.json")
    assert essence(find(tmp_path, 3, 10)) == essence(find(small_dagm.DUMMY_DATA, 3, 10))


def test_the_fingerprint_follows_the_shards(prepared: Path) -> None:
    """Would catch: decoded images of an old set taken for those of the one that replaced it."""
    before = fingerprint(find(prepared), SHAPE)
    assert fingerprint(find(prepared), SHAPE) == before
    shard = prepared / "dagm2007/class8/1.0.0" / SHARD
    data = shard.read_bytes()
    shard.write_bytes(data)
    assert fingerprint(find(prepared), SHAPE) != before


def test_a_record_that_is_another_image_than_the_manifest_says_is_left_out(whole: Path) -> None:
    """Would catch: the wrong mask trained on after a set was replaced under a running job."""
    sample = find(whole).samples[3]
    assert isinstance(sample.image, Stored)
    moved = replace(sample.image, index=4)
    with pytest.raises(BadImage, match=r"record 4 holds Class8/Train/0015"):
        load(replace(sample, image=moved, mask=moved), SHAPE)


def test_other_folders_are_not_taken_for_prepared_sets(tmp_path: Path, source: Path) -> None:
    """Would catch: plain folders, perhaps named dagm2007, that no longer work as data.root."""
    (tmp_path / "dagm2007").symlink_to(source)
    for root in (tmp_path, tmp_path / "dagm2007", source / "Class8", tmp_path / "nowhere"):
        assert not prepared_versions(root)


def edit_info(folder: Path, **values: object) -> None:
    path = folder / "dataset_info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(data[: len(data) // 2])


def flip(folder: Path) -> None:
    """One bit in the middle of what is not padding."""
    data = bytearray((folder / SHARD).read_bytes())
    written = np.flatnonzero(np.frombuffer(bytes(data), np.uint8))
    data[written[written.size // 2]] ^= 1
    (folder / SHARD).write_bytes(data)


def as_another_version(folder: Path) -> None:
    edit_info(folder, version="2.0.0")
    folder.rename(folder.with_name("2.0.0"))


def interrupt(folder: Path) -> None:
    """The leftovers of kill -9 while a set is written."""
    (folder / "dataset_info.json").unlink()
    folder.rename(folder.with_name("incomplete.AB12CD_1.0.0"))


REMEDY = "; prepare it again with dagm-jax prepare"
EXPECTED = "not dagm2007 1.0.0 array_record"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "dataset_info.json").unlink(), "dataset_info.json"),
        (lambda f: (f / "dataset_info.json").write_text("{"), "is damaged or foreign: "),
        (lambda f: (f / "dataset_info.json").write_text("[" * 200_000), "is damaged or foreign: "),
        (lambda f: (f / "features.json").unlink(), "is damaged or foreign: "),
        (lambda f: (f / SHARD).unlink(), SHARD),
        (cut, "is damaged or foreign: "),
        (flip, "is damaged or foreign: "),
        (as_another_version, "holds 2.0.0: half-written, or not of version 1.0.0"),
        (lambda f: edit_info(f, version="2.0.0"), f"holds dagm2007 2.0.0 array_record, {EXPECTED}"),
        (interrupt, "holds incomplete.AB12CD_1.0.0: half-written"),
        (lambda f: edit_info(f, name="mnist"), f"holds mnist 1.0.0 array_record, {EXPECTED}"),
        (lambda f: edit_info(f, fileFormat="tfrecord"), f"holds dagm2007 1.0.0 tfrecord, {EXPECTED}"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_one_line(prepared: Path, damage: Callable[[Path], None], message: str) -> None:
    """Would catch: half a set trained on, and the traceback of a library in place of what to do."""
    damage(prepared / "dagm2007/class8/1.0.0")
    with pytest.raises(UserError) as caught:
        find(prepared)
    text = str(caught.value)
    assert text.startswith(f"`data.root` (={prepared}): dagm2007/class8")
    assert message in text and text.endswith(REMEDY) and "\n" not in text


def test_other_versions_beside_the_readable_one_are_passed_over(prepared: Path) -> None:
    """Would catch: a later, unreadable version, or a half-written one, that hides the one that can be read."""
    config = prepared / "dagm2007/class8"
    for version in ("2.0.0", "incomplete.AB12CD_1.0.0"):
        shutil.copytree(config / "1.0.0", config / version)
    image = find(prepared).samples[0].image
    assert isinstance(image, Stored) and image.folder.name == "1.0.0"


def test_a_class_that_is_not_there_is_named_with_those_that_are(whole: Path) -> None:
    """Would catch: an empty manifest, or a search for Class3 in the folder of TFDS."""
    with pytest.raises(UserError, match=r"`data\.classes` \(=3\).* prepared sets class1, class8 alone"):
        find(whole, 3)

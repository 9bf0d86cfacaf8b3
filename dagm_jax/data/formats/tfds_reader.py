"""Prepared TFDS sets of DAGM 2007 (``DIR/dagm2007/class8/1.0.0``) -> a manifest, and single records by their number.

The only reader of TFDS's files. tensorflow_datasets is imported when a set is read, TensorFlow never.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from dagm_jax.data.formats.listing import SPLITS, make_dagm_manifest, root_error
from dagm_jax.errors import UserError, printable
from dagm_jax.types import Manifest, Sample, Stored

DATASET_NAME = "dagm2007"
VERSION = "1.0.0"
LABELS = ("good", "defective")
_CLASSES = tuple(range(1, 11))
# Configuration -> the classes in it.
CONFIGS = {f"class{class_id}": (class_id,) for class_id in _CLASSES} | {"all": _CLASSES}

INFO_FILE = "dataset_info.json"
INCOMPLETE = "incomplete."  # how TFDS begins the name of a folder that it is writing
_SHARDS = "*.array_record-*"
# Folders such as 1.0.0, and incomplete.AB12CD_1.0.0 of one that is being written.
_VERSIONS = "*.[0-9]*.[0-9]*"


def read_prepared(root: Path, classes: tuple[int, ...]) -> Manifest:
    """The manifest of the classes in the TFDS data folder ``root``: images, ids, labels, splits and order as
    ``read_tree`` gives them for layout A.

    Labels and ids are read from the records; nothing is decoded. A class comes from its own configuration, or from
    ``all``. Raises UserError for sets that are not there, not whole, of another version, or in another file format.
    """
    sets = {class_id: _find_set(root, class_id) for class_id in sorted(classes)}
    found = {folder: _read_records(root, folder) for folder in set(sets.values())}
    samples: list[Sample] = []
    for class_id, folder in sets.items():
        own = [sample for sample in found[folder] if sample.class_id == class_id]
        if not own:
            raise _damage(root, folder, f"holds no image of class {class_id}")
        samples += own
    return make_dagm_manifest("prepared TFDS set", root, samples, ())


def prepared_versions(root: Path) -> dict[str, list[str]]:
    """Configuration -> names of its versions, half-written ones among them, of those that ``root`` holds prepared."""
    folders = {name: (root / DATASET_NAME / name).glob(_VERSIONS) for name in CONFIGS}
    found = {name: sorted(folder.name for folder in below) for name, below in folders.items()}
    return {name: versions for name, versions in found.items() if versions}


def _find_set(root: Path, class_id: int) -> Path:
    """The folder of the version that the class is read from; raises UserError where there is none."""
    found = prepared_versions(root)
    for name in (f"class{class_id}", "all"):
        if name in found:
            folder = root / DATASET_NAME / name
            if VERSION in found[name]:
                return folder / VERSION
            versions = ", ".join(found[name])
            raise _damage(root, folder, f"holds {versions}: half-written, or not of version {VERSION}")
    raise UserError(
        f"`data.classes` (={class_id}): `data.root` (={printable(root)}) holds the prepared sets"
        f" {', '.join(found)} alone; choose a class of these, or prepare it with dagm-jax prepare --classes={class_id}"
    )


def _damage(root: Path, folder: Path, what: str) -> UserError:
    name = printable(folder.relative_to(root))
    return root_error(root, f": {name} {printable(what)}; prepare it again with dagm-jax prepare")


def _read_records(root: Path, folder: Path) -> list[Sample]:
    """The records of a set by class, then train before test, then place; raises UserError for a damaged set."""
    found: list[Sample] = []
    try:
        for split in SPLITS:
            with _one_line_errors():
                length = len(_open(folder, split, _stamp(folder)))
            found += [read_example(Stored(folder, split, index))[0] for index in range(length)]
    except ValueError as error:
        raise _damage(root, folder, f"is damaged or foreign: {error}") from error
    return sorted(found, key=lambda sample: sample.class_id)  # stable: splits and places stay in order


def read_example(stored: Stored) -> tuple[Sample, bytes, bytes]:
    """The record as a sample, its image and its mask as PNG bytes.

    Raises ValueError, of one line, where it cannot be read.
    """
    with _one_line_errors():
        found = _open(stored.folder, stored.split, _stamp(stored.folder))[stored.index]
        name, class_id = found["image_id"].decode(), int(found["class_id"])
        is_defective = bool(int(found["label"]))
        mask = stored if is_defective else None
        sample = Sample(name, class_id, 1 if is_defective else 0, stored.split, stored, mask)
        return sample, found["image"], found["mask"]


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Raises ValueError for the errors of damaged files, which libraries raise as anything up to protobuf's own."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def shards(folder: Path) -> list[Path]:
    """The files that hold the records of the set in ``folder``."""
    return sorted(folder.glob(_SHARDS))


def _stamp(folder: Path) -> int:
    """Changes when a set is written anew, so that no reader of the old files is kept."""
    return (folder / INFO_FILE).stat().st_mtime_ns


@lru_cache(maxsize=32)
def _open(folder: Path, split: str, stamp: int) -> Any:
    """Random access to the records of a split: ``len`` and ``[index]``, by several threads at once."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(folder)
    info = builder.info
    found = (info.name, str(info.version), info.file_format.value)
    expected = (DATASET_NAME, VERSION, "array_record")
    if found != expected:
        raise ValueError(f"holds {' '.join(found)}, not {' '.join(expected)}")
    skip = {name: tfds.decode.SkipDecoding() for name in ("image", "mask")}
    return builder.as_data_source(split, decoders=skip)

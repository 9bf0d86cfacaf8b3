"""Prepared TFDS sets of DAGM 2007 (``…/dagm2007/class8/1.0.0``): where they are, what is in them, one record of one.

The only reader of TFDS's files. tensorflow_datasets is imported when a set is read, TensorFlow never. Records are
read one at a time, by their number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from dagm_jax.data.layouts import printable
from dagm_jax.types import Manifest, Record, Stored, UserError, load_json

DATASET_NAME = "dagm2007"
VERSION = "1.0.0"
LABELS = ("good", "defective")
_CLASSES = tuple(range(1, 11))
# Configuration -> the classes in it.
CONFIGS = {f"class{class_id}": (class_id,) for class_id in _CLASSES} | {"all": _CLASSES}

INFO_FILE = "dataset_info.json"
INCOMPLETE = "incomplete."  # how TFDS begins the name of a folder that it is writing
_VERSION_NAME = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+", re.ASCII)
_SHARDS = "*.array_record-*"
_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
_REMEDY = "prepare it again with python -m launch.prepare_data"


@dataclass(frozen=True, slots=True)
class Example:
    """One record as it is stored: image and mask as PNG bytes."""

    image: bytes
    mask: bytes
    label: Literal[0, 1]
    class_id: int
    image_id: str


def is_prepared(root: Path) -> bool:
    """Whether ``root`` is meant as a prepared set: the folder of a version, configuration, data set, or all sets."""
    try:
        return bool(_configs(root))
    except OSError:  # a folder that cannot be listed is none; who reads it says why
        return False


def read_prepared(root: Path, classes: tuple[int, ...]) -> Manifest:
    """The manifest of the classes in the prepared sets at ``root``: the same images, ids, labels, halves and order
    as ``read_tree`` gives for layout A.

    Labels and ids are read from the records, one at a time; nothing is decoded. A class comes from its own
    configuration, or from ``all``. Raises UserError for sets that are not there, not whole, of another version, or
    not in the format array_record.
    """
    sets = {class_id: _folder_of(root, class_id) for class_id in classes}
    found = {folder: list(_records(root, folder)) for folder in dict.fromkeys(sets.values())}
    records, parts = [], []
    for class_id in sorted(sets):
        own = [record for record in found[sets[class_id]] if record.class_id == class_id]
        if not own:
            raise _damage(root, sets[class_id], f"holds no image of class {class_id}")
        records += own
        defective = sum(record.label for record in own)
        parts.append(f"class {class_id}: {len(own)} images ({defective} defective)")
    description = f"DAGM 2007, prepared TFDS set, from {printable(root)}: {'; '.join(parts)}; 0 skipped"
    return Manifest(tuple(records), (), description)


# --- which sets there are ---


def _configs(root: Path) -> dict[str, Path]:
    """Configuration -> its folder, or the folder of one version of it where ``root`` is that."""
    if _is_version(root):
        return {root.resolve().parent.name: root}
    if _is_config(root):
        return {root.resolve().name: root}
    for folder in (root, root / DATASET_NAME):
        inner = {name: folder / name for name in CONFIGS if _is_config(folder / name)}
        if inner:
            return inner
    return {}


def _is_version(folder: Path) -> bool:
    """Whether the folder is one version of a set, whole or not."""
    if (folder / INFO_FILE).is_file() or (folder / "features.json").is_file():
        return True
    return folder.is_dir() and any(folder.glob(_SHARDS))


def _is_config(folder: Path) -> bool:
    """Whether the folder holds versions of a set, whole or not."""
    return folder.is_dir() and any(
        child.is_dir() and (_VERSION_NAME.fullmatch(child.name) or child.name.startswith(INCOMPLETE))
        for child in folder.iterdir()
    )


def _folder_of(root: Path, class_id: int) -> Path:
    """The folder of the version that the class is read from."""
    configs = _configs(root)
    if _is_version(root):
        (name,) = configs
        if class_id in CONFIGS.get(name, (class_id,)):
            return _checked(root, root)
    else:
        for name in (f"class{class_id}", "all"):
            if name in configs:
                return _checked(root, _newest(root, configs[name]))
    raise UserError(
        f"`data.classes` (={class_id}): `data.root` (={printable(root)}) holds the prepared sets"
        f" {', '.join(map(printable, configs))} alone; choose a class of these, or prepare it with"
        f" python -m launch.prepare_data --classes={class_id}"
    )


def _newest(root: Path, config: Path) -> Path:
    """The folder of the newest version in a configuration's folder that can be read here."""
    names = [child.name for child in config.iterdir()]
    versions = [name for name in names if _VERSION_NAME.fullmatch(name)]
    fitting = [name for name in versions if _major(name) == _major(VERSION)]
    if fitting:
        return config / max(fitting, key=lambda name: [int(part) for part in name.split(".")])
    if versions:
        raise _damage(root, config, f"holds version {', '.join(sorted(versions))}, {_versions_read()}")
    raise _damage(root, config, "holds a set whose writing was interrupted, and no whole one")


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _versions_read() -> str:
    return f"of which {_major(VERSION)}.x.x is read here"


def _damage(root: Path, folder: Path, what: str) -> UserError:
    where = "" if folder == root else f": {printable(folder.relative_to(root))}"
    return UserError(f"`data.root` (={printable(root)}){where} {printable(what)}; {_REMEDY}")


def _checked(root: Path, folder: Path) -> Path:
    """``folder``, whose description says that it is a whole set of ours that can be read here."""
    info = _info(root, folder)
    if info.get("name") != DATASET_NAME:
        raise _damage(root, folder, f"holds the data set {info.get('name')!r}, not {DATASET_NAME}")
    version = str(info.get("version"))
    if not _VERSION_NAME.fullmatch(version) or _major(version) != _major(VERSION):
        raise _damage(root, folder, f"holds version {version}, {_versions_read()}")
    if info.get("fileFormat") != "array_record":
        raise _damage(root, folder, f"is written as {info.get('fileFormat')}, not as array_record")
    return folder


def _info(root: Path, folder: Path) -> Mapping[str, Any]:
    try:
        info = load_json(folder / INFO_FILE)
    except FileNotFoundError:
        raise _damage(root, folder, f"is not whole: it has no {INFO_FILE}") from None
    except (OSError, ValueError) as error:
        raise _damage(root, folder, f"is damaged: {INFO_FILE} cannot be read ({error})") from error
    if not isinstance(info, dict):
        raise _damage(root, folder, f"is damaged: {INFO_FILE} is no object")
    return info


# --- what is in a set ---


def _records(root: Path, folder: Path) -> Iterator[Record]:
    """The records of a set by class, then train before test, then place."""
    found: list[Record] = []
    for split in _SPLITS:
        try:
            length = _count(folder, split)
            for index in range(length):
                stored = Stored(folder, split, index)
                example = read_example(stored)
                mask = stored if example.label else None
                found.append(Record(example.image_id, example.class_id, example.label, split, stored, mask))
        except ValueError as error:
            raise _damage(root, folder, f"is damaged: split {split}: {error}") from error
    yield from sorted(found, key=lambda record: record.class_id)  # stable: splits and places stay in order


def _count(folder: Path, split: str) -> int:
    """The number of records of a split; raises ValueError where a shard is missing or cut off."""
    for instruction in _builder(folder, _stamp(folder)).info.splits[split].file_instructions:
        shard = Path(instruction.filename)
        if not shard.is_file():
            raise ValueError(f"{shard.name} is missing")
        found, expected = _records_in(shard), instruction.examples_in_shard
        if found != expected:
            raise ValueError(f"{shard.name} holds {found} records, expected {expected}")
    return len(_source(folder, split, _stamp(folder)))


def _records_in(shard: Path) -> int:
    """The number of records that the file says it has; raises ValueError where its end is cut off."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(shard))
        count: int = reader.num_records()
        reader.close()
    except Exception as error:  # the library's own, without a common type or a text
        raise ValueError(f"{shard.name} is cut off or no ArrayRecord") from error
    return count


def read_example(stored: Stored) -> Example:
    """The record's features, undecoded. Raises ValueError, of one line, where it cannot be read."""
    try:
        found = _source(stored.folder, stored.split, _stamp(stored.folder))[stored.index]
        return Example(
            image=found["image"],
            mask=found["mask"],
            label=1 if int(found["label"]) else 0,
            class_id=int(found["class_id"]),
            image_id=found["image_id"].decode(),
        )
    except MemoryError:
        raise
    except Exception as error:  # readers of damaged files raise anything from IndexError to protobuf's own
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def shards(folder: Path) -> list[Path]:
    """The files that hold the records of the set in ``folder``."""
    return sorted(folder.glob(_SHARDS))


def _stamp(folder: Path) -> int:
    """Changes when a set is written anew, so that no reader of the old files is kept."""
    return (folder / INFO_FILE).stat().st_mtime_ns


@lru_cache(maxsize=16)
def _builder(folder: Path, stamp: int) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # whatever TFDS makes of files that it did not write so
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())) from error


@lru_cache(maxsize=32)
def _source(folder: Path, split: str, stamp: int) -> Any:
    """Random access to the records of a split: ``len`` and ``[index]``, by several threads at once."""
    import tensorflow_datasets as tfds

    skip = {name: tfds.decode.SkipDecoding() for name in ("image", "mask")}
    return _builder(folder, stamp).as_data_source(split, decoders=skip)

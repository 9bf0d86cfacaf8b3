"""From a user's own images to a manifest, in one of three conventions; no pixels are read here.

MVTec: ``train/good``, ``test/good``, ``test/<defect>``, and masks ``ground_truth/<defect>/<stem>_mask.png``.
Plain: ``good/`` and ``defect/``, and masks ``masks/<stem>`` or ``masks/<stem>_mask`` where there are any.
CSV: a file with the columns ``path,label`` and, where wanted, ``mask,split``; paths are relative to the file's folder.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from dagm_jax.data.formats.dagm_layouts import Entry, list_folder
from dagm_jax.data.layouts import printable
from dagm_jax.types import Manifest, Photo, Record, Skip, UserError, nearest

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
GOOD = "good"
_COLUMNS = ("path", "label", "mask", "split")
_LABELS: dict[str, Literal[0, 1]] = {"0": 0, "good": 0, "1": 1, "defective": 1}
_HALVES: dict[str, Literal["train", "test"] | None] = {"": None, "train": "train", "test": "test"}
# Users' images are of one kind: DAGM's numbers of textures mean nothing to them.
CLASS_ID = 1

Half = Literal["train", "test"] | None


def reader_of(root: Path) -> Callable[[Path], Manifest] | None:
    """The function that reads the convention in which ``root`` holds a user's images; None if it is none of them."""
    if root.suffix.lower() == ".csv" and root.is_file():
        return read_csv
    if (root / "train" / GOOD).is_dir():
        return read_mvtec
    if (root / GOOD).is_dir() and (root / "defect").is_dir():
        return read_plain
    return None


def read_mvtec(root: Path) -> Manifest:
    """The manifest of an MVTec category: the images of train, then of test, by defect and name.

    A defective image without its mask is there without one. Raises UserError where there is no usable image, and for a
    folder named good in other letters.
    """
    found = _Found(root)
    truth = root / "ground_truth"
    masks = {entry.name: _masks(entry.path, "_mask") for entry in _folders(truth, found)}
    halves: tuple[Literal["train", "test"], ...] = ("train", "test")
    folders = [(half, folder) for half in halves for folder in _folders(root / half, found)]
    for half, folder in folders:
        # By its name a kind of defect, which would make all of its images defective.
        if folder.name != GOOD and folder.name.strip().lower() == GOOD:
            name = printable(folder.name)
            raise UserError(
                f"`data.root` (={printable(root)}): {half}/{name} would be a defect named {name}, as folders of good "
                f"images are named {GOOD!r}; rename it, or move its images into {half}/{GOOD}"
            )
    kinds = [folder.name for _, folder in folders if folder.name != GOOD]
    for kind in kinds:
        if kinds.count(kind) > 1 and masks.get(kind):
            name = printable(kind)
            raise UserError(
                f"`data.root` (={printable(root)}): train/{name} and test/{name} share the masks of "
                f"ground_truth/{name}; move the images into one of them, or give a CSV table"
            )
    # Masks of good images have to be empty, which decoding looks after; MVTec's training images have none.
    has_good = any(half == "test" and folder.name == GOOD for half, folder in folders)
    for half, folder in folders:
        own = {} if (half, folder.name) == ("train", GOOD) else masks.get(folder.name, {})
        found.add_folder(folder.path, 0 if folder.name == GOOD else 1, half, own)
    for kind in sorted(masks.keys() - set(kinds) - ({GOOD} if has_good else set())):
        found.skip(truth / kind, "masks without a folder of images of this name")
    return found.manifest("MVTec layout")


def read_plain(root: Path) -> Manifest:
    """The manifest of ``good/`` and ``defect/``, in this order, by name; masks as in `read_mvtec`."""
    found = _Found(root)
    masks = _masks(root / "masks", "_mask")
    good, defective = (
        {Path(entry.name).stem for entry in list_folder(root / name)} for name in (GOOD, "defect")
    )
    # A mask is its defective image's; one of a good image alone has to be empty, which decoding looks after.
    of_good = {stem: paths for stem, paths in masks.items() if stem in good - defective}
    found.add_folder(root / GOOD, 0, None, of_good)
    found.add_folder(root / "defect", 1, None, {s: paths for s, paths in masks.items() if s not in of_good})
    return found.manifest("folders good and defect")


def read_csv(path: Path) -> Manifest:
    """The manifest of a CSV file in the order of its rows.

    label: 0, good, 1 or defective; mask and split may be empty; split: train or test, for ``data.split=official``.
    Rows that name a file for the second time are left out, and told as leakage where the first is of the other half.
    Raises UserError for a table that means nothing, and for two rows of a file that contradict each other.
    """
    found = _Found(path.parent)
    # By what it leads to: of two names of one file each could bring a label of its own.
    seen: dict[str, tuple[int, dict[str, object], str]] = {}
    for line, row in _rows(path):
        label, half = row["label"].lower(), row["split"].lower()
        for column, value, known in (("label", label, _LABELS), ("split", half, _HALVES)):
            if value not in known:
                choices = ", ".join(word for word in known if word)
                raise _bad_row(
                    path, line, f"{column} {row[column]!r} must be of {choices}{nearest(value, known)}"
                )
        if not row["path"]:
            raise _bad_row(path, line, "path is empty")
        image = path.parent / row["path"]
        file = os.path.realpath(image)
        mask = path.parent / row["mask"] if row["mask"] else None
        said: dict[str, object] = {"label": _LABELS[label], "mask": mask and os.path.realpath(mask)}
        first, said_first, half_first = seen.setdefault(file, (line, said, half))
        for column, told in said.items():
            if told != said_first[column]:
                raise _bad_row(
                    path, line, f"{column} {row[column]!r}, but line {first} gives that file another"
                )
        if first == line:
            found.add(row["path"], image, _LABELS[label], _HALVES[half], mask)
        else:
            found.skips.append(
                _skip_row(printable(f"{path.name}:{line}"), f"same file as line {first}", half_first, half)
            )
    return found.manifest(f"table {path.name}")


def _skip_row(name: str, same: str, first_half: str, half: str) -> Skip:
    """What is said of a row that names the same file as an earlier one, whose half may be the other."""
    if {first_half, half} == {"train", "test"}:
        told = f"leakage: {same} of the {first_half} half, and is itself of the {half} half; left out here"
        return Skip(name, told, leaks=True)
    return Skip(name, same)


class _Found:
    """Records and skips so far, under one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.records: list[Record] = []
        self.skips: list[Skip] = []

    def add(self, name: str, image: Path, label: Literal[0, 1], half: Half, mask: Path | None) -> None:
        """One image under its name, which is unique."""
        photo, mask_photo = Photo(image), Photo(mask) if mask else None
        self.records.append(Record(printable(name), CLASS_ID, label, half, photo, mask_photo))

    def add_folder(
        self, folder: Path, label: Literal[0, 1], half: Half, masks: dict[str, list[Path]]
    ) -> None:
        """The images of a folder, each with its mask; notes what is neither an image nor a mask of one."""
        stems = set()
        for entry in list_folder(folder):
            if not entry.is_file or not _is_image(entry):
                self.skip(
                    entry.path,
                    "not an image file" if entry.is_file else "not a file; images lie one level up",
                )
                continue
            stem = Path(entry.name).stem
            stems.add(stem)
            own = masks.get(stem, [])
            if len(own) > 1:
                self.skip(entry.path, f"has {len(own)} masks: {', '.join(mask.name for mask in own)}")
                continue
            self.add(self._relative(entry.path), entry.path, label, half, own[0] if own else None)
        for stem in sorted(masks.keys() - stems):
            for mask in masks[stem]:
                self.skip(mask, "mask without its image")

    def skip(self, path: Path, reason: str) -> None:
        self.skips.append(Skip(printable(self._relative(path)), reason))

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def manifest(self, convention: str) -> Manifest:
        """What was found; raises UserError if that is no image."""
        root = printable(self.root)
        if not self.records:
            first = f"; the first of {len(self.skips)} left out: {self.skips[0].what}" if self.skips else ""
            raise UserError(
                f"`data.root` (={root}), {convention}, holds no image ({', '.join(SUFFIXES)}){first}; add images"
            )
        defective = [record for record in self.records if record.label]
        masked = sum(record.mask is not None for record in defective)
        description = (
            f"own images, {convention}, from {root}: {len(self.records)} images "
            f"({len(defective)} defective, {masked} of them with masks); {len(self.skips)} skipped"
        )
        return Manifest(tuple(self.records), tuple(self.skips), description)


def _folders(half: Path, found: _Found) -> list[Entry]:
    """The folders in train or test; notes files beside them. Nothing where there is no such half."""
    if not half.is_dir():
        return []
    entries = list_folder(half)
    for entry in entries:
        if not entry.is_dir:
            found.skip(entry.path, "not in a folder that says what it shows, such as good")
    return [entry for entry in entries if entry.is_dir]


def _masks(folder: Path, ending: str) -> dict[str, list[Path]]:
    """Stem of an image → its masks in the folder, whose names may end with ``ending``."""
    masks: dict[str, list[Path]] = {}
    for entry in list_folder(folder) if folder.is_dir() else []:
        if entry.is_file and _is_image(entry):
            masks.setdefault(Path(entry.name).stem.removesuffix(ending), []).append(entry.path)
    return masks


def _is_image(entry: Entry) -> bool:
    return entry.path.suffix.lower() in SUFFIXES


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column → text without surrounding blanks) of each row; raises UserError for another table."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.reader(stream, strict=True)
            header = [name.strip().lower() for name in next(table, [])]
            _check_header(path, header)
            for row in table:
                if not any(map(str.strip, row)):
                    continue
                if len(row) != len(header):
                    raise _bad_row(path, table.line_num, f"{len(row)} fields, expected {len(header)}")
                values = dict.fromkeys(_COLUMNS, "") | dict(zip(header, map(str.strip, row), strict=True))
                if any("\0" in value for value in values.values()):
                    raise _bad_row(path, table.line_num, "holds a NUL character")
                yield table.line_num, values
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(
            f"`data.root` (={printable(path)}) cannot be read as a CSV table in UTF-8 ({reason}); save it anew"
        ) from error


def _check_header(path: Path, header: list[str]) -> None:
    """Nothing; raises UserError unless the columns are path, label and perhaps the others, each once."""
    root = printable(path)
    for name in header:
        if name not in _COLUMNS:
            raise UserError(
                f"`data.root` (={root}) has a column {name!r}; columns must be of {', '.join(_COLUMNS)}"
                f"{nearest(name, _COLUMNS)}"
            )
        if header.count(name) > 1:
            raise UserError(f"`data.root` (={root}) has the column {name!r} twice; keep one")
    for name in ("path", "label"):
        if name not in header:
            raise UserError(f"`data.root` (={root}) has no column {name!r} in its first line; add it")


def _bad_row(path: Path, line: int, what: str) -> UserError:
    return UserError(f"`data.root` (={printable(path)}), line {line}: {printable(what)}; correct that line")

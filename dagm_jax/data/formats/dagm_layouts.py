"""From a folder of DAGM 2007 to a manifest of images, labels and masks; no pixels are read here.

Layout A: ``ClassN/Train`` and ``ClassN/Test``, each with images and ``Label/Labels.txt``.
Layout B: ``ClassN`` (good) and ``ClassN_def`` (defective, with ``labels.txt`` of ellipses).
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from dagm_jax.data.layouts import printable
from dagm_jax.types import Ellipse, Manifest, Record, Skip, UserError

# At most six digits, ASCII only: int() raises on very long numbers and on digits such as "²".
_CLASS_NAME = re.compile(r"class0*([1-9][0-9]?)(_def)?", re.IGNORECASE | re.ASCII)
_IMAGE_NAME = re.compile(r"([0-9]{1,6})\.png", re.IGNORECASE | re.ASCII)
_MASK_NAME = re.compile(r"([0-9]{1,6})_label\.png", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,6}", re.ASCII)
# float() also takes "1_0" for 10, digits of other scripts, and words such as nan.
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE | re.ASCII)
_PICTURE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".npy"}
)
_LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"})
_LABEL_FILE = "labels.txt"
_LABEL_FOLDER = "label"
_IMAGE_FOLDERS = frozenset({"image", "images"})
# Far beyond any image, and near enough that no formula overflows on them.
_SMALLEST_AXIS_PX, _LARGEST_PX = 1e-3, 1e6

_Kind = Literal["train", "test", "good", "defective"]
_ORDER: tuple[_Kind, ...] = ("train", "test", "good", "defective")
_Label = Literal[0, 1]
_Value = TypeVar("_Value", _Label, Ellipse)


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a folder; neither file nor folder for broken links, sockets and the like."""

    name: str
    path: Path
    is_file: bool
    is_dir: bool


@dataclass(frozen=True, slots=True)
class _Part:
    """One folder that holds images of a class: a half of layout A or a side of layout B."""

    class_id: int
    kind: _Kind
    folder: Path

    @property
    def layout(self) -> Literal["A", "B"]:
        return "A" if self.kind in ("train", "test") else "B"


@dataclass(slots=True)
class _Report:
    """What was left out so far, named relative to the data root."""

    root: Path
    skips: list[Skip] = field(default_factory=list)

    def skip(self, path: Path, reason: str, line: int | None = None) -> None:
        what = printable(path.relative_to(self.root).as_posix())
        self.skips.append(Skip(what if line is None else f"{what}:{line}", reason))


def read_tree(root: Path, classes: tuple[int, ...]) -> Manifest:
    """The manifest of the given classes under ``root``, in an order that no file system changes.

    ``root`` holds ``ClassN`` folders, or is one, or holds them one level further down. Records are ordered by
    class, then train before test (layout A) or good before defective (layout B), then number. Every file of
    these classes that is not used is in ``skipped``, but for litter such as Thumbs.db. Raises UserError where the tree
    cannot be used at all.
    """
    if not classes:
        raise UserError("`data.classes` (=[]) must name at least one class, e.g. 8")
    _check_root(root)
    folders = _class_folders(root)
    if not folders:
        raise UserError(
            f"`data.root` (={printable(root)}) holds no folder Class1 … Class10, neither directly nor one"
            " level down, and none of images of your own (train/good, or good and defect); give the folder that holds"
            " the ClassN folders of DAGM 2007, or the one that holds those, or a CSV table"
        )
    report = _Report(root)
    records: list[Record] = []
    sources: list[tuple[int, str, list[Record]]] = []
    for class_id in sorted(set(classes)):
        layout, found = _read_class(class_id, folders, report)
        records += found
        sources.append((class_id, layout, found))
    return Manifest(tuple(records), tuple(report.skips), _describe(root, sources, len(report.skips)))


def _check_root(root: Path) -> None:
    """Nothing; raises UserError unless ``root`` is a folder."""
    remedy = "give the folder that holds the ClassN folders of DAGM 2007"
    if "\0" in str(root) or not os.path.lexists(root):
        raise UserError(f"`data.root` (={printable(root)}) does not exist; {remedy}")
    if not os.path.isdir(root):
        raise UserError(f"`data.root` (={printable(root)}) is not a folder; {remedy}, unpacked")


def _describe(root: Path, sources: list[tuple[int, str, list[Record]]], skipped: int) -> str:
    """One plain line: layout, root, images and defective images of each class, number of skips."""
    layouts = sorted({layout for _, layout, _ in sources})
    head = f"layout {layouts[0]}" if len(layouts) == 1 else "layouts A and B"
    parts = []
    for class_id, layout, records in sources:
        name = f"class {class_id}" if len(layouts) == 1 else f"class {class_id} (layout {layout})"
        defective = sum(record.label for record in records)
        parts.append(f"{name}: {len(records)} images ({defective} defective)")
    return f"DAGM 2007, {head}, from {printable(root)}: {'; '.join(parts)}; {skipped} skipped"


# --- which folders there are ---


def _class_folders(root: Path) -> dict[int, list[Path]]:
    """Class number -> its ClassN and ClassN_def folders, at the shallowest level that has any."""
    near = _class_folders_in(root)
    named = [root] if _root_class(root) is not None else []
    if not near and not named:
        for child in list_folder(root):
            if child.is_dir:
                near += _class_folders_in(child.path)
    folders: dict[int, list[Path]] = {}
    for folder in named + near:
        match = _CLASS_NAME.fullmatch(folder.name) or _root_class(folder)
        assert match is not None
        folders.setdefault(int(match[1]), []).append(folder)
    return folders


def class_numbers(root: Path) -> tuple[int, ...]:
    """The classes whose folders `read_tree` finds under ``root``, rising; none where it is not DAGM's tree."""
    return tuple(sorted(_class_folders(root)))


def _root_class(root: Path) -> re.Match[str] | None:
    """The match of the root's own name, also where it is given as "." or is a link to a class folder."""
    names = (os.path.basename(os.path.abspath(root)), os.path.basename(os.path.realpath(root)))
    return next((match for match in map(_CLASS_NAME.fullmatch, names) if match), None)


def _class_folders_in(folder: Path) -> list[Path]:
    """Class folders in ``folder``, and those that an unzip doubled (Class1/Class1, Class1/Class1_def)."""
    found = []
    for child in list_folder(folder):
        match = _CLASS_NAME.fullmatch(child.name)
        if not child.is_dir or not match:
            continue
        found.append(child.path)
        for inner in list_folder(child.path):
            again = _CLASS_NAME.fullmatch(inner.name)
            if inner.is_dir and again and int(again[1]) == int(match[1]):
                found.append(inner.path)
    return found


def _parts_of(class_id: int, folder: Path, report: _Report) -> list[_Part]:
    """The parts in one class folder; notes folders that belong to neither layout."""
    entries = list_folder(folder)
    own = any(entry.is_file and _IMAGE_NAME.fullmatch(entry.name) for entry in entries)
    match = _CLASS_NAME.fullmatch(folder.name) or _root_class(folder)
    if match and match[2]:
        own = own or any(entry.is_file and entry.name.lower() == _LABEL_FILE for entry in entries)
        return [_Part(class_id, "defective", folder)] if own else []
    if own:
        _check_good_side(class_id, folder, entries, report)
    parts = [_Part(class_id, "good", folder)] if own else []
    for entry in entries:
        half = entry.name.lower()
        if not entry.is_dir:
            if not own:
                _note_stranger(entry, report)
        elif half == "train" or half == "test":
            if _holds_part(entry.path):
                parts.append(_Part(class_id, "train" if half == "train" else "test", entry.path))
            else:
                report.skip(entry.path, "half without images (named e.g. 0595.PNG) and Labels.txt")
        elif not own and not _CLASS_NAME.fullmatch(entry.name):
            report.skip(entry.path, "folder of neither layout (expected Train, Test)")
    return parts


def _check_good_side(class_id: int, folder: Path, entries: list[Entry], report: _Report) -> None:
    """Nothing; raises UserError if a label file lies with the images, which layout B's good side never has."""
    within = [entry.path for entry in entries if entry.is_dir and entry.name.lower() == _LABEL_FOLDER]
    beside = entries + [inner for path in within for inner in list_folder(path)]
    if any(entry.is_file and entry.name.lower() == _LABEL_FILE for entry in beside):
        name = f"Class{class_id}"
        raise UserError(
            f"`data.root` (={printable(report.root)}): a half of layout A lies directly in {printable(folder)};"
            f" put it into {name}/Train or {name}/Test, or into {name}_def if its label file lists ellipses"
        )


def _holds_part(half: Path) -> bool:
    """Whether a Train or Test folder holds an image or a label file."""
    images, labels = _half_entries(half)
    return any(_IMAGE_NAME.fullmatch(entry.name) for entry in images) or any(
        entry.name.lower() == _LABEL_FILE for entry in labels
    )


def _half_entries(half: Path) -> tuple[list[Entry], list[Entry]]:
    """The entries beside and below an Image folder, and those of the Label folder."""
    images, labels = [], []
    inner = []
    for entry in list_folder(half):
        if entry.is_dir and entry.name.lower() == _LABEL_FOLDER:
            labels += list_folder(entry.path)
        elif entry.is_dir and entry.name.lower() in _IMAGE_FOLDERS:
            inner += list_folder(entry.path)
        else:
            images.append(entry)
    return images + inner, labels


def list_folder(folder: Path) -> list[Entry]:
    """The folder's entries sorted by name, without litter; raises UserError if it cannot be listed."""
    try:
        with os.scandir(folder) as scan:
            entries = [_entry(item, folder) for item in scan if not is_litter(item.name)]
    except OSError as error:
        raise UserError(
            f"`data.root`: the folder {printable(folder)} cannot be listed ({error.strerror});"
            " check its permissions"
        ) from error
    return sorted(entries, key=lambda entry: entry.name)


def _entry(item: os.DirEntry[str], folder: Path) -> Entry:
    try:
        return Entry(item.name, folder / item.name, item.is_file(), item.is_dir())
    except OSError:  # a link that leads to itself
        return Entry(item.name, folder / item.name, False, False)


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is the file system's own or hidden, and nothing to speak of."""
    return name.startswith(".") or name.lower() in _LITTER


# --- one class ---


def _read_class(class_id: int, folders: dict[int, list[Path]], report: _Report) -> tuple[str, list[Record]]:
    """The layout and the records of one class; raises UserError for absent, doubled and unusable classes."""
    root = printable(report.root)
    if class_id not in folders:
        there = ", ".join(map(str, sorted(folders)))
        raise UserError(
            f"`data.classes` (={class_id}): there is no folder Class{class_id} under `data.root` (={root});"
            f" choose among the classes that are there: {there}"
        )
    before = len(report.skips)
    parts = [part for folder in folders[class_id] for part in _parts_of(class_id, folder, report)]
    parts.sort(key=lambda part: _ORDER.index(part.kind))
    _check_parts(class_id, parts, report)
    records = [record for part in parts for record in _read_part(part, report)]
    if not records:
        skips = report.skips[before:]
        first = f" (first of {len(skips)} skipped: {skips[0].what}: {skips[0].reason})" if skips else ""
        raise UserError(
            f"`data.root` (={root}) holds no usable image of class {class_id}{first};"
            f" unpack Class{class_id} again or leave it out of `data.classes`"
        )
    return parts[0].layout, records


def _check_parts(class_id: int, parts: list[_Part], report: _Report) -> None:
    """Nothing; raises UserError if a class is there in both layouts or one of its parts is there twice."""
    root = printable(report.root)
    first = {part.layout: part for part in reversed(parts)}
    if len(first) > 1:
        a, b = (printable(first[layout].folder) for layout in ("A", "B"))
        raise UserError(
            f"`data.root` (={root}) holds class {class_id} in both layouts, A in {a} and B in {b}; they"
            " are the same images under other numbers, so test images would leak into training:"
            " keep one of the two"
        )
    for one, two in itertools.pairwise(parts):
        if one.kind == two.kind:
            raise UserError(
                f"`data.root` (={root}) holds the {one.kind} images of class {class_id} twice, in"
                f" {printable(one.folder)} and in {printable(two.folder)}: keep one of the two"
            )


def _read_part(part: _Part, report: _Report) -> list[Record]:
    match part.kind:
        case "train" | "test":
            return _read_half(part, part.kind, report)
        case "good":
            return _read_good(part, report)
        case "defective":
            return _read_defective(part, report)


def _read_half(part: _Part, half: Literal["train", "test"], report: _Report) -> list[Record]:
    """Records of a layout-A half; labels from Labels.txt alone."""
    image_entries, label_entries = _half_entries(part.folder)
    images = _numbered(image_entries, _IMAGE_NAME, "image", report)
    masks = _numbered(label_entries, _MASK_NAME, "mask", report)
    label_file = _label_file(part, label_entries, report)
    rows = _read_rows(label_file, _parse_label_row, images, report)
    records = []
    for number, image in images.items():
        label = rows.get(number)
        if label is None:
            report.skip(image, f"no usable row in {label_file.name}, so its label is unknown")
        elif label == 1 and number not in masks:
            report.skip(image, f"labelled defective, but Label/{number:04d}_label.PNG is missing")
        else:
            image_id = f"Class{part.class_id}/{half.capitalize()}/{number:04d}"
            # One of a good image has to be empty, which decoding looks after.
            records.append(Record(image_id, part.class_id, label, half, image, masks.get(number)))
    for number, mask in masks.items():
        if number not in images:
            report.skip(mask, "mask without its image")
    return records


def _read_good(part: _Part, report: _Report) -> list[Record]:
    """Records of layout B's ClassN: all of them defect-free."""
    images = _numbered(_side_entries(part.folder), _IMAGE_NAME, "image", report)
    name = f"Class{part.class_id}"
    return [Record(f"{name}/{n}", part.class_id, 0, None, path, None) for n, path in images.items()]


def _read_defective(part: _Part, report: _Report) -> list[Record]:
    """Records of layout B's ClassN_def: all of them defective, with an ellipse for a mask."""
    entries = _side_entries(part.folder)
    images = _numbered(entries, _IMAGE_NAME, "image", report)
    label_file = _label_file(part, entries, report)
    rows = _read_rows(label_file, _parse_ellipse_row, images, report)
    records = []
    for number, image in images.items():
        if number not in rows:
            report.skip(image, f"no usable row in {label_file.name}, so its ellipse is unknown")
            continue
        image_id = f"Class{part.class_id}_def/{number}"
        records.append(Record(image_id, part.class_id, 1, None, image, rows[number]))
    return records


def _side_entries(folder: Path) -> list[Entry]:
    """The entries of a layout-B folder without the folders that ``_parts_of`` has looked at."""

    def is_part(entry: Entry) -> bool:
        return bool(_CLASS_NAME.fullmatch(entry.name)) or entry.name.lower() in ("train", "test")

    return [entry for entry in list_folder(folder) if not (entry.is_dir and is_part(entry))]


def _numbered(
    entries: Iterable[Entry], pattern: re.Pattern[str], noun: str, report: _Report
) -> dict[int, Path]:
    """Number -> file for the names that fit ``pattern``, by number; the other pictures become skips."""
    found: dict[int, Path] = {}
    for entry in entries:
        match = pattern.fullmatch(entry.name)
        if not match:
            _note_stranger(entry, report)
        elif not entry.is_file:
            report.skip(entry.path, "not a file (a folder, or a link that leads nowhere)")
        elif (number := int(match[1])) in found:
            report.skip(entry.path, f"second file for {noun} {number}; {found[number].name} is used")
        else:
            found[number] = entry.path
    return dict(sorted(found.items()))


def _note_stranger(entry: Entry, report: _Report) -> None:
    """Nothing; notes a folder or picture that no layout has. Other files (README, archives) are litter."""
    if entry.is_dir:
        report.skip(entry.path, "folder of neither layout")
    elif entry.path.suffix.lower() in _PICTURE_SUFFIXES:
        report.skip(entry.path, "not a DAGM file name (expected e.g. 0595.PNG, Label/0595_label.PNG)")


# --- label files ---


def _label_file(part: _Part, entries: list[Entry], report: _Report) -> Path:
    """The part's only label file; raises UserError where there is none, or more than one."""
    files = [entry.path for entry in entries if entry.is_file and entry.name.lower() == _LABEL_FILE]
    if len(files) == 1:
        return files[0]
    root, folder = printable(report.root), printable(part.folder)
    name = "Label/Labels.txt" if part.layout == "A" else "labels.txt"
    if files:
        raise UserError(f"`data.root` (={root}): {folder} holds {len(files)} times {name}; keep one")
    raise UserError(
        f"`data.root` (={root}): {folder} has images but no {name}, so their labels are unknown;"
        " unpack the archive again or remove that folder"
    )


def _read_rows(
    label_file: Path,
    parse: Callable[[str], tuple[int, _Value] | str],
    images: dict[int, Path],
    report: _Report,
) -> dict[int, _Value]:
    """Number -> value of the usable rows; malformed, repeated and conflicting ones become skips."""
    rows: dict[int, _Value] = {}
    lines: dict[int, int] = {}
    conflicts = set()
    for line, text in _lines(label_file):
        row = parse(text)
        if isinstance(row, str):
            report.skip(label_file, f"{row}: {_excerpt(text)}", line)
            continue
        number, value = row
        if number not in rows:
            rows[number], lines[number] = value, line
            if number not in images:
                report.skip(label_file, f"image {number} is not there", line)
        elif rows[number] == value:
            report.skip(label_file, f"repeats line {lines[number]}", line)
        else:
            conflicts.add(number)
            report.skip(label_file, f"contradicts line {lines[number]}; image {number} is left out", line)
    return {number: value for number, value in rows.items() if number not in conflicts}


def _lines(label_file: Path) -> Iterable[tuple[int, str]]:
    """Line number and text of every line with content, but for a first line that is just ``1``."""
    try:
        text = label_file.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError(
            f"`data.root`: {printable(label_file)} cannot be read ({error.strerror}); check its permissions"
        ) from error
    # Not str.splitlines: it also splits at form feeds and the like, and the line numbers would be off.
    for line, content in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if content.strip() and not (line == 1 and content.strip() == "1"):
            yield line, content


def _parse_label_row(text: str) -> tuple[int, _Label] | str:
    """Number and label of the row ``number label image 0 mask``, or what is wrong with it."""
    fields = text.split()
    if len(fields) != 5:
        return f"{len(fields)} fields, expected 5 (number, label, image, 0, mask or 0)"
    index, label, image, _, mask = fields
    name = _IMAGE_NAME.fullmatch(image)
    if not _NUMBER.fullmatch(index) or not name:
        return "number or image name malformed"
    number = int(index)
    if int(name[1]) != number:
        return "number and image name disagree"
    mask_name = _MASK_NAME.fullmatch(mask)
    if mask != "0" and not (mask_name and int(mask_name[1]) == number):
        return "mask name malformed or of another image"
    if label not in ("0", "1"):
        return "label is neither 0 nor 1"
    return number, 1 if label == "1" else 0


def _parse_ellipse_row(text: str) -> tuple[int, Ellipse] | str:
    """Number and ellipse of the row ``number a b rotation x y``, or what is wrong with it."""
    fields = text.split()
    if len(fields) != 6:
        return f"{len(fields)} fields, expected 6 (number, two semi-axes, rotation, centre x, y)"
    if not _NUMBER.fullmatch(fields[0]):
        return "number malformed"
    if not all(map(_DECIMAL.fullmatch, fields[1:])):
        return "not a number among the ellipse's values"
    values = [float(value) for value in fields[1:]]
    if min(values[:2]) < _SMALLEST_AXIS_PX:
        return f"semi-axes must be positive (at least {_SMALLEST_AXIS_PX:g} px)"
    if max(map(abs, values)) > _LARGEST_PX:
        return f"value beyond {_LARGEST_PX:g}"
    return int(fields[0]), Ellipse(*values)


def _excerpt(text: str) -> str:
    """The start of a label row, printable, between quotes."""
    clean = " ".join(text.split())
    return f"'{printable(clean if len(clean) <= 60 else clean[:57] + '...')}'"

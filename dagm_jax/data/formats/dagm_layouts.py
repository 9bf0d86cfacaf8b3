"""DAGM 2007's folders, in either published layout -> a manifest of images, labels and masks; no pixels are read.

Layout A: ``ClassN/Train`` and ``ClassN/Test``, each with images and ``Label/Labels.txt``.
Layout B: ``ClassN`` (good) and ``ClassN_def`` (defective, with ``labels.txt`` of ellipses).
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from os.path import isdir, isfile
from pathlib import Path
from typing import Literal, TypeVar

from dagm_jax.data.formats.listing import SPLITS, Skips, list_folder, make_dagm_manifest, root_error
from dagm_jax.errors import UserError, printable
from dagm_jax.types import Ellipse, Manifest, Sample

# A number: at most six digits, ASCII only, as int() raises on very long numbers and on digits such as "²".
_NUMBER = "([0-9]{1,6})"
_CLASS_NAME = re.compile(r"class0*([1-9][0-9]?)(_def)?", re.IGNORECASE | re.ASCII)
_IMAGE_NAME = re.compile(rf"{_NUMBER}\.png", re.IGNORECASE)
_MASK_NAME = re.compile(rf"{_NUMBER}_label\.png", re.IGNORECASE)
# A row of layout A: number, label, image, 0, mask or 0.
_LABEL_ROW = re.compile(
    rf"\s*{_NUMBER}\s+([01])\s+{_NUMBER}\.png\s+\S+\s+(?:0|{_NUMBER}_label\.png)\s*", re.IGNORECASE
)
# A decimal number: float() also takes "1_0" for 10, digits of other scripts, and words such as nan.
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".npy")
# Limits of an ellipse's values: far beyond any image, and near enough that no formula overflows.
_SMALLEST_AXIS_PX, _LARGEST_PX = 1e-3, 1e6

# Folders that hold images of a class: the splits of layout A, the two kinds of images of layout B.
_Part = Literal["train", "test", "good", "defective"]
_LAYOUTS: dict[_Part, str] = {"train": "A", "test": "A", "good": "B", "defective": "B"}
_Label = Literal[0, 1]
_Value = TypeVar("_Value", _Label, Ellipse)


def read_tree(root: Path, classes: tuple[int, ...]) -> Manifest:
    """The manifest of the given classes under ``root``, in an order that no file system changes.

    ``root`` holds ``ClassN`` folders, or is one, or holds them one level down. Samples are ordered by class,
    train before test (layout A) or good before defective (layout B), number. Unused files of these classes
    are in ``skipped``, but for litter such as Thumbs.db. Raises UserError where the tree cannot be used.
    """
    remedy = "give the folder that holds the ClassN folders of DAGM 2007"
    if not isdir(root):
        what = "is not a folder" if os.path.lexists(root) else "does not exist"
        raise root_error(root, f" {what}; {remedy}, unpacked")
    folders = _class_folders(root)
    if not folders:
        raise root_error(
            root,
            " holds no folder Class1 … Class10, neither directly nor one level down, and none of images of your own"
            f" (train/good, or good and defect); {remedy}, or the one that holds those, or a CSV table, or say which "
            "folders hold your images (--config.data.good=NAME --config.data.defect=NAME, --config.data.flat=good)",
        )
    skips = Skips(root)
    samples = [
        sample for class_id in sorted(set(classes)) for sample in _read_class(class_id, folders, skips)
    ]
    layouts = sorted({"B" if sample.half is None else "A" for sample in samples})
    return make_dagm_manifest(f"layout {' and '.join(layouts)}", root, samples, skips.found)


def class_numbers(root: Path) -> tuple[int, ...]:
    """The classes whose folders `read_tree` finds under ``root``, rising; none where it is not DAGM's tree."""
    return tuple(sorted(_class_folders(root)))


def _class_folders(root: Path) -> dict[int, list[Path]]:
    """Class number -> its ClassN and ClassN_def folders, at the shallowest level that has any."""
    found = [root] if _class_name(root) else []
    found += _class_folders_in(root)
    if not found:
        found = [folder for child in list_folder(root) if isdir(child) for folder in _class_folders_in(child)]
    folders: dict[int, list[Path]] = {}
    for folder in found:
        if match := _class_name(folder):
            folders.setdefault(int(match[1]), []).append(folder)
    return folders


def _class_name(folder: Path) -> re.Match[str] | None:
    """The match of a class folder's name, also where the root is given as "." or is a link to a class folder."""
    names = map(os.path.basename, (os.path.abspath(folder), os.path.realpath(folder)))
    return next(filter(None, map(_CLASS_NAME.fullmatch, names)), None)


def _class_folders_in(folder: Path) -> list[Path]:
    """Class folders in ``folder``, and those that an unzip doubled (Class1/Class1, Class1/Class1_def)."""
    found = []
    for child in list_folder(folder):
        if _CLASS_NAME.fullmatch(child.name) and isdir(child):
            found += [child, *_class_folders_in(child)]
    return found


def _find_parts(class_id: int, folders: list[Path], skips: Skips) -> dict[_Part, Path]:
    """Part -> folder of a class, in the order of samples; raises UserError for images that are there twice.

    The layouts hold the same images under other numbers, so with both of them test images would leak into training.
    """
    found: dict[_Part, Path] = {}
    for part, path in (pair for folder in folders for pair in _parts_in(class_id, folder, skips)):
        for other in found:
            if other == part or _LAYOUTS[other] != _LAYOUTS[part]:
                raise root_error(
                    skips.root,
                    f" holds images of class {class_id} twice: {other} images of layout {_LAYOUTS[other]} in"
                    f" {printable(found[other])}, {part} images of layout {_LAYOUTS[part]} in {printable(path)};"
                    " keep one of the two",
                )
        found[part] = path
    return {part: found[part] for part in _LAYOUTS if part in found}


def _parts_in(class_id: int, folder: Path, skips: Skips) -> Iterator[tuple[_Part, Path]]:
    """The parts in one class folder; notes what belongs to neither layout."""
    entries = list_folder(folder)
    is_defective = bool((match := _class_name(folder)) and match[2])
    is_part = any(_IMAGE_NAME.fullmatch(entry.name) and isfile(entry) for entry in entries)
    if is_defective:
        is_part = is_part or any(map(_is_label_file, entries))
    elif is_part and any(map(_is_label_file, [*entries, *_entries_of_split(folder)[1]])):
        name = f"Class{class_id}"
        raise root_error(
            skips.root,
            f": images and labels of one split of layout A lie directly in {printable(folder)};"
            f" put them into {name}/Train or {name}/Test, or into {name}_def if the label file lists ellipses",
        )
    if is_part:
        yield ("defective" if is_defective else "good"), folder
    for entry in entries:
        if not isdir(entry):
            # Those of a part are looked at when it is read.
            if not is_part:
                _skip_stranger(entry, skips)
        elif entry.name.lower() in SPLITS:
            yield ("train" if entry.name.lower() == "train" else "test"), entry
        elif not _CLASS_NAME.fullmatch(entry.name):
            _skip_stranger(entry, skips)


def _entries_of_split(folder: Path) -> tuple[list[Path], list[Path]]:
    """The entries of a Train or Test folder and of an Image folder in it, and those of its Label folder."""
    images, images_below, labels = [], [], []
    for entry in list_folder(folder):
        if isdir(entry) and entry.name.lower() == "label":
            labels += list_folder(entry)
        elif isdir(entry) and entry.name.lower() in ("image", "images"):
            images_below += list_folder(entry)
        else:
            images.append(entry)
    return images + images_below, labels


def _is_label_file(entry: Path) -> bool:
    return entry.name.lower() == "labels.txt" and isfile(entry)


def _skip_stranger(entry: Path, skips: Skips) -> None:
    """Notes a folder or picture that no layout has. Other files (README, archives) are litter."""
    if isdir(entry):
        skips.add(entry, "folder of neither layout")
    elif entry.suffix.lower() in _PICTURE_SUFFIXES:
        skips.add(entry, "not a DAGM file name (expected e.g. 0595.PNG, Label/0595_label.PNG)")


def _read_class(class_id: int, folders: Mapping[int, list[Path]], skips: Skips) -> list[Sample]:
    """The samples of one class; raises UserError for absent, doubled and unusable classes."""
    if class_id not in folders:
        raise UserError(
            f"`data.classes` (={class_id}): there is no folder Class{class_id} under `data.root`"
            f" (={printable(skips.root)}); choose among the classes that are there:"
            f" {', '.join(map(str, sorted(folders)))}"
        )
    num_skipped = len(skips.found)
    samples: list[Sample] = []
    for part, folder in _find_parts(class_id, folders[class_id], skips).items():
        samples += _read_part(class_id, part, folder, skips)
    if not samples:
        own = skips.found[num_skipped:]
        first = f" (first of {len(own)} skipped: {own[0].what}: {own[0].reason})" if own else ""
        raise root_error(
            skips.root,
            f" holds no usable image of class {class_id}{first};"
            f" unpack Class{class_id} again or leave it out of `data.classes`",
        )
    return samples


def _read_part(class_id: int, part: _Part, folder: Path, skips: Skips) -> list[Sample]:
    """The samples of a part: of layout A with the labels of Labels.txt alone, of layout B with ellipses for masks."""
    entries, label_entries = _entries_of_split(folder)
    if _LAYOUTS[part] == "B":
        # Folders in it were noted when the part was found.
        entries = [entry for entry in list_folder(folder) if not isdir(entry)]
    images = _number_files(entries, _IMAGE_NAME, "image", skips)
    if part == "good":
        return [Sample(f"Class{class_id}/{n}", class_id, 0, None, path, None) for n, path in images.items()]
    if part == "defective":
        ellipses = _read_rows(folder, "labels.txt", entries, _parse_ellipse_row, images, skips)
        return [
            Sample(f"Class{class_id}_def/{number}", class_id, 1, None, images[number], ellipse)
            for number, ellipse in ellipses.items()
        ]
    masks = _number_files(label_entries, _MASK_NAME, "mask", skips)
    labels = _read_rows(folder, "Label/Labels.txt", label_entries, _parse_label_row, images, skips)
    samples = []
    for number, label in labels.items():
        if label == 1 and number not in masks:
            skips.add(images[number], f"labelled defective, but Label/{number:04d}_label.PNG is missing")
        else:
            image_id = f"Class{class_id}/{part.capitalize()}/{number:04d}"
            # The mask of a good image has to be empty, which is checked when it is decoded.
            samples.append(Sample(image_id, class_id, label, part, images[number], masks.get(number)))
    for number in sorted(masks.keys() - images.keys()):
        skips.add(masks[number], "mask without its image")
    return samples


def _number_files(
    entries: Iterable[Path], pattern: re.Pattern[str], noun: str, skips: Skips
) -> dict[int, Path]:
    """Number -> file for the names that fit ``pattern``, by number; the other pictures become skips."""
    found: dict[int, Path] = {}
    for entry in entries:
        match = pattern.fullmatch(entry.name)
        if not match:
            _skip_stranger(entry, skips)
        elif not isfile(entry):
            skips.add(entry, "not a file (a folder, or a link that leads nowhere)")
        elif (number := int(match[1])) in found:
            skips.add(entry, f"second file for {noun} {number}; {found[number].name} is used")
        else:
            found[number] = entry
    return dict(sorted(found.items()))


def _read_rows(
    folder: Path,
    name: str,
    entries: Iterable[Path],
    parse: Callable[[str], tuple[int, _Value] | str],
    images: Mapping[int, Path],
    skips: Skips,
) -> dict[int, _Value]:
    """Number -> value of the rows of the label file among ``entries``, for each image whose rows agree.

    Notes bad rows and images without a value. Raises UserError unless there is one label file, which can be read.
    """
    label_files = list(filter(_is_label_file, entries))
    if len(label_files) != 1:
        raise root_error(
            skips.root,
            f": {printable(folder)} must hold one {name}, which says the labels of its images, and holds"
            f" {len(label_files) or 'none'}; unpack the archive again, or remove what is too much",
        )
    label_file = label_files[0]
    rows: dict[int, set[_Value]] = {}
    for line, text in _lines(label_file):
        row = parse(text)
        if isinstance(row, str):
            excerpt = printable(textwrap.shorten(text[:200], 60, placeholder="..."))
            skips.add(label_file, f"{row}: '{excerpt}'", line)
            continue
        number, value = row
        if number in rows:
            skips.add(label_file, f"second row of image {number}", line)
        elif number not in images:
            skips.add(label_file, f"image {number} is not there", line)
        rows.setdefault(number, set()).add(value)
    found = {}
    for number, image in images.items():
        values = rows.get(number, set())
        if len(values) == 1:
            found[number] = values.pop()
        else:
            skips.add(image, f"no usable row in {label_file.name}, or contradictory ones")
    return found


def _lines(label_file: Path) -> Iterator[tuple[int, str]]:
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
    """Number and label of a row of layout A, or what is wrong with it."""
    match = _LABEL_ROW.fullmatch(text)
    if not match:
        return "malformed, expected number, label (0 or 1), image, 0, mask or 0"
    number, image, mask = (int(match[group] or match[1]) for group in (1, 3, 4))
    if image != number or mask != number:
        return "number, image and mask disagree"
    return number, 1 if match[2] == "1" else 0


def _parse_ellipse_row(text: str) -> tuple[int, Ellipse] | str:
    """Number and ellipse of the row ``number a b rotation x y``, or what is wrong with it."""
    number, *fields = text.split()
    if not re.fullmatch(_NUMBER, number) or len(fields) != 5 or not all(map(_DECIMAL.fullmatch, fields)):
        return "malformed, expected six numbers (image, two semi-axes, rotation, centre x, y)"
    values = [float(field) for field in fields]
    if min(values[:2]) < _SMALLEST_AXIS_PX or max(map(abs, values)) > _LARGEST_PX:
        return f"semi-axes must be at least {_SMALLEST_AXIS_PX:g} px, and no value beyond {_LARGEST_PX:g}"
    return int(number), Ellipse(*values)

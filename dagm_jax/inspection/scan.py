"""Image files of a folder, with labels where the place of a file says what it shows."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from dagm_jax.data.formats import own_images
from dagm_jax.data.formats.dagm_layouts import class_numbers, read_tree
from dagm_jax.data.formats.listing import SPLITS, is_litter
from dagm_jax.errors import UserError, printable
from dagm_jax.types import Manifest

Label = Literal[0, 1] | None
Parts = tuple[str, ...]
Stamp = tuple[int, int]
Reader = Callable[[Path], Manifest]
# Files by which a folder of predictions is recognised: its origin, and one line per prediction.
ORIGIN, LINES = "origin.json", "predictions.jsonl"
# Folders of masks, and description, of each convention that labels files by their folders.
_CONVENTIONS: dict[Reader | None, tuple[tuple[str, ...], str]] = {
    own_images.read_plain: (("masks",), "labels from the folders good and defect"),
    own_images.read_mvtec: (
        ("ground_truth", "test_public/ground_truth"),
        "labels from the folders of the MVTec layout",
    ),
}


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file as it was found.

    name: path relative to the scanned folder, parts joined by "/"; unique. stamp: see `stamp_of`.
    """

    name: str
    path: Path
    label: Label
    stamp: Stamp


def stamp_of(path: Path) -> Stamp:
    """(size in bytes, time of change in ns) of a file; (-1, 0) where there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # reading it will say what is wrong with it
        return -1, 0
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Source:
    """The image files below ``root`` whose names fit ``pattern``.

    images: the option's value. output: folder of the predictions, skipped where it lies within. table: labels by path
    from DAGM's label files. description: one line on where labels come from.
    """

    images: str
    root: Path
    pattern: Parts
    output: Path
    table: Mapping[Path, Label]
    description: str

    def files(self) -> Iterator[ImageFile]:
        """Each file once, sorted within its folder.

        Links to folders are not followed; masks and folders of predictions are skipped. Whatever is named like an image
        and is none (a broken link, a pipe) is among the files, and so is a folder below ``root`` that cannot be listed.
        Raises UserError where ``root`` cannot be listed.
        """
        # Looked up at each call: the folders good and defect may come while files are waited for.
        reader = _reader_of(self.root)
        excluded = {self.output}
        if reader in _CONVENTIONS:
            excluded |= {self.root / name for name in _CONVENTIONS[reader][0]}
        refused: list[OSError] = []
        for place, folders, names in os.walk(self.root, onerror=refused.append):
            folder = Path(place)
            above = folder.relative_to(self.root).parts
            if above and _holds_no_images(folder.name, names):
                folders.clear()
                continue
            folders[:] = sorted(
                name
                for name in folders
                if folder / name not in excluded and self._is_wanted((*above, name), partly=True)
            )
            for name in sorted(names):
                if Path(name).suffix.lower() in own_images.SUFFIXES and self._is_wanted((*above, name)):
                    yield self._found(folder / name, reader)
        for error in refused:
            path = Path(error.filename)
            if path == self.root:
                raise UserError(
                    f"`--images`: the folder {printable(path)} cannot be listed ({error.strerror}); check its "
                    "permissions"
                ) from error
            # Reading it as a file will say what is wrong.
            yield self._found(path, reader)

    def _is_wanted(self, parts: Parts, partly: bool = False) -> bool:
        return not is_litter(parts[-1]) and fits(parts, self.pattern, partly)

    def _found(self, path: Path, reader: Reader | None) -> ImageFile:
        parts = path.relative_to(self.root).parts
        label = _label_of(parts, reader) if reader in _CONVENTIONS else self.table.get(path)
        return ImageFile("/".join(parts), path, label, stamp_of(path))


def make_source(images: str, output: Path) -> Source:
    """The source of the files of a folder, a file or a glob (``**`` stands for any folders), without ``output``.

    Labels are known in DAGM's layouts and in the folders of one's own images (good and defect, or MVTec's). Raises
    UserError where there is no such folder.
    """
    path = Path(images).expanduser()
    pattern: Parts = ("**",)
    # os.path says no where Path would raise for a folder that may not be entered.
    if os.path.isfile(path):
        path, pattern = path.parent, (glob.escape(path.name),)
    elif not os.path.isdir(path):
        above = next((folder for folder in path.parents if not glob.has_magic(str(folder))), path)
        if not glob.has_magic(str(path)) or not os.path.isdir(above):
            raise UserError(
                f"`--images` (={printable(images)}) does not exist; name a folder, a file or a glob such as "
                "'parts/*.png'"
            )
        path, pattern = above, path.relative_to(above).parts
    root, inside = path.resolve(), output.resolve()
    if inside == root:
        raise UserError(
            f"`--output` (={printable(output)}) is the folder of the images; name another, which may lie inside it"
        )
    reader = _reader_of(root)
    table, description = ({}, _CONVENTIONS[reader][1]) if reader in _CONVENTIONS else _table(root)
    return Source(images, root, pattern, inside, table, description)


def fits(parts: Parts, pattern: Parts, partly: bool = False) -> bool:
    """Whether the parts of a path fit the parts of a glob; partly: whether those of a longer path can.

    ``**`` fits any number of folders, none too.
    """
    if pattern[:1] == ("**",):
        return partly or fits(parts, pattern[1:]) or (bool(parts) and fits(parts[1:], pattern))
    if not parts or not pattern:
        return bool(pattern) if partly else not (parts or pattern)
    return fnmatchcase(parts[0], pattern[0]) and fits(parts[1:], pattern[1:], partly)


def _holds_no_images(name: str, names: list[str]) -> bool:
    """Whether a folder of this name and content is DAGM's folder of masks, or one of predictions."""
    is_label = name.lower() == "label" and "labels.txt" in map(str.lower, names)
    return is_label or {ORIGIN, LINES} <= set(names)


def _reader_of(root: Path) -> Reader | None:
    """The reader of the convention of one's own images that the folders in ``root`` follow now; None for none."""
    try:
        return own_images.reader_of(root)
    except OSError:  # listing it will say why
        return None


def _label_of(parts: Parts, reader: Reader | None) -> Label:
    """The label that the folders of a file say in the convention of ``reader``; None where they say nothing."""
    if reader is own_images.read_plain and len(parts) > 1:
        return own_images.label_of_folder(parts[0])
    in_layout = parts[0] in {name for _, name in own_images.MVTEC_HALVES}
    if reader is own_images.read_mvtec and len(parts) > 2 and in_layout:
        # "Good" is no kind of defect, and training refuses it.
        return (
            0 if parts[1] == own_images.GOOD else None if parts[1].strip().lower() == own_images.GOOD else 1
        )
    return None


def _table(root: Path) -> tuple[Mapping[Path, Label], str]:
    """(labels by path, where they come from) of a folder in one of DAGM's layouts; no labels for another."""
    base = root.parent if root.name.lower() in SPLITS else root
    try:
        numbers = class_numbers(base)
        samples = read_tree(base, numbers).samples if numbers else ()
    except (UserError, OSError) as error:
        return {}, f"labels are not known ({error})"
    table = {sample.image: sample.label for sample in samples if isinstance(sample.image, Path)}
    return table, "labels from DAGM's label files" if table else "labels are not known"

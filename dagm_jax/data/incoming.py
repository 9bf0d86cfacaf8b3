"""What lies in a folder to be judged: its image files, with labels where the place of a file says what it shows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from dagm_jax.data import own_images
from dagm_jax.data.layouts import class_numbers, is_litter, printable, read_tree
from dagm_jax.types import UserError

Label = Literal[0, 1] | None
Parts = tuple[str, ...]
_MAGIC = re.compile(r"[*?\[]")
_HALVES = ("train", "test")


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file's size and time of change: what differs between two contents, as far as a look at its status tells."""

    size_bytes: int
    mtime_ns: int


def stamp_of(path: Path) -> Stamp:
    """The file's stamp; that of nothing where there is no such file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # reading it will say what is wrong with it
        return Stamp(-1, 0)
    return Stamp(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Incoming:
    """An image file as it was found. name: unique, relative to the folder looked through, its parts joined by "/"."""

    name: str
    path: Path
    label: Label
    stamp: Stamp


@dataclass(frozen=True)
class Source:
    """The image files below ``root``, or those of them whose names fit ``pattern``.

    label_of: the label of a file by the parts of its name and its path. excluded: parts of folders that are not looked
    into, such as those of masks. description: one line that says where labels come from.
    """

    root: Path
    pattern: Parts | None
    label_of: Callable[[Parts, Path], Label]
    excluded: frozenset[Parts]
    description: str

    def files(self) -> Iterator[Incoming]:
        """Each file once, by the names of folders and files.

        Links to folders are not followed; what is called like an image and is none (a broken link, a pipe) is among
        them. Raises UserError for a folder that cannot be listed; one that has just vanished is empty.
        """
        yield from self._walk(self.root, ())

    def _walk(self, folder: Path, parts: Parts) -> Iterator[Incoming]:
        entries = sorted(_list(folder, may_vanish=bool(parts)), key=lambda entry: entry.name)
        for entry in entries:
            inner = (*parts, entry.name)
            if is_litter(entry.name) or inner in self.excluded:
                continue
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                if not _holds_masks(path):
                    yield from self._walk(path, inner)
            elif path.suffix.lower() in own_images.SUFFIXES and self._fits(inner) and not _is_dir(entry):
                yield Incoming("/".join(inner), path, self.label_of(inner, path), stamp_of(path))

    def _fits(self, parts: Parts) -> bool:
        return self.pattern is None or fits(parts, self.pattern)


def make_source(images: str, output: Path) -> Source:
    """The files that ``images`` names: a folder, a file or a glob (``**`` stands for any folders), less ``output``.

    Labels are known in DAGM's layouts and in the folders of one's own images (good and defect, or MVTec's), whose masks
    are left out. Raises UserError where there is no such folder.
    """
    path = Path(images).expanduser()
    pattern: Parts | None = None
    if "\0" in images:
        raise UserError("`--images` holds a NUL character; name a folder or a glob")
    if path.is_file():
        path, pattern = path.parent, (_escaped(path.name),)
    elif not path.is_dir():
        path, pattern = _split_glob(path, images)
    root = path.resolve()
    if output.resolve() == root:
        raise UserError(
            f"`--output` (={printable(output)}) is the folder of the images; name another, which may lie inside it"
        )
    label_of, masks, description = _labels(root)
    inside = output.resolve()
    excluded = {inside.relative_to(root).parts} if inside.is_relative_to(root) else set()
    return Source(root, pattern, label_of, frozenset(excluded | masks), description)


def _split_glob(path: Path, images: str) -> tuple[Path, Parts]:
    """(the folder before the first part with ``*``, ``?`` or ``[``, the parts from there on)."""
    parts = path.parts
    place = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), None)
    root = Path(*parts[:place]) if place else Path()
    if place is None or not root.is_dir():
        raise UserError(
            f"`--images` (={printable(images)}) does not exist; name a folder, a file or a glob such as 'parts/*.png'"
        )
    return root, parts[place:]


def _escaped(name: str) -> str:
    """The pattern that fits this name alone."""
    return re.sub(r"[*?\[]", lambda match: f"[{match[0]}]", name)


def fits(parts: Parts, pattern: Parts) -> bool:
    """Whether the parts of a name fit the parts of a glob; ``**`` fits any number of folders, none too."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return fits(parts, pattern[1:]) or (bool(parts) and fits(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and fits(parts[1:], pattern[1:])


def _list(folder: Path, may_vanish: bool) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as scan:
            return list(scan)
    except OSError as error:
        if may_vanish and isinstance(error, FileNotFoundError | NotADirectoryError):
            return []
        raise UserError(
            f"`--images`: the folder {printable(folder)} cannot be listed ({error.strerror}); check its permissions"
        ) from error


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _holds_masks(folder: Path) -> bool:
    """Whether this is a Label folder of DAGM, with the masks of the images beside it."""
    return folder.name.lower() == "label" and any(
        entry.name.lower() == "labels.txt" for entry in _list(folder, may_vanish=True)
    )


def _labels(root: Path) -> tuple[Callable[[Parts, Path], Label], set[Parts], str]:
    """(label of a file, folders of masks, where labels come from), by the convention that ``root`` follows."""
    reader = own_images.reader_of(root)
    if reader is own_images.read_plain:
        return _label_plain, {("masks",)}, "labels from the folders good and defect"
    if reader is own_images.read_mvtec:
        return _label_mvtec, {("ground_truth",)}, "labels from the folders of the MVTec layout"
    base = root.parent if root.name.lower() in _HALVES else root
    try:
        numbers = class_numbers(base)
        records = read_tree(base, numbers).records if numbers else ()
    except UserError as error:
        return _unknown, set(), f"labels are not known ({error})"
    if not records:
        return _unknown, set(), "labels are not known"
    table = {record.image: record.label for record in records}
    return lambda parts, path: table.get(path), set(), "labels from DAGM's label files"


def _unknown(parts: Parts, path: Path) -> Label:
    return None


def _label_plain(parts: Parts, path: Path) -> Label:
    known: dict[str, Label] = {own_images.GOOD: 0, "defect": 1}
    return known.get(parts[0]) if len(parts) > 1 else None


def _label_mvtec(parts: Parts, path: Path) -> Label:
    if len(parts) < 3 or parts[0] not in _HALVES:
        return None
    return 0 if parts[1] == own_images.GOOD else 1

"""What lies in a folder to be judged: its image files, with labels where the place of a file says what it shows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from dagm_jax.data.formats import own_images
from dagm_jax.data.formats.dagm_layouts import class_numbers, read_tree
from dagm_jax.data.formats.listing import is_litter
from dagm_jax.data.layouts import printable
from dagm_jax.types import UserError

Label = Literal[0, 1] | None
Parts = tuple[str, ...]
_MAGIC = re.compile(r"[*?\[]")
_HALVES = ("train", "test")
# What a folder of verdicts holds: whose they are, and a line for each.
ORIGIN, LINES = "origin.json", "predictions.jsonl"


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

    output: parts of the folder of the verdicts where that lies within, which is not looked into. table: labels by path,
    of DAGM's label files. description: one line that says where labels come from.
    """

    root: Path
    pattern: Parts | None
    output: Parts | None
    table: Mapping[Path, Label]
    description: str

    def files(self) -> Iterator[Incoming]:
        """Each file once, by the names of folders and files.

        Links to folders are not followed, nor are folders of verdicts looked into. What is called like an image and is
        none (a broken link, a pipe) is among the files, and so is a folder below that cannot be listed; one that has
        just vanished is empty. Raises UserError where ``root`` cannot be listed.
        """
        # Looked up at each call: the folders good and defect may come while files are waited for.
        convention = _convention(self.root)
        label_of = convention.label_of if convention else lambda parts, path: self.table.get(path)
        excluded = {self.output, convention.masks if convention else None}
        try:
            entries = _list(self.root)
        except OSError as error:
            raise UserError(
                f"`--images`: the folder {printable(self.root)} cannot be listed ({error.strerror}); check its "
                "permissions"
            ) from error
        for parts, path in self._walk(entries, (), excluded):
            yield Incoming("/".join(parts), path, label_of(parts, path), stamp_of(path))

    def _walk(
        self, entries: list[os.DirEntry[str]], above: Parts, excluded: set[Parts | None]
    ) -> Iterator[tuple[Parts, Path]]:
        for entry in entries:
            parts, path = (*above, entry.name), Path(entry.path)
            if is_litter(entry.name) or parts in excluded:
                continue
            if entry.is_dir(follow_symlinks=False):
                if self.pattern is not None and not may_hold(parts, self.pattern):
                    continue
                try:
                    inner = _list(path)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                except OSError:  # reading it as a file will say what is wrong with it
                    yield parts, path
                    continue
                names = {other.name for other in inner}
                if not _holds_masks(path, names) and not {ORIGIN, LINES} <= names:
                    yield from self._walk(inner, parts, excluded)
            elif path.suffix.lower() in own_images.SUFFIXES and self._fits(parts) and not _is_dir(entry):
                yield parts, path

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
    # os.path says no where Path would raise for a folder that may not be entered.
    if os.path.isfile(path):
        path, pattern = path.parent, (_escaped(path.name),)
    elif not os.path.isdir(path):
        path, pattern = _split_glob(path, images)
    root = path.resolve()
    if output.resolve() == root:
        raise UserError(
            f"`--output` (={printable(output)}) is the folder of the images; name another, which may lie inside it"
        )
    inside = output.resolve()
    own = inside.relative_to(root).parts if inside.is_relative_to(root) else None
    convention = _convention(root)
    table, description = ({}, convention.description) if convention else _table(root)
    return Source(root, pattern, own, table, description)


def _split_glob(path: Path, images: str) -> tuple[Path, Parts]:
    """(the folder before the first part with ``*``, ``?`` or ``[``, the parts from there on)."""
    parts = path.parts
    place = next((i for i, part in enumerate(parts) if _MAGIC.search(part)), None)
    root = Path(*parts[:place]) if place else Path()
    if place is None or not os.path.isdir(root):
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


def may_hold(parts: Parts, pattern: Parts) -> bool:
    """Whether a name below the folder of these parts can fit the parts of a glob."""
    if "**" in pattern[: len(parts)]:
        return True
    return len(parts) < len(pattern) and all(map(fnmatchcase, parts, pattern))


def _list(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in the folder, by name; raises OSError."""
    with os.scandir(folder) as scan:
        return sorted(scan, key=lambda entry: entry.name)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _holds_masks(folder: Path, names: set[str]) -> bool:
    """Whether this is a Label folder of DAGM, with the masks of the images beside it."""
    return folder.name.lower() == "label" and "labels.txt" in {name.lower() for name in names}


@dataclass(frozen=True, slots=True)
class _Convention:
    """Labels by the folders that files lie in. masks: parts of the folder of masks, which is not looked into."""

    label_of: Callable[[Parts, Path], Label]
    masks: Parts
    description: str


def _convention(root: Path) -> _Convention | None:
    """The convention of one's own images that the folders in ``root`` follow now; None for none."""
    try:
        reader = own_images.reader_of(root)
    except OSError:  # listing it will say why
        return None
    if reader is own_images.read_plain:
        return _Convention(_label_plain, ("masks",), "labels from the folders good and defect")
    if reader is own_images.read_mvtec:
        return _Convention(_label_mvtec, ("ground_truth",), "labels from the folders of the MVTec layout")
    return None


def _table(root: Path) -> tuple[Mapping[Path, Label], str]:
    """(labels by path, where they come from) of a folder in one of DAGM's layouts; no labels for another."""
    base = root.parent if root.name.lower() in _HALVES else root
    try:
        numbers = class_numbers(base)
        records = read_tree(base, numbers).records if numbers else ()
    except (UserError, OSError) as error:
        return {}, f"labels are not known ({error})"
    table = {record.image: record.label for record in records if isinstance(record.image, Path)}
    return table, "labels from DAGM's label files" if table else "labels are not known"


def _label_plain(parts: Parts, path: Path) -> Label:
    known: dict[str, Label] = {own_images.GOOD: 0, "defect": 1}
    return known.get(parts[0]) if len(parts) > 1 else None


def _label_mvtec(parts: Parts, path: Path) -> Label:
    if len(parts) < 3 or parts[0] not in _HALVES:
        return None
    if parts[1] == own_images.GOOD:
        return 0
    # "Good" is no kind of defect, and training refuses it.
    return None if parts[1].strip().lower() == own_images.GOOD else 1

"""Parts that readers of image sets share: entries of a folder, tables, files left out, a manifest's description."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from dagm_jax.errors import UserError, printable
from dagm_jax.types import Manifest, Sample, Skip

SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
_LITTER = frozenset({"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir"})


class Skips:
    """Files left out so far, each with its reason, named relative to ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: list[Skip] = []

    def add(self, path: Path, reason: str, line: int | None = None) -> None:
        """Notes a file or folder below the root, or one line of a file."""
        name = printable(path.relative_to(self.root).as_posix())
        self.found.append(Skip(name if line is None else f"{name}:{line}", reason))


def make_dagm_manifest(
    source: str, root: Path, samples: Sequence[Sample], skipped: Sequence[Skip]
) -> Manifest:
    """The manifest with its line: source, root, images and defective images of each class, number of skips."""
    parts = []
    for class_id in dict.fromkeys(sample.class_id for sample in samples):
        labels = [sample.label for sample in samples if sample.class_id == class_id]
        parts.append(f"class {class_id}: {len(labels)} images ({sum(labels)} defective)")
    head = f"DAGM 2007, {source}, from {printable(root)}"
    description = f"{head}: {'; '.join(parts)}; {len(skipped)} skipped"
    return Manifest(tuple(samples), tuple(skipped), description)


def root_error(root: Path, text: str, field: str = "root") -> UserError:
    """The error of what ``data.<field>`` names; ``text`` follows the argument's name and value."""
    return UserError(f"`data.{field}` (={printable(root)}){text}")


def row_error(path: Path, line: int, what: str, field: str = "root") -> UserError:
    """The error of a table's line that means nothing."""
    return root_error(path, f", line {line}: {printable(what)}; correct that line", field)


def read_table(
    path: Path, needed: Sequence[str], others: Sequence[str], field: str = "root"
) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column → text without surrounding blanks) of each row of a CSV file with a header.

    Columns of ``others`` that are not there are empty. Raises UserError for another table.
    """
    known = (*needed, *others)
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.reader(stream, strict=True)
            header = [name.strip().lower() for name in next(table, [])]
            if not set(needed) <= set(header) <= set(known) or len(set(header)) < len(header):
                columns = ", ".join(map(repr, header)) or "no columns"
                wanted = f"{', '.join(needed)}, and if wanted {', '.join(others)}"
                raise root_error(path, f" has {columns} in its first line; it must name {wanted}", field)
            for row in table:
                if not any(map(str.strip, row)):
                    continue
                if len(row) != len(header):
                    raise row_error(path, table.line_num, f"{len(row)} fields, expected {len(header)}", field)
                values = dict.fromkeys(known, "") | dict(zip(header, map(str.strip, row), strict=True))
                if any("\0" in value for value in values.values()):
                    raise row_error(path, table.line_num, "holds a NUL character", field)
                yield table.line_num, values
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise root_error(
            path, f" cannot be read as a CSV table in UTF-8 ({reason}); save it anew", field
        ) from error


def list_folder(folder: Path) -> list[Path]:
    """The folder's entries by name, without litter; raises UserError if it cannot be listed."""
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(
            f"`data.root`: the folder {printable(folder)} cannot be listed ({error.strerror});"
            " check its permissions"
        ) from error
    return [folder / name for name in sorted(names) if not is_litter(name)]


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is hidden or the file system's own, and not worth a message."""
    return name.startswith(".") or name.lower() in _LITTER

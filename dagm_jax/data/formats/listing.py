"""Parts that readers of image sets share: entries of a folder, files left out, errors, a manifest's description."""

from __future__ import annotations

import os
from collections.abc import Sequence
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


def root_error(root: Path, text: str) -> UserError:
    """The error of a data root that cannot be used; ``text`` follows the argument's name and value."""
    return UserError(f"`data.root` (={printable(root)}){text}")


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

"""A user's own images, in one of three conventions -> a manifest; no pixels are read here.

MVTec: ``train/good``, ``test/good``, ``test/<defect>``, and masks ``ground_truth/<defect>/<stem>_mask.png``; of MVTec
AD 2 also ``validation/good``, and ``test_public`` in place of ``test`` with ``ground_truth`` in it; of MVTec LOCO also
several masks of an image, ``ground_truth/<defect>/<stem>/*.png``.
Plain: ``good/`` and, if wanted, ``defect/`` (or other `GOOD_NAMES` and `DEFECT_NAMES`), and masks ``masks/<stem>`` or
``masks/<stem>_mask`` where there are any.
Flat (``data.flat=good``): images of good parts in the folder itself.
CSV: a file with the columns ``path,label`` and, where wanted, ``mask,split,kind``; paths are relative to the file's
folder. The kind of a defect is its folder's name in MVTec's convention, and the column's in a table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from os.path import isdir, isfile
from pathlib import Path
from typing import Literal

from dagm_jax.data.formats.listing import Skips, list_folder, read_table, root_error, row_error
from dagm_jax.errors import nearest, printable
from dagm_jax.types import Manifest, Photo, Sample, Skip

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".mpo")
GOOD = "good"
# Names of the folders of good and of defective images, in any letters.
GOOD_NAMES = ("good", "ok", "normal", "pass")
DEFECT_NAMES = (
    "defect",
    "defects",
    "defective",
    "ng",
    "nok",
    "ko",
    "bad",
    "abnormal",
    "anomaly",
    "anomalous",
    "fail",
)
# Folders of images in MVTec's layouts, and the half of each.
MVTEC_HALVES: tuple[tuple[Literal["train", "test"], str], ...] = (
    ("train", "train"),
    ("train", "validation"),
    ("test", "test"),
    ("test", "test_public"),
)
_LABELS: dict[str, Literal[0, 1]] = {"0": 0, "good": 0, "1": 1, "defective": 1}
Split = Literal["train", "test"] | None
# Type of an image's mask: a file, or several that are one together.
Masks = Path | tuple[Path, ...]
_SPLIT_WORDS: dict[str, Split] = {"": None, "train": "train", "test": "test"}
# The class of every image: a user's images are of one kind, and DAGM's numbers of textures mean nothing to them.
CLASS_ID = 1


def reader_of(root: Path) -> Callable[[Path], Manifest] | None:
    """The function that reads the convention in which ``root`` holds a user's images; None if it is none of them."""
    if root.suffix.lower() == ".csv" and root.is_file():
        return read_csv
    if (root / "train" / GOOD).is_dir():
        return read_mvtec
    # The reader of DAGM's layouts names a root that is no folder or cannot be listed.
    if root.is_dir() and os.access(root, os.R_OK) and _folders_named(root, GOOD_NAMES):
        return read_plain
    return None


def read_mvtec(root: Path) -> Manifest:
    """The manifest of an MVTec category: the images of train, then of test, by defect and name.

    A defective image without its mask is there without one. Raises UserError where there is no usable image, and for a
    folder named good in other letters.
    """
    found = _Found(root)
    truth = root / "ground_truth"
    if not isdir(truth):
        truth = root / "test_public" / "ground_truth"
    masks = {folder.name: _list_masks(folder, found) for folder in _list_folders(truth, found)}
    folders = [
        (half, folder)
        for half, name in MVTEC_HALVES
        for folder in _list_folders(root / name, found)
        if folder != truth
    ]
    known = {"ground_truth", *(name for _, name in MVTEC_HALVES)}
    for other in list_folder(root):
        if isdir(other) and other.name not in known:
            found.skips.add(other, "a folder that the MVTec layout does not have")
    kinds = [folder.name for _, folder in folders if folder.name != GOOD]
    used = set()
    for split, folder in folders:
        kind, name = folder.name, printable(folder.name)
        if kind != GOOD and kind.strip().lower() == GOOD:
            # Any other name than good is a kind of defect, so all images of this folder would be defective.
            raise root_error(
                root,
                f": {folder.parent.name}/{name} would be a defect named {name}, as folders of good images are named "
                f"{GOOD!r}; rename it, or move its images into {folder.parent.name}/{GOOD}",
            )
        if kinds.count(kind) > 1 and masks.get(kind):
            raise root_error(
                root,
                f": train/{name} and test/{name} share the masks of ground_truth/{name}; move the images into one of"
                " them, or give a CSV table",
            )
        own = {}
        # Masks of good images have to be empty, which is checked when they are decoded; MVTec has none for training.
        if (split, kind) != ("train", GOOD):
            own = masks.get(kind, {})
            used.add(kind)
        found.add_folder(folder, 0 if kind == GOOD else 1, split, own, "" if kind == GOOD else name)
    for kind in sorted(masks.keys() - used):
        found.skips.add(truth / kind, "masks without a folder of images of this name")
    return found.manifest("MVTec layout")


def read_plain(root: Path, good_name: str = "", defect_name: str = "") -> Manifest:
    """The manifest of ``good/`` and ``defect/``, in this order, by name; masks as in `read_mvtec`.

    The names, where they are given, are those of the folders (`data.good`, `data.defect`). Good images alone are
    refused where other folders lie beside theirs, which may hold defects under another name.
    """
    found = _Found(root)
    good_folder = _one_folder(root, "good", good_name, GOOD_NAMES)
    defect_folder = _one_folder(root, "defect", defect_name, DEFECT_NAMES)
    if good_folder is None:
        raise root_error(
            root, f" has no folder of good images; it has {_listed(root)}; name it with data.good"
        )
    beside = [path for path in list_folder(root) if isdir(path) and path not in (good_folder, defect_folder)]
    if defect_folder is None:
        if beside:
            raise root_error(
                root,
                f" has {_listed(root)}, and none that is known to hold defective images; name it with "
                "--config.data.defect=NAME, or move the others elsewhere to learn from good images alone",
            )
        found.add_folder(good_folder, 0, None, {})
        return found.manifest(f"folder {printable(good_folder.name)}")
    for other in beside:
        if other.name != "masks":
            found.skips.add(other, "neither the folder of good images, of defective ones, nor masks")
    masks = _list_masks(root / "masks", found)
    good, defective = ({path.stem for path in list_folder(one)} for one in (good_folder, defect_folder))
    # A mask belongs to its defective image; that of a good image alone has to be empty, as decoding checks.
    masks_of_good = {stem: masks.pop(stem) for stem in masks.keys() & (good - defective)}
    found.add_folder(good_folder, 0, None, masks_of_good)
    found.add_folder(defect_folder, 1, None, masks)
    return found.manifest(f"folders {printable(good_folder.name)} and {printable(defect_folder.name)}")


def label_of_folder(name: str) -> Literal[0, 1] | None:
    """The label of the images in a plain folder of this name; None where it says nothing."""
    lower = name.lower()
    return 0 if lower in GOOD_NAMES else 1 if lower in DEFECT_NAMES else None


def _one_folder(root: Path, field: str, name: str, names: tuple[str, ...]) -> Path | None:
    """The folder of this name, or of one of the names that are known; None for none of those."""
    if name:
        if not isdir(root / name):
            raise root_error(
                Path(name), f" is no folder in {printable(root)}, which has {_listed(root)}", field
            )
        return root / name
    found = _folders_named(root, names)
    if len(found) > 1:
        several = " and ".join(printable(path.name) for path in found)
        raise root_error(root, f" has {several}; say which holds the images with --config.data.{field}=NAME")
    return found[0] if found else None


def _folders_named(root: Path, names: tuple[str, ...]) -> list[Path]:
    return [path for path in list_folder(root) if path.name.lower() in names and isdir(path)]


def _listed(root: Path) -> str:
    """The first folders in ``root``, for a message."""
    names = [printable(path.name) for path in list_folder(root) if isdir(path)]
    return f"the folders {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "no folder"


def read_flat(root: Path) -> Manifest:
    """The manifest of the images in ``root`` itself, all of them good, by name."""
    found = _Found(root)
    found.add_folder(root, 0, None, {})
    return found.manifest("one folder of good images")


def read_csv(path: Path) -> Manifest:
    """The manifest of a CSV file in the order of its rows.

    label: 0, good, 1 or defective; mask, split and kind may be empty; split: train or test, for
    ``data.split=official``; kind: any name, of defective images alone.
    A row that repeats an earlier row's file is left out, and reported as leakage where the two splits differ. Raises
    UserError for a table that means nothing, and for two rows of a file that contradict each other.
    """
    found = _Found(path.parent)
    # Real path -> its first row: two names of one file could each bring a label of its own.
    seen: dict[str, tuple[int, dict[str, object], str]] = {}
    for line, row in read_table(path, ("path", "label"), ("mask", "split", "kind")):
        label, split = row["label"].lower(), row["split"].lower()
        for column, value, known in (("label", label, _LABELS), ("split", split, _SPLIT_WORDS)):
            if value not in known:
                choices = ", ".join(filter(None, known))
                raise row_error(
                    path, line, f"{column} {row[column]!r} must be of {choices}{nearest(value, known)}"
                )
        if not row["path"]:
            raise row_error(path, line, "path is empty")
        if row["kind"] and (not _LABELS[label] or row["kind"].lower() == GOOD):
            raise row_error(path, line, f"kind {row['kind']!r} of an image that is {row['label']}")
        image = path.parent / row["path"]
        mask = path.parent / row["mask"] if row["mask"] else None
        values: dict[str, object] = {
            "label": _LABELS[label],
            "mask": mask and os.path.realpath(mask),
            "kind": row["kind"],
        }
        first, first_values, first_split = seen.setdefault(os.path.realpath(image), (line, values, split))
        for column in values:
            if values[column] != first_values[column]:
                raise row_error(path, line, f"{column} {row[column]!r}, but line {first} gives it another")
        if first == line:
            found.add(row["path"], image, _LABELS[label], _SPLIT_WORDS[split], mask, printable(row["kind"]))
            continue
        reason, leaks = f"same file as line {first}", {first_split, split} == {"train", "test"}
        if leaks:
            reason = f"leakage: {reason} of the {first_split} split, and is itself of the {split} split; left out here"
        found.skips.found.append(Skip(printable(f"{path.name}:{line}"), reason, leaks))
    return found.manifest(f"table {path.name}")


class _Found:
    """Samples and skips so far, under one root."""

    def __init__(self, root: Path) -> None:
        self.samples: list[Sample] = []
        self.skips = Skips(root)

    def add(
        self, name: str, image: Path, label: Literal[0, 1], split: Split, mask: Masks | None, kind: str = ""
    ) -> None:
        """One image under its name, which is unique."""
        photos = tuple(map(Photo, mask)) if isinstance(mask, tuple) else Photo(mask) if mask else None
        self.samples.append(Sample(printable(name), CLASS_ID, label, split, Photo(image), photos, kind))

    def add_folder(
        self,
        folder: Path,
        label: Literal[0, 1],
        split: Split,
        masks: dict[str, list[Masks]],
        kind: str = "",
    ) -> None:
        """The images of a folder, each with its mask; notes what is neither an image nor a mask of one."""
        stems = set()
        for path in list_folder(folder):
            if not isfile(path):
                self.skips.add(path, "not a file; images lie one level up")
                continue
            if path.suffix.lower() not in SUFFIXES:
                self.skips.add(path, "not an image file")
                continue
            stems.add(path.stem)
            own = masks.get(path.stem, [])
            if len(own) > 1:
                names = (mask[0].parent.name + "/" if isinstance(mask, tuple) else mask.name for mask in own)
                self.skips.add(path, f"has {len(own)} masks: {', '.join(names)}")
                continue
            name = path.relative_to(self.skips.root).as_posix()
            self.add(name, path, label, split, own[0] if own else None, kind)
        for stem in sorted(masks.keys() - stems):
            for mask in masks[stem]:
                self.skips.add(mask[0].parent if isinstance(mask, tuple) else mask, "mask without its image")

    def manifest(self, convention: str) -> Manifest:
        """The manifest of all that was found; raises UserError if that is no image."""
        root, skipped = self.skips.root, tuple(self.skips.found)
        if not self.samples:
            first = f"; the first of {len(skipped)} left out: {skipped[0].what}" if skipped else ""
            suffixes = ", ".join(SUFFIXES)
            raise root_error(root, f", {convention}, holds no image ({suffixes}){first}; add images")
        defective = [sample for sample in self.samples if sample.label]
        masked = sum(sample.mask is not None for sample in defective)
        description = (
            f"own images, {convention}, from {printable(root)}: {len(self.samples)} images "
            f"({len(defective)} defective, {masked} of them with masks); {len(skipped)} skipped"
        )
        return Manifest(tuple(self.samples), skipped, description)


def _list_folders(parent: Path, found: _Found) -> list[Path]:
    """The folders in train, test or ground_truth; notes files beside them. Empty where there is no such folder."""
    entries = list_folder(parent) if isdir(parent) else []
    for entry in entries:
        if not isdir(entry):
            found.skips.add(entry, "not in a folder that says what it shows, such as good")
    return list(filter(isdir, entries))


def _list_masks(folder: Path, found: _Found) -> dict[str, list[Masks]]:
    """Stem of an image -> its masks in the folder, which may be named <stem> or <stem>_mask; notes other files.

    A folder <stem> of masks counts as one.
    """
    masks: dict[str, list[Masks]] = {}
    for path in list_folder(folder) if isdir(folder) else []:
        if isfile(path) and path.suffix.lower() in SUFFIXES:
            masks.setdefault(path.stem.removesuffix("_mask"), []).append(path)
            continue
        inside = list_folder(path) if isdir(path) else []
        parts = tuple(part for part in inside if isfile(part) and part.suffix.lower() in SUFFIXES)
        if parts:
            masks.setdefault(path.name, []).append(parts)
        for other in [part for part in inside if part not in parts] if parts else [path]:
            found.skips.add(other, "no mask: not an image file")
    return masks

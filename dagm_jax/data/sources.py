"""Where the images of a run come from: DAGM's folders or prepared sets, a user's own images, or the built-in source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dagm_jax.data import procedural
from dagm_jax.data.formats import own_images
from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.data.formats.tfds_reader import is_prepared, read_prepared
from dagm_jax.data.layouts import DAGM_SHAPE, printable
from dagm_jax.data.photos import find_white
from dagm_jax.data.split import SplitRule
from dagm_jax.types import Drawn, Manifest, Photo, Record, UserError, check_choices


@dataclass(frozen=True)
class DataConfig:
    """The images of a run and their split.

    root: a folder with DAGM's ClassN folders or with prepared TFDS sets of them, or a user's own images (see
    ``own_images``); empty: built-in procedural images, ``procedural_defective`` and ``procedural_good`` of each class.
    classes: of DAGM and of the built-in images; one model is trained on all of them together. validation_share: of
    each label of the train side. num_workers: grain's worker processes, 0 = threads. cache_dir: where decoded images
    are kept; empty: in the workdir until the run is finished.
    """

    root: str = ""
    classes: tuple[int, ...] = (1,)
    split: SplitRule = "random80_20"
    validation_share: float = 0.15
    procedural_defective: int = 75
    procedural_good: int = 125
    num_workers: int = 0
    cache_dir: str = ""

    def __post_init__(self) -> None:
        check_choices("data", self)
        if not self.classes or any(not isinstance(c, int) or c < 1 for c in self.classes):
            raise UserError(
                f"`data.classes` (={self.classes}) must be a tuple of class numbers, at least one, "
                "such as (1,) or (1, 8)"
            )
        if len(set(self.classes)) < len(self.classes):
            raise UserError(f"`data.classes` (={self.classes}) names a class twice; name each once")
        if not 0 < self.validation_share < 1:
            raise UserError(
                f"`data.validation_share` (={self.validation_share}) must lie between 0 and 1; 0.15 is usual"
            )
        for name in ("procedural_defective", "procedural_good"):
            if getattr(self, name) < 5:
                raise UserError(
                    f"`data.{name}` (={getattr(self, name)}) must be at least 5, so that each side of "
                    "the split gets one"
                )
        if self.num_workers < 0:
            raise UserError(f"`data.num_workers` (={self.num_workers}) must be at least 0; 0 means threads")


def find_images(
    config: DataConfig, seed: int, on_image: Callable[[], None] = lambda: None
) -> tuple[Manifest, tuple[int, int] | None]:
    """(manifest, (height, width) in px that every image must have, None for any). Raises UserError.

    ``on_image`` is called after each image that is looked into.
    """
    if not config.root:
        return draw_manifest(config, seed), DAGM_SHAPE
    root = Path(config.root).expanduser()
    try:
        read_own = own_images.reader_of(root)
    except OSError as error:
        raise UserError(
            f"`data.root` (={printable(root)}) cannot be looked at ({error.strerror}); name a folder that can be"
        ) from error
    if read_own is None:
        # A NUL would raise in the first look; read_tree says so in words.
        read = read_prepared if "\0" not in config.root and is_prepared(root) else read_tree
        return read(root, config.classes), DAGM_SHAPE
    if config.classes != (own_images.CLASS_ID,):
        raise UserError(
            f"`data.classes` (={config.classes}) tells DAGM's textures apart, and `data.root` (={config.root}) holds "
            f"images of your own; leave it at ({own_images.CLASS_ID},)"
        )
    return with_white(read_own(root), on_image), None


def with_white(manifest: Manifest, on_image: Callable[[], None]) -> Manifest:
    """The manifest with the white level of its 16-bit images, one for all of them."""
    photos = [record.image for record in manifest.records if isinstance(record.image, Photo)]
    white = find_white(photos, on_image)
    records = tuple(
        replace(record, image=replace(record.image, white=white))
        if isinstance(record.image, Photo)
        else record
        for record in manifest.records
    )
    return replace(manifest, records=records)


def draw_manifest(config: DataConfig, seed: int) -> Manifest:
    """The built-in images' manifest; nothing is drawn yet. Raises UserError for a class that cannot be drawn."""
    records = []
    for class_id in config.classes:
        if class_id not in procedural.CLASSES:
            raise UserError(
                f"`data.classes` (={config.classes}): the built-in images show classes "
                f"{', '.join(map(str, procedural.CLASSES))} only; set data.root to a folder with class {class_id}"
            )
        counts: tuple[tuple[Literal[0, 1], int], ...]
        counts = ((1, config.procedural_defective), (0, config.procedural_good))
        for label, count in counts:
            kind = "defective" if label else "good"
            for index in range(count):
                drawn = Drawn(seed, class_id, index)
                name = f"builtin/class{class_id}/{kind}{index:04d}"
                records.append(Record(name, class_id, label, None, drawn, drawn if label else None))
    description = (
        f"built-in procedural images (data.root is empty), classes {config.classes}: per class "
        f"{config.procedural_defective} defective, {config.procedural_good} good; set data.root to use your own"
    )
    return Manifest(tuple(records), (), description)

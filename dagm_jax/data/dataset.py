"""The images of a run, by `data.root`: DAGM's folders or prepared sets, a user's own images, or the built-in ones."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Literal

from dagm_jax.data import procedural
from dagm_jax.data.config import DataConfig
from dagm_jax.data.formats import own_images
from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.data.formats.tfds_reader import prepared_versions, read_prepared
from dagm_jax.errors import UserError, printable
from dagm_jax.types import DAGM_SHAPE, Drawn, Manifest, Sample


def find_images(config: DataConfig, seed: int) -> tuple[Manifest, tuple[int, int] | None]:
    """(manifest, (height, width) in px that every image must have, None for any). Raises UserError.

    No image is opened: what cannot be read is found when it is decoded, and so is the white level of 16-bit images.
    """
    if not config.root:
        if config.flat or config.good or config.defect:
            raise UserError(
                "`data.root` is missing: the images that data.flat, data.good or data.defect are about"
            )
        return draw_manifest(config, seed), DAGM_SHAPE
    root = Path(config.root).expanduser()
    try:
        read_own = own_images.read_flat if config.flat else own_images.reader_of(root)
        if config.good or config.defect:
            read_own = partial(own_images.read_plain, good_name=config.good, defect_name=config.defect)
    except OSError as error:
        raise UserError(
            f"`data.root` (={printable(root)}) cannot be looked at ({error.strerror}); name a folder that can be"
        ) from error
    if read_own is None:
        # A NUL would raise in the first look; read_tree says so in words.
        read = read_prepared if "\0" not in config.root and prepared_versions(root) else read_tree
        return read(root, config.classes), DAGM_SHAPE
    if config.classes != (own_images.CLASS_ID,):
        raise UserError(
            f"`data.classes` (={config.classes}) tells DAGM's textures apart, and `data.root` (={config.root}) holds "
            f"images of your own; leave it at ({own_images.CLASS_ID},)"
        )
    return read_own(root), None


def draw_manifest(config: DataConfig, seed: int) -> Manifest:
    """The built-in images' manifest; nothing is drawn yet. Raises UserError for a class that cannot be drawn."""
    if unknown := [class_id for class_id in config.classes if class_id not in procedural.CLASSES]:
        raise UserError(
            f"`data.classes` (={config.classes}): the built-in images show classes "
            f"{', '.join(map(str, procedural.CLASSES))} only; set data.root to a folder with class {unknown[0]}"
        )
    samples = []
    kinds: tuple[tuple[Literal[0, 1], str, int], ...] = (
        (1, "defective", config.procedural_defective),
        (0, "good", config.procedural_good),
    )
    for class_id, (label, kind, count) in itertools.product(config.classes, kinds):
        for index in range(count):
            drawn = Drawn(seed, class_id, index)
            name = f"builtin/class{class_id}/{kind}{index:04d}"
            samples.append(Sample(name, class_id, label, None, drawn, drawn if label else None))
    description = (
        f"built-in procedural images (data.root is empty), classes {config.classes}: per class "
        f"{config.procedural_defective} defective, {config.procedural_good} good; set data.root to use your own"
    )
    return Manifest(tuple(samples), (), description)

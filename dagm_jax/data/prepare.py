"""DAGM 2007 prepared as TFDS sets, one for each class: downloaded or read from a folder, checked, then written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table

from dagm_jax.console import console
from dagm_jax.data.formats.tfds_reader import DATASET_NAME, INCOMPLETE, VERSION, read_prepared
from dagm_jax.data.verify import check_whole
from dagm_jax.errors import UserError, printable
from dagm_jax.types import Manifest

# Leftovers of a killed run below the output folder; whole sets and whole downloads stay.
_LEFTOVERS = (
    f"{DATASET_NAME}/*/{INCOMPLETE}*",
    f"downloads/{DATASET_NAME}/*.tmp.*",
    f"downloads/{DATASET_NAME}/extracted/*/.*.partial",
)


def prepare_class(class_id: int, output: Path, source: Path | None) -> tuple[Manifest, bool]:
    """The manifest of the class's set below the TFDS data folder ``output``, and whether it was written now.

    The images come from the folder ``source``, or from a download. A whole set is kept, a damaged one written anew.
    Raises UserError where the source is not the published class.
    """
    if source is not None and not (source.is_dir() and any(source.iterdir())):
        # TFDS would download without a word.
        raise UserError(
            f"`--source` (={printable(source)}) must be a folder with the ClassN folders of DAGM 2007; name that"
            " folder, or leave it out to download"
        )
    folder = folder_of(output, class_id)
    if list(folder.glob("*.tfrecord*")):
        raise UserError(
            f"`--output` (={printable(output)}) holds class {class_id} in tfrecord, which training does not read; "
            "name another folder or remove that set"
        )
    for path in (path for pattern in _LEFTOVERS for path in output.glob(pattern)):
        shutil.rmtree(path)
    if folder.exists():
        try:
            return _read_whole(class_id, output), False
        except UserError as error:
            console.print(f"class {class_id}: written anew: {error}")
            shutil.rmtree(folder)
    _write(class_id, output, source)
    return _read_whole(class_id, output), True


def show_prepared(output: Path, prepared: Mapping[int, tuple[Manifest, bool]]) -> None:
    """Prints a table of the classes (manifest, whether written now), and the command that trains on them."""
    table = Table("class", "train", "defective", "test", "defective", "state", title=str(output))
    for class_id, (manifest, is_new) in prepared.items():
        cells = []
        for split in ("train", "test"):
            labels = [sample.label for sample in manifest.samples if sample.half == split]
            cells += [str(len(labels)), str(sum(labels))]
        table.add_row(str(class_id), *cells, "written" if is_new else "was whole already")
    console.print(table)
    classes = "".join(f"{class_id}," for class_id in prepared)
    console.print(
        f"use it: python -m dagm_jax.main --config=custom_unet --config.data.root={output}"
        f" --config.data.classes='({classes})'"
    )


def folder_of(output: Path, class_id: int) -> Path:
    """The folder of the class's set."""
    return output / DATASET_NAME / f"class{class_id}" / VERSION


def _read_whole(class_id: int, output: Path) -> Manifest:
    """The manifest of the class's set; raises UserError unless it is whole and as published."""
    from dagm_jax.data.dagm2007.dagm2007_dataset_builder import Builder

    manifest = read_prepared(output, (class_id,))
    check_whole(manifest, class_id, Builder.TRUTH)
    return manifest


def _write(class_id: int, output: Path, source: Path | None) -> None:
    # Imports tensorflow_datasets, which takes seconds, and which the table above does without.
    import tensorflow_datasets as tfds
    from absl import logging

    from dagm_jax.data.dagm2007.dagm2007_dataset_builder import Builder

    builder = Builder(data_dir=output, config=f"class{class_id}")
    # Never TFDS's default downloads/manual: the source is the named folder or the published archive.
    config = tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False)
    logging.set_verbosity(logging.ERROR)
    console.print(f"class {class_id} from {'download' if source is None else 'folder'}")
    try:
        builder.download_and_prepare(
            download_config=config, download_dir=output / "downloads", file_format="array_record"
        )
    except UserError as error:
        # The readers name the options of training.
        message = str(error).replace("`data.classes`", "`--classes`").replace("`data.root`", "`--source`")
        raise UserError(message) from error

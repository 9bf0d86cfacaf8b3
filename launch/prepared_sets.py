"""Prepared TFDS sets of DAGM 2007, one for each class: written, or kept where they are whole."""

from __future__ import annotations

import contextlib
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from dagm_jax.data.dagm2007 import Builder
from dagm_jax.data.formats.tfds_reader import DATASET_NAME, INCOMPLETE, VERSION, read_prepared
from dagm_jax.data.layouts import printable
from dagm_jax.data.verify import check_whole
from dagm_jax.train.progress import Bar, console, show
from dagm_jax.types import Manifest, UserError

POLL_S = 1.0


def folder_of(output: Path, class_id: int) -> Path:
    """Where the class's set lies below the TFDS data folder ``output``."""
    return output / DATASET_NAME / f"class{class_id}" / VERSION


def remove_leftovers(output: Path) -> None:
    """Removes what a killed run left half-written; whole sets and whole downloads stay."""
    for pattern in (
        f"{DATASET_NAME}/*/{INCOMPLETE}*",
        f"downloads/{DATASET_NAME}/*.tmp.*",
        f"downloads/{DATASET_NAME}/extracted/*/.*.partial",
    ):
        for path in output.glob(pattern):
            shutil.rmtree(path)


def prepare_class(class_id: int, output: Path, source: Path | None) -> bool:
    """Makes the class's set whole, from the folder ``source`` or a download; False if it was whole already.

    A set that is there but damaged is written anew. Raises UserError where the source is not the published class.
    """
    if source is not None and not source.is_dir():
        raise UserError(
            f"`--source` (={printable(source)}) must be a folder with the ClassN folders of DAGM 2007; name that"
            " folder, or leave it out to download"
        )
    folder = folder_of(output, class_id)
    if list(folder.glob("*.tfrecord*")):
        raise UserError(
            f"`--output` (={printable(output)}) holds class {class_id} in tfrecord, which the main job does not read; "
            "name another folder or remove that set"
        )
    if folder.exists():
        try:
            read_whole(class_id, output)
            return False
        except UserError as error:
            console.print(f"class {class_id}: written anew: {error}")
            shutil.rmtree(folder)
    builder = Builder(data_dir=output, config=f"class{class_id}")
    num_images = len(Builder.TRUTH[class_id])
    config = tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False)
    where = "download" if source is None else "folder"
    with show(f"class {class_id} from {where}: check, then write", 2 * num_images) as bar:
        builder.on_image = bar.advance
        with _tfds_quiet(), _shown_download(output / "downloads" / DATASET_NAME, bar):
            # Never TFDS's default downloads/manual: the source is the one that was named, or the published one.
            try:
                builder.download_and_prepare(
                    download_config=config, download_dir=output / "downloads", file_format="array_record"
                )
            except UserError as error:
                raise UserError(_in_our_words(str(error))) from error
    return True


def _in_our_words(message: str) -> str:
    """A message of the readers, which the main job shares, with the names that the options have here."""
    return (
        message.replace("`data.root`", "`--source`")
        .replace("`manual_dir`", "`--source`")
        .replace("`data.classes`", "`--classes`")
    )


def read_whole(class_id: int, output: Path) -> Manifest:
    """The manifest of the class's set; raises UserError unless it is whole and as published."""
    manifest = read_prepared(folder_of(output, class_id), (class_id,))
    check_whole(manifest, class_id, Builder.TRUTH)
    return manifest


@contextlib.contextmanager
def _shown_download(downloads: Path, bar: Bar) -> Iterator[None]:
    """Shows on the bar, once a second, how much of an archive is there; TFDS counts on a bar of its own alone."""
    over = threading.Event()

    def show_size() -> None:
        while not over.wait(POLL_S):
            with contextlib.suppress(OSError):  # the download ended between the listing and the look
                sizes = [path.stat().st_size for path in downloads.glob("*.tmp.*/*")]
                if sizes:
                    bar.advance(0, f"{sum(sizes) / 1e6:.0f} MB downloaded")

    thread = threading.Thread(target=show_size, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Muted(io.StringIO):
    """Takes what is printed, and sends what the console shows on to where it went before."""

    def __init__(self) -> None:
        super().__init__()
        self.rich_proxied_file = console.file


@contextlib.contextmanager
def _tfds_quiet() -> Iterator[None]:
    """TFDS without its own bars and lines, which would stand between ours."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(_Muted()):
        yield

"""Prepared TFDS sets of DAGM 2007, one for each class: written, or kept where they are whole."""

from __future__ import annotations

import contextlib
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from dagm_jax.console import Bar, console, show
from dagm_jax.data.dagm2007.dagm2007_dataset_builder import Builder
from dagm_jax.data.formats.tfds_reader import DATASET_NAME, INCOMPLETE, VERSION, read_prepared
from dagm_jax.data.verify import check_whole
from dagm_jax.errors import UserError, printable
from dagm_jax.types import Manifest

POLL_S = 1.0


def folder_of(output: Path, class_id: int) -> Path:
    """The folder of the class's set below the TFDS data folder ``output``."""
    return output / DATASET_NAME / f"class{class_id}" / VERSION


def prepare_class(class_id: int, output: Path, source: Path | None) -> tuple[Manifest, bool]:
    """The manifest of the class's set, made from the folder ``source`` or a download, and whether it was written now.

    A whole set is kept, a damaged one written anew, the leftovers of a killed run are removed. Raises UserError where
    the source is not the published class.
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
    _remove_leftovers(output)
    if folder.exists():
        try:
            return _read_whole(class_id, output), False
        except UserError as error:
            console.print(f"class {class_id}: written anew: {error}")
            shutil.rmtree(folder)
    _write(class_id, output, source)
    return _read_whole(class_id, output), True


def _remove_leftovers(output: Path) -> None:
    """Removes half-written files; whole sets and whole downloads stay."""
    for pattern in (
        f"{DATASET_NAME}/*/{INCOMPLETE}*",
        f"downloads/{DATASET_NAME}/*.tmp.*",
        f"downloads/{DATASET_NAME}/extracted/*/.*.partial",
    ):
        for path in output.glob(pattern):
            shutil.rmtree(path)


def _read_whole(class_id: int, output: Path) -> Manifest:
    """The manifest of the class's set; raises UserError unless it is whole and as published."""
    manifest = read_prepared(folder_of(output, class_id), (class_id,))
    check_whole(manifest, class_id, Builder.TRUTH)
    return manifest


def _write(class_id: int, output: Path, source: Path | None) -> None:
    builder = Builder(data_dir=output, config=f"class{class_id}")
    # Never TFDS's default downloads/manual: the source is the named folder or the published archive.
    config = tfds.download.DownloadConfig(manual_dir=source, try_download_gcs=False)
    downloads = output / "downloads"
    where = "download" if source is None else "folder"
    num_images = len(Builder.TRUTH[class_id])
    with show(f"class {class_id} from {where}: check, then write", 2 * num_images) as bar:
        builder.on_image = bar.advance
        try:
            with _tfds_quiet(), _shown_download(downloads / DATASET_NAME, bar):
                builder.download_and_prepare(
                    download_config=config, download_dir=downloads, file_format="array_record"
                )
        except UserError as error:
            # The readers name the options of the main job.
            message = str(error).replace("`data.classes`", "`--classes`").replace("`data.root`", "`--source`")
            raise UserError(message.replace("`manual_dir`", "`--source`")) from error


@contextlib.contextmanager
def _shown_download(downloads: Path, bar: Bar) -> Iterator[None]:
    """Shows the downloaded MB of an archive on the bar every POLL_S; TFDS counts on a bar of its own alone."""
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
    """Discards the lines of ``print``; the console's own go where they went before."""

    def __init__(self) -> None:
        super().__init__()
        self.rich_proxied_file = console.file


@contextlib.contextmanager
def _tfds_quiet() -> Iterator[None]:
    """TFDS without its own bars and lines, which would stand between ours."""
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(_Muted()):
        yield

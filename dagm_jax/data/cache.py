"""Decoded images in one memory-mapped file, shared by the training process and grain's workers."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dagm_jax.data import procedural
from dagm_jax.data.formats.tfds_reader import shards
from dagm_jax.data.images.decode import BadMask, load_all
from dagm_jax.data.images.files import BadImage, is_white_level
from dagm_jax.data.images.photos import find_white, with_white
from dagm_jax.data.leakage import content_digest, find_copies
from dagm_jax.errors import UserError
from dagm_jax.storage import load_json, replacing
from dagm_jax.types import Drawn, Ellipse, Manifest, Photo, Sample, Skip, Stored

# Version of the listing and its pixels; part of their name.
FORMAT = 6


@dataclass(frozen=True)
class MaskSums:
    """How many pixels of a mask are set: down each column, int32 ``[w]``, across each row, int32 ``[h]``, in all."""

    down: np.ndarray
    across: np.ndarray
    total: int


@dataclass(frozen=True)
class ImageCache:
    """Random access to decoded images: ``cache[i]`` is (uint8 ``[h w]``, bool ``[h w]``) of record i.

    shapes: (h, w) of each image. Only path and shapes are pickled, so a worker process maps the same file instead of
    copying it.
    """

    path: Path
    shapes: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.shapes)

    @property
    def shape(self) -> tuple[int, int] | None:
        """(h, w) of every image, None where they differ."""
        return self.shapes[0] if len(set(self.shapes)) == 1 else None

    @property
    def largest(self) -> tuple[int, int]:
        """The greatest height and the greatest width, maybe of two images, in px."""
        return max(h for h, _ in self.shapes), max(w for _, w in self.shapes)

    @cached_property
    def _offsets(self) -> list[int]:
        return [0, *accumulate(map(row_bytes, self.shapes))]

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "shapes": self.shapes}

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.image(index), self.mask(index)

    def image(self, index: int) -> np.ndarray:
        """The pixels of an image, uint8 ``[h w]``, read-only."""
        row = self._row(index)
        h, w = self.shapes[index]
        return row[: h * w].reshape(h, w)

    def mask(self, index: int) -> np.ndarray:
        """The mask of an image, bool ``[h w]``."""
        row = self._row(index)
        h, w = self.shapes[index]
        return np.unpackbits(row[h * w :], count=h * w).view(bool).reshape(h, w)

    @cached_property
    def _bytes(self) -> np.ndarray:
        # A plain array: each slice of a memmap would be one too, and making these takes longer than reading them.
        return np.asarray(np.memmap(self.path, np.uint8, "r"))

    def _row(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start, end = self._offsets[index : index + 2]
        return self._bytes[start:end]

    @cached_property
    def _mask_sums(self) -> dict[int, MaskSums]:
        return {}

    def mask_sums(self, index: int) -> MaskSums:
        """The sums over the image's mask; kept once computed."""
        sums = self._mask_sums.get(index)
        if sums is None:
            mask = self.mask(index)
            down, across = mask.sum(0, dtype=np.int32), mask.sum(1, dtype=np.int32)
            sums = self._mask_sums[index] = MaskSums(down, across, int(down.sum()))
        return sums

    def mask_px(self, index: int) -> int:
        """How many pixels of the image's mask are set."""
        row = self._row(index)
        h, w = self.shapes[index]
        return int(np.bitwise_count(row[h * w :]).sum())

    def intensity_moments(self, indices: Sequence[int]) -> tuple[float, float]:
        """(mean, standard deviation) of the grey values in [0, 255] over the given images."""
        counts = np.zeros(256, np.int64)
        for index in indices:
            counts += np.bincount(self[index][0].ravel(), minlength=256)
        grey = np.arange(256)
        mean = float((counts * grey).sum() / counts.sum())
        variance = float((counts * (grey - mean) ** 2).sum() / counts.sum())
        return mean, variance**0.5


def row_bytes(shape: Sequence[int]) -> int:
    """Bytes of one record: the pixels, then the mask at one bit a pixel."""
    pixels = shape[0] * shape[1]
    return pixels + -(-pixels // 8)


def build_cache(
    manifest: Manifest,
    directory: Path,
    shape: tuple[int, int] | None,
    on_image: Callable[[], None] = lambda: None,
    masks_for: str = "",
    beat: Callable[[], None] = lambda: None,
) -> tuple[Manifest, ImageCache]:
    """The manifest less its unreadable images and its copies (see ``leakage``), and the cache of the others.

    The returned records know the white level of 16-bit images, one for all of them.
    shape: (h, w) that every image must have, None for any. masks_for: the task that needs the masks of defective
    images, so that those without one are left out. on_image is called after each image that is decoded, beat after each
    file that is opened for its white level.

    A cache of the same files (path, size, time of change) is taken as it is, and nothing is opened. A file appears
    under its name only when it is whole. Raises UserError where the disk is full or read-only.
    """
    stem = directory / fingerprint(manifest, shape, masks_for)
    pixels, index = stem.with_suffix(".bin"), stem.with_suffix(".json")
    listing = _read_listing(pixels, index, manifest.samples)
    if listing is None:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            photos = [
                r.image for r in manifest.samples if isinstance(r.image, Photo) and r.image.white is None
            ]
            white = find_white(photos, beat) if photos else None
            listing = _write(manifest, white, pixels, index, shape, on_image, masks_for)
        except OSError as error:
            needed = len(manifest.samples) * row_bytes(shape) if shape else None
            raise _disk_error(error, directory, needed) from error
    kept = with_white([manifest.samples[i] for i in listing.kept], listing.white)
    _check_classes(manifest, kept, listing.skipped)
    whole = replace(manifest, samples=kept, skipped=manifest.skipped + listing.skipped)
    return whole, ImageCache(pixels, listing.shapes)


@dataclass(frozen=True)
class _Listing:
    """Content of a file of pixels: places of its images in the manifest, their (h, w), and the images left out.

    white: the level that was found for the users' images whose own was not known; None if there were none.
    """

    kept: tuple[int, ...]
    shapes: tuple[tuple[int, int], ...]
    skipped: tuple[Skip, ...]
    white: int | None

    def is_of(self, samples: Sequence[Sample], num_bytes: int) -> bool:
        """Whether it can list these records, each once, and a file of so many bytes."""
        needs_white = any(isinstance(r.image, Photo) and r.image.white is None for r in samples)
        if not is_white_level(self.white) or (self.white is None) == needs_white:
            return False
        in_range = all(type(i) is int and 0 <= i < len(samples) for i in self.kept)
        if not in_range or list(self.kept) != sorted(set(self.kept)) or len(self.kept) != len(self.shapes):
            return False
        if not all(type(edge) is int and edge > 0 for shape in self.shapes for edge in shape):
            return False
        if not all(isinstance(skip.reason, str) and isinstance(skip.leaks, bool) for skip in self.skipped):
            return False
        named = [samples[i].image_id for i in self.kept] + [skip.what for skip in self.skipped]
        return Counter(named) == Counter(sample.image_id for sample in samples) and num_bytes == sum(
            map(row_bytes, self.shapes)
        )


def _read_listing(pixels: Path, index: Path, samples: Sequence[Sample]) -> _Listing | None:
    """The listing, if it and its pixels are there and whole; None where they must be decoded (anew)."""
    try:
        found = load_json(index)
        shapes = tuple((h, w) for h, w in found["shapes"])
        skipped = tuple(Skip(**skip) for skip in found["skipped"])
        listing = _Listing(tuple(found["kept"]), shapes, skipped, found["white"])
        return listing if listing.is_of(samples, pixels.stat().st_size) else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_classes(manifest: Manifest, kept: Sequence[Sample], skipped: Sequence[Skip]) -> None:
    class_of = {sample.image_id: sample.class_id for sample in manifest.samples}
    for lacking in sorted(set(class_of.values()) - {sample.class_id for sample in kept}):
        own = [skip for skip in skipped if class_of[skip.what] == lacking]
        raise UserError(
            f"`data.classes`: no image of class {lacking} could be read; the first of {len(own)}: "
            f"{own[0].what}: {own[0].reason}"
        )


def fingerprint(manifest: Manifest, shape: tuple[int, int] | None, masks_for: str = "") -> str:
    """A name that changes whenever a file of the manifest, its label, its half, the wanted shape or task does."""
    digest = hashlib.sha256(json.dumps([FORMAT, shape, masks_for]).encode())
    folders = {sample.image.folder for sample in manifest.samples if isinstance(sample.image, Stored)}
    stamps = {folder: [_stamp(path) for path in shards(folder)] for folder in folders}
    for sample in manifest.samples:
        parts: list[object] = [sample.image_id, sample.label, sample.half]
        for source in (sample.image, sample.mask):
            if isinstance(source, Path):
                parts.append(_stamp(source))
            elif isinstance(source, Photo):
                parts.append([*_stamp(source.path), source.white])
            elif isinstance(source, Stored):
                parts.append([source.split, source.index, stamps[source.folder]])
            elif isinstance(source, Drawn):
                parts.append([procedural.VERSION, asdict(source)])
            elif isinstance(source, Ellipse):
                parts.append(asdict(source))
        digest.update(json.dumps(parts).encode())
    return digest.hexdigest()[:20]


def _stamp(path: Path) -> list[object]:
    """What changes with the file's content, as far as its status shows it."""
    try:
        stat = path.stat()
    except (OSError, ValueError):  # reading it will say what is wrong with it
        stat = None
    return [str(path), stat and stat.st_size, stat and stat.st_mtime_ns]


def _write(
    manifest: Manifest,
    white: int | None,
    pixels: Path,
    index: Path,
    shape: tuple[int, int] | None,
    on_image: Callable[[], None],
    masks_for: str,
) -> _Listing:
    """Decodes into the two files; returns the listing."""
    # Plain writes, not stores into a map: on a full disk a store kills the process by a signal.
    with replacing(pixels, "x+b") as stream:
        samples = with_white(manifest.samples, white)
        kept, shapes, skipped = _write_rows(samples, stream, shape, on_image, masks_for)
    listing = _Listing(tuple(kept), tuple(shapes), tuple(skipped), white)
    with replacing(index) as stream:
        stream.write(json.dumps(asdict(listing)))
    return listing


def _write_rows(
    samples: Sequence[Sample],
    stream: BinaryIO,
    shape: tuple[int, int] | None,
    on_image: Callable[[], None],
    masks_for: str,
) -> tuple[list[int], list[tuple[int, int]], list[Skip]]:
    """(places of the images written, their shapes, the images left out)."""
    written: list[int] = []
    shapes: list[tuple[int, int]] = []
    skips: dict[int, Skip] = {}
    digests: dict[int, bytes] = {}
    for place, (sample, loaded) in enumerate(zip(samples, load_all(samples, shape), strict=True)):
        if isinstance(loaded, BadImage):
            skips[place] = Skip(sample.image_id, str(loaded))
        elif masks_for and sample.label and sample.mask is None:
            skips[place] = Skip(sample.image_id, f"defective and without a mask, which {masks_for} needs")
        if isinstance(loaded, BadMask):
            digests[place] = content_digest(loaded.image)
        elif not isinstance(loaded, BadImage):
            image, mask = loaded
            digests[place] = content_digest(image)
            if place not in skips:
                written.append(place)
                shapes.append((image.shape[0], image.shape[1]))
                stream.write(image.tobytes())
                stream.write(np.packbits(mask).tobytes())
        on_image()
    skips |= find_copies(samples, digests, frozenset(skips))
    kept = [row for row, place in enumerate(written) if place not in skips]
    _keep_rows(stream, shapes, kept)
    return [written[row] for row in kept], [shapes[row] for row in kept], [skips[k] for k in sorted(skips)]


def _keep_rows(stream: BinaryIO, shapes: Sequence[tuple[int, int]], kept: Sequence[int]) -> None:
    """Removes all rows but the ``kept`` (rising) from the file that is being written."""
    if len(kept) == len(shapes):
        return
    offsets = [0, *accumulate(map(row_bytes, shapes))]
    end = 0
    for i in kept:
        stream.seek(offsets[i])
        row = stream.read(row_bytes(shapes[i]))
        stream.seek(end)
        end += stream.write(row)
    stream.truncate(end)


def _disk_error(error: OSError, directory: Path, needed: int | None) -> UserError:
    if error.errno == errno.ENOSPC:
        existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        bytes_needed = f"{needed / 1e6:.0f} MB are needed" if needed else "more is needed"
        return UserError(
            f"`data.cache_dir` (={directory}): the disk is full: {bytes_needed} for the decoded images, "
            f"{free / 1e6:.0f} MB are free; make room or name another folder"
        )
    return UserError(
        f"`data.cache_dir` (={directory}) cannot be written ({error.strerror}); name a folder that can be"
    )

"""Decoded images in one memory-mapped file, shared by the training process and grain's workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dagm_jax.data import procedural
from dagm_jax.data.formats.tfds_reader import shards
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import BadMask, find_white, load_all, with_white
from dagm_jax.data.leakage import content_digest, find_copies
from dagm_jax.errors import UserError
from dagm_jax.storage import load_json, plain_disk_errors, replacing, write_atomically
from dagm_jax.types import Manifest, Photo, Sample, Skip

# Version of the listing and its pixels; part of their name.
FORMAT = 8


@dataclass(frozen=True)
class MaskSums:
    """Set pixels of a mask: down each column, int32 ``[w]``, across each row, int32 ``[h]``, and in all."""

    down: np.ndarray
    across: np.ndarray
    total: int


@dataclass(frozen=True)
class ImageCache:
    """Random access to decoded images: ``cache[i]`` is (uint8 ``[h w]``, bool ``[h w]``) of image i.

    shapes: (h, w) of each image; offsets: the byte of the file at which it begins; unmarked: images whose masks are
    hidden, as if they had none. Only the fields are pickled, so a worker process maps the same file instead of copying
    it.
    """

    path: Path
    shapes: tuple[tuple[int, int], ...]
    offsets: tuple[int, ...]
    unmarked: frozenset[int] = frozenset()

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

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.image(index), self.mask(index)

    def image(self, index: int) -> np.ndarray:
        """The pixels of an image, uint8 ``[h w]``, read-only."""
        return self._row(index)[0]

    def mask(self, index: int) -> np.ndarray:
        """The mask of an image, bool ``[h w]``; all True where it is hidden."""
        pixels, packed = self._row(index)
        if index in self.unmarked:
            return np.ones(pixels.shape, bool)
        return np.unpackbits(packed, count=pixels.size).view(bool).reshape(pixels.shape)

    @cached_property
    def _bytes(self) -> np.ndarray:
        # A plain array: each slice of a memmap would be one too, and making these takes longer than reading them.
        return np.asarray(np.memmap(self.path, np.uint8, "r"))

    def _row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(pixels uint8 ``[h w]``, the mask at one bit a pixel, packed in uint8) of an image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        start, (h, w) = self.offsets[index], self.shapes[index]
        row = self._bytes[start : start + h * w + -(-h * w // 8)]
        return row[: h * w].reshape(h, w), row[h * w :]

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
        """Set pixels of the image's mask."""
        return int(np.bitwise_count(self._row(index)[1]).sum())

    def intensity_moments(self, indices: Sequence[int]) -> tuple[float, float]:
        """(mean, standard deviation) of the grey values in [0, 255] over the given images."""
        counts = np.zeros(256, np.int64)
        for index in indices:
            counts += np.bincount(self.image(index).ravel(), minlength=256)
        mean = float(np.average(np.arange(256), weights=counts))
        variance = float(np.average((np.arange(256) - mean) ** 2, weights=counts))
        return mean, variance**0.5


def build_cache(
    manifest: Manifest,
    directory: Path,
    shape: tuple[int, int] | None,
    on_image: Callable[[], None] = lambda: None,
    heartbeat: Callable[[], None] = lambda: None,
) -> tuple[Manifest, ImageCache]:
    """The manifest less its unreadable images and its copies (see ``leakage``), and the cache of the others.

    The returned samples know the white level of 16-bit images, one for all of them. shape: (h, w) that every image must
    have, None for any. on_image is called after each image that is decoded, heartbeat after each file that is opened
    for its white level. A cache of the same files (path, size, time of change) is taken as it is, and nothing is
    opened. A file appears under its name only when it is whole. Raises UserError for a class without images, a full or
    read-only disk.
    """
    stem = directory / fingerprint(manifest, shape)
    pixels, index = stem.with_suffix(".bin"), stem.with_suffix(".json")
    listing = _read_listing(pixels, index)
    if listing is None:
        with plain_disk_errors(directory, "data.cache_dir"):
            directory.mkdir(parents=True, exist_ok=True)
            images = (sample.image for sample in manifest.samples)
            photos = [image for image in images if isinstance(image, Photo) and image.white is None]
            white = find_white(photos, heartbeat) if photos else None
            # Plain writes, not stores into a map: on a full disk a store kills the process by a signal.
            with replacing(pixels, "xb") as stream:
                samples = with_white(manifest.samples, white)
                listing = _write_pixels(samples, white, stream, shape, on_image)
            write_atomically(index, json.dumps({"sha256": _checksum(listing), "listing": listing}))
    kept = with_white([manifest.samples[i] for i in listing["kept"]], listing["white"])
    skipped = tuple(Skip(**skip) for skip in listing["skipped"])
    class_of = {sample.image_id: sample.class_id for sample in manifest.samples}
    for lacking in sorted(set(class_of.values()) - {sample.class_id for sample in kept}):
        own = [skip for skip in skipped if class_of[skip.what] == lacking]
        raise UserError(
            f"`data.classes`: no image of class {lacking} could be read; the first of {len(own)}: "
            f"{own[0].what}: {own[0].reason}"
        )
    whole = replace(manifest, samples=kept, skipped=manifest.skipped + skipped)
    shapes = tuple((height, width) for height, width in listing["shapes"])
    return whole, ImageCache(pixels, shapes, tuple(listing["offsets"]))


def _read_listing(pixels: Path, index: Path) -> dict[str, Any] | None:
    """The listing as `_write_pixels` gives it, if it and its pixels are whole; None where they must be decoded."""
    try:
        found = load_json(index)
        listing: dict[str, Any] = found["listing"]
        is_whole = found["sha256"] == _checksum(listing) and listing["num_bytes"] == pixels.stat().st_size
        return listing if is_whole else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def fingerprint(manifest: Manifest, shape: tuple[int, int] | None) -> str:
    """A name that changes whenever a file of the manifest, its label, its half or the wanted shape does."""
    # Boxes are added to samples later, and are no part of them here.
    samples = [asdict(sample) | {"boxes": None} for sample in manifest.samples]
    content = [FORMAT, procedural.VERSION, shape, samples]
    return hashlib.sha256(json.dumps(content, default=cache(_stamps)).encode()).hexdigest()[:20]


def _stamps(path: Path) -> list[object]:
    """(path, size, time of change) of a file, or of the shards of a prepared set: they change with the content."""
    stamps: list[object] = []
    for file in shards(path) if path.is_dir() else [path]:
        try:
            stat = file.stat()
            stamps.append([str(file), stat.st_size, stat.st_mtime_ns])
        except (OSError, ValueError):  # reading it will say what is wrong with it
            stamps.append(str(file))
    return stamps


def _write_pixels(
    samples: Sequence[Sample],
    white: int | None,
    stream: BinaryIO,
    shape: tuple[int, int] | None,
    on_image: Callable[[], None],
) -> dict[str, Any]:
    """Decodes into the stream, where images that turn out to be copies leave a gap; returns the listing as JSON values.

    kept: places in the manifest of the images that are used; shapes, offsets: their (h, w) and first bytes. num_bytes:
    those of the stream. skipped: the images left out. white: the level found for images whose own was not known.
    """
    # All by place in the manifest.
    shapes: dict[int, tuple[int, int]] = {}
    offsets: dict[int, int] = {}
    skips: dict[int, Skip] = {}
    digests: dict[int, bytes] = {}
    for place, (sample, loaded) in enumerate(zip(samples, load_all(samples, shape), strict=True)):
        if isinstance(loaded, BadImage):
            skips[place] = Skip(sample.image_id, str(loaded))
        if isinstance(loaded, BadMask):
            digests[place] = content_digest(loaded.image)
        elif not isinstance(loaded, BadImage):
            image, mask = loaded
            digests[place] = content_digest(image)
            if place not in skips:
                shapes[place], offsets[place] = (image.shape[0], image.shape[1]), stream.tell()
                stream.write(image.tobytes())
                stream.write(np.packbits(mask).tobytes())
        on_image()
    skips |= find_copies(samples, digests, frozenset(skips))
    kept = [place for place in shapes if place not in skips]
    return {
        "kept": kept,
        "shapes": [shapes[place] for place in kept],
        "offsets": [offsets[place] for place in kept],
        "num_bytes": stream.tell(),
        "skipped": [asdict(skips[place]) for place in sorted(skips)],
        "white": white,
    }

"""Image and mask of a sample, or the reason why its files cannot be used; the white level of 16-bit images.

DAGM's files are PNGs of 8-bit grey, a user's own of several formats.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data import procedural
from dagm_jax.data.formats.tfds_reader import read_example
from dagm_jax.data.images.decode import (
    MODES_16,
    SIZE_OF_IMAGE,
    SIZE_OF_SET,
    WHITE_16,
    BadImage,
    open_header,
    read_bytes,
    read_grey,
    to_8_bits,
)
from dagm_jax.errors import printable
from dagm_jax.types import DAGM_SHAPE, Drawn, Ellipse, Photo, Pixels, Sample, Stored

DECODE_THREADS = 4
# Grey value above which a pixel of DAGM's masks is defective.
_HALF = 127
# Largest value from which a user's mask holds grey values; below it, numbers of classes.
_LEAST_MASK_WHITE = 32
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class BadMask(BadImage):
    """A mask that cannot be used; the text says why, and ``image`` is its image, uint8 [h w], which can be read."""

    def __init__(self, reason: str, image: NDArray[np.uint8]) -> None:
        super().__init__(reason)
        self.image = image


def load(sample: Sample, shape: tuple[int, int] | None) -> Pixels:
    """Image uint8 [h w] and mask bool [h w] of a sample, wherever they come from.

    The mask of a good image without one is all False; that of a defective image without one all True: the defect may
    be anywhere. Raises BadImage; BadMask where the image alone can be read, or label and mask contradict each other.
    """
    own_mask: Callable[[tuple[int, int]], NDArray[np.bool_]] = partial(np.full, fill_value=sample.label == 1)
    match sample.image:
        case Drawn(seed, class_id, index):
            size_px = (shape or DAGM_SHAPE)[0]
            picture = procedural.draw(
                class_id, index, seed=seed, defective=sample.label == 1, size_px=size_px
            )
            image, own_mask = picture.image, lambda size: picture.mask
        case Stored():
            name = f"{sample.image.folder} ({sample.image_id})"
            packed, packed_mask = _read_record(sample.image, sample.image_id, name)
            image = decode_image(packed, f"{name}, image", shape)
            own_mask = partial(decode_mask, packed_mask, f"{name}, mask")
        case _:
            image = read_image(sample.image, shape)
    try:
        size = (image.shape[0], image.shape[1])
        match sample.mask:
            case Path() | Photo():
                mask = read_mask(sample.mask, size)
            case tuple():
                mask = np.any([read_mask(part, size) for part in sample.mask], axis=0)
            case Ellipse():
                mask = sample.mask.rasterise(size)
            case _:
                mask = own_mask(size)
        if sample.label == 1 and not mask.any():
            raise BadImage(
                printable(f"{sample.image_id}: labelled defective, but mask is empty ({sample.mask})")
            )
        if sample.label == 0 and mask.any():
            marked = f"mask marks {np.count_nonzero(mask)} px ({sample.mask})"
            raise BadImage(printable(f"{sample.image_id}: labelled good, but {marked}"))
    except BadImage as error:
        raise BadMask(str(error), image) from error
    return image, mask


def _read_record(stored: Stored, image_id: str, name: str) -> tuple[bytes, bytes]:
    """Image and mask of a record of a prepared set, as PNG; raises BadImage, also if it holds another image."""
    try:
        found, image, mask = read_example(stored)
    except ValueError as error:
        raise BadImage(printable(f"{name}: record {stored.index} cannot be read ({error})")) from error
    if found.image_id != image_id:
        raise BadImage(printable(f"{name}: record {stored.index} holds {found.image_id}"))
    return image, mask


def read_image(source: Path | Photo, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The image in DAGM's or a user's file, uint8 [h w] in [0, 255], maybe read-only.

    shape: the (h, w) that it must have, None for any. DAGM's are as `decode_image` takes them. A user's are PNG, JPEG,
    BMP, TIFF of one picture: colours by their luma (ITU-R 601), 16 bits as 255 · value / white, rounded. Raises
    BadImage.
    """
    if isinstance(source, Path):
        return decode_image(read_bytes(source), source, shape)
    values = read_grey(read_bytes(source.path), source.path, shape, SIZE_OF_SET, "luma")
    return to_8_bits(values, source.white)


def read_mask(source: Path | Photo, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask bool [h w] in DAGM's or a user's file: True above half of 255, or of the file's largest value.

    A user's largest value below 32 says that the values are numbers of classes: True for all but 0. In colours the
    strongest channel counts. Raises BadImage.
    """
    if isinstance(source, Path):
        return decode_mask(read_bytes(source), source, shape)
    values = read_grey(read_bytes(source.path), source.path, shape, SIZE_OF_IMAGE, "strongest")
    largest = int(values.max())
    return values > (largest / 2 if largest >= _LEAST_MASK_WHITE else 0)


def decode_image(data: bytes, path: Path | str, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The image in the bytes of a file of DAGM's, which messages call ``path``; raises BadImage.

    PNGs that are 8-bit grey, maybe in effect: fewer bits, equal colour channels, a palette of greys, an opaque alpha
    channel.
    """
    return to_8_bits(read_grey(data, path, shape, SIZE_OF_SET, "refused"), None)


def decode_mask(data: bytes, path: Path | str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask in the bytes of a file of DAGM's, which messages call ``path``; raises BadImage."""
    return read_grey(data, path, shape, SIZE_OF_IMAGE, "refused") > _HALF


def load_all(samples: Sequence[Sample], shape: tuple[int, int] | None) -> Iterator[Pixels | BadImage]:
    """`load` of each sample in order, by `in_threads`; one that cannot be read comes out as its BadImage."""

    def attempt(sample: Sample) -> Pixels | BadImage:
        try:
            return load(sample, shape)
        except BadImage as error:
            return error

    return in_threads(attempt, samples)


def in_threads(
    function: Callable[[_Item], _Result], items: Iterable[_Item]
) -> Generator[_Result, None, None]:
    """``function`` of each item in order, by threads, few ahead; Executor.map would hold all of them."""
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        waiting = iter(items)
        pending = [pool.submit(function, item) for item in islice(waiting, 4 * DECODE_THREADS)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(function, item) for item in islice(waiting, 1)]


def find_white(photos: Sequence[Photo], heartbeat: Callable[[], None] = lambda: None) -> int:
    """The least 2^k - 1 >= 255 that no value of the 16-bit images among these exceeds; 65535 without such images.

    Decodes the 16-bit images alone. ``heartbeat`` is called after each file.
    """

    def highest(photo: Photo) -> int:
        try:
            # A pipe would be waited for.
            if not photo.path.is_file():
                return 0
            with open_header(photo.path) as picture:
                if picture.mode not in MODES_16:
                    return 0
            return int(read_grey(read_bytes(photo.path), photo.path, None, "", "luma").max())
        except Exception:  # a decoder that is fed garbage may raise anything; `load` will say what is wrong
            return 0

    most = 0
    for value in in_threads(highest, photos):
        most = max(most, value)
        heartbeat()
    return int(2 ** max(8, most.bit_length()) - 1) if most else WHITE_16


def with_white(samples: Sequence[Sample], white: int | None) -> tuple[Sample, ...]:
    """The samples with this white level in those users' images whose own is not known yet."""
    return tuple(
        replace(sample, image=replace(sample.image, white=white))
        if isinstance(sample.image, Photo) and sample.image.white is None
        else sample
        for sample in samples
    )

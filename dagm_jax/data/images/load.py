"""Image and mask of a sample, or the reason why its files cannot be used; the white level of 16-bit images."""

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
from dagm_jax.data.formats.ellipse import rasterise
from dagm_jax.data.formats.tfds_reader import read_example
from dagm_jax.data.images.decode import MODES_16, WHITE_16, BadImage, open_header, read_bytes, read_grey
from dagm_jax.data.images.files import decode_image, decode_mask, read_image, read_mask
from dagm_jax.errors import printable
from dagm_jax.types import DAGM_SHAPE, Drawn, Ellipse, Photo, Pixels, Sample, Stored

DECODE_THREADS = 4
_MaskOfSize = Callable[[tuple[int, int]], NDArray[np.bool_]]
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
    own_mask: _MaskOfSize = partial(np.full, fill_value=sample.label == 1)
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
        mask = _read_mask(sample, (image.shape[0], image.shape[1]), own_mask)
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


def _read_mask(sample: Sample, size: tuple[int, int], own_mask: _MaskOfSize) -> NDArray[np.bool_]:
    """The mask bool [h w] of the sample, ``own_mask`` where its image comes with it; raises BadImage."""
    match sample.mask:
        case Path() | Photo():
            return read_mask(sample.mask, size)
        case Ellipse():
            return rasterise(sample.mask, size)
        case _:
            return own_mask(size)


def _read_record(stored: Stored, image_id: str, name: str) -> tuple[bytes, bytes]:
    """Image and mask of a record of a prepared set, as PNG; raises BadImage, also if it holds another image."""
    try:
        found, image, mask = read_example(stored)
    except ValueError as error:
        raise BadImage(printable(f"{name}: record {stored.index} cannot be read ({error})")) from error
    if found.image_id != image_id:
        raise BadImage(printable(f"{name}: record {stored.index} holds {found.image_id}"))
    return image, mask


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

"""Image and mask of one sample of a manifest, or the reason why its files cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data import procedural
from dagm_jax.data.formats.ellipse import rasterise
from dagm_jax.data.formats.tfds_reader import read_example
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.photos import read_photo, read_photo_mask
from dagm_jax.data.images.png import decode_image, decode_mask, read_image, read_mask
from dagm_jax.errors import printable
from dagm_jax.types import DAGM_SHAPE, Drawn, Ellipse, Photo, Pixels, Sample, Stored

DECODE_THREADS = 4
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
    own_mask: NDArray[np.bool_] | None = None  # where image and mask come in one piece
    match sample.image:
        case Path():
            image = read_image(sample.image, shape)
        case Photo():
            image = read_photo(sample.image, shape)
        case Drawn():
            drawn, size_px = sample.image, (shape or DAGM_SHAPE)[0]
            picture = procedural.draw(
                drawn.class_id, drawn.index, seed=drawn.seed, defective=sample.label == 1, size_px=size_px
            )
            image, own_mask = picture.image, picture.mask
        case Stored():
            image, own_mask = _read_stored(sample.image, sample.image_id, shape)
    try:
        return image, _read_mask(sample, (image.shape[0], image.shape[1]), own_mask)
    except BadImage as error:
        raise BadMask(str(error), image) from error


def _read_mask(
    sample: Sample, size: tuple[int, int], own_mask: NDArray[np.bool_] | None
) -> NDArray[np.bool_]:
    """The mask bool [h w] of the sample's image, with which ``own_mask`` may have come; raises BadImage."""
    match sample.mask:
        case Path():
            mask = read_mask(sample.mask, size)
        case Photo():
            mask = read_photo_mask(sample.mask, size)
        case Ellipse():
            mask = rasterise(sample.mask, size)
        case _:
            mask = np.full(size, sample.label == 1) if own_mask is None else own_mask
    if sample.label == 1 and not mask.any():
        raise BadImage(printable(f"{sample.image_id}: labelled defective, but mask is empty ({sample.mask})"))
    if sample.label == 0 and mask.any():
        marked = f"mask marks {np.count_nonzero(mask)} px ({sample.mask})"
        raise BadImage(printable(f"{sample.image_id}: labelled good, but {marked}"))
    return mask


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


def _read_stored(stored: Stored, image_id: str, shape: tuple[int, int] | None) -> Pixels:
    """Image and mask of a record of a prepared set; raises BadImage, also if it holds another image than it should."""
    name = f"{stored.folder} ({image_id})"
    try:
        found = read_example(stored)
    except ValueError as error:
        raise BadImage(printable(f"{name}: record {stored.index} cannot be read ({error})")) from error
    if found.image_id != image_id:
        raise BadImage(printable(f"{name}: record {stored.index} holds {found.image_id}"))
    image = decode_image(found.image, f"{name}, image", shape)
    size = (image.shape[0], image.shape[1])
    try:
        return image, decode_mask(found.mask, f"{name}, mask", size)
    except BadImage as error:
        raise BadMask(str(error), image) from error

"""A user's own image files as 8-bit grey: several formats, any size, 8 or 16 bits, grey or colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.images import decode
from dagm_jax.types import Photo, Sample

_THREADS = 4
# Largest value from which a mask holds grey values; below it, numbers of classes.
_LEAST_MASK_WHITE = 32


def read_photo(photo: Photo, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The image as uint8 grey [h w]: colours by their luma (ITU-R 601), 16 bits as 255 · value / white, rounded.

    shape: the (h, w) it must have, None for any. Takes PNG, JPEG, BMP, TIFF of one picture. Raises BadImage.
    """
    return decode.to_8_bits(_read(photo, shape, decode.SIZE_OF_SET, "luma"), photo.white)


def read_photo_mask(photo: Photo, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask bool [h w]: True above half of the file's largest value; of numbers of classes, all but 0.

    A largest value below 32 says that the values are such numbers. In colours the strongest channel counts. Raises
    BadImage.
    """
    values = _read(photo, shape, decode.SIZE_OF_IMAGE, "strongest")
    largest = int(values.max())
    return values > (largest / 2 if largest >= _LEAST_MASK_WHITE else 0)


def find_white(photos: Sequence[Photo], heartbeat: Callable[[], None] = lambda: None) -> int:
    """The least 2^k - 1 >= 255 that no value of the 16-bit images among these exceeds; 65535 without such images.

    Decodes the 16-bit images alone. ``heartbeat`` is called after each file.
    """

    def highest(photo: Photo) -> int:
        try:
            # A pipe would be waited for.
            if not photo.path.is_file():
                return 0
            with decode.open_header(photo.path) as picture:
                is_16_bit = picture.mode in decode.MODES_16
            return int(_read(photo, None, "", "luma").max()) if is_16_bit else 0
        except Exception:  # a decoder that is fed garbage may raise anything; `load` will say what is wrong
            return 0

    most = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for value in pool.map(highest, photos):
            most = max(most, value)
            heartbeat()
    return int(2 ** max(8, most.bit_length()) - 1) if most else decode.WHITE_16


def with_white(samples: Sequence[Sample], white: int | None) -> tuple[Sample, ...]:
    """The samples with this white level in those users' images whose own is not known yet."""

    def completed(sample: Sample) -> Sample:
        if isinstance(sample.image, Photo) and sample.image.white is None:
            return replace(sample, image=replace(sample.image, white=white))
        return sample

    return tuple(map(completed, samples))


def _read(
    photo: Photo, shape: tuple[int, int] | None, why: str, colour: decode.Colour
) -> NDArray[np.uint8 | np.uint16]:
    return decode.read_grey(decode.read_bytes(photo.path), photo.path, shape, why, colour)

"""Image files as uint8 grey and masks: DAGM's, PNGs of 8-bit grey, and a user's own, of several formats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.images.decode import SIZE_OF_IMAGE, SIZE_OF_SET, read_bytes, read_grey, to_8_bits
from dagm_jax.types import Photo

# Grey value above which a pixel of DAGM's masks is defective.
_HALF = 127
# Largest value from which a user's mask holds grey values; below it, numbers of classes.
_LEAST_MASK_WHITE = 32


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

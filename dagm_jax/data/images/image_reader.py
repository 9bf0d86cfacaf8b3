"""Image files and arrays of a trained model's user, read by the rules of its training images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dagm_jax.data.images.decode import (
    SIZE_OF_SET,
    Colour,
    Largest,
    read_bytes,
    read_grey,
    size_fault,
    to_8_bits,
)
from dagm_jax.errors import UserError


@dataclass(frozen=True)
class ImageReader:
    """The rules by which files and arrays become images uint8 grey [h w].

    shape: the (h, w) in px that every image must have, None for any. largest: what the model takes.
    white: the value that becomes 255 where an image has 16 bits; None: images are 8-bit grey PNG files, as DAGM's are.
    """

    shape: tuple[int, int] | None
    largest: Largest
    white: int | None

    def read(self, path: Path) -> NDArray[np.uint8]:
        """The image in a file, uint8 [h w]; raises BadImage."""
        return self.decode(read_bytes(path), path)

    def decode(self, data: bytes, path: Path) -> NDArray[np.uint8]:
        """The image in a file's bytes, uint8 [h w]; ``path`` is what messages call it. Raises BadImage."""
        colour: Colour = "refused" if self.white is None else "luma"
        return to_8_bits(read_grey(data, path, self.shape, SIZE_OF_SET, colour, self.largest), self.white)

    def of_array(self, array: NDArray[Any]) -> NDArray[np.uint8]:
        """The image uint8 [h w] in an array [h w], [h w 1] or [h w 3] (RGB), as a file of these values would give it.

        uint8, or uint16 without colours where the model knows 16-bit images. Raises UserError.
        """
        found = f"`image` ({array.dtype} {array.shape})"
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        is_colour = array.ndim == 3 and array.shape[2] == 3
        if not (array.ndim == 2 or is_colour) or 0 in array.shape:
            raise UserError(f"{found} must be of shape [h w], [h w 1] or [h w 3]")
        if array.dtype == np.uint16 and not is_colour and self.white is not None:
            array = to_8_bits(array, self.white)
        if array.dtype != np.uint8:
            remedy = "scale it as its files would be" if self.white is None else "16 bits are taken in grey"
            raise UserError(f"{found} must be uint8; {remedy}")
        if is_colour:
            if self.white is None and (array != array[..., :1]).any():
                raise UserError(f"{found} must be grey: this model was trained on grey images; convert it")
            # The luma of equal channels is their value.
            array = np.asarray(Image.fromarray(array).convert("L"))
        if fault := size_fault(array.shape, self.shape, SIZE_OF_SET, self.largest):
            raise UserError(f"{found}: {fault}")
        return array

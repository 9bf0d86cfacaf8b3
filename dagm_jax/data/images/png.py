"""PNG files as DAGM has them: 8-bit grey, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.images.decode import SIZE_OF_IMAGE, SIZE_OF_SET, read_bytes, read_grey, to_8_bits

# Grey value above which a pixel of a mask is defective.
_HALF = 127


def read_image(path: Path, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The image in ``path``, uint8 [h w] in [0, 255], maybe read-only.

    shape: the (h, w) that it must have, None for any. Takes PNGs that are 8-bit grey, maybe in effect: fewer
    bits, equal colour channels, a palette of greys, an opaque alpha channel. Raises BadImage for others.
    """
    return decode_image(read_bytes(path), path, shape)


def read_mask(path: Path, shape: tuple[int, int] | None) -> NDArray[np.bool_]:
    """The mask in ``path``, bool [h w], True where its grey value is above half; may be all False.

    ``shape`` and files as in ``read_image``. Raises BadImage.
    """
    return decode_mask(read_bytes(path), path, shape)


def decode_image(data: bytes, path: Path | str, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """`read_image` of a file's bytes, which messages call ``path``; raises BadImage."""
    return to_8_bits(read_grey(data, path, shape, SIZE_OF_SET, "refused"), None)


def decode_mask(data: bytes, path: Path | str, shape: tuple[int, int] | None) -> NDArray[np.bool_]:
    """`read_mask` of a file's bytes, which messages call ``path``; raises BadImage."""
    return read_grey(data, path, shape, SIZE_OF_IMAGE, "refused") > _HALF

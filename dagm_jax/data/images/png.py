"""PNG files as DAGM has them: checked for damage, and decoded to 8-bit grey."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dagm_jax.data.images.files import BadImage, check_num_pixels, check_shape, read_bytes, refusing_damage
from dagm_jax.errors import printable

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIZE_OF_SET, SIZE_OF_IMAGE = "the size of this data set's images", "the size of its image"
_HEADER_CHUNK = b"\x00\x00\x00\x0dIHDR"
_END_CHUNK = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# Chunks of a file: libpng cuts 64 Mpx of 16 bits into 16 thousand, and a file of empty ones may hold 21 million.
_MAX_CHUNKS = 200_000
# Grey value above which a pixel of a mask is defective.
_HALF = 127


class Header(NamedTuple):
    """Size in px, bits per value and colour type of a PNG."""

    width: int
    height: int
    depth: int
    colour_type: int


def check_png(data: bytes, path: Path | str) -> Header:
    """The header of a whole, undamaged, still PNG; raises BadImage.

    Decoding alone checks neither the checksums of pixel data nor the end of the file; and the size must be known before
    anything is allocated.
    """
    name = printable(path)
    if not data.startswith(SIGNATURE):
        if SIGNATURE.startswith(data):
            raise BadImage(f"{name}: truncated within the signature")
        raise BadImage(f"{name}: not a PNG image")
    if _END_CHUNK not in data:
        raise BadImage(f"{name}: truncated, ends after {len(data)} bytes without an end mark")
    if not data.startswith(_HEADER_CHUNK, len(SIGNATURE)):
        raise BadImage(f"{name}: corrupt, does not start with an image header")
    header = Header(*struct.unpack_from(">IIBB", data, len(SIGNATURE) + len(_HEADER_CHUNK)))
    if header.width == 0 or header.height == 0:
        raise BadImage(f"{name}: corrupt, its header says {header.height}x{header.width} pixels")
    check_num_pixels(path, header.height, header.width)
    if _has_too_many_chunks(data):
        raise BadImage(f"{name}: more than the limit of {_MAX_CHUNKS} chunks")
    with refusing_damage(path), Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        if getattr(picture, "is_animated", False):
            raise BadImage(f"{name}: animated image (several frames); save one of them")
        picture.verify()
    return header


def _has_too_many_chunks(data: bytes) -> bool:
    position = len(SIGNATURE)
    for _ in range(_MAX_CHUNKS + 1):
        if position + 12 > len(data):
            return False
        position += 12 + int.from_bytes(data[position : position + 4])
    return True


def read_image(path: Path, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The image in ``path``, uint8 [h w] in [0, 255], maybe read-only.

    ``shape`` is the (h, w) that it must have, None for any. Takes 8-bit grey PNGs and those that are grey
    in effect: fewer bits, equal colour channels, a palette of greys, an opaque alpha channel. Raises BadImage
    for the others.
    """
    return decode_image(read_bytes(path), path, shape)


def read_mask(path: Path, shape: tuple[int, int] | None) -> NDArray[np.bool_]:
    """The mask in ``path``, bool [h w], True where its grey value is above half; may be all False.

    ``shape`` and files as in ``read_image``. Raises BadImage.
    """
    return decode_mask(read_bytes(path), path, shape)


def decode_image(data: bytes, path: Path | str, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """`read_image` of a file's bytes, which messages call ``path``; raises BadImage."""
    return _to_grey(data, path, shape, SIZE_OF_SET)


def decode_mask(data: bytes, path: Path | str, shape: tuple[int, int] | None) -> NDArray[np.bool_]:
    """`read_mask` of a file's bytes, which messages call ``path``; raises BadImage."""
    return _to_grey(data, path, shape, SIZE_OF_IMAGE) > _HALF


def _to_grey(data: bytes, path: Path | str, shape: tuple[int, int] | None, why: str) -> NDArray[np.uint8]:
    header = check_png(data, path)
    if header.depth == 16:
        raise BadImage(f"{printable(path)}: 16-bit image; DAGM images are 8-bit grey; convert")
    check_shape(path, (header.height, header.width), shape, why)
    with refusing_damage(path), Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
        if picture.mode == "L" and "transparency" not in picture.info:
            return np.asarray(picture)
        rgba = np.asarray(picture.convert("RGBA"))
    if (rgba[..., 3] != 255).any():
        raise BadImage(f"{printable(path)}: transparent pixels; DAGM images are 8-bit grey; convert")
    red = rgba[..., 0]
    if (red != rgba[..., 1]).any() or (red != rgba[..., 2]).any():
        raise BadImage(f"{printable(path)}: colour image; DAGM images are 8-bit grey; convert")
    return np.ascontiguousarray(red)

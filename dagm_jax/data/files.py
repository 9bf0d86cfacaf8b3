"""Files of images before they are decoded: read within limits, whole, and of the right size; or the reason why not."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from dagm_jax.data.layouts import printable

MAX_PIXELS = 64 * 1024 * 1024
MAX_BYTES = 4 * MAX_PIXELS + 1024 * 1024
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# 64 Mpx of 16 bits in chunks of 8 KiB, as libpng writes them, are 16 thousand; a file of empty ones holds 21 million.
_MAX_CHUNKS = 200_000


class BadImage(Exception):
    """An image or mask that cannot be used; its text is one line that names the file and the reason."""


def check_shape(path: Path | str, found: tuple[int, int], shape: tuple[int, int] | None, why: str) -> None:
    """Nothing; raises BadImage unless the (height, width) is ``shape`` or that is None."""
    if shape is not None and found != tuple(shape):
        expected = f"expected {shape[0]}x{shape[1]}, {why}"
        raise BadImage(f"{printable(path)}: size {found[0]}x{found[1]} (height x width), {expected}")


def read_bytes(path: Path) -> bytes:
    """The file's bytes; raises BadImage if there are none, too many, or it cannot be read."""
    name = printable(path)
    try:
        if not path.exists():
            raise BadImage(f"{name}: file is missing")
        if not path.is_file():
            raise BadImage(f"{name}: not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadImage(printable(f"{path}: cannot be read ({error})")) from error
    if not data:
        raise BadImage(f"{name}: file is empty")
    if len(data) > MAX_BYTES:
        raise BadImage(f"{name}: file is larger than the limit of {MAX_BYTES} bytes")
    return data


class Header(NamedTuple):
    """What a PNG says of itself: edges in px, bits a value, kind of colour."""

    width: int
    height: int
    depth: int
    colour_type: int


def check_png(data: bytes, path: Path | str) -> Header:
    """The header of a whole, undamaged, still PNG; raises BadImage.

    Pillow does not check the checksums of pixel data, nor whether the end is there; and the size must be known before
    it allocates anything.
    """
    name = printable(path)
    if not data.startswith(SIGNATURE):
        if SIGNATURE.startswith(data):
            raise BadImage(f"{name}: truncated within the signature")
        raise BadImage(f"{name}: not a PNG image")
    chunks = _chunks(data, name)
    content = chunks[0][1]
    if chunks[0][0] != b"IHDR" or len(content) != 13:
        raise BadImage(f"{name}: corrupt, does not start with an image header")
    header = Header(*struct.unpack(">IIBB", content[:10]))
    width, height = header.width, header.height
    if width == 0 or height == 0:
        raise BadImage(f"{name}: corrupt, its header says {height}x{width} pixels")
    if width * height > MAX_PIXELS:
        raise BadImage(f"{name}: {height}x{width} pixels are more than the limit of {MAX_PIXELS} pixels")
    if any(kind == b"acTL" for kind, _ in chunks):
        raise BadImage(f"{name}: animated image (several frames); save one of them")
    return header


def _chunks(data: bytes, name: str) -> list[tuple[bytes, memoryview]]:
    """Kind and content of every chunk up to the end mark; raises BadImage where cut or damaged."""
    view = memoryview(data)
    chunks = []
    position = len(SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise BadImage(f"{name}: corrupt, wrong checksum at byte {position}")
        chunks.append((kind, view[position + 8 : end]))
        if len(chunks) > _MAX_CHUNKS:
            raise BadImage(f"{name}: more than the limit of {_MAX_CHUNKS} chunks")
        if kind == b"IEND":
            return chunks
        position = end + 4
    raise BadImage(f"{name}: truncated, ends after {len(data)} bytes without an end mark")

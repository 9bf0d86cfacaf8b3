"""PNG files byte by byte, for what no library writes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

SIZE = (24, 32)  # h, w: not square, so that exchanged axes show
PIXELS = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)


def chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk with the right checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour_type: int, raw: bytes) -> bytes:
    """A PNG from its header fields and its filtered rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path

"""Limits and reasons shared by all image formats: reading a file's bytes, its size, and why it cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dagm_jax.errors import printable
from dagm_jax.types import MAX_PIXELS

MAX_BYTES = 4 * MAX_PIXELS + 1024 * 1024


class BadImage(Exception):
    """An image or mask that cannot be used; its text is one line that names the file and the reason."""


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


def check_shape(path: Path | str, found: tuple[int, int], shape: tuple[int, int] | None, why: str) -> None:
    """Raises BadImage unless the (height, width) is ``shape`` or that is None; ``why`` says where it comes from."""
    if shape is not None and found != tuple(shape):
        expected = f"expected {shape[0]}x{shape[1]}, {why}"
        raise BadImage(f"{printable(path)}: size {found[0]}x{found[1]} (height x width), {expected}")


def check_num_pixels(path: Path | str, height: int, width: int) -> None:
    """Raises BadImage where an image would take more memory than one may."""
    if width * height > MAX_PIXELS:
        size = f"{height}x{width} pixels"
        raise BadImage(f"{printable(path)}: {size} are more than the limit of {MAX_PIXELS} pixels")


@contextmanager
def refusing_damage(path: Path | str) -> Iterator[None]:
    """Raises BadImage for whatever a decoder raises within the block: fed damaged data, that may be any exception."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        reason = f"{path}: corrupt, cannot be decoded ({type(error).__name__}: {error})"
        raise BadImage(printable(reason)) from error


def is_image_shape(value: Any) -> bool:
    """Whether a value from a JSON file is the [height, width] in px of an image that may be read."""
    is_pair = isinstance(value, list) and len(value) == 2 and all(type(edge) is int for edge in value)
    return is_pair and min(value) >= 1 and value[0] * value[1] <= MAX_PIXELS


def is_white_level(value: Any) -> bool:
    """Whether a value from a JSON file can be a `Photo.white`."""
    return value is None or (type(value) is int and 255 <= value <= 65535)

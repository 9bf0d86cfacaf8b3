"""Image files opened and checked, and their pixels as grey values, whatever the format; arrays likewise."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from dagm_jax.errors import UserError, printable
from dagm_jax.types import MAX_PIXELS

# Type of the limit of a model's images: the greatest (h, w) in px, or number of pixels.
Largest = tuple[int, int] | int
MAX_BYTES = 4 * MAX_PIXELS + 1024 * 1024
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
MODES_16 = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
SIZE_OF_SET, SIZE_OF_IMAGE = "the size of this data set's images", "the size of its image"
# How colours become grey: by their luma (ITU-R 601), by the strongest channel, or, as in DAGM, not at all.
Colour = Literal["luma", "strongest", "refused"]

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
# Chunks of a PNG file: libpng cuts 64 Mpx of 16 bits into 16 thousand, and a file of empty ones may hold 21 million.
_MAX_CHUNKS = 200_000
WHITE_16 = 65535
_TIFF_BITS, _EXIF_ORIENTATION, _UPRIGHT = 258, 274, 1


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


def open_header(source: Path | io.BytesIO, formats: tuple[str, ...] = FORMATS) -> Image.Image:
    """The picture, unchecked, before any pixel is decoded; without Pillow's warning of a size that is refused later."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=formats)


@contextmanager
def open_image(data: bytes, path: Path | str, formats: tuple[str, ...] = FORMATS) -> Iterator[Image.Image]:
    """The whole, still picture in a file's bytes, before its pixels are decoded; messages call it ``path``.

    Raises BadImage, also for whatever a decoder raises within the block: fed damaged data, that may be any exception.
    """
    name = printable(path)
    try:
        if data.startswith(_PNG_SIGNATURE):
            _check_png(data, name)
        with open_header(io.BytesIO(data), formats) as picture:
            # Pillow takes zeros, which a copy that has stalled leaves, for pixels. Within a JPEG's last scan neither
            # the mark of a scan nor that of the end can occur.
            if picture.format in ("JPEG", "MPO") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda"):
                raise BadImage(f"{name}: truncated, its picture has no end mark")
            if picture.width * picture.height > MAX_PIXELS:
                size = f"{picture.height}x{picture.width} pixels"
                raise BadImage(f"{name}: {size} are more than the limit of {MAX_PIXELS} pixels")
            # Counting the pictures of a TIFF takes minutes where there are many. An MPO, of phones and drones, begins
            # with the picture; previews follow.
            if picture.format != "MPO" and getattr(picture, "is_animated", False):
                raise BadImage(f"{name}: several pictures in one file; save one")
            yield picture
    except (BadImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        found = "".join(re.findall(r"\((\d+) pixels\)", str(error))) or "its"
        raise BadImage(f"{name}: {found} pixels are more than the limit of {MAX_PIXELS} pixels") from error
    except UnidentifiedImageError as error:
        known = " or ".join([", ".join(formats[:-1]), formats[-1]][len(formats) == 1 :])
        raise BadImage(f"{name}: not a {known} image, or damaged") from error
    except Exception as error:
        reason = f"{path}: corrupt, cannot be decoded ({type(error).__name__}: {error})"
        raise BadImage(printable(reason)) from error


def _check_png(data: bytes, name: str) -> None:
    """Raises whatever Pillow raises, or BadImage, unless the PNG is whole and its checksums are right.

    Decoding alone checks neither the checksums of pixel data nor the end of the file.
    """
    if _PNG_END not in data:
        raise BadImage(f"{name}: truncated, ends after {len(data)} bytes without an end mark")
    position, num_chunks = len(_PNG_SIGNATURE), 0
    while position < len(data) and num_chunks <= _MAX_CHUNKS:
        position += 12 + int.from_bytes(data[position : position + 4])
        num_chunks += 1
    if num_chunks > _MAX_CHUNKS:
        raise BadImage(f"{name}: more than the limit of {_MAX_CHUNKS} chunks")
    with open_header(io.BytesIO(data), ("PNG",)) as picture:
        picture.verify()


def size_fault(
    found: tuple[int, ...], shape: tuple[int, int] | None, why: str, largest: Largest = MAX_PIXELS
) -> str | None:
    """The reason why an image of the (h, w) ``found`` is not taken; None if it is.

    shape: the (h, w) that it must have, None for any, and ``why`` that is so; largest: what the model takes.
    """
    size = f"size {found[0]}x{found[1]} (height x width)"
    if isinstance(largest, int):
        is_beyond, limit = found[0] * found[1] > largest, f"{largest} pixels"
    else:
        is_beyond, limit = found[0] > largest[0] or found[1] > largest[1], f"{largest[0]}x{largest[1]} px"
    if is_beyond:
        return f"{size} is beyond {limit}, the limit of this model; cut it into pieces or train on images of this size"
    if shape is not None and found != tuple(shape):
        return f"{size}, expected {shape[0]}x{shape[1]}, {why}"
    return None


def to_grey(picture: Image.Image, path: Path | str, colour: Colour) -> NDArray[np.uint8 | np.uint16]:
    """The picture's grey values, uint8 or, of 16 bits, uint16 [h w]; raises BadImage for kinds without such values."""
    name = printable(path)
    is_dagm = colour == "refused"
    remedy = f"convert to 8-bit grey{'' if is_dagm else ', 16-bit grey or 8-bit colour'}"
    # Pillow cuts colour of 16 bits down to 8 without a word.
    bits = max(getattr(picture, "tag_v2", {}).get(_TIFF_BITS, (8,)))
    if isinstance(picture, PngImageFile) and ";16" in str(picture.tile[0]):
        bits = 16
    if picture.getexif().get(_EXIF_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        if is_dagm:
            raise BadImage(f"{name}: stored turned or mirrored (EXIF orientation); save it as it is shown")
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in MODES_16:
        values: NDArray[np.uint8 | np.uint16] = np.asarray(picture)
        if is_dagm or values.min() < 0 or values.max() > WHITE_16:
            raise BadImage(f"{name}: {16 if is_dagm else 32}-bit image; {remedy}")
        if "transparency" in picture.info:
            raise BadImage(f"{name}: transparent pixels; save it without transparency")
        return values.astype(np.uint16)
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise BadImage(f"{name}: image of kind {picture.mode}; {remedy}")
    if bits > 8:
        raise BadImage(f"{name}: colour of {bits} bits; {remedy}")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        if np.asarray(picture)[..., 3].min() < 255:
            raise BadImage(f"{name}: transparent pixels; save it without transparency")
    if picture.mode == "L":
        return np.asarray(picture)
    colours = picture.convert("RGB")
    if colour == "luma":
        return np.asarray(colours.convert("L"))
    channels: NDArray[np.uint8] = np.asarray(colours)
    if is_dagm and (channels != channels[..., :1]).any():
        raise BadImage(f"{name}: colour image; {remedy}")
    return np.asarray(channels.max(axis=2))


def read_grey(
    data: bytes,
    path: Path | str,
    shape: tuple[int, int] | None,
    why: str,
    colour: Colour,
    largest: Largest = MAX_PIXELS,
) -> NDArray[np.uint8 | np.uint16]:
    """Grey values (see `to_grey`) of the picture in a file's bytes, which messages call ``path``; raises BadImage.

    Pictures that are stored turned or mirrored, as their EXIF data say, come out as viewers show them.
    shape, why, largest: as in `size_fault`. Without colours, as in DAGM, PNG files alone are taken.
    """
    with open_image(data, path, ("PNG",) if colour == "refused" else FORMATS) as picture:
        stored = picture.height, picture.width
        # Before pixels are decoded, where no turn would make it fit.
        if (fault := size_fault(stored, shape, why, largest)) and (
            colour == "refused" or size_fault(stored[::-1], shape, why, largest)
        ):
            raise BadImage(f"{printable(path)}: {fault}")
        values = to_grey(picture, path, colour)
        if fault := size_fault(values.shape, shape, why, largest):
            if values.shape[::-1] == shape:
                fault += ": the two are turned by 90° against each other; save both as they are shown"
            raise BadImage(f"{printable(path)}: {fault}")
        return values


def to_8_bits(values: NDArray[np.uint8 | np.uint16], white: int | None) -> NDArray[np.uint8]:
    """uint8 values as they are, uint16 values as 255 · value / white, rounded; white and more become 255."""
    if values.dtype == np.uint16:
        assert white is not None, "the white level of 16-bit images has not been looked for"
        values = np.clip(np.rint(values * (255 / white)), 0, 255)
    grey: NDArray[np.uint8] = values.astype(np.uint8, copy=False)
    return grey


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

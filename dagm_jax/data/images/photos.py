"""A user's own image files as 8-bit grey: several formats, any size, 8 or 16 bits, grey or colour."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dagm_jax.data.images.files import (
    MAX_BYTES,
    BadImage,
    check_num_pixels,
    check_shape,
    read_bytes,
    refusing_damage,
)
from dagm_jax.data.images.png import SIGNATURE, SIZE_OF_IMAGE, SIZE_OF_SET, check_png
from dagm_jax.errors import printable
from dagm_jax.types import MAX_PIXELS, Photo, Sample

_WHITE_16 = 65535
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_MODES_16 = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_PNG_GREY = 0
_THREADS = 4
# Largest value from which a mask holds grey values; below it, numbers of classes.
_LEAST_MASK_WHITE = 32
_TIFF_BITS, _EXIF_ORIENTATION, _UPRIGHT = 258, 274, 1


def read_photo(photo: Photo, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The image as uint8 grey [h w]: colours by their luma (ITU-R 601), 16 bits as 255 · value / white, rounded.

    ``shape`` is the (h, w) that it must have, None for any. Takes PNG, JPEG, BMP and TIFF of one picture. Raises
    BadImage.
    """
    return decode_photo(read_bytes(photo.path), photo, shape)


def decode_photo(data: bytes, photo: Photo, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """`read_photo` of a file whose bytes have been read already; raises BadImage."""
    return to_8_bits(_photo_values(data, photo.path, shape, SIZE_OF_SET), photo.white)


def shape_of(data: bytes) -> tuple[int, int] | None:
    """(h, w) in px of a PNG, JPEG, BMP or TIFF by its header alone; None where it cannot be told, as of other data."""
    try:
        with _opened(io.BytesIO(data)) as picture:
            return picture.height, picture.width
    except Exception:  # a decoder that is fed garbage may raise anything; decoding will say what is wrong
        return None


def to_8_bits(values: NDArray[np.uint8 | np.uint16], white: int | None) -> NDArray[np.uint8]:
    """uint8 values as they are, uint16 values as 255 · value / white, rounded; white and more become 255."""
    if values.dtype == np.uint16:
        assert white is not None, "the white level of 16-bit images has not been looked for"
        values = np.clip(np.rint(values * (255 / white)), 0, 255)
    grey: NDArray[np.uint8] = values.astype(np.uint8, copy=False)
    return grey


def read_photo_mask(photo: Photo, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask bool [h w]: True above half of the file's largest value; of numbers of classes, all but 0.

    A largest value below 32 says that the values are such numbers. In colours the strongest channel counts. Raises
    BadImage.
    """
    data = read_bytes(photo.path)
    values = _photo_values(data, photo.path, shape, SIZE_OF_IMAGE, strongest=True)
    largest = int(values.max())
    return values > (largest / 2 if largest >= _LEAST_MASK_WHITE else 0)


def find_white(photos: Sequence[Photo], beat: Callable[[], None] = lambda: None) -> int:
    """The least 2^k - 1 >= 255 that no value of the 16-bit images among these exceeds; 65535 without such images.

    Decodes the 16-bit images alone. Files that cannot be read are passed over: decoding them will say what is wrong.
    ``beat`` is called after each file.
    """

    def highest(photo: Photo) -> int:
        try:
            if not _is_16_bit(photo.path):
                return 0
            return int(_photo_values(read_bytes(photo.path), photo.path, None, "").max())
        except BadImage:
            return 0

    most = 0
    with ThreadPoolExecutor(_THREADS) as pool:
        for value in pool.map(highest, photos):
            most = max(most, value)
            beat()
    return int(2 ** max(8, most.bit_length()) - 1) if most else _WHITE_16


def with_white(samples: Sequence[Sample], white: int | None) -> tuple[Sample, ...]:
    """The records with this white level in those users' images whose own is not known yet."""

    def completed(sample: Sample) -> Sample:
        if isinstance(sample.image, Photo) and sample.image.white is None:
            return replace(sample, image=replace(sample.image, white=white))
        return sample

    return tuple(map(completed, samples))


def _is_16_bit(path: Path) -> bool:
    """Whether the file is a grey 16-bit image; raises BadImage where its header cannot be read."""
    with refusing_damage(path):
        # A pipe would be waited for.
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise BadImage(printable(f"{path}: not a file, or too large"))
        with _opened(path) as picture:
            return picture.mode in _MODES_16


def _photo_values(
    data: bytes, path: Path, shape: tuple[int, int] | None, why: str, strongest: bool = False
) -> NDArray[np.uint8 | np.uint16]:
    """Grey values uint8 or uint16 [h w] of a file's bytes; ``why`` says where ``shape`` comes from.

    Colours by their luma, or by their ``strongest`` channel.
    """
    name = printable(path)
    if data.startswith(SIGNATURE):
        header = check_png(data, path)
        # Pillow cuts 16-bit colour down to 8 bits without a word.
        if header.depth == 16 and header.colour_type != _PNG_GREY:
            raise BadImage(f"{name}: 16-bit colour or transparency; convert to 8-bit colour or 16-bit grey")
    with refusing_damage(path):
        try:
            picture = _opened(io.BytesIO(data))
        except Image.DecompressionBombError as error:
            raise BadImage(f"{name}: its pixels are more than the limit of {MAX_PIXELS} pixels") from error
        except UnidentifiedImageError as error:
            raise BadImage(f"{name}: not a PNG, JPEG, BMP or TIFF image, or damaged") from error
        with picture:
            if picture.format == "JPEG" and not _has_end(data):
                raise BadImage(f"{name}: truncated, its picture has no end mark")
            check_num_pixels(path, picture.height, picture.width)
            # Counting the pictures of a TIFF takes minutes where there are many.
            if getattr(picture, "is_animated", False):
                raise BadImage(f"{name}: several pictures in one file; save one")
            if picture.getexif().get(_EXIF_ORIENTATION, _UPRIGHT) != _UPRIGHT:
                raise BadImage(
                    f"{name}: stored turned or mirrored (EXIF orientation); save it as it is shown"
                )
            check_shape(path, (picture.height, picture.width), shape, why)
            return _to_grey(picture, name, strongest)


def _has_end(data: bytes) -> bool:
    """Whether a JPEG's last scan is followed by the mark of an end, neither of which can stand within a scan.

    Pillow takes zeros, which a copy that has stalled leaves, for pixels.
    """
    return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")


def _opened(source: Path | io.BytesIO) -> Image.Image:
    """The picture, of which no pixel is decoded yet; without the warning of a size that is refused here anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(source, formats=_FORMATS)


def _to_grey(picture: Image.Image, name: str, strongest: bool) -> NDArray[np.uint8 | np.uint16]:
    """The picture's grey values, uint8 or uint16 [h w]; raises BadImage for kinds that have no such values."""
    if picture.mode in _MODES_16:
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > _WHITE_16:
            raise BadImage(f"{name}: 32-bit image; convert to 8- or 16-bit")
        if "transparency" in picture.info:
            raise BadImage(f"{name}: transparent pixels; save it without transparency")
        return values.astype(np.uint16)
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise BadImage(f"{name}: image of kind {picture.mode}; convert to 8- or 16-bit grey or 8-bit colour")
    bits = getattr(picture, "tag_v2", {}).get(_TIFF_BITS, (8,))
    if max(bits) > 8:
        raise BadImage(f"{name}: colour of {max(bits)} bits; convert to 8-bit colour or 16-bit grey")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        if np.asarray(rgba)[..., 3].min() < 255:
            raise BadImage(f"{name}: transparent pixels; save it without transparency")
        picture = rgba
    if picture.mode == "L":
        return np.asarray(picture)
    colours = picture.convert("RGB")
    return np.asarray(colours).max(axis=2) if strongest else np.asarray(colours.convert("L"))

"""From a record to pixels: image and mask of one source image, or the reason why its files cannot be used."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from dagm_jax.data import procedural
from dagm_jax.data.ellipse import rasterise
from dagm_jax.data.layouts import printable
from dagm_jax.types import Drawn, Ellipse, Photo, Record

MAX_PIXELS = 64 * 1024 * 1024
_MAX_BYTES = 4 * MAX_PIXELS + 1024 * 1024
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HALF = 127
_WHITE_16 = 65535
_PHOTO_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_MODES_16 = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_PNG_GREY = 0
DECODE_THREADS = 4
_DRAWN_SIZE_PX = 512


class BadImage(Exception):
    """An image or mask that cannot be used; its text is one line that names the file and the reason."""


def read_image(path: Path, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The image in ``path``, uint8 [h w] in [0, 255], maybe read-only.

    ``shape`` is the (h, w) that it must have, None for any. Takes 8-bit grey PNGs and those that are grey
    in effect: fewer bits, equal colour channels, a palette of greys, an opaque alpha channel. Raises BadImage
    for the others.
    """
    return _grey(path, shape, "the size of this data set's images")


def read_mask(path: Path, shape: tuple[int, int] | None) -> NDArray[np.bool_]:
    """The mask in ``path``, bool [h w], True where its grey value is above half; may be all False.

    ``shape`` and files as in ``read_image``. Raises BadImage.
    """
    return _grey(path, shape, "the size of its image") > _HALF


def load(record: Record, shape: tuple[int, int] | None) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image uint8 [h w] and mask bool [h w] of a record, wherever they come from.

    The mask of a good image without one is all False; that of a defective image without one all True: the defect may
    be anywhere. Raises BadImage, also where label and mask contradict each other.
    """
    match record.image:
        case Path():
            image, drawn_mask = read_image(record.image, shape), None
        case Photo():
            image, drawn_mask = read_photo(record.image, shape), None
        case Drawn():
            image, drawn_mask = _draw(record.image, record.label, shape)
    size = (image.shape[0], image.shape[1])
    match record.mask:
        case None:
            mask: NDArray[np.bool_] = np.full(size, record.label == 1)
        case Path():
            mask = read_mask(record.mask, size)
        case Photo():
            mask = read_photo_mask(record.mask, size)
        case Ellipse():
            mask = rasterise(record.mask, size)
        case Drawn():
            mask = _draw(record.mask, record.label, size)[1] if drawn_mask is None else drawn_mask
    if record.label == 1 and not mask.any():
        raise BadImage(printable(f"{record.image_id}: labelled defective, but mask is empty ({record.mask})"))
    if record.label == 0 and mask.any():
        marked = f"mask marks {np.count_nonzero(mask)} px ({record.mask})"
        raise BadImage(printable(f"{record.image_id}: labelled good, but {marked}"))
    return image, mask


def load_all(
    records: Sequence[Record], shape: tuple[int, int] | None
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.bool_]] | BadImage]:
    """Decoded records in order, by threads and a bounded number ahead (``Executor.map`` would hold them all).

    A record that cannot be read comes out as its BadImage.
    """

    def attempt(record: Record) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | BadImage:
        try:
            return load(record, shape)
        except BadImage as error:
            return error

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        waiting = iter(records)
        pending = [pool.submit(attempt, record) for record in islice(waiting, 4 * DECODE_THREADS)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(attempt, record) for record in islice(waiting, 1)]


def _draw(
    drawn: Drawn, label: int, shape: tuple[int, int] | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Image and mask of a procedural picture; raises BadImage for a shape that is not square."""
    height, width = shape or (_DRAWN_SIZE_PX, _DRAWN_SIZE_PX)
    if height != width:
        raise BadImage(f"{drawn}: procedural images are square, not {height}x{width}")
    defective = bool(label)
    picture = procedural.draw(
        drawn.class_id, drawn.index, seed=drawn.seed, defective=defective, size_px=height
    )
    return picture.image, picture.mask


def _grey(path: Path, shape: tuple[int, int] | None, why: str) -> NDArray[np.uint8]:
    """Grey values uint8 [h w] of a PNG; ``why`` says in a message where the expected shape comes from."""
    data = _read(path)
    header = _check_png(data, path)
    if header.depth == 16:
        raise BadImage(f"{printable(path)}: 16-bit image; DAGM images are 8-bit grey; convert")
    _check_shape(path, (header.height, header.width), shape, why)
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.mode == "L" and "transparency" not in picture.info:
                return np.asarray(picture)
            rgba = np.asarray(picture.convert("RGBA"))
    except MemoryError:
        raise
    except Exception as error:  # a decoder that is fed garbage may raise anything, not Pillow's errors alone
        reason = f"{path}: corrupt, cannot be decoded ({type(error).__name__}: {error})"
        raise BadImage(printable(reason)) from error
    if (rgba[..., 3] != 255).any():
        raise BadImage(f"{printable(path)}: transparent pixels; DAGM images are 8-bit grey; convert")
    red = rgba[..., 0]
    if (red != rgba[..., 1]).any() or (red != rgba[..., 2]).any():
        raise BadImage(f"{printable(path)}: colour image; DAGM images are 8-bit grey; convert")
    return np.ascontiguousarray(red)


def _check_shape(path: Path, found: tuple[int, int], shape: tuple[int, int] | None, why: str) -> None:
    """Nothing; raises BadImage unless the (height, width) is ``shape`` or that is None."""
    if shape is not None and found != tuple(shape):
        expected = f"expected {shape[0]}x{shape[1]}, {why}"
        raise BadImage(f"{printable(path)}: size {found[0]}x{found[1]} (height x width), {expected}")


# --- files of the user's own ---


def read_photo(photo: Photo, shape: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The image as uint8 grey [h w]: colours by their luma (ITU-R 601), 16 bits as 255 · value / white, rounded.

    ``shape`` as in ``read_image``. Takes PNG, JPEG, BMP and TIFF of one picture. Raises BadImage.
    """
    values = _photo_values(photo.path, shape, "the size of this data set's images")
    if values.dtype == np.uint16:
        values = np.clip(np.rint(values * (255 / photo.white)), 0, 255)
    grey: NDArray[np.uint8] = values.astype(np.uint8, copy=False)
    return grey


def read_photo_mask(photo: Photo, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask bool [h w]: True above half of what the file's values reach up to, 1, 255 or 65535. Raises BadImage."""
    values = _photo_values(photo.path, shape, "the size of its image")
    full = 1 if values.max() <= 1 else np.iinfo(values.dtype).max
    return values > full / 2


def find_white(photos: Sequence[Photo]) -> int:
    """The least 2^k - 1 >= 255 that no value of the 16-bit images among these exceeds; 65535 without such images.

    Reads the headers of all files and the pixels of the 16-bit ones; files that cannot be read say nothing here.
    """

    def highest(photo: Photo) -> int:
        try:
            if not _is_16_bit(photo.path):
                return 0
            return int(_photo_values(photo.path, None, "").max())
        except BadImage:
            return 0

    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        most = max(pool.map(highest, photos), default=0)
    return int(2 ** max(8, most.bit_length()) - 1) if most else _WHITE_16


def _is_16_bit(path: Path) -> bool:
    """Whether the file is a grey 16-bit image; raises BadImage where its header cannot be read."""
    try:
        with Image.open(path, formats=_PHOTO_FORMATS) as picture:
            return picture.mode in _MODES_16
    except Exception as error:  # as in _grey
        raise BadImage(printable(f"{path}: cannot be read ({error})")) from error


def _photo_values(path: Path, shape: tuple[int, int] | None, why: str) -> NDArray[np.uint8 | np.uint16]:
    """Grey values uint8 or uint16 [h w] of a file, colours by their luma; ``why`` as in ``_grey``."""
    data = _read(path)
    name = printable(path)
    if data.startswith(_SIGNATURE):
        header = _check_png(data, path)
        # Pillow cuts 16-bit colour down to 8 bits without a word.
        if header.depth == 16 and header.colour_type != _PNG_GREY:
            raise BadImage(f"{name}: 16-bit colour or transparency; convert to 8-bit colour or 16-bit grey")
    try:
        with Image.open(io.BytesIO(data), formats=_PHOTO_FORMATS) as picture:
            height, width = picture.height, picture.width
            if width * height > MAX_PIXELS:
                raise BadImage(
                    f"{name}: {height}x{width} pixels are more than the limit of {MAX_PIXELS} pixels"
                )
            if getattr(picture, "n_frames", 1) > 1:
                raise BadImage(f"{name}: several pictures in one file; save one")
            _check_shape(path, (height, width), shape, why)
            return _to_grey(picture, name)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImage(f"{name}: not a PNG, JPEG, BMP or TIFF image, or damaged") from error
    except Exception as error:  # as in _grey
        reason = f"{path}: corrupt, cannot be decoded ({type(error).__name__}: {error})"
        raise BadImage(printable(reason)) from error


def _to_grey(picture: Image.Image, name: str) -> NDArray[np.uint8 | np.uint16]:
    """The picture's grey values, uint8 or uint16 [h w]; raises BadImage for kinds that have no such values."""
    if picture.mode in _MODES_16:
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > _WHITE_16:
            raise BadImage(f"{name}: 32-bit image; convert to 8- or 16-bit")
        return values.astype(np.uint16)
    if picture.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        raise BadImage(f"{name}: image of kind {picture.mode}; convert to 8- or 16-bit grey or 8-bit colour")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        if np.asarray(rgba)[..., 3].min() < 255:
            raise BadImage(f"{name}: transparent pixels; save it without transparency")
        picture = rgba
    return np.asarray(picture.convert("RGB").convert("L") if picture.mode != "L" else picture)


# --- bytes ---


def _read(path: Path) -> bytes:
    """The file's bytes; raises BadImage if there are none, too many, or it cannot be read."""
    name = printable(path)
    try:
        if not path.exists():
            raise BadImage(f"{name}: file is missing")
        if not path.is_file():
            raise BadImage(f"{name}: not a file")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise BadImage(printable(f"{path}: cannot be read ({error})")) from error
    if not data:
        raise BadImage(f"{name}: file is empty")
    if len(data) > _MAX_BYTES:
        raise BadImage(f"{name}: file is larger than the limit of {_MAX_BYTES} bytes")
    return data


class _Header(NamedTuple):
    """What a PNG says of itself: edges in px, bits a value, kind of colour."""

    width: int
    height: int
    depth: int
    colour_type: int


def _check_png(data: bytes, path: Path) -> _Header:
    """The header of a whole, undamaged, still PNG; raises BadImage.

    Pillow does not check the checksums of pixel data, nor whether the end is there; and the size must be known before
    it allocates anything.
    """
    name = printable(path)
    if not data.startswith(_SIGNATURE):
        if _SIGNATURE.startswith(data):
            raise BadImage(f"{name}: truncated within the signature")
        raise BadImage(f"{name}: not a PNG image")
    chunks = _chunks(data, name)
    content = chunks[0][1]
    if chunks[0][0] != b"IHDR" or len(content) != 13:
        raise BadImage(f"{name}: corrupt, does not start with an image header")
    header = _Header(*struct.unpack(">IIBB", content[:10]))
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
    position = len(_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, end = data[position + 4 : position + 8], position + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise BadImage(f"{name}: corrupt, wrong checksum at byte {position}")
        chunks.append((kind, view[position + 8 : end]))
        if kind == b"IEND":
            return chunks
        position = end + 4
    raise BadImage(f"{name}: truncated, ends after {len(data)} bytes without an end mark")

"""Tests of a user's own image files: every format, depth and colour comes out as 8-bit grey, or is refused by name."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from png_files import PIXELS, SIZE, written

from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import find_white, load, read_image, read_mask
from dagm_jax.types import Photo, Sample


def photo(path: Path, picture: Image.Image, white: int = 65535) -> Photo:
    picture.save(path)
    return Photo(path, white)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_photos_of_any_format_are_read_or_refused_when_cut_short(tmp_path: Path, suffix: str) -> None:
    """Would catch: a format that is not read, rows upside down (BMP), values changed on the way; a half-copied file
    whose lower part comes out grey."""
    smooth = np.add.outer(np.arange(24) * 4, np.arange(32) * 3).astype(np.uint8)
    path = photo(tmp_path / f"a{suffix}", Image.fromarray(smooth)).path
    difference = read_image(Photo(path), SIZE).astype(int) - smooth
    assert np.abs(difference).max() <= (4 if suffix == ".jpg" else 0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadImage, match=rf"a\{suffix}: ") as caught:
        read_image(Photo(path, 65535), None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("white", "expected"), [(4095, [0, 128, 255, 255]), (65535, [0, 8, 16, 255])])
def test_16_bits_are_scaled_by_the_white_level(
    tmp_path: Path, suffix: str, white: int, expected: list[int]
) -> None:
    """Would catch: the low byte cut off, 12 bits left nearly black, values beyond white that wrap round."""
    values = np.tile(np.array([0, 2048, 4095, 65535], np.uint16), (16, 4))
    image = read_image(photo(tmp_path / f"a{suffix}", Image.fromarray(values), white), (16, 16))
    assert image.dtype == np.uint8
    assert image[3, :4].tolist() == expected


def test_colour_becomes_luma(tmp_path: Path) -> None:
    """Would catch: one channel taken for all, and channels in another order. ITU-R 601: .299 R + .587 G + .114 B."""
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[0, :3] = np.eye(3) * 255
    colours[0, 3] = (200, 200, 200)
    opaque = np.dstack([colours, np.full((16, 16), 255, np.uint8)])
    for name, pixels in (("a.png", colours), ("b.png", opaque), ("c.bmp", colours), ("d.tif", colours)):
        image = read_image(photo(tmp_path / name, Image.fromarray(pixels)), None)
        assert image[0, :5].tolist() == [76, 150, 29, 200, 0]


def test_photos_of_other_kinds_are_refused_by_name(tmp_path: Path) -> None:
    """Would catch: transparent pixels, floats with NaN, 32 bits and several pictures taken for grey values."""
    clear = np.dstack([PIXELS, PIXELS, PIXELS, np.full(SIZE, 254, np.uint8)])
    nan = np.full(SIZE, np.nan, np.float32)
    long = np.full(SIZE, 70000, np.int32)
    pictures = {
        "clear.png": (Image.fromarray(clear), "transparent pixels"),
        "nan.tif": (Image.fromarray(nan), "image of kind F; convert"),
        "long.tif": (Image.fromarray(long), "32-bit image"),
    }
    for name, (picture, match) in pictures.items():
        with pytest.raises(BadImage, match=match):
            read_image(photo(tmp_path / name, picture), None)
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS // 2)]
    frames[0].save(tmp_path / "two.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(BadImage, match="several pictures in one file"):
        read_image(Photo(tmp_path / "two.tif"), None)
    with pytest.raises(BadImage, match="not a PNG, JPEG, BMP, TIFF, WEBP or GIF image"):
        read_image(Photo(written(tmp_path / "text.jpg", b"hello")), None)


def test_a_jpeg_whose_copy_has_stalled_is_refused(tmp_path: Path) -> None:
    """Would catch: zeros in the place of what has not arrived taken for pixels; a trailer taken for damage."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (64, 64)).astype(np.uint8)
    thumbnail = io.BytesIO()
    Image.fromarray(values[:8, :8]).save(thumbnail, "JPEG")
    path = tmp_path / "a.jpg"
    # The thumbnail in the metadata has an end mark of its own.
    Image.fromarray(values).save(path, comment=thumbnail.getvalue())
    whole = path.read_bytes()
    assert read_image(Photo(path, 65535), None).shape == (64, 64)
    path.write_bytes(whole + b"\0" * 100 + b"camera trailer")
    assert read_image(Photo(path, 65535), None).shape == (64, 64)
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2))
    with pytest.raises(BadImage, match="truncated, its picture has no end mark"):
        read_image(Photo(path, 65535), None)


def test_a_tiff_of_many_pictures_is_refused_at_its_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a file whose pictures are counted, which takes minutes, before it is refused."""
    page = Image.fromarray(np.zeros((8, 8), np.uint8))
    page.save(tmp_path / "many.tif", save_all=True, append_images=[page] * 50)
    seeks: list[int] = []
    plain = TiffImagePlugin.TiffImageFile._seek
    monkeypatch.setattr(
        TiffImagePlugin.TiffImageFile, "_seek", lambda self, frame: (seeks.append(frame), plain(self, frame))
    )
    with pytest.raises(BadImage, match="several pictures in one file"):
        read_image(Photo(tmp_path / "many.tif"), None)
    assert len(seeks) <= 2


def test_the_white_level_waits_for_no_pipe(tmp_path: Path) -> None:
    """Would catch: a set that is never read because a table names a pipe."""
    os.mkfifo(tmp_path / "pipe.png")
    Image.fromarray(np.full((4, 4), 1000, np.uint16)).save(tmp_path / "a.png")
    assert find_white([Photo(tmp_path / "pipe.png"), Photo(tmp_path / "a.png")]) == 1023


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ((0, 127, 128, 255), np.uint8, (False, False, True, True)),
        ((0, 1, 1, 0), np.uint8, (False, True, True, False)),
        ((0, 1, 2, 3), np.uint8, (False, True, True, True)),
        ((0, 63, 65, 128), np.uint8, (False, False, True, True)),
        ((0, 127, 128, 255), np.uint16, (False, False, True, True)),
        ((0, 0, 0, 0), np.uint8, (False, False, False, False)),
        ((0, 32767, 32768, 65535), np.uint16, (False, False, True, True)),
    ],
)
def test_photo_masks_are_cut_at_half(
    tmp_path: Path, values: tuple[int, ...], dtype: type, expected: tuple[bool, ...]
) -> None:
    """Would catch: soft edges counted as defect, masks of 0 and 1 taken for empty, and empty ones for full."""
    pixels = np.tile(np.array(values, dtype), (16, 4))
    mask = read_mask(photo(tmp_path / "m.png", Image.fromarray(pixels)), (16, 16))
    assert mask.dtype == np.bool_
    assert tuple(mask[5, :4].tolist()) == expected


def test_masks_of_any_colour_are_masks(tmp_path: Path) -> None:
    """Would catch: red and blue on black, whose luma lies below half, taken for empty."""
    colours = np.zeros((16, 16, 3), np.uint8)
    colours[0, :4] = [(255, 0, 0), (0, 0, 255), (0, 255, 0), (100, 0, 0)]
    picture = Image.fromarray(colours)
    for name, one in (("a.png", picture), ("b.png", picture.quantize(8))):
        mask = read_mask(photo(tmp_path / name, one), (16, 16))
        assert mask[0, :5].tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stored_turned_come_out_as_viewers_show_them(tmp_path: Path, orientation: int) -> None:
    """Would catch: a mask drawn over what every viewer shows, laid over pixels that are stored another way up; a mask
    of the upright size that is refused; a turned picture of 16 bits cut down."""
    moves = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
    }  # fmt: skip
    exif = Image.Exif()
    exif[274] = orientation
    rng = np.random.default_rng(0)
    for name, stored in (
        ("a.png", rng.integers(0, 256, (20, 12)).astype(np.uint8)),
        ("b.png", rng.integers(0, 4096, (20, 12)).astype(np.uint16)),
        ("c.webp", np.repeat(rng.integers(0, 256, (20, 12, 1)), 3, axis=2).astype(np.uint8)),
    ):
        Image.fromarray(stored).save(tmp_path / name, exif=exif, lossless=True)
        shown = moves[orientation](stored[..., 0] if stored.ndim == 3 else stored)  # type: ignore[no-untyped-call]
        image = read_image(Photo(tmp_path / name, 65535), None)
        expected = shown if stored.dtype == np.uint8 else np.rint(shown * (255 / 65535)).astype(np.uint8)
        np.testing.assert_array_equal(image, expected)
        upright = photo(tmp_path / "mask.png", Image.fromarray(np.uint8(255 * (shown > shown.mean()))))
        assert read_mask(upright, (image.shape[0], image.shape[1])).shape == image.shape
        with pytest.raises(BadImage, match="turned by 90° against each other"):
            read_mask(upright, (image.shape[1], image.shape[0]))


def test_the_first_picture_of_a_phone_s_file_is_taken(tmp_path: Path) -> None:
    """Would catch: pictures of phones and drones that are refused for their previews, or read as the preview; a set of
    pictures in one file of another kind read as its first."""
    large, small = (
        Image.fromarray(np.full((edge, edge), value, np.uint8)) for edge, value in ((16, 200), (8, 50))
    )
    large.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[small])
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.mpo").read_bytes())
    for name in ("a.mpo", "b.jpg"):
        assert (read_image(Photo(tmp_path / name, 65535), None) == 200).all()
    large.save(tmp_path / "c.gif")
    assert read_image(Photo(tmp_path / "c.gif", 65535), None).shape == (16, 16)
    for ending in ("gif", "webp"):
        large.save(tmp_path / f"d.{ending}", save_all=True, append_images=[small.resize((16, 16))])
        with pytest.raises(BadImage, match="several pictures in one file"):
            read_image(Photo(tmp_path / f"d.{ending}", 65535), None)


def test_colour_tiff_of_16_bits_is_refused(tmp_path: Path) -> None:
    """Would catch: the low bytes cut off without a word, which leaves 16 grey levels of a 12-bit camera."""
    values = np.full((16, 16, 3), 4095, "<u2").tobytes()
    # Width, height, bits (at 134), no compression, RGB, strip (at 140), samples, rows, bytes.
    fields = [(256, 3, 1, 16), (257, 3, 1, 16), (258, 3, 3, 134), (259, 3, 1, 1), (262, 3, 1, 2)]
    fields += [(273, 4, 1, 140), (277, 3, 1, 3), (278, 3, 1, 16), (279, 4, 1, len(values))]
    entries = b"".join(struct.pack("<HHII", *field) for field in fields)
    data = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)
    data = data.ljust(134, b"\0") + struct.pack("<3H", 16, 16, 16) + values
    with pytest.raises(
        BadImage, match="colour of 16 bits; convert to 8-bit grey, 16-bit grey or 8-bit colour"
    ):
        read_image(Photo(written(tmp_path / "a.tif", data)), None)


def test_white_is_the_least_power_that_holds_every_16_bit_value(tmp_path: Path) -> None:
    """Would catch: a white of 8-bit images, of damaged ones, or one step too low, which would clip."""

    def of(*values: int) -> int:
        photos = [
            photo(tmp_path / f"{value}.png", Image.fromarray(np.full((16, 16), value, np.uint16)))
            for value in values
        ]
        return find_white([*photos, photo(tmp_path / "8.png", Image.fromarray(PIXELS)), damaged])

    damaged = Photo(written(tmp_path / "damaged.png", b"\x89PNG"))
    assert of() == 65535
    assert of(3) == of(255) == 255
    assert of(1023, 7) == 1023
    assert of(1024) == 2047
    assert of(65535) == 65535


def test_defective_photo_without_mask_is_defective_all_over(tmp_path: Path) -> None:
    """Would catch: slices of a defective image that are taught as good, because nobody has marked where it is."""
    image = photo(tmp_path / "a.png", Image.fromarray(PIXELS))
    assert load(Sample("a", 1, 1, None, image, None), None)[1].all()
    assert not load(Sample("a", 1, 0, None, image, None), None)[1].any()

"""Tests of the decoder: what counts as a usable 8-bit grey image, and the reason given for all else."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from png_files import PIXELS, SIZE, chunk, png, written

from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import load, read_image, read_mask
from dagm_jax.types import MAX_PIXELS, Drawn, Ellipse, Sample


def grey_png() -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in PIXELS)
    return png(SIZE[1], SIZE[0], 8, 0, rows)


def saved(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, format="PNG", **options)
    return path


def grey(path: Path, pixels: np.ndarray = PIXELS) -> Path:
    return saved(path, Image.fromarray(pixels))


def refused(path: Path, match: str, shape: tuple[int, int] | None = None) -> None:
    """Asserts one line that names the file, and the same for image and mask."""
    for read in (read_image, read_mask):
        with pytest.raises(BadImage, match=match) as caught:
            read(path, shape)
        assert "\n" not in str(caught.value)
        assert path.name in str(caught.value)


def test_grey_image_comes_out_unchanged(tmp_path: Path) -> None:
    """Would catch: exchanged axes, a lossy conversion, another dtype."""
    image = read_image(grey(tmp_path / "a.PNG"), SIZE)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, PIXELS)
    np.testing.assert_array_equal(read_image(tmp_path / "a.PNG", None), PIXELS)
    np.testing.assert_array_equal(read_image(written(tmp_path / "b.PNG", grey_png()), SIZE), PIXELS)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA", "P", "rgb palette"])
def test_grey_in_effect_is_grey(tmp_path: Path, mode: str) -> None:
    """Would catch: equal channels or a palette of greys read through weights, or as palette indices."""
    picture = Image.fromarray(PIXELS)
    if mode == "rgb palette":
        picture = Image.fromarray(255 - PIXELS)
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette([255 - i // 3 for i in range(768)])
    else:
        picture = picture.convert(mode)
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", picture), SIZE), PIXELS)


def test_interlaced_image(tmp_path: Path) -> None:
    """Would catch: a reader of plain rows only."""
    seven = b"".join(b"\0" + bytes([v]) for v in (10,)) + b"\0\x14" + b"\0\x1e\x28"
    data = bytearray(png(2, 2, 8, 0, seven))
    data[28] = 1  # interlace method
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert read_image(written(tmp_path / "a.png", bytes(data)), (2, 2)).tolist() == [[10, 20], [30, 40]]


@pytest.mark.parametrize("value", [1, 127, 128, 254])
def test_mask_is_cut_at_half(tmp_path: Path, value: int) -> None:
    """Would catch: `> 0` (compression halos become defect) or `== 255`."""
    mask = read_mask(grey(tmp_path / "m.png", np.full(SIZE, value, np.uint8)), SIZE)
    assert mask.dtype == np.bool_
    assert mask.shape == SIZE
    assert mask.all() == mask.any() == (value > 127)


def test_files_that_are_no_image(tmp_path: Path) -> None:
    """Would catch: a traceback for a missing, empty or foreign file, or a reason that fits another fault, over
    two lines because of the file's name."""
    refused(tmp_path / "missing.png", "file is missing")
    with pytest.raises(BadImage, match=r"a\\nb.png: file is missing"):
        read_image(tmp_path / "a\nb.png", None)
    refused(tmp_path, "not a file")
    refused(written(tmp_path / "empty.png", b""), "file is empty")
    refused(written(tmp_path / "text.png", b"<html>not found</html>"), "not a PNG image")
    jpeg = tmp_path / "jpeg.png"
    Image.fromarray(PIXELS).save(jpeg, format="JPEG")
    refused(jpeg, "not a PNG image")


@pytest.mark.parametrize("cut", [4, 8, 20, 200, -16, -12, -1])
@pytest.mark.parametrize("lenient", [False, True])
def test_truncated_at_any_place(
    tmp_path: Path, cut: int, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a cut file whose missing rows come out as zeros, even where another library has told Pillow to let
    half an image in."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    refused(written(tmp_path / "a.png", grey_png()[:cut]), "truncated|damaged")


def test_flipped_bit_in_the_pixels(tmp_path: Path) -> None:
    """Would catch: damage in the pixel data, whose checksum decoding leaves unchecked."""
    data = bytearray(grey_png())
    data[len(data) // 2] ^= 1
    refused(written(tmp_path / "a.png", bytes(data)), r"corrupt, .*checksum in b'IDAT'")


# Damage of which Pillow makes SyntaxError, struct.error, and zlib.error; `faults/test_fuzz.py` has others.
NONSENSE = {
    "depth": png(8, 8, 5, 0, b"\0" * 72),
    "short": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", b"abc") + chunk(b"IEND", b""),
    "no zlib": grey_png()[:33] + chunk(b"IDAT", b"no zlib") + chunk(b"IEND", b""),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_sound_checksums_around_nonsense(tmp_path: Path, name: str) -> None:
    """Would catch: SyntaxError, zlib.error, struct.error and the like that escape as themselves."""
    refused(written(tmp_path / "a.png", NONSENSE[name]), "corrupt|damaged")


def test_sixteen_bit(tmp_path: Path) -> None:
    """Would catch: 16-bit grey clipped to 255, and 16-bit colour that Pillow cuts down to 8 bits silently."""
    wide = Image.fromarray(PIXELS.astype(np.uint16) * 257)
    refused(saved(tmp_path / "grey.png", wide), "16-bit image; convert to 8-bit grey")
    refused(written(tmp_path / "rgb.png", png(4, 4, 16, 2, b"\0" * 100)), "colour of 16 bits")


def test_colour_and_transparency(tmp_path: Path) -> None:
    """Would catch: a photograph averaged to grey, and hidden values below transparent pixels."""
    rgb = np.stack([PIXELS, PIXELS, PIXELS], axis=-1)
    rgb[3, 4, 2] ^= 1
    refused(saved(tmp_path / "rgb.png", Image.fromarray(rgb)), "colour image")
    palette = Image.fromarray(PIXELS)
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([*range(255), 0, 1, 2] + [200, 10, 10] * 170)
    refused(saved(tmp_path / "p.png", palette), "colour image")
    alpha = np.stack([PIXELS, np.full(SIZE, 254, np.uint8)], axis=-1)
    refused(saved(tmp_path / "la.png", Image.fromarray(alpha, mode="LA")), "transparent")
    refused(
        saved(tmp_path / "trns.png", Image.fromarray(PIXELS), transparency=int(PIXELS[0, 0])), "transparent"
    )


def test_wrong_size(tmp_path: Path) -> None:
    """Would catch: an image of exchanged or other size let through, or a message without both sizes; a mask that
    broadcasts or is cropped where images of any size are allowed."""
    path = grey(tmp_path / "a.png")
    refused(path, "size 24x32 .height x width., expected 32x24", (32, 24))
    mask = grey(tmp_path / "m.png", np.full((32, 24), 255, np.uint8))
    with pytest.raises(BadImage, match=r"m\.png: size 32x24 .*, expected 24x32, the size of its image"):
        load(Sample("x/1", 1, 1, None, path, mask), None)


def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a small file that unpacks to gigabytes, and a limit that the message keeps to itself."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", forbidden)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width, height in ((8193, 8192), (2**31 - 1, 2**31 - 1)):
            refused(
                written(tmp_path / "a.png", png(width, height, 8, 0, b"\0")), f"limit of {MAX_PIXELS} pixels"
            )


def test_animated(tmp_path: Path) -> None:
    """Would catch: the first of several frames taken for the image."""
    path = tmp_path / "a.png"
    frames = [Image.fromarray(255 - PIXELS)]
    Image.fromarray(PIXELS).save(path, format="PNG", save_all=True, append_images=frames)
    refused(path, "animated")


def test_load_with_mask_file(tmp_path: Path) -> None:
    """Would catch: a degenerate mask of two pixels refused, cleaned away, or its image called good;
    a bilevel mask of 0 and 1 that falls below the cut."""
    pixels = np.zeros(SIZE, np.uint8)
    pixels[5, 6:8] = 255
    mask_path = grey(tmp_path / "m.png", pixels)
    _, mask = load(Sample("Class8/Train/1951", 8, 1, "train", grey(tmp_path / "a.png"), mask_path), None)
    assert np.argwhere(mask).tolist() == [[5, 6], [5, 7]]
    bits = saved(tmp_path / "bits.png", Image.fromarray(pixels > 0))
    np.testing.assert_array_equal(read_mask(bits, SIZE), mask)


@pytest.mark.parametrize("label", [0, 1])
def test_load_drawn(label: int) -> None:
    """Would catch: image and mask from different drawings, or the label not passed on."""
    drawn = Drawn(seed=3, class_id=8, index=5)
    sample = Sample("drawn/5", 8, 1 if label else 0, None, drawn, drawn if label else None)
    image, mask = load(sample, (128, 128))
    assert image.shape == mask.shape == (128, 128)
    assert image.dtype == np.uint8
    assert mask.dtype == np.bool_
    assert mask.any() == bool(label)
    np.testing.assert_array_equal(image, load(sample, (128, 128))[0])


def test_load_refuses_an_empty_mask_of_a_defective_image(tmp_path: Path) -> None:
    """Would catch: a defective image that would train as all good, e.g. with a mask of 0 and 1, or an ellipse
    outside the image."""
    image = grey(tmp_path / "a.png")
    ones = grey(tmp_path / "m.png", np.ones(SIZE, np.uint8))
    for mask in (ones, Ellipse(3, 3, 0, 5000, 5000)):
        with pytest.raises(BadImage, match="x/1: labelled defective, but mask is empty"):
            load(Sample("x/1", 1, 1, None, image, mask), SIZE)


def test_real_class_8(real: Path) -> None:
    """Would catch: official files refused (checksums, sizes), and defective images with an empty mask."""
    manifest = read_tree(real, (8,))
    area = {}
    for sample in manifest.samples:
        image, mask = load(sample, (512, 512))
        assert image.shape == mask.shape == (512, 512)
        assert mask.any() == bool(sample.label)
        area[sample.image_id] = int(mask.sum())
    assert len(area) == 500
    degenerate = {n: area[f"Class8/Train/{n}"] for n in (1502, 1827, 1951)}
    assert degenerate == {1502: 26, 1827: 250, 1951: 2}

"""Image and label files with anything in them: each is a valid example, a listed skip or one line; never another label.

2,000 cases and some; `HYPOTHESIS_SEED=N` in the environment draws others than the fixed ones.
"""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from png_files import chunk

from dagm_jax.data.cache import build_cache
from dagm_jax.data.config import DataConfig
from dagm_jax.data.dataset import find_images
from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.data.images.files import BadImage
from dagm_jax.data.images.photos import read_photo, read_photo_mask
from dagm_jax.data.images.png import read_image
from dagm_jax.errors import UserError
from dagm_jax.types import Ellipse, Manifest, Photo

SEED = os.environ.get("HYPOTHESIS_SEED")

# As in use: a warning of Pillow is none of ours, and an image that it warns of is not thereby refused.
pytestmark = pytest.mark.filterwarnings("default", "ignore:::PIL")


def cases(number: int) -> Callable[[Any], Any]:
    """The same so many cases in every run, or others with HYPOTHESIS_SEED."""

    def decorate(test: Any) -> Any:
        limits = settings(
            max_examples=number,
            deadline=None,
            database=None,
            derandomize=SEED is None,
            suppress_health_check=list(HealthCheck),
        )
        return limits(test) if SEED is None else seed(int(SEED))(limits(test))

    return decorate


# --- image files --------------------------------------------------------------------------------------------

H, W = 12, 17
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (H, W), np.uint8)
DEEP = RNG.integers(0, 65536, (H, W), np.uint16)
COLOUR = RNG.integers(0, 256, (H, W, 3), np.uint8)
FLOATS = np.where(RNG.random((H, W)) < 0.1, np.nan, RNG.random((H, W))).astype(np.float32)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


def with_chunk(data: bytes, kind: bytes, content: bytes) -> bytes:
    """The PNG with one more chunk after its header."""
    return data[:33] + chunk(kind, content) + data[33:]


@cache
def originals() -> dict[str, bytes]:
    """Files of every kind that is taken, and of kinds that are not."""
    grey, deep, colour = (Image.fromarray(pixels) for pixels in (GREY, DEEP, COLOUR))
    palette = colour.convert("P")
    clear = colour.convert("RGBA")
    clear.putalpha(100)
    png, tiff = saved(grey, "PNG"), saved(grey, "TIFF")
    exif = Image.Exif()
    exif[274] = 6
    files = {
        "grey.png": png,
        "deep.png": saved(deep, "PNG"),
        "colour.png": saved(colour, "PNG"),
        "palette.png": saved(palette, "PNG"),
        "bits.png": saved(grey.convert("1"), "PNG"),
        "clear.png": saved(clear, "PNG"),
        "animated.png": saved(grey, "PNG", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        "text.png": with_chunk(png, b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000))),
        "grey.jpg": saved(grey, "JPEG", quality=95),
        "colour.jpg": saved(colour, "JPEG", quality=95),
        "turned.jpg": saved(colour, "JPEG", exif=exif),
        "cmyk.jpg": saved(colour.convert("CMYK"), "JPEG"),
        "grey.bmp": saved(grey, "BMP"),
        "colour.bmp": saved(colour, "BMP"),
        "bits.bmp": saved(grey.convert("1"), "BMP"),
        "grey.tif": tiff,
        "deep.tif": saved(deep, "TIFF"),
        "packed.tif": saved(grey, "TIFF", compression="tiff_lzw"),
        "deflated.tif": saved(colour, "TIFF", compression="tiff_adobe_deflate"),
        "floats.tif": saved(Image.fromarray(FLOATS), "TIFF"),
        "integers.tif": saved(Image.fromarray(DEEP.astype(np.int32) * 1000), "TIFF"),
        "pages.tif": saved(grey, "TIFF", save_all=True, append_images=[Image.fromarray(255 - GREY)]),
        "flat.png": saved(Image.new("L", (W, H), 128), "PNG"),
        "empty.png": b"",
        "zeros.bmp": bytes(400),
        "words.jpg": b"path,label\nimage.png,1\n" * 10,
    }
    return files


# Of 32 bits and below, little and big endian: sizes, offsets and counts that headers lie with.
WORDS = [0, 1, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 10**6]
EDITS = st.one_of(
    st.tuples(st.just("flip"), st.integers(0, 5000), st.integers(1, 255)),
    st.tuples(st.just("flip"), st.integers(0, 120), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0, 5000), st.just(0)),
    st.tuples(st.just("add"), st.integers(0, 5000), st.integers(1, 40)),
    st.tuples(st.just("drop"), st.integers(0, 5000), st.integers(1, 40)),
    st.tuples(st.sampled_from(["<I", ">I"]), st.integers(0, 250), st.sampled_from(WORDS)),
    st.tuples(st.sampled_from(["<H", ">H"]), st.integers(0, 250), st.sampled_from(WORDS[:5])),
)


def edited(data: bytes, edits: list[tuple[str, int, int]], repair: bool) -> bytes:
    """``data`` with the edits, of a PNG with right checksums again, so that the damage gets past them."""
    out = bytearray(data)
    for kind, place, value in edits:
        place %= max(len(out), 1)
        match kind:
            case "flip" if out:
                out[place] ^= value
            case "cut":
                del out[place:]
            case "add":
                out[place:place] = bytes(value)
            case "drop":
                del out[place : place + value]
            case "<I" | ">I" | "<H" | ">H" if place + 4 <= len(out):
                struct.pack_into(kind, out, place, value)
    position = 8
    while repair and out.startswith(b"\x89PNG") and position + 12 <= len(out):
        end = position + 8 + struct.unpack_from(">I", out, position)[0]
        if end + 4 > len(out):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(out[position + 4 : end]))
        position = end + 4
    return bytes(out)


def seen_by_pillow(data: bytes) -> np.ndarray:
    """What Pillow makes of the file without any of our code, float [h w] of 8 bits; raises what Pillow raises.

    Grey values as they are, 16 bits by 65535, colours by ITU-R 601's luma, which may differ by a rounding.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = Image.open(io.BytesIO(data))
        picture.load()
    values = np.asarray(picture)
    if picture.mode.startswith("I"):
        return np.asarray(values * (255 / 65535))
    if picture.mode in ("L", "1"):
        return values.astype(float) * (255 if picture.mode == "1" else 1)
    return np.asarray(np.asarray(picture.convert("RGB")) @ np.array([0.299, 0.587, 0.114]))


def outcome(read: Callable[[], np.ndarray]) -> np.ndarray | None:
    """What was read; None where that is refused in one line."""
    try:
        return read()
    except BadImage as error:
        assert str(error).isprintable()  # noqa: PT017 - any other exception has to surface
        return None


CHANGES = st.lists(EDITS, min_size=1, max_size=4)


@cases(1000)
@given(name=st.sampled_from(sorted(originals())), edits=CHANGES, repair=st.booleans())
def test_damaged_images_are_refused_or_read_as_pillow_reads_them(
    tmp_path: Path, name: str, edits: list[tuple[str, int, int]], repair: bool
) -> None:
    """Would catch: an exception of a decoder, a half-read file; pages, depth or transparency passed over in silence."""
    data = edited(originals()[name], edits, repair)
    path = tmp_path / name
    path.write_bytes(data)
    image = outcome(lambda: read_photo(Photo(path, 65535), None))
    if image is not None:
        assert image.dtype == np.uint8 and image.ndim == 2
        np.testing.assert_allclose(image, seen_by_pillow(data), atol=1.01)
    mask = outcome(lambda: read_photo_mask(Photo(path), (H, W)))
    assert mask is None or (mask.dtype == bool and mask.shape == (H, W) == np.shape(image))
    dagm = outcome(lambda: read_image(path, (H, W)))
    if dagm is not None:
        np.testing.assert_array_equal(dagm, seen_by_pillow(data).round())
        if not repair:
            # Every byte of a PNG is under a checksum, so what is taken is what was written.
            assert any(np.array_equal(dagm, pixels) for pixels in taken_by_dagm())


@cache
def taken_by_dagm() -> list[np.ndarray]:
    """The pixels of the PNG files among the originals that are grey in effect."""
    return [GREY, np.asarray(Image.fromarray(GREY).convert("1").convert("L")), np.full((H, W), 128, np.uint8)]


def test_the_originals_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    """Would catch: a fuzz test of files that were all refused to begin with, or of which none is."""
    taken = set()
    for name, data in originals().items():
        (tmp_path / name).write_bytes(data)
        if outcome(lambda: read_photo(Photo(tmp_path / name, 65535), None)) is not None:  # noqa: B023
            taken.add(name)
    refused = set(
        ["clear", "animated", "turned", "cmyk", "floats", "integers", "pages", "empty", "zeros", "words"]
    )
    assert {name.partition(".")[0] for name in originals().keys() - taken} == refused


# --- a whole set --------------------------------------------------------------------------------------------


def pixels_of(number: int) -> np.ndarray:
    return np.random.default_rng(100 + number).integers(0, 256, (H, W), np.uint8)


def spot(number: int) -> np.ndarray:
    mask = np.zeros((H, W), np.uint8)
    mask[number % 8 : number % 8 + 3, 2:7] = 255
    return mask


@cache
def untouched(number: int, as_mask: bool = False) -> bytes:
    return saved(Image.fromarray(spot(number) if as_mask else pixels_of(number)), "PNG")


def check_set(manifest: Manifest, folder: Path, truth: dict[str, int], touched: set[str]) -> None:
    """Every image is used once or listed once; those that nobody has touched have their pixels, label and mask.

    truth: image id → label of every image; touched: those of them whose image or mask was changed.
    """
    try:
        whole, stored = build_cache(manifest, folder / "cache", None)
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017
        assert touched == set(truth), "a good image was lost with the others"
        return
    used = {sample.image_id: place for place, sample in enumerate(whole.samples)}
    listed = [skip.what for skip in whole.skipped]
    assert len(used) == len(whole.samples) and not used.keys() & set(listed)
    assert all(skip.what.isprintable() and skip.reason.isprintable() for skip in whole.skipped)
    assert truth.keys() == used.keys() | (set(listed) & truth.keys())
    whites = {sample.image.white for sample in whole.samples if isinstance(sample.image, Photo)}
    assert len(whites) == 1 and whites <= {2**k - 1 for k in range(8, 17)}
    for name, place in used.items():
        assert whole.samples[place].label == truth[name]
        image, mask = stored[place]
        assert mask.any() == truth[name]
        if name not in touched:
            number = int(re.findall(r"[0-9]+", name)[-1])
            np.testing.assert_array_equal(image, pixels_of(number))
            np.testing.assert_array_equal(mask, (spot(number) > 0) & bool(truth[name]))
    assert truth.keys() - touched <= used.keys(), "an image that nobody has touched was left out"


@cases(250)
@given(
    damage=st.dictionaries(
        st.sampled_from(
            ["good/0.png", "good/1.png", "defect/2.png", "defect/3.png", "masks/2.png", "masks/1.png"]
        ),
        st.tuples(st.sampled_from(sorted(originals())), st.lists(EDITS, max_size=3), st.booleans()),
        min_size=1,
        max_size=4,
    )
)
def test_damage_to_some_files_leaves_the_others_as_they_are(
    tmp_path_factory: Any, damage: dict[str, Any]
) -> None:
    """Would catch: labels or masks that move to a neighbour, an image counted nowhere, a good set that is lost."""
    folder = tmp_path_factory.mktemp("set")
    for number, name in enumerate(("good/0.png", "good/1.png", "defect/2.png", "defect/3.png")):
        for path, as_mask in ((name, False), (f"masks/{number}.png", True)):
            if not as_mask or number >= 2:
                (folder / path).parent.mkdir(exist_ok=True)
                (folder / path).write_bytes(untouched(number, as_mask))
    for name, (original, edits, repair) in damage.items():
        (folder / name).write_bytes(edited(originals()[original], edits, repair))
    truth = {"good/0.png": 0, "good/1.png": 0, "defect/2.png": 1, "defect/3.png": 1}
    touched = {name for name in truth for changed in damage if Path(name).stem == Path(changed).stem}
    manifest, shape = find_images(DataConfig(root=str(folder)), 0)
    assert shape is None
    check_set(manifest, folder, truth, touched)


# --- label files of DAGM ------------------------------------------------------------------------------------

ENDS = st.sampled_from(["\n", "\r\n", "\r"])
# Anything in place of a number, among it what float() and int() take and no label file means.
NUMBERS = st.one_of(
    st.sampled_from(
        [
            "nan",
            "NaN",
            "inf",
            "-inf",
            "Infinity",
            "-1",
            "0",
            "-0.0",
            "1e308",
            "1e400",
            "-1e400",
            "1e-320",
            "1e7",
        ]
    ),
    st.sampled_from(
        ["1_0", "\u0663", "\uff11\uff12", "1,5", "", *["0x10", "1.5.2", "--3", "+4", ".5", "5.", "1e3", "²"]]
    ),
    st.integers(-(10**7), 10**7).map(str),
    st.floats().map(str),
    st.text(max_size=4),
)
JUNK = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=40)
DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def joined(rows: list[str], end: str, bom: bool, extra: bytes) -> bytes:
    return (b"\xef\xbb\xbf" if bom else b"") + end.join(rows).encode("utf-8", "surrogatepass") + extra


def lines_of(data: bytes) -> list[str]:
    """The lines as any text editor shows them."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def agreed(rows: list[tuple[int, Any]]) -> dict[int, Any]:
    """Number → value of those numbers all of whose rows say the same."""
    values: dict[int, set[Any]] = {}
    for number, value in rows:
        values.setdefault(number, set()).add(value)
    return {number: found.pop() for number, found in values.items() if len(found) == 1}


def labels_a(data: bytes) -> dict[int, int]:
    """Number → label of a Labels.txt, by one strict pattern."""
    found = []
    for line in lines_of(data):
        fields = re.split(r"\s+", line.strip())
        if len(fields) != 5 or not re.fullmatch(r"[0-9]{1,6}", fields[0]) or fields[1] not in ("0", "1"):
            continue
        image = re.fullmatch(r"([0-9]{1,6})\.png", fields[2], re.I | re.A)
        mask = re.fullmatch(r"0|([0-9]{1,6})_label\.png", fields[4], re.I | re.A)
        numbers = {int(fields[0]), int(image[1]) if image else -1}
        if mask and mask[1]:
            numbers.add(int(mask[1]))
        if image and mask and len(numbers) == 1:
            found.append((int(fields[0]), int(fields[1])))
    return agreed(found)


def row_a(number: int, label: int) -> str:
    return f"{number}\t{label}\t{number:04d}.PNG\t0\t{f'{number:04d}_label.PNG' if label else '0'}"


ROWS_A = st.one_of(
    st.builds(row_a, st.integers(1, 9), st.integers(0, 1)),
    st.builds(
        lambda *fields: "\t".join(fields),
        NUMBERS,
        NUMBERS,
        st.sampled_from(["0001.PNG", "2.png", "3.jpg", "../0004.PNG", "/5.PNG"]) | st.text(max_size=5),
        st.sampled_from(["0", "1"]),
        st.sampled_from(["0", "0003_label.PNG", "4_label.png"]) | NUMBERS,
    ),
    JUNK,
)


@pytest.fixture(scope="module")
def layout_a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 1 to 6 with masks for 4 to 6, and no label file."""
    root = tmp_path_factory.mktemp("a")
    (root / "Class1" / "Train" / "Label").mkdir(parents=True)
    for number in range(1, 7):
        (root / "Class1" / "Train" / f"{number:04d}.PNG").write_bytes(b"x")
        if number > 3:
            (root / "Class1" / "Train" / "Label" / f"{number:04d}_label.PNG").write_bytes(b"x")
    return root


def read_or_one_line(root: Path) -> Manifest | None:
    try:
        manifest = read_tree(root, (1,))
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017
        return None
    assert all(skip.what.isprintable() and skip.reason.isprintable() for skip in manifest.skipped)
    return manifest


@cases(300)
@given(
    rows=st.lists(ROWS_A, max_size=5),
    places=st.lists(st.integers(0, 7), min_size=5, max_size=5),
    end=ENDS,
    bom=st.booleans(),
    extra=st.binary(max_size=6),
)
def test_labels_of_layout_a(
    layout_a: Path, rows: list[str], places: list[int], end: str, bom: bool, extra: bytes
) -> None:
    """Would catch: a label of another row, one of two that contradict each other, a mask without its row's consent."""
    lines = ["1", *(row_a(number, int(number > 3)) for number in range(1, 7))]
    for place, row in zip(places, rows, strict=False):
        lines.insert(place, row)
    data = joined(lines, end, bom, extra)
    (layout_a / "Class1" / "Train" / "Label" / "Labels.txt").write_bytes(data)
    manifest, truth = read_or_one_line(layout_a), labels_a(data)
    # A defective image needs its mask.
    usable = {n: label for n, label in truth.items() if 1 <= n <= 6 and (label == 0 or n > 3)}
    assert usable == ({int(r.image_id[-4:]): r.label for r in manifest.samples} if manifest else {})
    if manifest:
        listed = {skip.what for skip in manifest.skipped}
        assert all(f"Class1/Train/{n:04d}.PNG" in listed for n in set(range(1, 7)) - usable.keys())
        for sample in manifest.samples:
            assert Path(str(sample.image)).stem == sample.image_id[-4:]
            assert sample.label == 0 or Path(str(sample.mask)).name == f"{sample.image_id[-4:]}_label.PNG"


def ellipses_b(data: bytes) -> dict[int, Ellipse]:
    """Number → ellipse of a labels.txt, by one strict pattern."""
    found = []
    for line in lines_of(data):
        fields = re.split(r"\s+", line.strip())
        if len(fields) != 6 or not re.fullmatch(r"[0-9]{1,6}", fields[0]):
            continue
        if all(DECIMAL.fullmatch(field) for field in fields[1:]):
            a, b, *rest = map(float, fields[1:])
            if min(a, b) >= 1e-3 and max(map(abs, (a, b, *rest))) <= 1e6:
                found.append((int(fields[0]), Ellipse(a, b, *rest)))
    return agreed(found)


def row_b(number: int, a: float = 5.0) -> str:
    return f"{number}\t  {a}\t  3.5\t  -0.25\t  256.0\t  100.75"


ROWS_B = st.one_of(
    st.builds(row_b, st.integers(1, 9), st.sampled_from([5.0, 6.0])),
    st.builds(lambda number, *values: "\t".join([str(number), *values]), st.integers(1, 9), *[NUMBERS] * 5),
    st.builds(
        lambda number, value, k: "\t".join([str(number), *["5.0" if i != k else value for i in range(5)]]),
        st.integers(1, 9),
        NUMBERS,
        st.integers(0, 4),
    ),
    JUNK,
)


@pytest.fixture(scope="module")
def layout_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Defective images 1 to 4 and good ones 1 to 2, and no label file."""
    root = tmp_path_factory.mktemp("b")
    for folder, count in (("Class1_def", 4), ("Class1", 2)):
        (root / folder).mkdir()
        for number in range(1, count + 1):
            (root / folder / f"{number}.png").write_bytes(b"x")
    return root


@cases(300)
@given(
    rows=st.lists(ROWS_B, max_size=5),
    places=st.lists(st.integers(0, 4), min_size=5, max_size=5),
    end=ENDS,
    bom=st.booleans(),
    extra=st.binary(max_size=6),
)
def test_ellipses_of_layout_b(
    layout_b: Path, rows: list[str], places: list[int], end: str, bom: bool, extra: bytes
) -> None:
    """Would catch: NaN, infinite, huge or negative axes that reach the mask, and numbers that no text editor shows."""
    lines = [row_b(number) for number in range(1, 5)]
    for place, row in zip(places, rows, strict=False):
        lines.insert(place, row)
    data = joined(lines, end, bom, extra)
    (layout_b / "Class1_def" / "labels.txt").write_bytes(data)
    manifest, truth = read_or_one_line(layout_b), ellipses_b(data)
    assert manifest is not None, "there are good images"
    usable = {n: ellipse for n, ellipse in truth.items() if n <= 4}
    assert usable == {int(r.image_id.rpartition("/")[2]): r.mask for r in manifest.samples if r.label}
    assert [r.image_id for r in manifest.samples if not r.label] == ["Class1/1", "Class1/2"]
    listed = {skip.what for skip in manifest.skipped}
    assert all(f"Class1_def/{n}.png" in listed for n in set(range(1, 5)) - usable.keys())


# --- the CSV table ------------------------------------------------------------------------------------------

WORDS_OF_LABELS = {"0": 0, "good": 0, "GOOD": 0, "1": 1, "defective": 1, " Defective ": 1}


@pytest.fixture(scope="module")
def table_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 0 to 5, masks m0 to m5, a copy beyond the folder, and no table."""
    folder = tmp_path_factory.mktemp("csv") / "set"
    (folder / "sub").mkdir(parents=True)
    for number in range(6):
        (folder / f"{number}.png").write_bytes(untouched(number))
        (folder / f"m{number}.png").write_bytes(untouched(number, True))
    (folder.parent / "9.png").write_bytes(untouched(9))
    return folder


@st.composite
def tables(draw: Any) -> list[tuple[str, str, str, str]]:
    """Rows (path, label, mask, split): some of images that are there, under several of their names."""
    rows = []
    for _ in range(draw(st.integers(0, 8))):
        number = draw(st.integers(0, 5))
        name = draw(st.sampled_from(["{}.png", "{}.png", "./{}.png", "sub/../{}.png", "{{folder}}/{}.png"]))
        path = draw(
            st.just(name.format(number))
            | st.sampled_from(
                ["../9.png", "missing.png", "sub", "/dev/null", "m1.png", "table.csv", '"', "a\nb.png"]
            )
        )
        label = draw(st.sampled_from(list(WORDS_OF_LABELS)))
        mask = draw(st.sampled_from(["", f"m{number}.png", f"m{number}.png", "missing.png", "0.png"]))
        rows.append((path, label, mask, draw(st.sampled_from(["", "train", "test", "TEST"]))))
    return rows


@cases(200)
@given(rows=tables(), end=st.sampled_from(["\n", "\r\n"]), bom=st.booleans(), quoting=st.sampled_from([0, 1]))
def test_a_table_gives_its_own_labels(
    table_folder: Path, rows: list[tuple[str, str, str, str]], end: str, bom: bool, quoting: Any
) -> None:
    """Would catch: a file that is taken twice under two names, with one of two labels, or with another row's label."""
    rows = [(row[0].replace("{folder}", str(table_folder)), *row[1:]) for row in rows]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator=end, quoting=quoting)
    writer.writerows([("path", "label", "mask", "split"), *rows])
    table = table_folder / "table.csv"
    table.write_bytes((b"\xef\xbb\xbf" if bom else b"") + stream.getvalue().encode())
    said: dict[Path, set[int]] = {}
    for path, label, _, _ in rows:
        said.setdefault((table_folder / path).resolve(), set()).add(WORDS_OF_LABELS[label])
    try:
        manifest, _ = find_images(DataConfig(root=str(table)), 0)
        whole, stored = build_cache(manifest, table_folder / "cache", None)
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    files = [
        (table_folder / sample.image.path).resolve()
        for sample in whole.samples
        if isinstance(sample.image, Photo)
    ]
    assert len(files) == len(set(files)) == len(whole.samples)
    assert all(skip.what.isprintable() and skip.reason.isprintable() for skip in whole.skipped)
    for place, (sample, file) in enumerate(zip(whole.samples, files, strict=True)):
        assert said[file] == {sample.label}
        image, mask = stored[place]
        number = re.fullmatch(r"([0-9])\.png", file.name)
        if number:
            np.testing.assert_array_equal(image, pixels_of(int(number[1])))
        assert mask.any() == sample.label
    assert len(whole.samples) + len(whole.skipped) >= len(rows)


@cases(250)
@given(
    edits=st.lists(st.tuples(st.integers(0, 120), st.binary(max_size=4)), max_size=5),
    junk=st.sampled_from(
        ['"', '""', "\0", "\ufeff", "\r", "\x1a", ",", "\n\n", "'", "=cmd()", "\u2028", "\x85"]
    ),
    place=st.integers(0, 120),
)
def test_a_damaged_table_is_one_line_or_a_table(
    table_folder: Path, edits: list[tuple[int, bytes]], junk: str, place: int
) -> None:
    """Would catch: csv.Error, UnicodeDecodeError or ValueError of a NUL that escapes, and a label that is neither."""
    data = bytearray(b"path,label,mask\r\n0.png,good,\r\n1.png,good,\r\n4.png,defective,m4.png\r\n")
    data[place:place] = junk.encode()
    for position, new in edits:
        data[position : position + 1] = new
    (table_folder / "table.csv").write_bytes(bytes(data))
    try:
        manifest, _ = find_images(DataConfig(root=str(table_folder / "table.csv")), 0)
        build_cache(manifest, table_folder / "cache", None)
    except UserError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    lines = bytes(data).decode("utf-8-sig")
    for sample in manifest.samples:
        word = {0: ("0", "good"), 1: ("1", "defective")}[sample.label]
        assert any(w in lines.lower() for w in word)

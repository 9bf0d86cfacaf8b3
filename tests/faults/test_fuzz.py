"""Image and label files with anything in them: each is a valid example, a listed skip or one line; never another label.

A tenth of the cases, or with `-m long` all; `HYPOTHESIS_SEED=N` in the environment draws others than the fixed ones.
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
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import read_image, read_mask
from dagm_jax.errors import UserError
from dagm_jax.types import Ellipse, Manifest, Photo

SEED = os.environ.get("HYPOTHESIS_SEED")

# As in use: a warning of Pillow is none of ours, and an image that it warns of is not thereby refused.
pytestmark = pytest.mark.filterwarnings("default", "ignore:::PIL")


def any_size(number: int) -> Any:
    """Parametrises a test by its number of cases: a tenth of ``number``, and, marked long, all."""
    return pytest.mark.parametrize("number", [number // 10, pytest.param(number, marks=pytest.mark.long)])


def for_all(number: int, **strategies: st.SearchStrategy) -> Callable[[Callable[..., None]], None]:
    """Calls the decorated function with so many cases: the same in every run, or others with HYPOTHESIS_SEED."""

    def decorate(check: Callable[..., None]) -> None:
        limits = settings(
            max_examples=number,
            deadline=None,
            database=None,
            derandomize=SEED is None,
            suppress_health_check=list(HealthCheck),
        )
        test = limits(given(**strategies)(check))
        (test if SEED is None else seed(int(SEED))(test))()

    return decorate


# --- image files --------------------------------------------------------------------------------------------

H, W = 12, 17
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (H, W), np.uint8)
DEEP = RNG.integers(0, 65536, (H, W), np.uint16)
COLOUR = RNG.integers(0, 256, (H, W, 3), np.uint8)
FLOATS = np.where(RNG.random((H, W)) < 0.1, np.nan, RNG.random((H, W))).astype(np.float32)
# The pixels of the PNG files among the originals that are grey in effect.
TAKEN_BY_DAGM = GREY, np.asarray(Image.fromarray(GREY).convert("1").convert("L")), np.full((H, W), 128)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind, **options)
    return stream.getvalue()


@cache
def originals() -> dict[str, bytes]:
    """Files of every kind that is taken, and of kinds that are not."""
    grey, deep, colour = (Image.fromarray(pixels) for pixels in (GREY, DEEP, COLOUR))
    clear = colour.convert("RGBA")
    clear.putalpha(100)
    exif = Image.Exif()
    exif[274] = 6
    more = dict(save_all=True, append_images=[Image.fromarray(255 - GREY)])
    pictures: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "grey.png": (grey, {}), "deep.png": (deep, {}), "colour.png": (colour, {}), "clear.png": (clear, {}),
        "palette.png": (colour.convert("P"), {}), "bits.png": (grey.convert("1"), {}), "animated.png": (grey, more),
        "flat.png": (Image.new("L", (W, H), 128), {}), "grey.jpg": (grey, {"quality": 95}),
        "colour.jpg": (colour, {"quality": 95}), "turned.jpg": (colour, {"exif": exif}),
        "cmyk.jpg": (colour.convert("CMYK"), {}), "grey.bmp": (grey, {}), "colour.bmp": (colour, {}),
        "bits.bmp": (grey.convert("1"), {}), "grey.tif": (grey, {}), "deep.tif": (deep, {}),
        "packed.tif": (grey, {"compression": "tiff_lzw"}), "pages.tif": (grey, more),
        "deflated.tif": (colour, {"compression": "tiff_adobe_deflate"}), "floats.tif": (Image.fromarray(FLOATS), {}),
        "integers.tif": (Image.fromarray(DEEP.astype(np.int32) * 1000), {}),
    }  # fmt: skip
    kinds = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "tif": "TIFF"}
    files = {name: saved(one, kinds[name[-3:]], **options) for name, (one, options) in pictures.items()}
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200_000)))
    # A chunk after the header of 33 bytes.
    files["text.png"] = files["grey.png"][:33] + text + files["grey.png"][33:]
    return files | {"empty.png": b"", "zeros.bmp": bytes(400), "words.jpg": b"path,label\nimage.png,1\n" * 10}


# Sizes, offsets and counts that headers lie with, of up to 32 bits.
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


@any_size(1000)
def test_damaged_images_are_refused_or_read_as_pillow_reads_them(tmp_path: Path, number: int) -> None:
    """Would catch: an exception of a decoder, a half-read file; pages, depth or transparency passed over in silence."""

    @for_all(
        number,
        name=st.sampled_from(sorted(originals())),
        edits=st.lists(EDITS, min_size=1, max_size=4),
        repair=st.booleans(),
    )
    def check(name: str, edits: list[tuple[str, int, int]], repair: bool) -> None:
        data = edited(originals()[name], edits, repair)
        path = tmp_path / name
        path.write_bytes(data)
        image = outcome(lambda: read_image(Photo(path, 65535), None))
        if image is not None:
            assert image.dtype == np.uint8 and image.ndim == 2
            np.testing.assert_allclose(image, seen_by_pillow(data), atol=1.01)
        mask = outcome(lambda: read_mask(Photo(path), (H, W)))
        assert mask is None or (mask.dtype == bool and mask.shape == (H, W) == np.shape(image))
        dagm = outcome(lambda: read_image(path, (H, W)))
        if dagm is not None:
            np.testing.assert_array_equal(dagm, seen_by_pillow(data).round())
            # Every byte of a PNG is under a checksum, so what is taken is what was written.
            assert repair or any(np.array_equal(dagm, pixels) for pixels in TAKEN_BY_DAGM)


def test_the_originals_are_what_they_are_said_to_be(tmp_path: Path) -> None:
    """Would catch: a fuzz test of files that were all refused to begin with, or of which none is."""
    taken = set()
    for name, data in originals().items():
        (tmp_path / name).write_bytes(data)
        if outcome(lambda: read_image(Photo(tmp_path / name, 65535), None)) is not None:  # noqa: B023
            taken.add(name)
    refused = set(["clear", "animated", "cmyk", "floats", "integers", "pages", "empty", "zeros", "words"])
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


@any_size(250)
def test_damage_to_some_files_leaves_the_others_as_they_are(tmp_path_factory: Any, number: int) -> None:
    """Would catch: labels or masks that move to a neighbour, an image counted nowhere, a good set that is lost."""
    truth = {"good/0.png": 0, "good/1.png": 0, "defect/2.png": 1, "defect/3.png": 1}
    damaged = st.tuples(st.sampled_from(sorted(originals())), st.lists(EDITS, max_size=3), st.booleans())
    places = st.sampled_from([*truth, "masks/2.png", "masks/1.png"])

    @for_all(number, damage=st.dictionaries(places, damaged, min_size=1, max_size=4))
    def check(damage: dict[str, Any]) -> None:
        folder = tmp_path_factory.mktemp("set")
        files = {name: untouched(k) for k, name in enumerate(truth)}
        files |= {f"masks/{k}.png": untouched(k, True) for k in (2, 3)}
        files |= {name: edited(originals()[kind], *rest) for name, (kind, *rest) in damage.items()}
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        touched = {name for name in truth for changed in damage if Path(name).stem == Path(changed).stem}
        manifest, shape = find_images(DataConfig(root=str(folder)), 0)
        assert shape is None
        check_set(manifest, folder, truth, touched)


# --- label files of DAGM ------------------------------------------------------------------------------------

# Anything in place of a number, among it what float() and int() take and no label file means.
WRONG = (
    "nan NaN inf -inf Infinity -1 0 -0.0 1e308 1e400 -1e400 1e-320 1e7 1_0 1,5 0x10 1.5.2 --3 +4 .5 5. 1e3 ²"
)
NUMBERS = st.one_of(
    st.sampled_from([*WRONG.split(), "\u0663", "\uff11\uff12", ""]),
    st.integers(-(10**7), 10**7).map(str),
    st.floats().map(str),
    st.text(max_size=4),
)
JUNK = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=40)
DECIMAL = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?", re.ASCII)


def label_files(rows: st.SearchStrategy) -> dict[str, st.SearchStrategy]:
    """Strategies of `write_labels`: rows, the lines before which they are put, line ends, a mark of UTF-8, junk."""
    return dict(
        rows=st.lists(rows, max_size=5),
        places=st.lists(st.integers(0, 4), min_size=5, max_size=5),
        end=st.sampled_from(["\n", "\r\n", "\r"]),
        bom=st.booleans(),
        extra=st.binary(max_size=6),
    )


def write_labels(
    path: Path, lines: list[str], rows: Any, places: Any, end: str, bom: bool, extra: Any
) -> bytes:
    """Writes the lines with the rows among them; returns the file's bytes."""
    for place, row in zip(places, rows, strict=False):
        lines.insert(place, row)
    data = (b"\xef\xbb\xbf" if bom else b"") + end.join(lines).encode("utf-8", "surrogatepass") + extra
    path.write_bytes(data)
    return data


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


@any_size(300)
def test_labels_of_layout_a(layout_a: Path, number: int) -> None:
    """Would catch: a label of another row, one of two that contradict each other, a mask without its row's consent."""

    @for_all(number, **label_files(ROWS_A))
    def check(**changes: Any) -> None:
        lines = ["1", *(row_a(number, int(number > 3)) for number in range(1, 7))]
        data = write_labels(layout_a / "Class1" / "Train" / "Label" / "Labels.txt", lines, **changes)
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


@any_size(300)
def test_ellipses_of_layout_b(layout_b: Path, number: int) -> None:
    """Would catch: NaN, infinite, huge or negative axes that reach the mask, and numbers that no text editor shows."""

    @for_all(number, **label_files(ROWS_B))
    def check(**changes: Any) -> None:
        lines = [row_b(number) for number in range(1, 5)]
        data = write_labels(layout_b / "Class1_def" / "labels.txt", lines, **changes)
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


NAMES = st.sampled_from(["{}.png", "{}.png", "./{}.png", "sub/../{}.png", "{{folder}}/{}.png"])
ODD_NAMES = st.sampled_from(
    ["../9.png", "missing.png", "sub", "/dev/null", "m1.png", "table.csv", '"', "a\nb.png"]
)


def table_row(number: int, name: str, odd: str | None, label: str, mask: str, half: str) -> tuple[str, ...]:
    """(path, label, mask, split) of image ``number`` under one of its names, or of a path that names none."""
    return odd or name.format(number), label, mask.format(number), half


TABLES = st.lists(
    st.builds(
        table_row,
        st.integers(0, 5),
        NAMES,
        st.none() | ODD_NAMES,
        st.sampled_from(list(WORDS_OF_LABELS)),
        st.sampled_from(["", "m{}.png", "m{}.png", "missing.png", "0.png"]),
        st.sampled_from(["", "train", "test", "TEST"]),
    ),
    max_size=8,
)


@any_size(200)
def test_a_table_gives_its_own_labels(table_folder: Path, number: int) -> None:
    """Would catch: a file that is taken twice under two names, with one of two labels, or with another row's label."""
    table = table_folder / "table.csv"

    @for_all(number, rows=TABLES, end=st.sampled_from(["\n", "\r\n"]), quoting=st.sampled_from([0, 1]))
    def check(rows: list[tuple[str, ...]], end: str, quoting: Any) -> None:
        rows = [(row[0].replace("{folder}", str(table_folder)), *row[1:]) for row in rows]
        with table.open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator=end, quoting=quoting)
            writer.writerows([("path", "label", "mask", "split"), *rows])
        said: dict[Path, set[int]] = {}
        for path, label, *_ in rows:
            said.setdefault((table_folder / path).resolve(), set()).add(WORDS_OF_LABELS[label])
        try:
            manifest, _ = find_images(DataConfig(root=str(table)), 0)
            whole, stored = build_cache(manifest, table_folder / "cache", None)
        except UserError as error:
            assert str(error).isprintable()  # noqa: PT017
            return
        files = [(table_folder / s.image.path).resolve() for s in whole.samples if isinstance(s.image, Photo)]
        assert len(files) == len(set(files)) == len(whole.samples)
        assert all(skip.what.isprintable() and skip.reason.isprintable() for skip in whole.skipped)
        for place, (sample, file) in enumerate(zip(whole.samples, files, strict=True)):
            assert said[file] == {sample.label}
            image, mask = stored[place]
            if digits := re.fullmatch(r"([0-9])\.png", file.name):
                np.testing.assert_array_equal(image, pixels_of(int(digits[1])))
            assert mask.any() == sample.label
        assert len(whole.samples) + len(whole.skipped) >= len(rows)

"""Models, workdirs and archives of strangers: nothing outside their folder changes, and no size is taken on trust."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from PIL import Image
from png_files import chunk
from shell import run_python
from small_run import write_contract

from dagm_jax import console
from dagm_jax.config import RunConfig, to_dict
from dagm_jax.data.archive import extract
from dagm_jax.errors import UserError
from dagm_jax.experiment.trained_model import load_trained_model
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.exporting.exported_model import contract_path, load_exported_model
from dagm_jax.models.config import CustomUNetConfig
from dagm_jax.storage import load_json, locked, replacing
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.types import GalleryItem
from dagm_jax.visualization import figures

DEEP = "[" * 200_000
# json writes infinities and NaN as words that it also reads.
HUGE = 10**400


def one_line(call: Callable[[], Any], match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        call()
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


# --- a stranger's workdir -----------------------------------------------------------------------------------


def workdir_of(folder: Path) -> Path:
    """A workdir that looks finished, with a checkpoint that is none of its network's."""
    config = RunConfig(model=CustomUNetConfig(base_channels=1))
    report = {
        "training": {"best_step": 1},
        "data": {"largest_px": [64, 64], "padded_px": [[128, 128]], "white": None},
    }
    rule = {"threshold": 0.5, "pixel_threshold": 0.5, "calibration": "f1", "evidence": {}}
    (folder / "checkpoints").mkdir(parents=True)
    for name, value in (("config", to_dict(config)), ("report", report), ("decision_rule", rule)):
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def edit(path: Path, keys: tuple[str, ...], value: Any) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "keys", "value"),
    [
        ("report", ("training",), []),
        ("report", ("training", "best_step"), "../../../etc"),
        ("report", ("training", "best_step"), True),
        ("report", ("data", "largest_px"), [10**6, 10**6]),
        ("report", ("data", "largest_px"), [HUGE, 1]),
        ("report", ("data", "largest_px"), [0, 64]),
        ("report", ("data", "largest_px"), {"0": 64}),
        ("report", ("data", "padded_px"), [[10**5, 10**5]]),
        ("report", ("data", "padded_px"), [64, 64]),
        ("report", ("data", "padded_px"), []),
        ("report", ("data", "white"), 0),
        ("decision_rule", ("threshold",), float("nan")),
        ("decision_rule", ("pixel_threshold",), HUGE),
        ("decision_rule", ("threshold",), "0.5"),
        ("config", ("model", "name"), "../custom_unet"),
        ("config", ("model",), "custom_unet"),
        ("config", ("seed",), "__import__('os')"),
        ("config", ("verdict", "smoothing_px"), float("nan")),
        ("config", ("train", "judge_batch_size"), 10**9),
        ("config", ("model", "base_channels"), 20_000),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_workdir_with_hostile_values_is_one_line(
    tmp_path: Path, name: str, keys: tuple[str, ...], value: Any
) -> None:
    """Would catch: a path made of a number, memory taken for a size that is only claimed, a NaN that decides."""
    workdir = workdir_of(tmp_path / "w")
    # Unchanged, it fails for its checkpoint alone.
    one_line(lambda: load_trained_model(workdir), "the checkpoint of step 1")
    edit(workdir / f"{name}.json", keys, value)
    one_line(lambda: load_trained_model(workdir), r"`")
    assert sorted(os.listdir(tmp_path)) == ["w"]


@pytest.mark.parametrize("name", ["report", "config", "decision_rule"])
def test_a_workdir_whose_json_is_none_is_one_line(tmp_path: Path, name: str) -> None:
    """Would catch: RecursionError of nested brackets, and lists where an object should be."""
    workdir = workdir_of(tmp_path / "w")
    for text in (DEEP, "[1, 2]", "null", "\xff", "9" * 5000, "{"):
        (workdir / f"{name}.json").write_bytes(text.encode("latin-1"))
        one_line(lambda: load_trained_model(workdir), "`")


def test_validation_scores_that_are_none_are_one_line(tmp_path: Path) -> None:
    """Would catch: a NaN among the scores that a threshold is chosen from, a field beyond csv's limit, half a table; a
    traceback at a run of an older version."""
    read = Workdir(tmp_path, "model").read_validation_scores
    one_line(read, "lacks validation_scores.csv")
    rows = ("2,0.5", "1,nan", "1,inf", "x,1", "1,x", "1", "1," + "1" * 200_000)
    for text in ("image,label\na,1\n", *(f"image,label,score\na,{row}\n" for row in rows)):
        (tmp_path / "validation_scores.csv").write_text(text)
        one_line(read, "is damaged")


def test_json_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a report of gigabytes parsed."""
    monkeypatch.setattr("dagm_jax.storage.MOST_JSON_BYTES", 10)
    (tmp_path / "a.json").write_text('"12345678"')
    assert load_json(tmp_path / "a.json") == "12345678"
    (tmp_path / "a.json").write_text('"123456789"')
    with pytest.raises(ValueError, match="more than 10 bytes"):
        load_json(tmp_path / "a.json")


# --- links in a workdir -------------------------------------------------------------------------------------


def victim_of(tmp_path: Path) -> Path:
    victim = tmp_path / "victim"
    (victim / "photos").mkdir(parents=True)
    (victim / "photos" / "a.txt").write_text("dear")
    return victim


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_link_for_deleted_checkpoints_deletes_nothing(tmp_path: Path) -> None:
    """Would catch: whatever `checkpoints/deleted` leads to, emptied when the model is loaded or trained on, or filled
    with its checkpoints.
    """
    victim, folder = victim_of(tmp_path), tmp_path / "checkpoints"
    state = {"w": np.zeros(3)}
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, state, {"mean": 1.0}, 0.5)
    (folder / "deleted").symlink_to(victim)
    before = tree(folder)
    with Checkpoints(folder, read_only=True) as checkpoints:
        assert checkpoints.restore(1, state)[1] == {"mean": 1.0}
    assert tree(folder) == before
    with Checkpoints(folder) as checkpoints:
        for step in range(2, 6):
            checkpoints.save(step, state, {"mean": 1.0}, 0.1)
    assert tree(victim) == ["photos", "photos/a.txt"]


def test_a_link_in_place_of_the_lock_empties_nothing(tmp_path: Path) -> None:
    """Would catch: a file of the user's that is emptied, or made, by looking at a workdir."""
    victim, workdir = victim_of(tmp_path), tmp_path / "run"
    workdir.mkdir()
    for target in (victim / "photos" / "a.txt", victim / "new"):
        (workdir / ".lock").symlink_to(target)
        with pytest.raises(UserError, match="cannot be written"), locked(workdir, "workdir"):
            pass
        (workdir / ".lock").unlink()
    assert tree(victim) == ["photos", "photos/a.txt"]
    assert (victim / "photos" / "a.txt").read_text() == "dear"
    with (
        locked(workdir, "workdir"),
        pytest.raises(UserError, match="in use by another run"),
        locked(workdir, "workdir"),
    ):
        pass


@pytest.mark.parametrize("mode", ["x", "x+b"])
def test_a_link_in_place_of_a_file_is_replaced_and_not_followed(mode: str, tmp_path: Path) -> None:
    """Would catch: a report written over the file that a link of its name, or of its temporary name, leads to."""
    victim = victim_of(tmp_path) / "photos" / "a.txt"
    path = tmp_path / "report.json"
    for link in (path, tmp_path / f"report.json.{os.getpid()}.partial"):
        link.symlink_to(victim)
    with replacing(path, mode) as stream:
        stream.write("{}" if mode == "x" else b"{}")
    assert victim.read_text() == "dear"
    assert path.read_text() == "{}" and not path.is_symlink()


# --- a stranger's exported file -----------------------------------------------------------------------------


def exported_of(folder: Path, function: Callable[[Any], Any]) -> Path:
    """An exported file of this function of images, with a contract that fits it."""
    shape = jax.ShapeDtypeStruct((2, 16, 16), jnp.uint8)
    path = folder / "model.stablehlo"
    path.write_bytes(bytes(export.export(jax.jit(function))(shape).serialize()))
    write_contract(path)
    return path


def harmless(images: Any, draw: Callable[[Any], Any] = jnp.negative) -> Any:
    map_ = draw(images / 255.0)
    return map_.max((1, 2)), map_.max((1, 2)) > 0.5, map_, map_ > 0.5


def test_a_program_that_calls_out_of_itself_is_refused(tmp_path: Path) -> None:
    """Would catch: a file that calls into the process, where targets such as Python callbacks take an address."""
    assert load_exported_model(exported_of(tmp_path, harmless)).shape == (16, 16)
    path = exported_of(tmp_path, partial(harmless, draw=jnp.linalg.cholesky))
    one_line(lambda: load_exported_model(path), "no stablehlo program .*calls code outside of itself")


def test_a_program_that_is_none_is_one_line(tmp_path: Path) -> None:
    """Would catch: what the reader of flatbuffers raises for anything else."""
    path = exported_of(tmp_path, harmless)
    whole = path.read_bytes()
    half = len(whole) // 2
    # Where in a file a hole makes it unreadable differs between releases of jax; half of it is enough for each.
    for data in (b"", b"x" * 100, whole[:half], bytes(half) + whole[half:], whole[:half] + bytes(half)):
        path.write_bytes(data)
        write_contract(path)
        one_line(lambda: load_exported_model(path), "no stablehlo program")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("format",), "../stablehlo"),
        (("sha256",), 1),
        (("model_id",), "../../etc/x"),
        (("input",), []),
        (("input", "shape"), ["b", 10**9, 10**9]),
        (("input", "shape"), ["b", "16", 16]),
        (("input", "white"), -5),
        (("input", "padding"), "nonsense"),
        (("outputs",), []),
        (("outputs",), ["score", "defective", "map", "mask"]),
        (("rule",), None),
        (("rule", "pixel_threshold"), HUGE),
        (("validation_normal_scores",), [float("nan")]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_contract_with_hostile_values_is_one_line(
    tmp_path: Path, keys: tuple[str, ...], value: Any
) -> None:
    """Would catch: a contract believed: sizes that memory is taken for, ids that become part of paths and pages."""
    path = exported_of(tmp_path, harmless)
    edit(contract_path(path), keys, value)
    one_line(lambda: load_exported_model(path), "`")


# --- memory and files ---------------------------------------------------------------------------------------


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """A TIFF of these (tag, type, count, value) and 256 grey pixels that its strip may be."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4 + 256)


def grey_tiff(**changes: tuple[int, int, int]) -> bytes:
    tags = {"256": (4, 1, 16), "257": (4, 1, 16), "258": (3, 1, 8), "259": (3, 1, 1), "262": (3, 1, 1)}
    tags |= {"273": (4, 1, 130), "277": (3, 1, 1), "278": (4, 1, 16), "279": (4, 1, 256)}
    tags |= {name.removeprefix("t"): value for name, value in changes.items()}
    return tiff(*((int(tag), *value) for tag, value in tags.items()))


MOST = 2**32 - 1


def bombs() -> dict[str, bytes]:
    unpacked_to_half_a_gigabyte = zlib.compress(bytes(1 << 29), 1)
    bmp = b"BM" + struct.pack("<IIII", 100, 0, 54, 40)
    return {
        "sides.png": png(2**31 - 1, 2**31 - 1),
        "area.png": png(65_536, 65_536, chunk(b"IDAT", zlib.compress(bytes(10_000)))),
        "text.png": png(16, 16, chunk(b"zTXt", b"k\0\0" + unpacked_to_half_a_gigabyte)),
        "profile.png": png(16, 16, chunk(b"iCCP", b"k\0\0" + unpacked_to_half_a_gigabyte)),
        # Sound but for their number.
        "chunks.png": png(16, 16, chunk(b"teXt", b"") * 400_000, chunk(b"IDAT", zlib.compress(bytes(272)))),
        "sides.tif": grey_tiff(t256=(4, 1, MOST), t257=(4, 1, MOST)),
        "area.tif": grey_tiff(t256=(4, 1, 65_535), t257=(4, 1, 65_535)),
        "strip.tif": grey_tiff(t279=(4, 1, MOST)),
        "count.tif": grey_tiff(t273=(4, MOST, 8), t279=(4, MOST, 8)),
        "samples.tif": grey_tiff(t277=(3, 1, 65_535), t258=(3, 65_535, 8)),
        "sides.bmp": bmp + struct.pack("<iiHHI", 2**31 - 1, 2**31 - 1, 1, 24, 0) + bytes(60),
        "palette.bmp": bmp + struct.pack("<iiHHIIiiII", 4, 4, 1, 8, 0, 0, 0, 0, MOST, 0) + bytes(60),
    }


# In a process that may take 1.5 GB: a bomb that goes off is a MemoryError, which is no refusal.
READ_ALL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1536 << 20, 1536 << 20))
from pathlib import Path
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import read_image
from dagm_jax.data.images.load import find_white
from dagm_jax.types import Photo
for path in sorted(Path(sys.argv[1]).iterdir()):
    refused = 0
    for read in (lambda: read_image(Photo(path, 65535), None), lambda: read_image(path, None)):
        try:
            read()
        except BadImage:
            refused += 1
    find_white([Photo(path)])
    print(path.name, refused)
"""


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    """Would catch: memory taken for sizes, counts and texts that a header claims or that unpack to half a gigabyte."""
    files = bombs()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert sum(map(len, files.values())) < 20_000_000
    done = run_python("-c", READ_ALL, tmp_path, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert dict(line.split() for line in done.stdout.splitlines()) == dict.fromkeys(files, "2")


def test_archives_of_too_many_files_and_of_archives(tmp_path: Path) -> None:
    """Would catch: a default limit that uses up a disk's inodes, and an archive in an archive that is unpacked too."""
    many = tmp_path / "many.zip"
    with zipfile.ZipFile(many, "w") as target:
        for i in range(10_001):
            target.writestr(f"Class1/{i}", b"")
    one_line(lambda: extract(many, tmp_path / "out"), "holds 10001 files, more than the limit of 10000")
    inner, nested = tmp_path / "inner.zip", tmp_path / "nested.zip"
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("big", bytes(64 << 20))
    with zipfile.ZipFile(nested, "w") as target:
        for i in range(50):
            target.write(inner, f"Class1/{i}.zip")
    extract(nested, tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.zip")) < 5_000_000
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} == {".zip"}


# --- names that are not only names --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a[/b].png", "[red]a.png", "a:bug:.png", r"$\frac$.png"])
def test_names_are_only_names_to_terminal_and_figures(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a file name that is markup to the terminal or a formula to a figure, at worst a traceback."""
    console.console.print(f"data: 1 left out ({name}: file is empty)")
    assert f"({name}: file is empty)" in capsys.readouterr().out
    pixels = np.zeros((8, 8), np.uint8)
    item = GalleryItem(pixels, pixels / 255, pixels > 0, f"{name}\ngood", True)
    figures.plot_gallery([item], 0.5, tmp_path / "hardest.png")
    with Image.open(tmp_path / "hardest.png") as picture:
        picture.load()

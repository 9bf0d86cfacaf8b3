"""Preparing data: the sets written, the mistakes refused, and no half set after a kill at any moment."""

from __future__ import annotations

import errno
import io
import json
import signal
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import small_dagm
from PIL import Image
from shell import run_python

from dagm_jax import cli, console
from dagm_jax.data import prepare, procedural
from dagm_jax.data.config import DataConfig
from dagm_jax.data.dagm2007.dagm2007_dataset_builder import Builder
from dagm_jax.data.dataset import find_images
from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.data.images.load import load
from dagm_jax.data.verify import read_truth
from dagm_jax.errors import UserError
from dagm_jax.types import Sample
from dagm_jax.visualization.contact_sheet import CELL_PX, choose, draw_sheet
from launch.prepare.procedural_images import Recipe, number_splits, write_class, write_split
from launch.prepare_data import main, parse_flags


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Classes 1 and 8 in layout A."""
    return small_dagm.layout_a(small_dagm.layout_a(tmp_path / "source", 1), 8)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The lines that are printed."""
    stream = io.StringIO()
    monkeypatch.setattr(console.console, "_file", stream)
    monkeypatch.setattr(console.console, "_width", 200)
    return stream


@pytest.fixture(autouse=True)
def _small_truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Builder, "TRUTH", read_truth(small_dagm.write_truth(tmp_path / "truth.json", (1, 8))))


def run(*arguments: str) -> int:
    return main(parse_flags(["prepare_data", *arguments]))


def essence(root: Path, class_id: int) -> list[tuple[object, ...]]:
    manifest, _ = find_images(DataConfig(root=str(root), classes=(class_id,)), 0)
    return [(r.image_id, r.label, r.half, r.mask is None) for r in manifest.samples]


def files(root: Path) -> dict[str, tuple[int, int]]:
    """Name → size and time of change of the files of the sets."""
    found = (root / "dagm2007").rglob("*")
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in found if p.is_file()}


# --- sets ---


def test_sets_are_written_kept_where_whole_and_written_anew_where_damaged(
    tmp_path: Path, source: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: another manifest than that of the folder, a class left out, a table that counts something else;
    hours of work done twice, a truncated set that stays for ever, and one kept that an older, laxer check let pass."""
    out = tmp_path / "out"
    command = (f"--source={source}", "--classes=8,1", f"--output={out}")
    assert run(*command) == 0
    rows = [line.split("│") for line in screen.getvalue().splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows]
    assert cells == [["1", "12", "7", "10", "4", "written"], ["8", "12", "7", "10", "4", "written"]]
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 8 * CELL_PX and sheet.height > 2 * CELL_PX
    before = files(out)
    run(*command)
    assert files(out) == before
    assert screen.getvalue().count("was whole already") == 2
    (shard,) = (out / "dagm2007/class8").rglob("*train.array_record*")
    shard.write_bytes(shard.read_bytes()[:1000])
    run(*command)
    assert "class 8: written anew: `data.root`" in screen.getvalue()
    for class_id in (1, 8):
        assert essence(out, class_id) == essence(source, class_id)
    assert {name: of for name, of in files(out).items() if "class1" in name}.items() <= before.items()
    table = small_dagm.truth_table((1,))
    table["1"]["test"]["defective"] = [1, 3, 5, 9]
    (tmp_path / "other.json").write_text(json.dumps(table))
    monkeypatch.setattr(Builder, "TRUTH", read_truth(tmp_path / "other.json"))
    with pytest.raises(UserError, match="2 labelled otherwise: Class1/Test/0001"):
        run(f"--source={source}", "--classes=1", f"--output={out}")


# The process kills itself, with no chance to tidy up, at a chosen call.
KILLED = """
import os, signal, sys, zipfile
from pathlib import Path
from dagm_jax.data.dagm2007 import Builder, dagm2007_dataset_builder as module
from dagm_jax.data.verify import read_truth
from launch import prepare_data

def killer(function, calls):
    count = iter(range(10_000))
    def call(*arguments, **options):
        if next(count) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call

where, truth, url, *arguments = sys.argv[1:]
Builder.TRUTH = read_truth(Path(truth))
Builder.URL = url
if where == "check":
    module.check_pixels = killer(module.check_pixels, 1)
elif where == "write":
    module.example = killer(module.example, 30)
elif where == "unpack":
    zipfile.ZipFile.open = killer(zipfile.ZipFile.open, 20)
elif where == "describe":
    import tensorflow_datasets as tfds
    tfds.core.DatasetInfo.write_to_directory = killer(tfds.core.DatasetInfo.write_to_directory, 1)
sys.exit(prepare_data.main(prepare_data.parse_flags(["prepare_data", *arguments])))
"""


def run_killed(where: str, tmp_path: Path, *arguments: str, url: str = "") -> int:
    return run_python("-c", KILLED, where, tmp_path / "truth.json", url, *arguments).returncode


@pytest.mark.parametrize("where", ["check", "write", "describe"])
def test_a_kill_leaves_no_half_set_and_the_same_command_goes_on(
    tmp_path: Path, source: Path, where: str, screen: io.StringIO
) -> None:
    """Would catch: a set that is there before it is whole; leftovers that fill the disk; a first class done twice."""
    out = tmp_path / "out"
    command = (f"--source={source}", "--classes=1,8", f"--output={out}")
    assert run_killed(where, tmp_path, *command) == -signal.SIGKILL
    assert not (out / "dagm2007/class8/1.0.0").exists()
    assert list((out / "dagm2007/class8").glob("incomplete.*")), "the kill came too early to test anything"
    with pytest.raises(UserError, match="half-written"):
        essence(out, 8)
    first = {n: s for n, s in files(out).items() if "class1" in n}
    assert first
    run(*command)
    assert essence(out, 8) == essence(source, 8)
    assert not list(out.rglob("incomplete.*"))
    assert {n: s for n, s in files(out).items() if "class1" in n} == first


def test_a_kill_while_a_download_is_unpacked_needs_no_second_download(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: half of an archive's files taken for all of them; a download lost with them; partial downloads
    that stay for ever."""
    web, out = tmp_path / "web", tmp_path / "out"
    web.mkdir()
    small_dagm.zip_of(source / "Class8", web / "Class8.zip", source)
    with small_dagm.serve(web) as url:
        command = ("--classes=8", f"--output={out}")
        assert run_killed("unpack", tmp_path, *command, url=url) == -signal.SIGKILL
        assert list(out.glob("downloads/*/extracted/*/.Class8.*.partial")), "the kill came too early"
        (web / "Class8.zip").unlink()
        (whole,) = (p for p in (out / "downloads").rglob("*") if p.is_file() and zipfile.is_zipfile(p))
        # TFDS's own name of a download that was cut short.
        left = whole.with_name(f"{whole.name}.tmp.0123")
        left.mkdir()
        monkeypatch.setattr(Builder, "URL", url)
        run(*command)
    assert essence(out, 8) == essence(source, 8)
    assert whole.exists() and not left.exists()
    assert not list(out.glob("downloads/*/extracted/*/.*"))


def test_two_at_a_time_are_refused(tmp_path: Path, source: Path) -> None:
    """Would catch: a second process that removes the first one's half-written set as a leftover."""
    from dagm_jax.storage import locked

    with (
        locked(tmp_path / "out", "--output"),
        pytest.raises(UserError, match=r"`--output` \(=.*out\) is in use"),
    ):
        run(f"--source={source}", "--classes=1", f"--output={tmp_path / 'out'}")


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--output=x", "--classes=11"], r"`--classes` \(=11\): the data set has the classes 1, 2,"),
        (["--output=x", "--procedural", "--classes=99"], r"`--classes` \(=99\): the built-in images show"),
        (["--output=x", "--procedural", "--source=y"], r"`--source` \(=y\) and --procedural exclude"),
        (["--output=x", "--seed=1"], "--seed: holds for built-in images alone"),
        (["--output=x", "--procedural", "--num_good=1"], "--num_good=1: 1 is not integer >= 2"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_on_the_command_line_are_told(arguments: list[str], match: str) -> None:
    """Would catch: a mistake that starts a download, or is passed over without a word."""
    with pytest.raises(UserError, match=match):
        parse_flags(["prepare_data", *arguments])


def test_classes_rise_and_are_all_by_default() -> None:
    """Would catch: a list of classes of its own, in which new ones are missing; one class prepared twice."""
    assert parse_flags(["x", "--procedural", "--output=x"]).classes == tuple(procedural.CLASSES)
    assert parse_flags(["x", "--output=x"]).classes == tuple(range(1, 11))
    assert parse_flags(["x", "--output=x", "--classes=8,1,8"]).classes == (1, 8)


def test_a_source_that_cannot_be_used_costs_nothing(tmp_path: Path, source: Path) -> None:
    """Would catch: `data.root` named to somebody who gave --source; a damaged set gone before it can be made anew."""
    part = tmp_path / "out/dagm2007/class1/1.0.0/part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x")
    command = ("--classes=1", f"--output={tmp_path / 'out'}")
    with pytest.raises(UserError, match=r"`--source` \(=.*nowhere\) must be a folder"):
        run(f"--source={tmp_path / 'nowhere'}", *command)
    assert part.exists()
    with pytest.raises(UserError, match=r"`--source` \(=.*Test\) holds no folder Class1"):
        run(f"--source={source / 'Class1/Test'}", *command)


def test_a_set_in_tfrecord_is_refused_and_kept(tmp_path: Path) -> None:
    """Would catch: a set that tfds.load has made, removed because training cannot read it."""
    shard = tmp_path / "dagm2007/class8/1.0.0/dagm2007-train.tfrecord-00000-of-00001"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"x")
    with pytest.raises(UserError, match="holds class 8 in tfrecord, which training does not read"):
        prepare.prepare_class(8, tmp_path, None)
    assert shard.exists()


@pytest.mark.parametrize(
    "arguments", [("--procedural", "--num_good=2", "--num_defective=2"), ()], ids=["drawn", "set"]
)
def test_a_full_disk_is_told(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    """Would catch: a traceback of a library where the disk is full, and no word about what to do."""

    def full(*values: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "some/file")

    monkeypatch.setattr("launch.prepare.procedural_images.write_split", full)
    monkeypatch.setattr("tensorflow_datasets.core.DatasetInfo.write_to_directory", full)
    where = arguments or (f"--source={source}",)
    with pytest.raises(UserError, match=r"`--output` .*No space left on device\); make room"):
        run(*where, f"--output={tmp_path / 'out'}", "--classes=1")
    assert not list((tmp_path / "out").rglob("1.0.0")) and not (tmp_path / "out/Class1").exists()


def test_the_verb_prepares_without_launch(
    tmp_path: Path, source: Path, screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: ``dagm-jax prepare`` that works in a checkout alone, as the wheel holds no ``launch``."""
    monkeypatch.setitem(sys.modules, "launch", None)
    assert cli.run(["prepare", f"--source={source}", "--classes=8", f"--output={tmp_path}"]) == 0
    assert essence(tmp_path, 8) == essence(source, 8)
    assert "--config.data.classes='(8,)'" in screen.getvalue()


# --- built-in images ---


def test_procedural_images_on_disk_are_those_in_memory(tmp_path: Path) -> None:
    """Would catch: labels, masks or numbers that change on the way through files, and lossy images."""
    out = tmp_path / "out"
    arguments = ("--procedural", "--num_defective=3", "--num_good=4", "--seed=5", f"--output={out}")
    run(*arguments, "--classes=1")
    manifest = read_tree(out, (1,))
    assert manifest.skipped == ()
    halves = number_splits(Recipe(1, 3, 4, 5))
    places = {f"Class1/{half}/{p.number:04d}": p for half, ps in halves.items() for p in ps}
    assert set(places) == {sample.image_id for sample in manifest.samples}
    for sample in manifest.samples:
        place = places[sample.image_id]
        drawn = procedural.draw(1, place.index, seed=5, defective=place.defective)
        image, mask = load(sample, (512, 512))
        assert sample.label == int(place.defective)
        np.testing.assert_array_equal(image, drawn.image)
        np.testing.assert_array_equal(mask, drawn.mask)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*.PNG")}
    run(*arguments, "--classes=1")
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.PNG")} == before
    with pytest.raises(UserError, match=r"holds in Class1 images made from .*'seed': 5"):
        run("--procedural", "--num_defective=3", "--num_good=4", "--seed=6", f"--output={out}", "--classes=1")


def test_the_label_file_is_the_published_format_byte_for_byte(tmp_path: Path) -> None:
    """Would catch: LF, a missing first line or trailing tab, a mask named for a good image."""
    image = np.zeros((8, 8), np.uint8)
    write_split(tmp_path / "Train", [(1151, image, None), (1152, image, image > 1)])
    assert (tmp_path / "Train/Label/Labels.txt").read_bytes() == (
        b"1\r\n1151\t0\t1151.PNG\t0\t0\t\r\n1152\t1\t1152.PNG\t0\t1152_label.PNG\r\n"
    )


def test_splits_are_numbered_like_the_published_ones() -> None:
    """Would catch: gaps, Train below Test, an index drawn twice (one picture in both splits)."""
    for num_defective, num_good in ((7, 9), (8, 8), (2, 2)):
        splits = number_splits(Recipe(1, num_defective, num_good, 0))
        places = splits["Test"] + splits["Train"]
        assert [p.number for p in places] == list(range(1, num_defective + num_good + 1))
        for split, extra in (("Test", 0), ("Train", 1)):
            assert sum(p.defective for p in splits[split]) == (num_defective + extra) // 2
            assert sum(not p.defective for p in splits[split]) == (num_good + extra) // 2
        for defective, count in ((True, num_defective), (False, num_good)):
            assert [p.index for p in places if p.defective == defective] == list(range(count))


def test_a_kill_leaves_no_half_class_of_procedural_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: half a class taken for a whole one. An error at the fourth image stands for the kill."""
    arguments = ("--procedural", "--num_defective=2", "--num_good=2", f"--output={tmp_path}", "--classes=8")
    draw, calls = procedural.draw, iter(range(100))

    def failing(*values: object, **options: object) -> procedural.Drawing:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return draw(*values, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(procedural, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        run(*arguments)
    assert not (tmp_path / "Class8").exists() and (tmp_path / ".Class8.partial").exists()
    run(*arguments)
    assert len(read_tree(tmp_path, (8,)).samples) == 4
    assert not (tmp_path / ".Class8.partial").exists()


def test_images_of_another_origin_stay(tmp_path: Path, source: Path) -> None:
    """Would catch: real images replaced by drawn ones, or hidden behind them from the main job."""
    with pytest.raises(UserError, match="holds in Class1 images of another origin"):
        run("--procedural", "--num_defective=2", "--num_good=2", f"--output={source}", "--classes=1")
    (tmp_path / "dagm2007").mkdir()
    with pytest.raises(UserError, match="holds prepared sets of real images"):
        write_class(Recipe(1, 2, 2, 0), tmp_path, lambda: None)


# --- contact sheet ---


def test_the_outline_goes_around_the_mask_and_nowhere_else(tmp_path: Path) -> None:
    """Would catch: rows and columns exchanged, an outline at four times its place, a mask of two pixels lost."""
    mask = np.zeros((512, 512), np.uint8)
    mask[100:102, 400] = 255
    small_dagm.save(tmp_path / "image.png", np.full((512, 512), 90, np.uint8))
    small_dagm.save(tmp_path / "mask.png", mask)
    sample = Sample("x", 1, 1, "train", tmp_path / "image.png", tmp_path / "mask.png")
    cell = np.asarray(draw_sheet({"": [sample]}))[20:-4, 4:-4]
    rows, cols = np.nonzero((cell != 90).any(axis=-1))
    assert cell.shape == (CELL_PX, CELL_PX, 3) and rows.size
    assert set(rows) <= set(range(23, 29)) and set(cols) <= set(range(97, 104))


def test_the_sheet_shows_defective_and_good_images_of_each_class(source: Path) -> None:
    """Would catch: a sheet of good images alone, which come first in a manifest; a sheet cut off on the right."""
    chosen = choose(read_tree(source, (1,)).samples)
    assert [r.label for r in chosen] == [1] * 6 + [0] * 2 and len({r.image_id for r in chosen}) == 8
    sheet = np.asarray(draw_sheet({"a": chosen, "b": chosen[:3]}))
    for sample, place in ((chosen[7], (90, 7 * 132 + 90)), (chosen[0], (240, 30))):
        assert set(sheet[place]) == {small_dagm.grey_of(1, int(sample.image_id[-4:]))}

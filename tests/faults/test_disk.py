"""Disks that are full or may not be written: one line, nothing lost, and the same command goes on afterwards."""

from __future__ import annotations

import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bright
import numpy as np
import pytest
import tiny
from PIL import Image
from shell import Shell
from test_kill import finish
from tiny import assert_same

from dagm_jax import calibrate, predict
from dagm_jax.command_line import explain, read_config
from dagm_jax.data.cache import build_cache
from dagm_jax.errors import DiskError, UserError
from dagm_jax.experiment.run import run
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.storage import locked, write_atomically, write_csv
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.history import MetricLogger
from dagm_jax.types import Manifest, Photo, Sample
from launch import prepare_data


@dataclass(frozen=True)
class Disk:
    """A file system of its own, in memory."""

    folder: Path

    def fill(self) -> None:
        """Leaves no room but for names."""
        with (self.folder / "filler").open("wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(bytes(4096))

    def make_room(self) -> None:
        (self.folder / "filler").unlink()

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
        reason = done.stderr.strip() if done.returncode else None
    except OSError as error:
        reason = str(error)
    if reason is not None:
        pytest.skip(f"no file system of its own can be mounted here: {reason}")
    yield Disk(folder)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_state(step: int) -> dict[str, np.ndarray]:
    return {"noise": np.random.default_rng(step).normal(size=(100, 100))}


def test_a_full_disk_costs_no_whole_checkpoint(disk: Disk) -> None:
    """Would catch: a checkpoint that gives way to one that does not fit, and half of this one taken as whole."""
    folder = disk.folder / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make_state(1), {"step": 1}, 0.5)
    disk.fill()
    with pytest.raises(OSError, match="No space left on device"), Checkpoints(folder) as checkpoints:
        checkpoints.save(2, make_state(2), {"step": 2}, 0.6)
    with Checkpoints(folder) as checkpoints:
        step, state, meta = checkpoints.restore_latest(lambda: make_state(0)) or pytest.fail("none")
        assert (step, meta) == (1, {"step": 1})
        np.testing.assert_array_equal(state["noise"], make_state(1)["noise"])
        disk.make_room()
        checkpoints.save(2, make_state(2), {"step": 2}, 0.6)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.restore(2, make_state(0))[1] == {"step": 2}


def test_a_model_on_a_read_only_disk_can_be_used(disk: Disk) -> None:
    """Would catch: a reader that tidies up, so that a model on a share that one may only read is refused."""
    folder = disk.folder / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make_state(1), {"step": 1}, 0.5)
    disk.remount("ro")
    with Checkpoints(folder) as checkpoints:
        state, meta = checkpoints.restore(checkpoints.best_step() or 0, make_state(0))
    assert meta == {"step": 1}
    np.testing.assert_array_equal(state["noise"], make_state(1)["noise"])


def write_history(folder: Path) -> None:
    with closing(MetricLogger(folder, 0)) as logger:
        for step in range(10**5):
            logger.write("train", step, {"loss": 0.5})


WRITERS: dict[str, Callable[[Path], Any]] = {
    "history": write_history,
    "report": lambda folder: write_atomically(folder / "report.json", "x" * 10**5),
    "checkpoint": lambda folder: save_one(folder / "checkpoints"),
}


def save_one(folder: Path) -> None:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(1, make_state(1), {}, 0.5)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", WRITERS)
def test_a_disk_that_fills_up_is_one_line(name: str, disk: Disk) -> None:
    """Would catch: a traceback; a run that waits for ever for a thread that the full disk has ended; a later success
    that only looks like one."""
    folder = disk.folder / "run"
    folder.mkdir()

    def write() -> None:
        with locked(folder, "workdir"):
            disk.fill()
            WRITERS[name](folder)

    match = r"^`workdir` \(=.*run\) cannot be written \(No space left on device\); make room and run the same"
    with pytest.raises(DiskError, match=match) as error:
        write()
    # Each try of another process number would leave a file of its own.
    assert not list(folder.glob("*.partial"))
    assert explain(error.value) == (f"error: {error.value}", 2)
    assert "\n" not in str(error.value)
    disk.make_room()
    with locked(disk.folder / "run", "workdir"):
        write_atomically(disk.folder / "run" / "report.json", "whole")


def test_a_disk_that_becomes_read_only_is_one_line(disk: Disk) -> None:
    """Would catch: a traceback where a failing disk is mounted read-only while a run writes to it."""

    def write() -> None:
        # The lock keeps a file open for writing; a disk with such a file is not remounted on request.
        with locked(disk.folder.parent / "run", "workdir"):
            disk.remount("ro")
            write_atomically(disk.folder / "report.json", "x")

    with pytest.raises(
        DiskError, match=r"\(Read-only file system\); make it writable and run the same command"
    ):
        write()


@contextmanager
def small_files() -> Iterator[None]:
    """Within the block no file may have more than 64 KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_may_not_grow_is_one_line(tmp_path: Path) -> None:
    """Would catch: a traceback where a quota, not the disk, says no. (Where nothing can be mounted, this is left.)"""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    with (
        small_files(),
        pytest.raises(DiskError, match=r"cannot be written \(File too large\); make room"),
        locked(tmp_path, "workdir"),
    ):
        write_atomically(tmp_path / "report.json", "x" * 10**6)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def cached(folder: Path) -> None:
    samples = (Sample("a", 1, 0, None, Photo(folder.parent / "a.png"), None),)
    build_cache(Manifest(samples, (), "one image"), folder, None)


def tabulated(folder: Path) -> None:
    write_csv(folder / "predictions.csv", ("image",), [["a" * 10**5]])


@pytest.mark.parametrize("write", [cached, tabulated])
def test_a_file_that_does_not_fit_leaves_nothing(write: Callable[[Path], None], tmp_path: Path) -> None:
    """Would catch: a try that takes room for good on a disk that has none; the old file lost by it."""
    folder = tmp_path / "out"
    folder.mkdir()
    Image.new("L", (1000, 100), 7).save(tmp_path / "a.png")
    write(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before and not [name for name in before if name.endswith(".partial")]
    for path in folder.glob("*.bin"):
        # A cache that is whole is not written again.
        path.write_bytes(b"")
        before[path.name] = b""
    with small_files(), pytest.raises((OSError, UserError), match="File too large"):
        write(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_commands_refuse_a_read_only_folder(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a command that works for minutes before it notices, or tells by a traceback."""
    (disk.folder / "report.json").write_text("{}")
    disk.remount("ro")
    monkeypatch.setattr(Inspector, "load", staticmethod(bright.load))
    images = disk.folder.parent / "images"
    images.mkdir()
    Image.new("L", (30, 20), 200).save(images / "a.png")
    cannot = r"cannot be written \(Read-only file system"
    with pytest.raises(UserError, match=rf"^`workdir` .*{cannot}"):
        run(read_config("configs/smoke.py"), disk.folder)
    with pytest.raises(UserError, match=rf"^`output` .*{cannot}"):
        predict.main(["predict", "--model=bright", f"--images={images}", f"--output={disk.folder}"])
    with pytest.raises(UserError, match=rf"^`model` .*{cannot}"):
        calibrate.main(["calibrate", f"--model={disk.folder}", "--rule=f1"])
    drawn = ("--procedural", "--num_good=2", "--num_defective=2", "--classes=1")
    with pytest.raises(UserError, match=r"^`--output` .*Read-only file system"):
        prepare_data.main(prepare_data.parse_flags(["x", *drawn, f"--output={disk.folder / 'out'}"]))


def test_predictions_that_fit_on_the_disk_are_kept_and_the_rest_follows(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a table or a page of the last moment that ends in a traceback; predictions given twice or never."""
    monkeypatch.setattr(Inspector, "load", staticmethod(bright.load))
    images, output = disk.folder.parent / "images", disk.folder / "out"
    images.mkdir()
    for i in range(12):
        Image.new("L", (30, 20), 100 + i).save(images / f"{i:02d}.png")
    arguments = ["predict", "--model=bright", f"--images={images}", f"--output={output}"]
    assert predict.main(arguments) == 0
    for i in range(12, 24):
        Image.new("L", (30, 20), 100 + i).save(images / f"{i:02d}.png")
    disk.fill()
    with pytest.raises(
        UserError, match=r"`.*output` .*cannot be written \(No space left on device\); make room"
    ):
        predict.main(arguments)
    disk.make_room()
    assert predict.main(arguments) == 0
    rows = (output / "predictions.csv").read_text().splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == [f"{i:02d}.png" for i in range(24)]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_run_on_a_disk_that_is_full_again_and_again_ends_like_a_whole_one(
    disk: Disk, shell: Shell, tmp_path: Path
) -> None:
    """Would catch: a write of a run that a full disk turns into a traceback, a hang, or half a file taken as whole."""
    images = tiny.write_images(tmp_path / "images")
    finish(shell, tiny.command(images, tmp_path / "whole"))
    command = tiny.command(images, disk.folder / "run", "--config.data.num_workers=1")
    failures = []
    size_kb = 64
    while True:
        disk.remount(f"size={size_kb}k")
        done = shell.run(*command)
        if done.returncode == 0:
            break
        assert done.returncode == 2, (size_kb, done.stderr[-3000:])
        assert "Traceback" not in done.stderr, (size_kb, done.stderr)
        # orbax may warn before it of what the last try has left.
        lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, (size_kb, done.stderr)
        assert "cannot be written" in lines[0] or "the disk is full" in lines[0]
        assert "make room" in lines[0]
        failures.append(f"{size_kb} kB: {lines[0]}")
        size_kb = round(size_kb * 1.25)
    print("\n".join(failures))
    assert len(failures) >= 6
    assert_same(disk.folder / "run", tmp_path / "whole")

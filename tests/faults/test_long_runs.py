"""Long runs: memory, files and threads stay level, nothing outlives the run, and a dead worker ends it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bright
import jax
import pytest
import small_run
import tiny
from absl import flags
from shell import REPOSITORY, Shell, await_end_of_session, stop_session

from dagm_jax import predict
from dagm_jax.command_line import read_config
from dagm_jax.experiment import run
from dagm_jax.inspection.folder import FolderPredictor
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.train.history import MetricLogger, read_history


@dataclass(frozen=True)
class Holdings:
    """Memory of this process in kB, its files, threads, and arrays of jax on the devices with their bytes."""

    memory_kb: int
    num_files: int
    num_threads: int
    num_arrays: int
    num_bytes: int


def take() -> Holdings:
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    arrays = jax.live_arrays()
    return Holdings(
        int(status["VmRSS"].split()[0]),
        len(list(Path("/proc/self/fd").iterdir())),
        int(status["Threads"]),
        len(arrays),
        sum(array.nbytes for array in arrays),
    )


def workers_of(pid: int) -> list[int]:
    """The process ids of the workers that a process has started, each of which is a child of one of its threads."""
    pids = [pid for path in Path(f"/proc/{pid}/task").glob("*/children") for pid in path.read_text().split()]
    return [int(pid) for pid in pids if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


@dataclass(frozen=True)
class Watched:
    """Holdings at validations of a run, before it, and after."""

    before: Holdings
    during: list[Holdings]
    after: Holdings
    left: list[int]


def run_watched(num_steps: int, every: int, num_workers: int, folder: Path) -> Watched:
    """The training of the smallest network, sampled whenever it is validated: after ``every`` so many steps."""
    overrides = [argument for argument in tiny.ARGUMENTS[1:] if "steps=" not in argument]
    overrides += [
        f"--config.data.root={tiny.write_images(folder / 'data')}",
        f"--config.data.num_workers={num_workers}",
        f"--config.train.num_steps={num_steps}",
        f"--config.train.validate_every={every}",
        "--config.train.patience=1000",
        "--config.train.cooldown_share=0.1",
    ]
    during: list[Holdings] = []
    plain = MetricLogger.write

    def write(logger: MetricLogger, kind: str, step: int, values: dict[str, float]) -> None:
        plain(logger, kind, step, values)
        if kind == "validation" and step % every == 0:
            during.append(take())

    was_parsed = flags.FLAGS.is_parsed()
    if not was_parsed:
        flags.FLAGS.mark_as_parsed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricLogger, "write", write)
        # The stages after training take as long as the short form of this.
        for name, result in (("choose_state", (0, None)), ("evaluate_model", {}), ("print_report", None)):
            patch.setattr(run, name, lambda *_, result=result: result)
        before = take()
        run.run(read_config(tiny.ARGUMENTS[0].partition("=")[2], overrides), folder / "run")
    if not was_parsed:
        flags.FLAGS.unparse_flags()
    return Watched(before, during, take(), workers_of(os.getpid()))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("num_steps", "every", "num_workers", "growth_kb"),
    [(12, 1, 0, 30_000), (2000, 100, 2, 15_000)],
)
@pytest.mark.long
def test_a_run_holds_no_more_at_its_end_than_at_its_beginning(
    num_steps: int, every: int, num_workers: int, growth_kb: int, tmp_path: Path
) -> None:
    """Would catch: states, batches, metrics, checkpoints, files or threads that pile up with the steps; and what a
    finished run leaves behind in a program that goes on."""
    watched = run_watched(num_steps, every, num_workers, tmp_path)
    first, last = watched.during[4], watched.during[-1]
    assert len(watched.during) >= num_steps // every - 2
    # A leak never shrinks, while a state lives as long as the checkpoint that reads it is being written.
    early, late = watched.during[2:6], watched.during[-4:]
    assert min(held.num_arrays for held in late) <= min(held.num_arrays for held in early)
    assert min(held.num_bytes for held in late) <= min(held.num_bytes for held in early)
    assert last.num_files <= first.num_files + 2
    assert last.num_threads <= first.num_threads + 4
    assert last.memory_kb - first.memory_kb < growth_kb
    assert watched.left == []
    # jax keeps constants of compiled programs.
    assert watched.after.num_bytes <= watched.before.num_bytes + first.num_bytes // 2
    assert watched.after.num_files <= watched.before.num_files + 6
    print(watched.before, *watched.during[4::5], watched.after, sep="\n")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("num_images", "every"), [(60, 20), pytest.param(10_000, 1000, marks=pytest.mark.long)]
)
def test_predicting_holds_no_more_after_many_images(
    num_images: int,
    every: int,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Would catch: images, maps, programs or files that pile up with the images; children that stay."""
    model = small_run.own_run(tmp_path_factory) if num_images > 1000 else Path("bright")
    if num_images <= 1000:
        # A backend without a network, whose training would take minutes.
        monkeypatch.setattr(Inspector, "load", staticmethod(bright.load))
    root = small_run.write_own(tmp_path / "in", num_good=num_images, num_defective=0)
    taken: list[Holdings] = []

    plain = FolderPredictor.predict

    def watched(predictor: FolderPredictor, files: Any) -> Iterator[Any]:
        for number, one in enumerate(plain(predictor, files), start=1):
            if number % every == 0:
                taken.append(take())
            yield one

    monkeypatch.setattr(FolderPredictor, "predict", watched)
    files = len(list(Path("/proc/self/fd").iterdir()))
    arguments = [f"--model={model}", f"--images={root / 'good'}", f"--output={tmp_path / 'out'}"]
    assert predict.main(["predict", *arguments]) == 0
    assert len(taken) == num_images // every
    first, last = taken[0], taken[-1]
    assert last.num_bytes <= first.num_bytes
    assert last.num_files <= first.num_files + 8
    # The first thousand fill caches; 9,000 records of some 300 bytes are remembered by name.
    assert last.memory_kb - first.memory_kb < 30_000
    assert len(list(Path("/proc/self/fd").iterdir())) <= files + 2
    assert workers_of(os.getpid()) == []
    print(*taken, sep="\n")


# Reads batches from workers of its own, whose shared memory it notes down, and does with them what argv[1] says.
READER = """
import os, re, signal, sys, time
from pathlib import Path
import grain
import numpy as np
from absl import flags
from dagm_jax.data.pipeline import iterate
from dagm_jax.command_line import explain
from dagm_jax.errors import ProcessLost

class Make(grain.transforms.Map):
    def map(self, element):
        return {"number": np.full((64, 64), element), **{str(i): np.zeros(64) for i in range(20)}}

def workers():
    # Each is a child of the thread that has started it.
    pids = [pid for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    return [int(pid) for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]

def note():
    for pid in (os.getpid(), *workers()):
        seen.update(re.findall(r"/dev/shm/(psm_\\w+)", Path(f"/proc/{pid}/maps").read_text()))

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    seen = set()
    batches = iterate(grain.MapDataset.range(100000).map(Make()), 0, 2)
    for step in range(20):
        assert (next(batches)["number"] == step).all()
        note()
    for number in (signal.SIGINT, signal.SIGTERM):
        for pid in workers():
            os.kill(pid, number)
    for step in range(20, 60):
        assert (next(batches)["number"] == step).all()
        note()
    status = 0
    if sys.argv[1] == "close":
        batches.close()
        assert not [name for name in seen if Path("/dev/shm", name).exists()]
        assert workers() == []
    elif sys.argv[1] == "lose":
        # Until the workers wait: of a segment that one is just making, Python's tracker does not know yet.
        time.sleep(1)
        os.kill(workers()[0], signal.SIGKILL)
        try:
            for batch in batches:
                note()
        except ProcessLost as error:
            line, status = explain(error)
            print(line)
        assert workers() == []
    print(*seen, flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(status)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("lose", 75),
        pytest.param("close", 0, marks=pytest.mark.long),
        pytest.param("die", -signal.SIGKILL, marks=pytest.mark.long),
    ],
)
def test_workers_heed_no_terminal_and_leave_nothing_behind(end: str, status: int, tmp_path: Path) -> None:
    """Would catch: workers that Ctrl-C ends while batches are needed, that outlive their parent, or whose death is a
    hang or a traceback; shared memory that is left when they are closed, killed or orphaned, and a warning of it."""
    (tmp_path / "reader.py").write_text(READER)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "reader.py"), end],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, err[-3000:]
        await_end_of_session(process.pid)
    finally:
        stop_session(process.pid)
        process.wait()
    if end == "close":
        assert err == ""
    lines = out.splitlines()
    if end == "lose":
        assert lines[0].startswith("stopped: a worker process of the input pipeline has died (")
        assert "exit code -9" in lines[0]
        assert "the same command goes on" in lines[0]
    names = lines[-1].split()
    assert names
    assert [name for name in names if Path("/dev/shm", name).exists()] == []


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_dead_worker_stops_the_run_and_the_same_command_goes_on(tmp_path: Path, shell: Shell) -> None:
    """Would catch: a run that waits for ever for the batches of a worker that the system has killed."""
    images = tiny.write_images(tmp_path / "images")
    command = tiny.command(
        images, tmp_path / "run", "--config.data.num_workers=2", "--config.train.num_steps=400"
    )
    process = shell.start(*command)
    shell.wait_for(process, lambda: read_history(tmp_path / "run" / "metrics.jsonl"))
    os.kill(workers_of(process.pid)[0], signal.SIGKILL)
    done = shell.finish(process)
    assert done.returncode == 75, done.stderr
    # Python's own tracker tells what it had to clear up.
    lines = [
        line for line in done.stderr.splitlines() if "resource_tracker" not in line and "warn(" not in line
    ]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("stopped: a worker process of the input pipeline has died")
    done = shell.run(*command)
    assert done.returncode == 0, done.stderr
    assert "resuming from the checkpoint of step" in done.stdout

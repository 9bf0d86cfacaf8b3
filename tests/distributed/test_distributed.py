"""Whole runs of several processes: the same detector as of one, and the same command after whatever happened.

In double precision, where the order of sums cannot hide or feign a difference.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tiny
from shell import Shell
from tiny import arrays, visible_steps

from dagm_jax.train.history import read_history

pytestmark = pytest.mark.timeout(1200)
# Validation after 3 and 6 steps; 4 test images.
SMALL = (
    *tiny.ARGUMENTS,
    "--config.data.root=data",
    "--config.model.compute_dtype=float64",
    "--config.train.num_steps=6",
    "--config.train.validate_every=3",
    "--workdir=run",
)


@dataclass(frozen=True)
class Place:
    """A folder with the images, where a job is run over ``run``."""

    folder: Path
    shell: Shell

    @property
    def workdir(self) -> Path:
        return self.folder / "run"

    def start(self, count: int, *arguments: str) -> subprocess.Popen[str]:
        """The job with its images, as ``count`` processes or as the command alone."""
        if not (self.folder / "data").exists():
            tiny.write_images(self.folder / "data")
        launcher = replace(
            self.shell, program=("-m", "launch.local_processes", f"--num_processes={count}", "--")
        )
        return (launcher if count > 1 else self.shell).start(*SMALL, *arguments, cwd=self.folder)

    def finish(self, job: subprocess.Popen[str]) -> tuple[int, str, list[str]]:
        """(exit status, stdout, lines of stderr)."""
        done = self.shell.finish(job)
        # Gloo, which carries messages between CPUs, greets.
        return (
            done.returncode,
            done.stdout,
            [line for line in done.stderr.splitlines() if "[Gloo]" not in line],
        )

    def run(self, count: int, *arguments: str) -> str:
        """Stdout of a job that finishes."""
        status, out, err = self.finish(self.start(count, *arguments))
        assert status == 0, err
        assert err == []
        return out

    def read(self, name: str) -> Any:
        return json.loads((self.workdir / name).read_text())

    def scores(self) -> dict[str, float]:
        with (self.workdir / "predictions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        assert len({row["image"] for row in rows}) == len(rows)
        return {row["image"]: float(row["score"]) for row in rows}


def process_of(launcher: subprocess.Popen[str], index: int) -> int:
    """The process id of process ``index`` of a running job."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    (pid,) = (
        int(pid)
        for pid in children
        if f"--process_id={index}" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    )
    return pid


@pytest.fixture(scope="module")
def make_place(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Place]:
    double = replace(shell, environment=shell.environment | {"JAX_ENABLE_X64": "1"})
    return lambda: Place(tmp_path_factory.mktemp("place"), double)


@pytest.fixture(scope="module")
def whole(make_place: Callable[[], Place]) -> Place:
    """A run of one process."""
    place = make_place()
    place.run(1)
    return place


def assert_same_run(place: Place, whole: Place, num_processes: int) -> None:
    """Parameters, history, thresholds, scores and report of the run of one process, up to the order of sums."""
    assert visible_steps(place.workdir) == visible_steps(whole.workdir)
    with jax.enable_x64(True):
        for a, b in zip(arrays(place.workdir), arrays(whole.workdir), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    scores, expected = place.scores(), whole.scores()
    assert list(scores) == list(expected)
    assert list(scores.values()) == pytest.approx(list(expected.values()), abs=1e-9)
    rows, expected_rows = (read_history(p.workdir / "metrics.jsonl") for p in (place, whole))
    assert [(row["step"], row["kind"]) for row in rows] == [(r["step"], r["kind"]) for r in expected_rows]
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row["loss"] == pytest.approx(expected_row["loss"], rel=1e-9)
    report, expected_report = place.read("report.json"), whole.read("report.json")
    for name in ("tp", "fp", "fn", "tn", "num_images", "auroc"):
        assert report["test"][name] == expected_report["test"][name], name
    for name in ("dice_defective", "pixel_auroc", "average_precision"):
        assert report["test"][name] == pytest.approx(expected_report["test"][name], abs=1e-9), name
    assert report["data"]["sides"] == expected_report["data"]["sides"]
    assert f"of {num_processes} processes" in report["device"]
    figures = {path.name for path in (whole.workdir / "figures").iterdir()}
    assert {path.name for path in (place.workdir / "figures").iterdir()} == figures
    assert not (place.workdir / "cache").exists()
    assert not list(place.workdir.rglob("*.partial"))
    assert len(list((place.workdir / "tensorboard").iterdir())) >= 1


def test_two_processes_make_the_detector_of_one(make_place: Callable[[], Place], whole: Place) -> None:
    """Would catch: batches, batch norm, sums or scores that depend on the number of processes, and two that write one
    file."""
    place = make_place()
    # One process speaks.
    assert place.run(2).count("test images") == 1
    assert_same_run(place, whole, 2)


@pytest.mark.long
def test_two_processes_one_killed_and_started_again_make_the_detector_of_one(
    make_place: Callable[[], Place], whole: Place
) -> None:
    """Would catch: a job that outlives a part of it, and checkpoints that only a whole job could use."""
    place = make_place()
    job = place.start(2)
    place.shell.wait_for(job, lambda: visible_steps(place.workdir))
    os.kill(process_of(job, 1), signal.SIGKILL)
    status, _, err = place.finish(job)
    assert status == 128 + signal.SIGKILL
    assert err[-1].startswith(
        "error: process 1 of 2 was ended by SIGKILL, and all were ended; the same command"
    )
    assert not (place.workdir / "report.json").exists()
    assert "resuming from the checkpoint of step 3" in place.run(2)
    assert_same_run(place, whole, 2)


@pytest.mark.long
def test_four_processes_stop_together_and_go_on(make_place: Callable[[], Place], whole: Place) -> None:
    """Would catch: processes that stop at different steps, of which only one was asked to, and a frozen one that is
    waited for for ever.
    """
    place = make_place()
    history = place.workdir / "metrics.jsonl"
    job = place.start(4)
    place.shell.wait_for(job, lambda: read_history(history))
    os.kill(process_of(job, 2), signal.SIGTERM)
    status, _, err = place.finish(job)
    assert status == 130, err
    stops = {line.partition("stopped: ")[2] for line in err}
    assert len(err) == 4 and len(stops) == 1, err
    (saved,) = visible_steps(place.workdir)
    assert stops == {f"at step {saved}; the same command goes on from there"}

    job = place.start(4, "--peer_timeout_s=90")
    place.shell.wait_for(job, lambda: len(read_history(history)) > saved)
    os.kill(process_of(job, 3), signal.SIGSTOP)
    status, _, err = place.finish(job)
    assert status == 75, err
    assert any("stopped: no progress for" in line for line in err)
    assert err[-1].startswith("error: process 3 of 4 was stuck")

    place.run(4)
    assert_same_run(place, whole, 4)


@pytest.mark.long
def test_pmap_over_two_processes_takes_the_same_steps(make_place: Callable[[], Place], whole: Place) -> None:
    """Would catch: a pmap that sums over its own process's devices alone."""
    place = make_place()
    place.run(2, "--config.parallel.mode=pmap")
    assert_same_run(place, whole, 2)

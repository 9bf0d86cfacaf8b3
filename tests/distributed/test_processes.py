"""Real processes of jax.distributed without an experiment: their messages, and how they end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_run
from fake_processes import CountingProcesses, run_as_processes
from shell import REPOSITORY

from dagm_jax.distributed.devices import make_devices
from dagm_jax.distributed.processes import (
    ALONE,
    SIGNS_OF_LOSS,
    Processes,
    Watchdog,
    connect,
    interleave,
)
from dagm_jax.errors import DiskError, UserError
from dagm_jax.evaluation.evaluate import ImageResult, TestResult
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.experiment import report as report_module
from dagm_jax.experiment.data import prepare_data
from dagm_jax.experiment.setup import Setup
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.storage import plain_disk_errors
from dagm_jax.train.stopping import TrainProgress
from launch.local_processes import free_port

TIMEOUT_S = 120
TestResult.__test__ = False  # type: ignore[attr-defined]  # a class of the package, no tests

# The middle of `dagm_jax.main.main`, with other work than an experiment.
PROGRAM = """
import os, signal, sys, time
import jax
from dagm_jax.command_line import leave
from dagm_jax.distributed.processes import connect
from dagm_jax.errors import UserError
from dagm_jax.main import on_silence
address, count, index, timeout_s = sys.argv[1:]
jax.config.update("jax_enable_preemption_service", False)
processes = connect(address, int(count), int(index), False, int(timeout_s), on_silence)
work = sys.stdin.read()
try:
    exec(work)
except BaseException as error:
    leave(error, processes)
"""


def start(work: str, count: int = 2, timeout_s: int = 60) -> list[subprocess.Popen[str]]:
    """``count`` processes of a job that run ``work``, in which ``processes`` is the job's `Processes`."""
    port = free_port()
    job = []
    for index in range(count):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, f"127.0.0.1:{port}", *map(str, (count, index, timeout_s))],
            cwd=REPOSITORY,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        process.stdin.write(work)
        process.stdin.close()
        process.stdin = None
        job.append(process)
    return job


def finish(job: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """(exit status, stdout, stderr less what gloo says) of each."""
    ends = []
    try:
        for process in job:
            out, err = process.communicate(timeout=TIMEOUT_S)
            lines = [line for line in err.splitlines(keepends=True) if "[Gloo]" not in line]
            out = "".join(line for line in out.splitlines(keepends=True) if "[Gloo]" not in line)
            ends.append((process.returncode, out, "".join(lines)))
    finally:
        for process in job:
            process.kill()
    return ends


def test_messages_arrive_whole_and_in_order() -> None:
    """Would catch: a message cut at its padding, one taken for another, and a first that is not process 0."""
    ends = finish(
        start(
            "mine = {'index': processes.index, 'bytes': bytes(range(256)) * (1 + 99 * processes.index)}\n"
            "gathered = processes.gather(mine)\n"
            "assert [one['index'] for one in gathered] == [0, 1, 2], gathered\n"
            "assert [len(one['bytes']) for one in gathered] == [256, 25600, 50944], gathered\n"
            "assert all(one['bytes'][:256] == bytes(range(256)) for one in gathered)\n"
            "assert processes.broadcast(processes.index + 7) == 7\n"
            "assert processes.any(processes.index == 2) and not processes.any(False)\n"
            "assert processes.on_process_0(lambda: processes.index) == 0\n"
            "print(processes.index, processes.count)\n",
            count=3,
        )
    )
    assert ends == [(0, f"{i} 3\n", "") for i in range(3)]


def test_the_mistake_of_one_is_the_end_of_all() -> None:
    """Would catch: processes that wait for ever for one that has stopped with an error."""
    ends = finish(
        start(
            "def work():\n  if processes.index == 1: raise UserError('mend it')\nprocesses.all_or_raise(work)"
        )
    )
    assert ends == [(2, "", "error: mend it\n")] * 2


@pytest.mark.parametrize("lost", [0, 1])
def test_a_dead_process_ends_the_other(lost: int) -> None:
    """Would catch: a job that hangs for minutes because one of its processes was killed.

    Where jax's service dies with process 0 it may be it that ends the other one, by SIGABRT.
    """
    begin_s = time.monotonic()
    job = start(
        "processes.any(True)\n"
        f"if processes.index == {lost}: os.kill(os.getpid(), signal.SIGKILL)\nprocesses.any(True)",
        timeout_s=TIMEOUT_S,
    )
    ends = finish(job)
    assert time.monotonic() - begin_s < TIMEOUT_S
    assert ends[lost][0] == -signal.SIGKILL
    status, _, err = ends[1 - lost]
    if status == -signal.SIGABRT:
        assert lost == 0
    else:
        assert status == 75
        assert "stopped: another process of the job is gone" in err
        assert "the same command goes on" in err


def test_a_frozen_process_ends_the_other() -> None:
    """Would catch: a job that waits for ever for a process that is there and does nothing."""
    job = start(
        "processes.any(True)\n"
        "if processes.index == 1: os.kill(os.getpid(), signal.SIGSTOP)\nprocesses.any(True)",
        timeout_s=3,
    )
    ends = finish(job[:1])
    job[1].kill()
    job[1].communicate()
    status, _, err = ends[0]
    assert status == 75, err
    (line,) = err.splitlines()
    assert line.startswith("stopped: no progress for ")
    assert "--peer_timeout_s" in line


def test_waiting_for_the_first_is_no_silence() -> None:
    """Would catch: processes that end while process 0 decodes images or draws figures for longer than the timeout."""
    work = (
        "def slow():\n  for _ in range(9):\n    time.sleep(0.4)\n    processes.heartbeat()\n  return 'done'\n"
        "print(processes.on_process_0(slow), processes.in_turns(lambda: 'all'))"
    )
    assert finish(start(work, timeout_s=2)) == [(0, "done all\n", "")] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((None, 2, None), "`--coordinator_address` is missing;"),
        (("a:1", 2, None), "`--process_id` is missing;"),
        (("a:1", 2, 2), r"`--process_id` \(=2\) must be below `--num_processes` \(=2\);"),
    ],
)
def test_a_part_of_the_flags_is_refused(flags: tuple[Any, Any, Any], message: str) -> None:
    """Would catch: a job that starts with a part of its flags, each process alone and over the others' workdir."""
    with pytest.raises(UserError, match=message):
        connect(*flags, is_cluster=False, timeout_s=1, on_silence=lambda seconds: None)
    assert connect(None, None, None, is_cluster=False, timeout_s=1, on_silence=lambda seconds: None) is ALONE


def test_a_job_of_one_exchanges_nothing() -> None:
    """Would catch: a run of one process that pickles, compiles or waits for what it has already."""
    value = [lambda: 1]  # cannot be pickled
    assert ALONE.gather(value) == [value]
    assert ALONE.broadcast(value) is value
    assert ALONE.on_process_0(lambda: value) is ALONE.in_turns(lambda: value) is value
    assert ALONE.share([1, 2]) == [1, 2]
    with pytest.raises(UserError, match="once"):
        ALONE.all_or_raise(lambda: (_ for _ in ()).throw(UserError("once")))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [0, 1, 5, 12])
def test_shares_are_disjoint_and_whole(count: int, total: int) -> None:
    """Would catch: an item in two shares or in none, and parts put together in another order."""
    parts = [Processes(i, count).share(range(total)) for i in range(count)]
    assert interleave(parts) == list(range(total))


def test_turns_come_one_after_the_other() -> None:
    """Would catch: two processes of a machine that decode the same images into the same file."""
    events: list[str] = []

    def work(processes: Processes) -> int:
        def step() -> int:
            events.append(f"begin {processes.index}")
            time.sleep(0.05)
            events.append(f"end {processes.index}")
            return processes.index

        return processes.in_turns(step)

    assert run_as_processes(3, work) == [0, 1, 2]
    # All on this machine: process 0 first, alone.
    assert events[:2] == ["begin 0", "end 0"]
    assert sorted(events[2:]) == ["begin 1", "begin 2", "end 1", "end 2"]


def test_processes_that_differ_are_refused() -> None:
    """Would catch: processes that train on different images, each by its own step."""

    def work(processes: Processes) -> None:
        processes.check_same("the seed", "same")
        with pytest.raises(UserError, match=r"process 2 of 3 differs from process 0 in the seed; start all"):
            processes.check_same("the seed", "other" if processes.index == 2 else "same")

    run_as_processes(3, work)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_one_ends_all(tmp_path: Path, number: int) -> None:
    """Would catch: others that lose process 0, and a job that is queued again, because its disk is full."""

    def refuse() -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "report.json"))

    def work(processes: Processes) -> list[str]:
        lines = []
        for method in (processes.on_process_0, processes.in_turns):
            with pytest.raises(DiskError) as error, plain_disk_errors(tmp_path, "workdir"):
                method(refuse)
            lines.append(str(error.value))
        with pytest.raises(DiskError), plain_disk_errors(tmp_path, "workdir"):
            processes.all_or_raise(refuse if processes.index == 1 else lambda: None)
        return lines

    (lines,) = {tuple(lines) for lines in run_as_processes(3, work)}
    assert lines[0] == lines[1]
    assert lines[0].startswith(f"`workdir` (={tmp_path}) cannot be written ({os.strerror(number)}); ")


def test_the_watchdog_barks_once_after_silence_only() -> None:
    """Would catch: an end in the midst of progress, or in a pause, and none at all."""
    heard: list[float] = []
    watchdog = Watchdog(0.6, heard.append)
    for _ in range(6):
        time.sleep(0.2)
        watchdog.heartbeat()
    with watchdog.paused():
        time.sleep(1.2)
    assert heard == []
    end_s = time.monotonic() + TIMEOUT_S
    while not heard and time.monotonic() < end_s:
        time.sleep(0.05)
    time.sleep(0.5)
    assert len(heard) == 1
    assert heard[0] > 0.6


def test_every_image_that_is_looked_into_is_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a healthy process 0 that its watchdog ends, at every try, while it looks for the white level of
    large images or scores them by the baselines."""
    root = small_run.write_own(tmp_path / "own", num_good=10, num_defective=10)
    config = small_run.own_config(root)
    processes = CountingProcesses()
    data = prepare_data(config, Workdir(tmp_path), processes)
    # For each image: its white level, and its pixels.
    assert len(processes.heartbeats) == 40

    processes.heartbeats.clear()
    for name in ("draw_figures", "draw_page", "forward_gflop"):
        monkeypatch.setattr(report_module, name, lambda *_: None)
    setup = Setup(config, data, make_devices(config.parallel, ""), processes)
    rule = Thresholds(0.5, 0.5, "f1", {})
    result = TestResult(
        [ImageResult("a", 0, 0.2, False), ImageResult("b", 1, 0.8, True)], executing_time_s=1.0
    )
    state: Any = SimpleNamespace(params={})
    pictures: Any = None
    report = report_module.write_report(
        setup, state, 1, TrainProgress(step=1), rule, result, None, pictures, Workdir(tmp_path)
    )
    assert 0 <= report["baselines"]["local_energy_auroc"] <= 1
    assert len(processes.heartbeats) == len(data.split.validation) + len(data.split.test)


def test_other_errors_are_not_blamed_on_processes() -> None:
    """Would catch: a lack of memory, or a mistake of ours, reported as another process's end."""
    gone = ValueError(
        "UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error [127.0.0.1]: Connection reset by peer"
    )
    assert SIGNS_OF_LOSS.search(str(gone))
    assert not SIGNS_OF_LOSS.search(str(RuntimeError("RESOURCE_EXHAUSTED: Out of memory")))
    assert not SIGNS_OF_LOSS.search(str(KeyError("loss")))

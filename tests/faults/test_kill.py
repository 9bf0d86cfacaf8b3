"""Runs that are killed at any moment, and checkpoints that a kill finds half written or half deleted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import victim
from shell import Shell, await_end_of_session, make_shell, run_python
from tiny import assert_same

from dagm_jax.train.history import read_history

# Forks children that save 1, 2, 3, … until each is killed at a moment of its own, every third in the midst of its first
# deletion of a folder; each looks at what is left by the one before it.
SAVER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
from dagm_jax.train.checkpoint import Checkpoints

folder, num_kills = Path(sys.argv[1]), int(sys.argv[2])
rng = random.Random(0)

def arrays(step):
    return {"x": np.random.default_rng(step).normal(size=(200, 1000)), "y": np.array([step], np.float32)}

plain_rmtree = shutil.rmtree

def die_deleting(path, *rest, **options):
    if "tmp" in Path(path).name:
        return plain_rmtree(path, *rest, **options)
    files = [file for file in Path(path).rglob("*") if file.is_file()]
    for file in files[: len(files) // 2]:
        file.unlink()
    os.kill(os.getpid(), signal.SIGKILL)

def save_on(number):
    if number % 3 == 2:
        # Whoever deletes a checkpoint that was whole, dies of it.
        shutil.rmtree = die_deleting
    with Checkpoints(folder) as checkpoints:
        found = checkpoints.restore_latest(lambda: arrays(0))
        first = 1 if found is None else found[0] + 1
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        for step in steps:
            state, meta = checkpoints.restore(step, arrays(0))
            assert (state["x"] == arrays(step)["x"]).all() and state["y"] == step and meta == {"step": step}
        assert found is None or found[0] == max(steps) and checkpoints.best_step() is not None
        print(first - 1, flush=True)
        for step in range(first, 10**6):
            if number % 3 == 2 or step == first + number % 2:
                (folder / "begun").touch()
            checkpoints.save(step, arrays(step), {"step": step}, (step * 7 % 10) / 10)

def look(number):
    pid = os.fork()
    if pid == 0:
        try:
            save_on(number)
        finally:
            os._exit(1)
    while not (folder / "begun").exists():
        assert os.waitpid(pid, os.WNOHANG)[0] == 0, "a child failed"
        time.sleep(0.002)
    if number % 3 != 2:
        time.sleep(rng.uniform(0, 0.25))
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, "a child failed"
    (folder / "begun").unlink()

folder.mkdir()
for number in range(num_kills):
    look(number)
"""


@pytest.mark.parametrize("num_kills", [12, pytest.param(200, marks=pytest.mark.long)])
def test_checkpoints_that_a_kill_leaves_are_whole(num_kills: int, tmp_path: Path) -> None:
    """Would catch: a checkpoint that is visible before it is whole, or still visible when it is half deleted.

    Each child reads what the one before it has left, and checks it against the arrays that it must hold.
    """
    done = run_python("-c", SAVER, tmp_path / "checkpoints", str(num_kills), JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr[-3000:]
    reached = list(map(int, done.stdout.split()))
    assert len(reached) == num_kills
    assert reached == sorted(reached)
    # One step at least for every child that has come to a deletion.
    assert reached[-1] >= num_kills // 3 - 1


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import victim
from dagm_jax.storage import write_atomically

victim.writing("report.json")()
write_atomically(Path(sys.argv[2], "other.json"), "whole")
write_atomically(Path(sys.argv[2], "report.json"), "new" * 1000)
"""


def test_a_kill_while_a_file_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    """Would catch: half a report where the old one was; a victim that is killed beside the code that writes."""
    (tmp_path / "report.json").write_text("old")
    done = run_python("-c", WRITER, Path(victim.__file__).parent, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert (tmp_path / "report.json").read_text() == "old"
    assert (tmp_path / "other.json").read_text() == "whole"
    (half,) = tmp_path.glob("report.json.*.partial")
    assert half.stat().st_size == 1500


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_images(tmp_path_factory.mktemp("images") / "data")


def finish(shell: Shell, command: tuple[str, ...]) -> float:
    """Runs the command to its end; the seconds that took."""
    begin_s = time.monotonic()
    done = shell.run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.monotonic() - begin_s


def kill_after(shell: Shell, delay_s: float, command: tuple[str, ...]) -> None:
    """Kills the command after so many seconds if it still runs."""
    process = shell.start(*command)
    try:
        process.wait(delay_s)
    except subprocess.TimeoutExpired:
        process.kill()
    done = shell.finish(process)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_run_killed_again_and_again_ends_like_a_whole_one(
    images: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Would catch: half a file read as whole, a batch repeated or left out, a state that is not the one of its step, a
    worker that outlives the run (see `Shell.finish`).

    Killed at each named moment, in a workdir of its own, and then at two random moments of the whole length. Compiled
    as users compile it.
    """
    shell = make_shell(tmp_path_factory, xla_flags="")
    whole = tmp_path / "whole"
    finish(shell, tiny.command(images, whole))
    length_s = finish(shell, tiny.command(images, tmp_path / "second"))
    assert_same(tmp_path / "second", whole)
    rng = random.Random(0)
    for place, moment in enumerate(victim.MOMENTS):
        command = tiny.command(images, tmp_path / moment, f"--config.data.num_workers={place % 3}")
        done = replace(shell, program=(str(Path(victim.__file__)), moment)).run(*command)
        assert done.returncode == -signal.SIGKILL, (moment, done.stderr[-3000:])
        for _ in range(2):
            kill_after(shell, rng.uniform(0, length_s), command)
        finish(shell, command)
        assert_same(tmp_path / moment, whole)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_processes_saves_and_the_same_command_goes_on(
    number: signal.Signals, shell: Shell, images: Path, tmp_path: Path
) -> None:
    """Would catch: workers that Ctrl-C ends before the loop has saved, their traces on the terminal, another status."""
    whole, workdir = tmp_path / "whole", tmp_path / "stopped"
    finish(shell, tiny.command(images, whole))
    command = tiny.command(images, workdir, "--config.data.num_workers=2")
    process = shell.start(*command)
    shell.wait_for(process, lambda: read_history(workdir / "metrics.jsonl"))
    os.killpg(process.pid, number)
    done = shell.finish(process)
    assert done.returncode == 130, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("stopped: at step ")
    await_end_of_session(process.pid)
    finish(shell, command)
    assert_same(workdir, whole)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_killed_run_that_becomes_longer_ends_like_a_long_one(
    shell: Shell, images: Path, tmp_path: Path
) -> None:
    """Would catch: a bound on the steps that has left traces in a run before its cool-down: in the order of images, the
    learning rate, or the validations that count."""
    whole, workdir = tmp_path / "whole", tmp_path / "longer"
    longer = "--config.train.num_steps=20"
    finish(shell, tiny.command(images, whole, longer))
    # After the second checkpoint, of step 4; of 12 steps the cool-down would begin at 6.
    killer = replace(shell, program=(str(Path(victim.__file__)), "save"))
    assert killer.run(*tiny.command(images, workdir)).returncode == -signal.SIGKILL
    done = shell.run(*tiny.command(images, workdir, longer))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{workdir} holds a run with train.num_steps=12; it goes on with 20" in done.stdout
    assert_same(workdir, whole)

"""The launcher of local processes, over short programs: output, ended processes, last line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shell import REPOSITORY

from dagm_jax.errors import UserError
from launch import local_processes

TIMEOUT_S = 60

# Writes a mark, then runs until SIGTERM, at which it ends as an interrupted run does.
OBEDIENT = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
pathlib.Path(sys.argv[1]).write_text("runs")
time.sleep(600)
"""
# Starts a worker, writes its id as a mark, and ignores SIGTERM.
STUBBORN = """
import pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[1]).write_text(str(worker.pid))
time.sleep(600)
"""


def launch(
    *programs: str, grace_s: float = 1.0, gpus: int = 0, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """The launcher, in a process of its own, over these programs, each with its argument after an @."""
    code = (
        "import sys; from launch import local_processes; local_processes.GRACE_S = float(sys.argv[1]);"
        "sys.exit(local_processes.run([[sys.executable, '-c', *p.split('@')] for p in sys.argv[3:]],"
        "int(sys.argv[2])))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(grace_s), str(gpus), *programs],
        env=environment,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end_s, "it never came to it"
        time.sleep(0.02)


def waiting(*paths: Path) -> str:
    """A program that waits until these files are there."""
    names = [str(path) for path in paths]
    return f"import pathlib, time\nwhile not all(pathlib.Path(p).exists() for p in {names}): time.sleep(0.01)"


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def finish(job: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = job.communicate(timeout=TIMEOUT_S)
    return job.returncode, out, err


def test_process_0_is_shown_as_it_is_and_the_others_by_number() -> None:
    """Would catch: output that is lost, or mixed so that nobody knows who complained."""
    job = launch("print('report')", "import sys; print('odd'); print('worse', file=sys.stderr)")
    assert finish(job) == (0, "report\n", "[1] odd\n[1] worse\n")


@pytest.mark.parametrize(
    ("death", "status", "how"),
    [
        ("import sys; sys.exit(7)", 7, "failed with status 7"),
        ("import os; os.kill(os.getpid(), 9)", 128 + 9, "was ended by SIGKILL"),
    ],
)
def test_one_that_dies_ends_all_and_is_named(death: str, status: int, how: str, tmp_path: Path) -> None:
    """Would catch: a job that hangs on with a part of its processes, orphans, and another process that gets the blame.

    Process 0 notices first that it has lost a peer, and says so with a status of its own, as it does in a run.
    """
    marks, dead = [tmp_path / "0", tmp_path / "1"], tmp_path / "dead"
    notices = f"{waiting(dead)}\nimport sys; sys.exit(75)"
    last = f"{waiting(*marks)}\npathlib.Path({str(dead)!r}).touch()\n{death}"
    job = launch(notices, f"{OBEDIENT}@{marks[0]}", f"{STUBBORN}@{marks[1]}", last)
    code, _, err = finish(job)
    assert code == status
    assert err.splitlines()[-1].startswith(f"error: process 3 of 4 {how}, and all were ended; the same")
    assert not is_running(int(marks[1].read_text()))


def test_one_that_is_frozen_is_named_by_those_that_gave_it_up(tmp_path: Path) -> None:
    """Would catch: the blame on a process that only noticed, and a frozen one that is left behind."""
    mark = tmp_path / "0"
    gives_up = f"{waiting(mark)}\nimport sys; sys.exit(75)"
    code, _, err = finish(launch(gives_up, f"{STUBBORN}@{mark}", gives_up))
    assert code == 75
    (line,) = err.splitlines()
    assert line.startswith("error: process 1 of 3 was stuck and had to be killed, and all were ended; ")
    assert not is_running(int(mark.read_text()))


def test_a_users_mistake_is_left_to_the_process_to_explain() -> None:
    """Would catch: a second line after that of the process."""
    mistake = "import sys; print('error: mend it', file=sys.stderr); sys.exit(2)"
    assert finish(launch(mistake, "import sys; sys.exit(2)")) == (2, "", "error: mend it\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_stop_reaches_all(number: signal.Signals, tmp_path: Path) -> None:
    """Would catch: processes that are killed before they have saved, or never hear of Ctrl-C."""
    marks = [tmp_path / "0", tmp_path / "1"]
    job = launch(*(f"{OBEDIENT}@{mark}" for mark in marks))
    wait_for(lambda: all(mark.exists() for mark in marks))
    job.send_signal(number)
    assert finish(job) == (130, "", "")


def test_asked_twice_it_kills(tmp_path: Path) -> None:
    """Would catch: a terminal that cannot be had back, and workers that live on."""
    mark = tmp_path / "0"
    job = launch(f"{STUBBORN}@{mark}", grace_s=TIMEOUT_S)
    wait_for(lambda: mark.exists() and mark.read_text() != "")
    job.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert finish(job)[0] == 130
    assert not is_running(int(mark.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to tell the children")
def test_nothing_survives_a_launcher_that_was_killed(tmp_path: Path) -> None:
    """Would catch: a job that nobody can see any more and that goes on writing."""
    mark = tmp_path / "0"
    program = OBEDIENT.replace('write_text("runs")', "write_text(str(__import__('os').getpid()))")
    job = launch(f"{program}@{mark}")
    wait_for(lambda: mark.exists() and mark.read_text() != "")
    job.kill()
    job.communicate()
    wait_for(lambda: not is_running(int(mark.read_text())))


def test_the_command_line() -> None:
    """Would catch: an argument of the main job that the launcher takes for its own, or the other way round."""
    argv = ["local_processes", "--num_processes=3", "--", "--config=x.py", "--num_processes=9"]
    request = local_processes.Request(num_processes=3, gpus_per_process=0)
    assert local_processes.parse(argv) == (request, ["--config=x.py", "--num_processes=9"])
    start = ["-m", "dagm_jax.main", "--coordinator_address=127.0.0.1:1234"]
    lines = local_processes.commands(2, 1234, ["--config=x.py"])
    expected = [[*start, "--num_processes=2", f"--process_id={i}", "--config=x.py"] for i in range(2)]
    assert [line[1:] for line in lines] == expected
    for wrong, match in (
        (["x", "--num_processes=2"], "nothing follows `--`"),
        (["x", "--num_processes=0", "--", "--config=x.py"], "num_processes"),
        (["x", "--config=x.py", "--", "--config=x.py"], "config"),
    ):
        with pytest.raises(UserError, match=match):
            local_processes.parse(wrong)


def test_each_process_takes_its_own_gpus() -> None:
    """Would catch: two processes on one GPU, which is the default of jax on one machine."""
    show = "import os; print(os.environ.get('JAX_LOCAL_DEVICE_IDS'))"
    assert finish(launch(show, show, gpus=2)) == (0, "0,1\n", "[1] 2,3\n")
    unset = {name: value for name, value in os.environ.items() if name != "JAX_LOCAL_DEVICE_IDS"}
    assert finish(launch(show, show, environment=unset)) == (0, "None\n", "[1] None\n")

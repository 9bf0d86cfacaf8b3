"""Commands in processes of their own, which leave nothing running behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import quick

REPOSITORY = Path(__file__).resolve().parents[1]
# Far above what a process needs on a machine that does nothing else.
TIMEOUT_S = 600
# Within which what a process has started ends after it.
LEAVE_S = 60


@dataclass(frozen=True)
class Shell:
    """Where commands are run, with which environment."""

    environment: dict[str, str]
    logs: Path
    program: tuple[str, ...] = ("-m", "dagm_jax.main")

    def start(self, *arguments: str, cwd: Path = REPOSITORY) -> subprocess.Popen[str]:
        """The command as a process in a session of its own; its output goes to files, which cannot fill up."""
        name = f"{time.monotonic_ns()}"
        with (self.logs / f"{name}.out").open("w") as out, (self.logs / f"{name}.err").open("w") as err:
            process = subprocess.Popen(
                [sys.executable, *self.program, *arguments],
                cwd=cwd,
                env=self.environment,
                stdout=out,
                stderr=err,
                text=True,
                start_new_session=True,
            )
        cast(Any, process).log_name = name
        return process

    def finish(self, process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
        """The ended process with its output; AssertionError where it has left another one running."""
        try:
            code = process.wait(TIMEOUT_S)
            await_end_of_session(process.pid)
        finally:
            stop_session(process.pid)
            process.wait()
        name = cast(Any, process).log_name
        texts = [(self.logs / f"{name}.{end}").read_text() for end in ("out", "err")]
        return subprocess.CompletedProcess(process.args, code, *texts)

    def run(self, *arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
        return self.finish(self.start(*arguments, cwd=cwd))

    def wait_for(self, process: subprocess.Popen[str], condition: Callable[[], object]) -> None:
        """Until the condition holds, while the process runs."""
        end_s = time.monotonic() + TIMEOUT_S
        while not condition():
            assert process.poll() is None, f"ended too early: {self.finish(process)}"
            assert time.monotonic() < end_s, "the moment never came"
            time.sleep(0.005)

    def run_until(
        self, number: signal.Signals, condition: Callable[[], object], *arguments: str
    ) -> subprocess.CompletedProcess[str]:
        """The command, which gets the signal as soon as the condition holds."""
        process = self.start(*arguments)
        try:
            self.wait_for(process, condition)
            process.send_signal(number)
            return self.finish(process)
        finally:
            stop_session(process.pid)
            process.wait()


def run_python(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Python on these arguments, in the repository, with these variables in its environment besides."""
    command, environment = [sys.executable, *map(str, arguments)], os.environ | variables
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def await_end_of_session(pid: int) -> None:
    """Until nothing of the session runs any more: no worker of grain's, and not what clears shared memory up."""
    end_s = time.monotonic() + LEAVE_S
    while left := session(pid):
        assert time.monotonic() < end_s, f"left running: {left}"
        time.sleep(0.05)


def session(pid: int) -> dict[int, str]:
    """Process id → command line of what runs in the session; without corpses that nobody has fetched."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, owner = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(owner) == pid and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")[:200]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def stop_session(pid: int) -> None:
    """Ends what a test that failed has left running."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def make_shell(factory: pytest.TempPathFactory, xla_flags: str = quick.XLA_FLAGS) -> Shell:
    """A shell whose processes share one cache of compiled programs."""
    environment = os.environ | {
        "XLA_FLAGS": xla_flags,
        "PYTHONPATH": str(REPOSITORY),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "COLUMNS": "120",
    }
    return Shell(environment, factory.mktemp("logs"))

"""Several processes of the main job on this machine.

``python -m launch.local_processes --num_processes=2 -- --config=configs/smoke.py --workdir=DIR``

The arguments behind ``--`` go to ``dagm_jax.main``, once in each process. Process 0 prints as if it were alone; the
lines of the others, which only complain, begin with their number. When one dies all are ended, and the last line names
it. Ctrl-C and SIGTERM go to all, which save and stop at the same step; a second one kills them. Exit status: 0 if all
finished, else that of the process that failed (128 and the signal's number where a signal ended it).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from dagm_jax import command_line
from dagm_jax.errors import UserError

# Seconds in which the other processes may end by themselves when one has failed, and again after SIGTERM.
GRACE_S = 8.0
POLL_S = 0.05
# Exit statuses of processes that only lost another one: the main job's own, and the abort of jax's service.
SECONDARY = (command_line.EXIT_PEER_LOST, -signal.SIGABRT)
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Request:
    """The launcher's own flags."""

    num_processes: int = command_line.flag("Number of processes.", 2, least=1)
    gpus_per_process: int = command_line.flag(
        "GPUs of the machine for each process, in their order; 0: nothing is set, as on CPUs.", 0, least=0
    )


def parse(argv: Sequence[str]) -> tuple[Request, list[str]]:
    """(the launcher's flags, the main job's arguments from behind ``--``). Raises UserError."""
    split = argv.index("--") if "--" in argv else len(argv)
    request, arguments = command_line.parse_request(Request, argv[:split], __doc__), list(argv[split + 1 :])
    if not arguments:
        raise UserError(
            "command line: nothing follows `--`; give there what dagm_jax.main takes, "
            "such as -- --config=configs/smoke.py"
        )
    return request, arguments


def free_port() -> int:
    """An unused port of this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commands(count: int, port: int, arguments: Sequence[str]) -> list[list[str]]:
    """The command line of each process of the main job."""
    job = [sys.executable, "-m", "dagm_jax.main", f"--coordinator_address=127.0.0.1:{port}"]
    return [[*job, f"--num_processes={count}", f"--process_id={i}", *arguments] for i in range(count)]


def start(index: int, command: Sequence[str], gpus: int) -> subprocess.Popen[str]:
    """Process ``index``, started in a session of its own.

    Ctrl-C then reaches it through this program alone, and its children can be killed with it.
    """
    own_gpus = ",".join(str(index * gpus + i) for i in range(gpus))
    return subprocess.Popen(
        command,
        env=os.environ | ({"JAX_LOCAL_DEVICE_IDS": own_gpus} if gpus else {}),
        text=True,
        start_new_session=True,
        preexec_fn=end_with_parent,
        stdout=subprocess.PIPE if index else None,
        stderr=subprocess.STDOUT if index else None,
    )


def end_with_parent() -> None:
    """Asks Linux to send SIGTERM to this process when its parent dies, be it by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Job:
    """Running processes; ``ended``: index → exit status, in the order in which they ended by themselves."""

    processes: list[subprocess.Popen[str]]
    ended: dict[int, int] = field(default_factory=dict)
    num_requests: int = 0

    def stop(self, *_: object) -> None:
        """Handler of SIGINT and SIGTERM: sends SIGTERM to all the first time, SIGKILL the second."""
        self.num_requests += 1
        self.signal(signal.SIGTERM if self.num_requests == 1 else signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """Sends the signal to the processes alone: they need their children to save and stop."""
        for process in self.processes:
            process.send_signal(number)

    def wait(self) -> None:
        """Waits until all have ended, or one has failed and the others were given time to notice."""
        self._watch(math.inf, until_failure=True)
        self._watch(GRACE_S)
        self.signal(signal.SIGTERM)
        # A process that obeys now has not failed.
        self._watch(GRACE_S, counted_as=0)

    def _watch(self, seconds: float, until_failure: bool = False, counted_as: int | None = None) -> None:
        """Records the exit statuses of processes that end within so many seconds."""
        end_s = time.monotonic() + seconds
        while len(self.ended) < len(self.processes) and time.monotonic() < end_s:
            time.sleep(POLL_S)
            for index, process in enumerate(self.processes):
                if (status := process.poll()) is not None:
                    self.ended.setdefault(index, status if counted_as is None else counted_as)
            if until_failure and any(self.ended.values()):
                break

    def clear(self) -> None:
        """Kills all processes and their workers, those of dead processes too."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def explain(self, index: int, status: int) -> str:
        """The last line on the terminal: which process ended the job, and how."""
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
        stuck = [i for i in range(len(self.processes)) if i not in self.ended]
        if status in SECONDARY and stuck:
            index, how = stuck[0], "was stuck and had to be killed"
        return (
            f"error: process {index} of {len(self.processes)} {how}, and all were ended; the same command goes on "
            "from what was saved last"
        )


def relay(index: int, process: subprocess.Popen[str]) -> None:
    """Writes the lines of a process to stderr, each after its number."""
    for line in process.stdout or ():
        print(f"[{index}] {line}", end="", file=sys.stderr, flush=True)


def run(command_lines: Sequence[Sequence[str]], gpus: int = 0) -> int:
    """The exit status of a job of these processes; none of them is left running."""
    job = Job([])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, job.stop)
    try:
        for index, command in enumerate(command_lines):
            job.processes.append(start(index, command, gpus))
        relays = [threading.Thread(target=relay, args=one, daemon=True) for one in enumerate(job.processes)]
        for thread in relays:
            thread.start()
        job.wait()
    finally:
        job.clear()
    for thread in relays:
        thread.join(GRACE_S)
    if job.num_requests:
        return command_line.EXIT_INTERRUPTED
    failed = [(index, status) for index, status in job.ended.items() if status]
    # The first, those that only lost it aside.
    index, status = min(failed, key=lambda one: one[1] in SECONDARY, default=(0, 0))
    # Processes with these statuses have printed the reason.
    if status not in (0, command_line.EXIT_USER_ERROR, command_line.EXIT_INTERRUPTED):
        print(job.explain(index, status), file=sys.stderr)
    return status if status >= 0 else 128 - status


def main(argv: Sequence[str]) -> int:
    """The exit status of the job of the command line."""
    request, arguments = parse(argv)
    return run(commands(request.num_processes, free_port(), arguments), request.gpus_per_process)


if __name__ == "__main__":
    sys.exit(command_line.guarded(main, sys.argv))

"""Several processes of the main job on this machine.

``python -m launch.local_processes --num_processes=2 -- --config=configs/smoke.py --workdir=DIR``

What follows ``--`` goes to ``dagm_jax.main``, once in each process. Process 0 speaks as if it were alone; the lines of
the others, who only complain, begin with their number. When one dies all are ended, and the last line says which;
Ctrl-C and SIGTERM go to all, who save and stop at the same step; asked twice, they are killed. Exit status: 0 if all
finished, else that of the process that failed (128 and the signal's number where a signal ended it).
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType

from absl import app, flags

from dagm_jax import command_line
from dagm_jax.main import EXIT_INTERRUPTED, EXIT_PEER_LOST, EXIT_USER_ERROR, guarded
from dagm_jax.types import UserError

# How long the others may take to end by themselves when one has failed, and then to heed SIGTERM.
GRACE_S = 8.0
POLL_S = 0.05
# What processes end with when it was another one that failed: our own status, and the abort of jax's service.
SECONDARY = (EXIT_PEER_LOST, -signal.SIGABRT)
PR_SET_PDEATHSIG = 1


def make_flags() -> flags.FlagValues:
    """The flags of this program."""
    values = command_line.make_flags()
    flags.DEFINE_integer("num_processes", 2, "How many.", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "gpus_per_process",
        0,
        "How many of the machine's GPUs each process takes, in their order; 0: nothing is set, as on CPUs.",
        lower_bound=0,
        flag_values=values,
    )
    return values


def parse(argv: Sequence[str]) -> tuple[int, int, list[str]]:
    """(processes, GPUs of each, the main job's arguments) of a command line; raises UserError."""
    if "--" in argv:
        split = list(argv).index("--")
        own, passed = argv[:split], list(argv[split + 1 :])
    else:
        own, passed = argv, []
    values = command_line.parse(make_flags(), own, __doc__)
    if not passed:
        raise UserError(
            "command line: nothing follows `--`; give there what dagm_jax.main takes, "
            "such as -- --config=configs/smoke.py"
        )
    return values.num_processes, values.gpus_per_process, passed


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def commands(count: int, port: int, arguments: Sequence[str]) -> list[list[str]]:
    """The command line of each process of the main job."""
    job = [sys.executable, "-m", "dagm_jax.main", f"--coordinator_address=127.0.0.1:{port}"]
    return [[*job, f"--num_processes={count}", f"--process_id={i}", *arguments] for i in range(count)]


def start(index: int, command: Sequence[str], gpus: int) -> subprocess.Popen[str]:
    """Process ``index``, in a session of its own: the terminal's Ctrl-C comes by this program alone, and what it
    starts is ended with it."""
    environment = dict(os.environ)
    if gpus:
        environment["JAX_LOCAL_DEVICE_IDS"] = ",".join(str(index * gpus + i) for i in range(gpus))
    return subprocess.Popen(
        command,
        env=environment,
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

    def stop(self, number: int, frame: FrameType | None) -> None:
        """Handler of SIGINT and SIGTERM: passes the wish on, once; kills the second time."""
        del frame
        self.num_requests += 1
        self.signal(signal.SIGTERM if self.num_requests == 1 else signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        """To the processes alone, not to what they have started, which they need to save and stop."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(number)

    def wait(self) -> None:
        """Until all have ended, or one has failed and the others were given time to notice."""
        while len(self.ended) < len(self.processes):
            self._look()
            if any(self.ended.values()):
                break
            time.sleep(POLL_S)
        for number in (None, signal.SIGTERM):
            if number is not None:
                self.signal(number)
            end_s = time.monotonic() + GRACE_S
            while len(self.ended) < len(self.processes) and time.monotonic() < end_s:
                time.sleep(POLL_S)
                # Whoever is told to stop now has not failed.
                self._look(by_themselves=number is None)

    def _look(self, by_themselves: bool = True) -> None:
        for index, process in enumerate(self.processes):
            status = process.poll()
            if status is not None and index not in self.ended:
                self.ended[index] = status if by_themselves else 0

    def clear(self) -> None:
        """Kills whatever is left, the workers of dead processes too."""
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for process in self.processes:
            process.wait()

    def culprit(self) -> tuple[int, int] | None:
        """(index, status) of the process that failed first, the one that others only lost; None if none failed."""
        failed = [(index, status) for index, status in self.ended.items() if status]
        own = [one for one in failed if one[1] not in SECONDARY]
        return next(iter(own or failed), None)


def relay(index: int, process: subprocess.Popen[str]) -> threading.Thread:
    """A thread that writes the lines of a process to stderr, each after its number."""

    def work() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(f"[{index}] {line}")
            sys.stderr.flush()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def run(command_lines: Sequence[Sequence[str]], gpus: int = 0) -> int:
    """The exit status of a job of these processes; nothing of it is left running."""
    job = Job([])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, job.stop)
    try:
        for index, command in enumerate(command_lines):
            job.processes.append(start(index, command, gpus))
        relays = [relay(i, process) for i, process in enumerate(job.processes) if i]
        job.wait()
    finally:
        job.clear()
    for thread in relays:
        thread.join(GRACE_S)
    if job.num_requests:
        return EXIT_INTERRUPTED
    failed = job.culprit()
    if failed is None:
        return 0
    index, status = failed
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"failed with status {status}"
    stuck = [i for i in range(len(command_lines)) if i not in job.ended]
    if status in SECONDARY and stuck:
        index, how = stuck[0], "was stuck and had to be killed"
    # These explain themselves.
    if status not in (EXIT_USER_ERROR, EXIT_INTERRUPTED):
        print(
            f"error: process {index} of {len(command_lines)} {how}, and all were ended; the same command goes on from "
            "what was saved last",
            file=sys.stderr,
        )
    return status if status > 0 else 128 - status


def keep(argv: Sequence[str]) -> list[str]:
    """The whole command line for `main`; of absl's flags none is touched."""
    flags.FLAGS(argv[:1])
    return list(argv)


def main(argv: Sequence[str]) -> int:
    """Runs the job of the command line; its exit status."""
    num_processes, gpus, arguments = parse(argv)
    return run(commands(num_processes, free_port(), arguments), gpus)


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=keep)

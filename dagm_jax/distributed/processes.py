"""Multi-process helpers: gather, broadcast, run on process 0, and shutdown when a peer dies.

A job of one process, the usual one, is ``ALONE``: nothing is exchanged or watched. Those of a larger job
run one program over one workdir, on a file system that they share, and call everything here in one order.
"""

from __future__ import annotations

import hashlib
import pickle
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dagm_jax.console import console
from dagm_jax.errors import DISK_ERRORS, UserError

T = TypeVar("T")

# Words in the errors of collectives and of jax's service that report a lost process.
SIGNS_OF_LOSS = re.compile("gloo|nccl|coordination service|connection (reset|closed)|socket closed", re.I)
# Smallest size of a message; sizes are padded to powers of two, because each is compiled once.
LEAST_BYTES = 1024


class Watchdog:
    """A thread that calls ``on_silence(seconds)`` once, if `heartbeat` was not called for ``timeout_s``.

    A process whose peer is stuck hangs inside a collective, where no exception reaches it.
    """

    def __init__(self, timeout_s: float, on_silence: Callable[[float], None]) -> None:
        self._timeout_s, self._on_silence = timeout_s, on_silence
        self._last_s, self._is_paused = time.monotonic(), False
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def heartbeat(self) -> None:
        """There was progress."""
        self._last_s = time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block no progress is expected."""
        self._is_paused = True
        try:
            yield
        finally:
            self.heartbeat()
            self._is_paused = False

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._timeout_s / 4))
            silence_s = time.monotonic() - self._last_s
            if silence_s > self._timeout_s and not self._is_paused:
                self._on_silence(silence_s)
                return


@dataclass(frozen=True)
class Processes:
    """This process's place ``index`` among ``count``; the first, 0, is the one that writes."""

    index: int = 0
    count: int = 1
    watchdog: Watchdog | None = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def heartbeat(self) -> None:
        """Reports progress to the watchdog."""
        if self.watchdog is not None:
            self.watchdog.heartbeat()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of the items; `interleave` restores the order of all parts' results."""
        return items[self.index :: self.count]

    def gather(self, value: T) -> list[T]:
        """Every process's value (anything that can be pickled), in their order, on every process."""
        return self._exchange(value, range(self.count))

    def broadcast(self, value: T) -> T:
        """Process 0's value on every process: no process may differ in it, even by a rounding."""
        return self._exchange(value, [0])[0]

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on any process."""
        return flag if self.count == 1 else bool(multihost_utils.process_allgather(np.int32(flag)).any())

    def all_or_raise(self, work: Callable[[], T]) -> list[T]:
        """Results of ``work()`` on every process; a UserError or an OSError of DISK_ERRORS of one is raised on all."""
        if self.count == 1:
            return [work()]
        value: T | None = None
        failure: UserError | OSError | None = None
        try:
            value = work()
        except UserError as error:
            failure = UserError(str(error))
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            # Each process's caller knows the folder and makes one line of it.
            failure = OSError(error.errno, error.strerror)
        outcomes = self.gather((value, failure))
        for _, failure in outcomes:
            if failure is not None:
                raise failure
        return [value for value, _ in outcomes]  # type: ignore[misc]

    def _only_if(self, is_turn: bool, work: Callable[[], T]) -> list[T]:
        """As `all_or_raise`, with ``work`` run where it ``is_turn``; the watchdogs of the others pause meanwhile."""
        with nullcontext() if is_turn or self.watchdog is None else self.watchdog.paused():
            return self.all_or_raise(work if is_turn else lambda: None)  # type: ignore[return-value, arg-type]

    def on_process_0(self, work: Callable[[], T]) -> T:
        """Result of ``work()`` on process 0, which alone runs it; the others wait for as long as it takes."""
        return self._only_if(self.is_first, work)[0]

    def in_turns(self, work: Callable[[], T]) -> T:
        """Result of ``work()`` here, run by process 0, then by one process of each other machine, then by the rest.

        For work that finds the results of earlier turns on disk, be it shared by all machines or each machine's own.
        """
        machines = self.gather(platform.node())
        leads = machines.index(machines[self.index]) == self.index
        turn = 0 if self.is_first else 1 if leads else 2
        # Appended, not returned: results may be large, and the other processes have their own.
        value: list[T] = []
        for now in range(3):
            self._only_if(now == turn, lambda: value.append(work()))
        return value[0]

    def check_same(self, what: str, text: str) -> None:
        """Raises UserError where the processes differ in ``text``, from which they would compute different things."""
        digests = self.gather(hashlib.sha256(text.encode()).hexdigest())
        other = next((i for i, digest in enumerate(digests) if digest != digests[0]), None)
        if other is not None:
            raise UserError(
                f"process {other} of {self.count} differs from process 0 in {what}; start all by one command over "
                "one file system"
            )

    def _exchange(self, value: T, sources: Sequence[int]) -> list[T]:
        """Values of these processes, on all; sent one after the other, which takes no more memory than they need."""
        if self.count == 1:
            return [value]
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = multihost_utils.process_allgather(np.uint32(own.size))
        received: list[T] = []
        for source in sources:
            size = int(sizes[source])
            message = np.zeros(max(LEAST_BYTES, 1 << (size - 1).bit_length()), np.uint8)
            if source == self.index:
                message[:size] = own
            message = multihost_utils.broadcast_one_to_all(message, is_source=source == self.index)
            received.append(pickle.loads(np.asarray(message)[:size].tobytes()))
        return received


ALONE = Processes()


def connect(
    coordinator_address: str | None,
    num_processes: int | None,
    process_id: int | None,
    is_cluster: bool,
    timeout_s: int,
    on_silence: Callable[[float], None],
) -> Processes:
    """The processes of this job, named by the flags of `dagm_jax.main`, once all of them are there.

    `ALONE` without flags; ``is_cluster`` alone: as jax detects them. To be called before anything that starts jax's
    backend. A dead process is noticed within twice ``timeout_s``, one that is stuck after it (see `Watchdog`). All
    processes but the first print nothing but errors. Raises UserError for incomplete flags and without a cluster.
    """
    given = dict(coordinator_address=coordinator_address, num_processes=num_processes, process_id=process_id)
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not is_cluster:
        return ALONE
    if missing and len(missing) < len(given):
        raise UserError(
            f"`--{missing[0]}` is missing; give --coordinator_address, --num_processes and --process_id together, or "
            "--distributed alone on a cluster that jax detects"
        )
    if process_id is not None and num_processes is not None and process_id >= num_processes:
        raise UserError(
            f"`--process_id` (={process_id}) must be below `--num_processes` (={num_processes}); the first is 0"
        )
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            cluster_detection_method="deactivate" if coordinator_address else None,
            initialization_timeout=timeout_s,
            # Later than the watchdog, whose line says what happened.
            heartbeat_timeout_seconds=2 * timeout_s,
            shutdown_timeout_seconds=timeout_s,
        )
    except (ValueError, RuntimeError) as error:
        first_line = (str(error).splitlines() or [""])[0]
        where = coordinator_address or "of a cluster that jax detects"
        raise UserError(
            f"the other processes could not be reached by the coordinator {where} ({first_line}); on a cluster "
            "that jax does not know give --coordinator_address, --num_processes and --process_id"
        ) from error
    watchdog = Watchdog(timeout_s, on_silence) if jax.process_count() > 1 else None
    console.quiet = jax.process_index() > 0
    return Processes(jax.process_index(), jax.process_count(), watchdog)


def interleave(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Items in their order, from their `Processes.share` parts."""
    count, total = len(parts), sum(map(len, parts))
    return [parts[i % count][i // count] for i in range(total)]

"""Several processes of a job played by threads of this one, for tests of what they exchange."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Barrier
from typing import Any, TypeVar

from dagm_jax.distributed.processes import Processes

T = TypeVar("T")
TIMEOUT_S = 60


class Hub:
    """Meeting point of the threads; messages go through pickle as between processes."""

    def __init__(self, count: int) -> None:
        self._slots: list[bytes] = [b""] * count
        self._barrier = Barrier(count)

    def exchange(self, index: int, value: Any) -> list[Any]:
        self._slots[index] = pickle.dumps(value)
        self._barrier.wait(TIMEOUT_S)
        values = [pickle.loads(slot) for slot in self._slots]
        self._barrier.wait(TIMEOUT_S)
        return values


@dataclass(frozen=True)
class FakeProcesses(Processes):
    hub: Hub = field(kw_only=True)

    def any(self, flag: bool) -> bool:
        return any(self.gather(flag))

    def _exchange(self, value: T, sources: Sequence[int]) -> list[T]:
        values = self.hub.exchange(self.index, value)
        return [values[source] for source in sources]


@dataclass(frozen=True)
class CountingProcesses(Processes):
    """A job of one that counts what its watchdog would be told."""

    heartbeats: list[str] = field(default_factory=list, kw_only=True)

    def heartbeat(self) -> None:
        self.heartbeats.append("heartbeat")


def run_as_processes(count: int, work: Callable[[Processes], T]) -> list[T]:
    """Results of ``work`` in each of ``count`` processes; an exception of one is raised here."""
    hub = Hub(count)
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, FakeProcesses(i, count, hub=hub)) for i in range(count)]
        return [future.result(TIMEOUT_S) for future in futures]

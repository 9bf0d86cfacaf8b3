"""Seconds of a command, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Wall-clock seconds of named stages; a stage within another one counts for itself alone.

    begun_s: `time.perf_counter` at the start of the process, up to which the stage "start" reaches back.
    """

    def __init__(self, begun_s: float | None = None) -> None:
        now_s = time.perf_counter()
        self._begun_s = now_s if begun_s is None else begun_s
        self._seconds: dict[str, float] = {"start": now_s - self._begun_s}
        self._inner = [0.0]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the block to a stage."""
        start_s = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed_s = time.perf_counter() - start_s
            self._seconds[name] = self._seconds.get(name, 0.0) + elapsed_s - self._inner.pop()
            self._inner[-1] += elapsed_s

    def to_report(self) -> dict[str, float]:
        """Seconds by stage so far, in the order in which they ended, and of the whole command."""
        total_s = time.perf_counter() - self._begun_s
        return {**self._seconds, "other": total_s - sum(self._seconds.values()), "total": total_s}

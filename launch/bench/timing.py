"""Timing: blocks of calls that end when the work is done, and several programs in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any

import numpy as np

# Type of a timed program: ``run(n)`` makes n calls one after the other and returns when all results are there.
Run = Callable[[int], None]

# Limits of a block: least seconds, most calls.
LEAST_BLOCK_S = 0.25
MOST_CALLS = 200
# Seconds before a block: PyTorch's OpenMP threads (libgomp) spin for milliseconds after a call and keep a core busy.
SETTLE_S = 0.05


@dataclass(frozen=True)
class Blocks:
    """Seconds per call: the mean of each block of ``num_calls`` calls, or each call where they are timed singly."""

    seconds: tuple[float, ...]
    num_calls: int

    def percentile(self, percent: float) -> float:
        """Percentile of the seconds per call, linear between neighbours."""
        return float(np.percentile(self.seconds, percent))

    @property
    def median_s(self) -> float:
        return self.percentile(50)


def repeat(call: Callable[[], Any], wait: Callable[[Any], object] = lambda result: None) -> Run:
    """A run of ``call`` that ends with ``wait(last result)``."""

    def run(number: int) -> None:
        for _ in range(number):
            result = call()
        wait(result)

    return run


def seconds_of(run: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start_s = perf_counter()
    run()
    return perf_counter() - start_s


def calls_per_block(run: Run) -> int:
    """The number of calls that last LEAST_BLOCK_S, from one call after a first one that warms up."""
    run(1)
    once_s = seconds_of(lambda: run(1))
    return math.ceil(LEAST_BLOCK_S / max(once_s, LEAST_BLOCK_S / MOST_CALLS))


def time_alternately(runs: Mapping[str, Run], repetitions: int, *, singly: bool = False) -> dict[str, Blocks]:
    """Name → blocks, timed in turn so that a slow moment hits all programs alike, SETTLE_S before each.

    ``singly`` times every call of a block on its own, for latencies.
    """
    num_calls = {name: calls_per_block(run) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            sleep(SETTLE_S)
            number = num_calls[name]
            for calls in [1] * number if singly else [number]:
                seconds[name].append(seconds_of(lambda run=run, n=calls: run(n)) / calls)  # type: ignore[misc]
    return {name: Blocks(tuple(seconds[name]), num_calls[name]) for name in runs}


def time_blocks(run: Run, repetitions: int, *, singly: bool = False) -> Blocks:
    """Blocks of one program."""
    return time_alternately({"": run}, repetitions, singly=singly)[""]

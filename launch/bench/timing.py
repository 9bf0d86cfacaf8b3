"""Measuring time: blocks of calls that end when the work is done, and several programs in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from launch.bench.arithmetic import median, percentile

# ``run(n)`` makes n calls one after the other and returns when the results of all are there.
Run = Callable[[int], None]
Clock = Callable[[], float]

LEAST_BLOCK_S = 0.25
# The threads of PyTorch's OpenMP (libgomp) spin for milliseconds after a call: a core that what comes next has not got.
SETTLE_S = 0.05
MOST_CALLS = 200


@dataclass(frozen=True)
class Blocks:
    """Seconds per call, one mean for each block of ``num_calls`` calls."""

    seconds: tuple[float, ...]
    num_calls: int

    @property
    def median_s(self) -> float:
        return median(self.seconds)

    @property
    def p90_s(self) -> float:
        return percentile(self.seconds, 90)


def seconds_of(run: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Wall seconds of one call."""
    start_s = clock()
    run()
    return clock() - start_s


def calls_per_block(run: Run, clock: Clock = time.perf_counter) -> int:
    """So many calls that a block lasts LEAST_BLOCK_S, from one call after a first one that warms up."""
    run(1)
    once_s = seconds_of(lambda: run(1), clock)
    wanted = LEAST_BLOCK_S / max(once_s, LEAST_BLOCK_S / MOST_CALLS)
    return max(1, min(MOST_CALLS, -int(-wanted // 1)))


def time_alternately(
    runs: Mapping[str, Run], repetitions: int, clock: Clock = time.perf_counter
) -> dict[str, Blocks]:
    """Blocks of each program, one of each after the other and again, so that a slow moment hits all alike; a pause
    before each, in which the threads of the one before come to rest.
    """
    num_calls = {name: calls_per_block(run, clock) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            time.sleep(SETTLE_S)
            block_s = seconds_of(lambda run=run, name=name: run(num_calls[name]), clock)  # type: ignore[misc]
            seconds[name].append(block_s / num_calls[name])
    return {name: Blocks(tuple(seconds[name]), num_calls[name]) for name in runs}


def time_blocks(run: Run, repetitions: int, clock: Clock = time.perf_counter) -> Blocks:
    """Blocks of one program."""
    return time_alternately({"": run}, repetitions, clock)[""]

"""Measuring the cells of a plan one after the other; one that fails is a line of the table, not the end of the run."""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jax

from dagm_jax.config import RunConfig
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train.progress import console, show
from dagm_jax.types import UserError
from launch.bench.arithmetic import efficiencies
from launch.bench.measure import Values
from launch.bench.plan import Cell, Plan

# ``measure(cell) -> figures``; whatever it raises is the cell's failure.
Measure = Callable[[Cell], Values]
MESSAGE_LENGTH = 300


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its figures, or why there are none."""

    cell: Cell
    values: Values = field(default_factory=dict)
    error: str = ""
    seconds: float = 0.0

    def json(self) -> dict[str, Any]:
        """JSON values: the cell's fields, ``status``, ``error`` where it is not "measured", ``values``."""
        status = "failed" if self.error else "measured"
        return {**self.cell.values(), "status": status, "error": self.error or None, "values": self.values}


@dataclass
class State:
    """The cells of a run and what has become of them so far."""

    cells: Sequence[Cell]
    outcomes: list[Outcome] = field(default_factory=list)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]

    @property
    def waiting(self) -> list[Cell]:
        """The cells that have not been tried."""
        return list(self.cells[len(self.outcomes) :])

    def of(self, *kinds: str) -> list[Outcome]:
        """The measured cells of these kinds, steps with their scaling over devices."""
        found = [o for o in self.outcomes if o.cell.kind in kinds and not o.error]
        rows = [{**o.cell.values(), **o.values} for o in found]
        return [
            Outcome(o.cell, {**o.values, **efficiencies(row, rows)}) if o.cell.kind == "step" else o
            for o, row in zip(found, rows, strict=True)
        ]


def run_cells(
    state: State,
    measure: Measure,
    on_change: Callable[[], None],
    time_limit_s: float | None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measures every cell; ``on_change`` is called after each.

    Once the time left is shorter than the longest cell took, the rest is listed as not measured.
    """
    start_s, longest_s = clock(), 0.0
    with show("benchmark", len(state.cells)) as bar:
        for cell in state.cells:
            left_s = None if time_limit_s is None else time_limit_s - (clock() - start_s)
            if left_s is not None and left_s < longest_s:
                outcome = Outcome(cell, error=f"not measured: {left_s:.0f} s of --time_limit_s were left")
            else:
                console.print(f"benchmark: {cell.title}")
                outcome = attempt(cell, measure, clock)
            longest_s = max(longest_s, outcome.seconds)
            state.outcomes.append(outcome)
            if outcome.error:
                console.print(f"benchmark: cell failed: {outcome.error}")
            bar.advance(1, f"{len(state.failures)} failed" if state.failures else "")
            on_change()


def attempt(cell: Cell, measure: Measure, clock: Callable[[], float]) -> Outcome:
    """The cell's figures, or the first line of what went wrong; memory that a failure held is let go."""
    start_s = clock()
    try:
        values = measure(cell)
    except Exception as error:  # out of memory, a compiler's failure: another cell may well succeed
        text = " ".join(str(error).split())[:MESSAGE_LENGTH]
        message = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
        outcome = Outcome(cell, error=message, seconds=clock() - start_s)
    else:
        outcome = Outcome(cell, values, seconds=clock() - start_s)
    if outcome.error:
        # Only now has the exception, whose frames hold the arrays, gone.
        jax.clear_caches()
        gc.collect()
    return outcome


def check_peer(plan: Plan) -> None:
    """Raises UserError where the plan needs PyTorch and it is not installed."""
    if plan.has_peer and not all(map(importlib.util.find_spec, ("torch", "pytorch_msssim"))):
        raise UserError(
            "`--what` (=peer_…) needs PyTorch, which is not installed; pip install -e '.[peer]' or leave the peer out"
        )


def check_task(config: RunConfig) -> SegmentationConfig:
    """The task, if the twin has its loss. Raises UserError."""
    task = config.task
    if not isinstance(task, SegmentationConfig) or (task.ssim_weight and task.ssim_scales != 1):
        scales = f" with task.ssim_scales={task.ssim_scales}" if isinstance(task, SegmentationConfig) else ""
        raise UserError(
            f"`--what` (=peer_…): PyTorch's side has the losses of segmentation with SSIM of one scale, not of "
            f"{task.name}{scales}; leave the peer out"
        )
    return task

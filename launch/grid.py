"""Running the cells of a grid one after the other; finished ones are read, interrupted ones resumed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import jax

from dagm_jax.config import RunConfig, differences
from dagm_jax.experiment import check_same_run
from dagm_jax.train.progress import console
from dagm_jax.trained_model import REPORT
from dagm_jax.types import UserError
from launch.cells import BASE, Cell

ReadConfig = Callable[[str, Sequence[str]], RunConfig]
Run = Callable[[RunConfig, Path], dict[str, Any]]


@dataclass(frozen=True)
class Result:
    """A finished cell: where it is and its ``report.json``."""

    cell: Cell
    workdir: Path
    report: dict[str, Any]


@dataclass
class State:
    """What is known of the grid so far, in the order of the cells; ``failures``: the message of a cell's mistake."""

    cells: Sequence[Cell]
    results: dict[Cell, Result] = field(default_factory=dict)
    failures: dict[Cell, str] = field(default_factory=dict)

    def title(self) -> str:
        """How far the grid is, as a line."""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"The paper's tables: {len(self.results)} of {len(self.cells)} cells finished{failed}"

    def of(self, **wanted: Any) -> list[Result]:
        """The finished cells with these values of their fields, in the order of the cells."""
        return [
            self.results[cell]
            for cell in self.cells
            if cell in self.results and all(getattr(cell, name) == value for name, value in wanted.items())
        ]


def read_configs(
    cells: Sequence[Cell], read: ReadConfig, small: bool, overrides: Sequence[str]
) -> dict[Cell, RunConfig]:
    """The configuration of every cell, before any of them runs. Raises UserError, which names the cell."""
    configs = {}
    for cell in cells:
        try:
            configs[cell] = read(cell.config_path(small), cell.overrides(overrides))
        except UserError as error:
            raise UserError(f"cell {cell.title}: {error}") from error
    for cell, config in configs.items():
        base = Cell(cell.task, cell.model, cell.class_id, cell.seed)
        if cell.variant != BASE and not differences(configs[base], config):
            raise UserError(
                f"`--ablation`: {cell.variant.name} is the configured run itself under the overrides given; "
                f"leave out {' '.join(cell.variant.overrides)}"
            )
    return configs


def read_finished(configs: dict[Cell, RunConfig], root: Path) -> State:
    """The state with the cells that are finished. Raises UserError where a cell's folder is another run's."""
    state = State(list(configs))
    for cell, config in configs.items():
        workdir = cell.workdir(root)
        check_same_run(config, workdir)
        if (workdir / REPORT).exists():
            state.results[cell] = Result(cell, workdir, json.loads((workdir / REPORT).read_text()))
    return state


@dataclass
class Pace:
    """How long cells took in this process, model by model, and so how long the others may take."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, cell: Cell, seconds: float) -> None:
        self.seconds[cell.model].append(seconds)

    def left_s(self, cells: Sequence[Cell]) -> float | None:
        """Seconds that these cells may take; a model not seen yet takes the mean of all. None: nothing seen."""
        seen = [s for many in self.seconds.values() for s in many]
        if not seen:
            return None
        return sum(fmean(self.seconds.get(cell.model) or seen) for cell in cells)


def run_cells(
    state: State, configs: dict[Cell, RunConfig], root: Path, run: Run, on_change: Callable[[Cell], None]
) -> None:
    """Runs what is not finished and puts it into ``state``; ``on_change`` is called with each cell after it.

    A UserError is the cell's and the next one runs; Interrupted and anything else end the grid.
    """
    waiting = [cell for cell in state.cells if cell not in state.results]
    if len(waiting) < len(state.cells):
        console.print(f"grid: {len(state.results)} of {len(state.cells)} cells were finished before")
    pace, start_s = Pace(), time.monotonic()
    for place, cell in enumerate(waiting):
        left = pace.left_s(waiting[place:])
        about = f", about {_clock(left)} left" if left is not None else ""
        number = len(state.cells) - len(waiting) + place + 1
        elapsed = f"{_clock(time.monotonic() - start_s)} elapsed{about}"
        console.print(f"grid: cell {number} of {len(state.cells)} ({elapsed}): {cell.title}")
        began_s = time.monotonic()
        try:
            report = run(configs[cell], cell.workdir(root))
        except UserError as error:
            state.failures[cell] = str(error)
            console.print(f"grid: cell failed: {error}")
        else:
            state.results[cell] = Result(cell, cell.workdir(root), report)
            pace.add(cell, time.monotonic() - began_s)
        # Compiled programs of one cell are of no use to the next, and add up.
        jax.clear_caches()
        on_change(cell)


def _clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))

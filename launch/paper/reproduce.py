"""A grid's runs, one after the other: finished cells are read, interrupted ones resumed, tables written after each."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import jax

from dagm_jax.config import RunConfig, differences
from dagm_jax.console import console
from dagm_jax.errors import UserError
from dagm_jax.experiment.resume import check_same_run
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.storage import locked
from launch.paper.cells import BASE, Cell, Grid, Report
from launch.paper.pages import print_summary, remove_pages, write_pages

Run = Callable[[RunConfig, Path], Report]


def reproduce(grid: Grid, run: Run) -> None:
    """Runs the grid's cells with ``run`` and writes tables and figures into its workdir.

    Raises UserError for a mistake in the configurations before anything runs, and at the end where a cell failed.
    """
    configs = read_configs(grid)
    with locked(grid.plan.workdir, "workdir"):
        read_finished(grid, configs)
        remove_pages(grid.plan.workdir)
        write_pages(grid)
        run_cells(grid, configs, run)
    print_summary(grid)
    if grid.failures:
        cell, message = next(iter(grid.failures.items()))
        raise UserError(
            f"{len(grid.failures)} of {len(configs)} cells failed, the first: {cell.title}: {message}"
        )


def read_configs(grid: Grid) -> dict[Cell, RunConfig]:
    """The configuration of every cell, before any of them runs. Raises UserError, which names the cell."""
    configs: dict[Cell, RunConfig] = {}
    for cell in grid.plan.cells():
        try:
            configs[cell] = cell.read_config(grid.plan.small, grid.overrides)
        except UserError as error:
            raise UserError(f"cell {cell.title}: {error}") from error
        if cell.variant != BASE and not differences(configs[replace(cell, variant=BASE)], configs[cell]):
            raise UserError(
                f"`--ablation`: {cell.variant.name} is the configured run itself under the overrides given; "
                f"leave out {' '.join(cell.variant.overrides)}"
            )
    return configs


def read_finished(grid: Grid, configs: Mapping[Cell, RunConfig]) -> None:
    """Puts the finished cells into the grid. Raises UserError where a cell's folder holds another run."""
    for cell, config in configs.items():
        workdir = Workdir(cell.workdir(grid.plan.workdir))
        check_same_run(config, workdir)
        if workdir.is_finished:
            grid.reports[cell] = json.loads(workdir.report.read_text())


def run_cells(grid: Grid, configs: Mapping[Cell, RunConfig], run: Run) -> None:
    """Runs the unfinished cells and writes the pages after each.

    A UserError fails its cell alone, and the next one runs; Interrupted and anything else end the grid.
    """
    waiting = [cell for cell in configs if cell not in grid.reports]
    num_before, start_s = len(grid.reports), time.monotonic()
    if num_before:
        console.print(f"grid: {num_before} of {len(configs)} cells were finished before")
    seconds: dict[str, list[float]] = defaultdict(list)
    for index, cell in enumerate(waiting):
        left_s = time_left_s(seconds, waiting[index:])
        left = "" if left_s is None else f", about {_clock(left_s)} left"
        elapsed = f"{_clock(time.monotonic() - start_s)} elapsed{left}"
        console.print(f"grid: cell {num_before + index + 1} of {len(configs)} ({elapsed}): {cell.title}")
        began_s = time.monotonic()
        try:
            grid.reports[cell] = run(configs[cell], cell.workdir(grid.plan.workdir))
            seconds[cell.model].append(time.monotonic() - began_s)
        except UserError as error:
            grid.failures[cell] = str(error)
            console.print(f"grid: cell failed: {error}")
        # Compiled programs of one cell are of no use to the next, and add up.
        jax.clear_caches()
        write_pages(grid, cell)


def time_left_s(seconds: Mapping[str, Sequence[float]], cells: Sequence[Cell]) -> float | None:
    """Expected seconds for these cells from the ``seconds`` that finished ones took, by model; None for no data.

    A model without data takes the mean of all.
    """
    known = [s for values in seconds.values() for s in values]
    return sum(fmean(seconds.get(cell.model) or known) for cell in cells) if known else None


def _clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))

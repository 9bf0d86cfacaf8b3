"""Runs of a grid, one after the other: finished ones are read, interrupted ones resumed, tables written after each."""

from __future__ import annotations

import json
import time
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

    Raises UserError for mistakes in the configurations, and where a cell's folder holds another run, before anything
    runs, and at the end where a cell failed.
    """
    configs = read_configs(grid)
    with locked(grid.plan.workdir, "workdir"):
        for cell, config in configs.items():
            workdir = Workdir(cell.workdir(grid.plan.workdir))
            check_same_run(config, workdir)
            if workdir.is_finished:
                grid.reports[cell] = json.loads(workdir.report.read_text())
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
                f"{cell.title}: {cell.variant.name} is the configured run itself under the overrides given; "
                f"leave out {' '.join(cell.variant.overrides)}"
            )
    return configs


def run_cells(grid: Grid, configs: Mapping[Cell, RunConfig], run: Run) -> None:
    """Runs the unfinished cells and writes the pages after each.

    A UserError fails its cell alone, and the next one runs; Interrupted and anything else end the grid.
    """
    waiting = [cell for cell in configs if cell not in grid.reports]
    num_before, start_s = len(grid.reports), time.monotonic()
    if num_before:
        console.print(f"grid: {num_before} of {len(configs)} cells were finished before")
    seconds: dict[str, list[float]] = {}
    for index, cell in enumerate(waiting):
        left_s = time_left_s(seconds, waiting[index:])
        spans = {"elapsed": time.monotonic() - start_s} | ({} if left_s is None else {"left": left_s})
        times = ", about ".join(f"{timedelta(seconds=round(s))} {name}" for name, s in spans.items())
        console.print(f"grid: cell {num_before + index + 1} of {len(configs)} ({times}): {cell.title}")
        began_s = time.monotonic()
        try:
            grid.reports[cell] = run(configs[cell], cell.workdir(grid.plan.workdir))
            seconds.setdefault(cell.model, []).append(time.monotonic() - began_s)
        except UserError as error:
            grid.failures[cell] = str(error)
            console.print(f"grid: cell failed: {error}")
        # Compiled programs of one cell serve no other, and would fill the memory.
        jax.clear_caches()
        write_pages(grid)


def time_left_s(seconds: Mapping[str, Sequence[float]], cells: Sequence[Cell]) -> float | None:
    """Expected seconds of these cells, each the mean of its model's so far, else of all; None before the first ends."""
    known = [s for values in seconds.values() for s in values]
    return sum(fmean(seconds.get(cell.model, known)) for cell in cells) if known else None

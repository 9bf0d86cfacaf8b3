"""A benchmark from its flags to its files; a cell that fails is a line of the table, not the end of the run."""

from __future__ import annotations

import gc
import importlib.util
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import jax

from dagm_jax.command_line import one_line
from dagm_jax.config import RunConfig
from dagm_jax.console import console, show
from dagm_jax.distributed.devices import make_devices
from dagm_jax.errors import UserError
from dagm_jax.storage import locked
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.versions import PACKAGES, package_versions
from launch.bench import hardware, report
from launch.bench.measure import Options, Values, measure
from launch.bench.plan import ON_FILES, PEER, Cell, Request
from launch.bench.report import Outcome, State
from launch.bench.subject import Subjects, read_configs, take_devices
from launch.prepare.procedural_images import Recipe, write_class

# Most characters of a failed cell's reason.
MESSAGE_LENGTH = 300
# Packages that the figures depend on.
VERSIONED = (*PACKAGES, "torch", "pillow", "onnxruntime", "openvino")


def run(request: Request, overrides: tuple[str, ...], command: str, xla_flags: str) -> None:
    """Measures a request and writes its files. Raises UserError for mistakes before anything is measured."""
    cells = request.cells()
    configs = read_configs(request.configs, overrides)
    check_peer(cells, configs)
    for config in configs.values():
        take_devices(config, max(request.devices), xla_flags)
    with locked(request.output, "output"):
        if any(cell.kind in ON_FILES for cell in cells):
            configs = {name: on_files(config, request.output / "images") for name, config in configs.items()}
        subjects = Subjects(configs, request.output / "data", xla_flags)
        state = State(cells)
        origin = describe(request, overrides, command, configs, xla_flags)
        options = Options(request, overrides, origin["measured_peaks"])
        write = partial(report.write, state, origin, request.output)
        limit_s = request.time_limit_s or math.inf
        write()
        run_cells(state, lambda cell: measure(cell, subjects, options), write, limit_s)
    console.print(f"benchmark.md, benchmark.json: {request.output}")


def check_peer(cells: list[Cell], configs: Mapping[str, RunConfig]) -> None:
    """Raises UserError where cells need PyTorch and it is not installed, or lacks the loss of their configuration."""
    names = {cell.config for cell in cells if cell.kind.startswith(PEER)}
    if names and not all(map(importlib.util.find_spec, ("torch", "pytorch_msssim"))):
        raise UserError(
            "`--what` (=peer_…) needs PyTorch, which is not installed; pip install -e '.[peer]' or leave the peer out"
        )
    for name in names:
        check_task(configs[name])


def check_task(config: RunConfig) -> SegmentationConfig:
    """The task; raises UserError where the twin lacks its loss."""
    task = config.task
    if not isinstance(task, SegmentationConfig):
        raise UserError(
            f"`--what` (=peer_…): the PyTorch twin has the losses of segmentation alone, not of "
            f"{task.name}; leave the peer out"
        )
    return task


def on_files(config: RunConfig, folder: Path) -> RunConfig:
    """``config`` reading PNG files: built-in images are written to ``folder`` and read from there."""
    data = config.data
    if data.root:
        return config
    for class_id in data.classes:
        recipe = Recipe(class_id, data.procedural_defective, data.procedural_good, config.seed)
        with show(f"drawing class {class_id}", recipe.num_defective + recipe.num_good) as bar:
            write_class(recipe, folder, bar.advance)
    return replace(config, data=replace(data, root=str(folder)))


def describe(
    request: Request,
    overrides: tuple[str, ...],
    command: str,
    configs: Mapping[str, RunConfig],
    xla_flags: str,
) -> dict[str, Any]:
    """Command, hardware, versions, flags, peaks of the precisions (measured now) and start time, in JSON values."""
    compiler = {str(make_devices(config.parallel, xla_flags).compiler_options) for config in configs.values()}
    flags = {
        name: ",".join(map(str, value)) if isinstance(value, tuple) else value
        for name, value in asdict(request).items()
        if name not in ("output", "model")
    }
    flags |= {
        "overrides": " ".join(overrides),
        "XLA_FLAGS": xla_flags or "not set",
        "compiler_options": "; ".join(sorted(compiler)),
    }
    needs_peaks = {"step", "inference"} & set(request.what)
    return {
        "command": command,
        "hardware": hardware.describe(),
        "versions": {"python": platform.python_version(), **package_versions(VERSIONED)},
        "flags": flags,
        "measured_peaks": hardware.measure_peaks(request.precisions) if needs_peaks else {},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def run_cells(
    state: State,
    measure: Callable[[Cell], Values],
    on_change: Callable[[], None],
    time_limit_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Measures every cell, frees the memory of those that fail, and calls ``on_change`` after each.

    Once the time left is shorter than the longest cell took, the rest is listed as not measured.
    """
    start_s, longest_s = clock(), 0.0
    with show("benchmark", len(state.cells)) as bar:
        for cell in state.cells:
            began_s = clock()
            left_s = time_limit_s - (began_s - start_s)
            if left_s < longest_s:
                outcome = Outcome(cell, error=f"not measured: {left_s:.0f} s of --time_limit_s were left")
            else:
                console.print(f"benchmark: {cell.title}")
                try:
                    outcome = Outcome(cell, measure(cell))
                except Exception as error:  # out of memory, no compiler: another cell may well succeed
                    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
                    outcome = Outcome(cell, error=f"{kind}{one_line(error)}"[:MESSAGE_LENGTH])
            longest_s = max(longest_s, clock() - began_s)
            state.outcomes.append(outcome)
            if outcome.error:
                console.print(f"benchmark: {outcome.error}")
                # The exception, whose frames hold the arrays, is gone only here.
                jax.clear_caches()
                gc.collect()
            bar.advance(1, f"{len(state.failures)} failed" if state.failures else "")
            on_change()

"""A benchmark from its request to its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table as Shown

from dagm_jax.config import RunConfig
from dagm_jax.experiment.workdir import locked
from dagm_jax.train.parallel import make_devices
from dagm_jax.train.progress import console, show
from launch.bench import hardware, ours, plots, runner, tables
from launch.bench.measure import Options, Values, measure, measure_command
from launch.bench.plan import ON_FILES, PEER, Cell, Plan, Request
from launch.procedural_images import Recipe, write_class

RATIOS = ("step_ratio", "batch_ratio", "ratio_per_core", "first_ratio")


def run(request: Request, xla_flags: str) -> None:
    """Measures the request's cells and writes its files. Raises UserError for mistakes before anything is measured."""
    runner.check_peer(request.plan)
    configs = ours.read_configs(request.plan.configs, request.overrides)
    check_tasks(request.plan, configs)
    for config in configs.values():
        ours.take_devices(config, max(request.plan.devices), xla_flags)
    with locked(request.output, "output"):
        if any(cell.kind in ON_FILES for cell in request.plan.cells()):
            configs = {name: on_files(config, request.output / "images") for name, config in configs.items()}
        subjects = ours.Subjects(configs, request.output / "data", xla_flags)
        state = runner.State(request.plan.cells())
        origin = describe(request, configs, xla_flags)
        options = make_options(request, origin)

        def write() -> None:
            tables.write_texts(state, origin, request.output)
            plots.write_plots(state, origin, request.output)

        with ours.persistent_cache(request.output / "programs"):
            write()
            runner.run_cells(
                state, lambda cell: measure_cell(cell, subjects, options), write, request.time_limit_s
            )
    print_summary(state, request.output)


def check_tasks(plan: Plan, configs: dict[str, RunConfig]) -> None:
    """Raises UserError where PyTorch's side lacks the loss of a configuration that it is asked for."""
    for name in {cell.config for cell in plan.cells() if cell.kind.startswith(PEER)}:
        runner.check_task(configs[name])


def on_files(config: RunConfig, folder: Path) -> RunConfig:
    """``config`` with its built-in images, if it has those, written to PNG files in ``folder``, and read from there."""
    data = config.data
    if data.root:
        return config
    for class_id in data.classes:
        recipe = Recipe(class_id, data.procedural_defective, data.procedural_good, config.seed)
        with show(f"drawing class {class_id}", recipe.num_images) as bar:
            write_class(recipe, folder, bar.advance)
    return replace(config, data=replace(data, root=str(folder)))


def describe(request: Request, configs: dict[str, RunConfig], xla_flags: str) -> tables.Origin:
    """The origin of all figures, with the peaks that this run's precisions need, measured now."""
    compiler = {str(make_devices(config.parallel, xla_flags).compiler_options) for config in configs.values()}
    flags: dict[str, Any] = {
        **request.flags,
        "XLA_FLAGS": xla_flags or "not set",
        "compiler_options": "; ".join(sorted(compiler)),
    }
    needs_peaks = any(cell.kind in ("step", "inference") for cell in request.plan.cells())
    peaks = hardware.measure_peaks(request.plan.precisions) if needs_peaks else {}
    return tables.Origin(request.command, hardware.describe(), hardware.versions(), flags, peaks)


def make_options(request: Request, origin: tables.Origin) -> Options:
    """What the cells need of the request."""
    return Options(
        repetitions=request.repetitions,
        epoch_slices=request.epoch_slices,
        peer_compiles=request.peer_compiles,
        peer_workers=request.peer_workers,
        profile=request.profile,
        folder=request.output,
        overrides=request.overrides,
        peaks=dict(origin.peaks),
    )


def measure_cell(cell: Cell, subjects: ours.Subjects, options: Options) -> Values:
    """The figures of any cell."""
    if cell.kind == "command":
        return measure_command(cell, subjects.configs[cell.config].data.root, options)
    if cell.kind.startswith(PEER):
        # PyTorch is an extra.
        from launch.bench.compare import compare

        return compare(cell, subjects, options)
    return measure(cell, subjects, options)


def print_summary(state: runner.State, folder: Path) -> None:
    """The main figure of each cell on the terminal, and where everything is."""
    table = Shown("cell", "figure", title="benchmark", title_justify="left")
    for outcome in state.outcomes:
        table.add_row(outcome.cell.title, outcome.error or main_figure(outcome.values))
    console.print(table)
    console.print(f"benchmark.md, benchmark.json and pictures: {folder}")


def main_figure(values: Values) -> str:
    """What one would look at first."""
    for name in RATIOS:
        if values.get(name) is not None:
            return f"{values[name]:.2f} times as fast as PyTorch ({name})"
    if "slices_per_s" in values:
        return f"{values['slices_per_s']:.1f} slices/s"
    return f"{values['command_s']:.1f} s, accuracy {values['accuracy']:.4f}"

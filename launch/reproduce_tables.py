"""The paper's tables and figures from our own runs: a grid of models, classes, tasks and seeds.

``python -m launch.reproduce_tables --models=custom_unet,conv_autoencoder,unet3plus --classes=1,8 --tasks=segmentation
--seeds=0,1,2 --workdir=DIR [--small] [--ablation] [--config.x.y=value …]``

Each cell is a run of ``dagm_jax.main`` in ``DIR/cells``. Finished cells are read and an interrupted one goes on, so the
same command ends what a kill or Ctrl-C cut short; the tables are written anew after each cell. ``--config.…`` holds for
every cell: ``--config.data.root=DIR`` for real images, ``--config.model.base_channels=16`` for networks of one width.
Start with DIR/index.md. Exit status as of ``dagm_jax.main``; 2 also where a cell failed.
"""

# Free of jax at import, like dagm_jax.main: grain's worker processes import this module again.
from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags, logging

from dagm_jax import command_line
from dagm_jax.main import guarded, read_config
from dagm_jax.types import UserError

if TYPE_CHECKING:
    from launch.cells import Plan
    from launch.grid import Run

OVERRIDE = "--config."


@dataclass(frozen=True)
class Request:
    """A command line: the grid, where it is kept, and what holds for all of its cells."""

    plan: Plan
    workdir: Path
    small: bool
    overrides: tuple[str, ...]
    command: str


def make_flags() -> flags.FlagValues:
    """The flags of this program."""
    values = command_line.make_flags()
    for name, default, meaning in (
        ("models", "custom_unet,conv_autoencoder,unet3plus", "Networks, by the names of configs/."),
        ("classes", "1,8", "Classes; a network is trained on each alone."),
        ("tasks", "segmentation", "Tasks; each has its own Table I."),
        ("seeds", "0,1,2", "Seeds of split, initialisation and sampling."),
    ):
        flags.DEFINE_list(name, default, meaning, flag_values=values)
    for name, meaning in (
        ("small", "The configurations' short forms, for two CPU cores."),
        ("ablation", "Also custom_unet with one thing taken away at a time."),
    ):
        flags.DEFINE_bool(name, False, meaning, flag_values=values)
    flags.DEFINE_string("workdir", "runs/tables", "Where everything is kept.", flag_values=values)
    return values


def parse_flags(argv: Sequence[str]) -> Request:
    """What the command line asks for; every mistake in it becomes a UserError of one line."""
    overrides = [argument for argument in argv[1:] if argument.startswith(OVERRIDE)]
    # The process's own flags count as read: grain's workers are handed them.
    flags.FLAGS(argv[:1])
    own = [argument for argument in argv if argument not in overrides]
    values = command_line.parse(make_flags(), own, __doc__)
    from launch.cells import Plan, check_overrides, whole_numbers

    check_overrides(overrides)
    plan = Plan(
        models=tuple(values.models),
        classes=whole_numbers("classes", values.classes, least=1),
        tasks=tuple(values.tasks),
        seeds=whole_numbers("seeds", values.seeds, least=0),
        ablation=values.ablation,
    )
    command = f"python -m launch.reproduce_tables {shlex.join(argv[1:])}".strip()
    return Request(plan, Path(values.workdir), values.small, tuple(overrides), command)


def main(request: Request) -> int:
    """Runs the grid and writes its tables; the exit status."""
    logging.set_verbosity(logging.WARNING)
    from dagm_jax.experiment.run import run

    xla_flags = os.environ.get("XLA_FLAGS", "")
    reproduce(request, lambda config, workdir: run(config, workdir, xla_flags))
    return 0


def reproduce(request: Request, run: Run) -> None:
    """Runs the cells of the request with ``run`` and writes tables and figures into its workdir.

    Raises UserError for a mistake in the configurations before anything runs, and at the end where a cell failed.
    """
    from dagm_jax.experiment.workdir import locked
    from launch.grid import read_configs, read_finished, run_cells
    from launch.pages import Pages

    root = request.workdir
    configs = read_configs(request.plan.cells(), read_config, request.small, request.overrides)
    with locked(root, "workdir"):
        state = read_finished(configs, root)
        pages = Pages(request.plan, root, request.command)
        pages.draw_architectures(configs)
        pages.write(state)
        run_cells(state, configs, root, run, lambda cell: pages.write(state, cell))
    pages.print_summary(state)
    if state.failures:
        cell, message = next(iter(state.failures.items()))
        raise UserError(
            f"{len(state.failures)} of {len(state.cells)} cells failed, the first: {cell.title}: {message}"
        )


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_flags, argv))

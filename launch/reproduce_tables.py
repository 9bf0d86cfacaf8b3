"""The paper's tables and figures from our own runs: a grid of models, classes, tasks and seeds.

``python -m launch.reproduce_tables --models=custom_unet,conv_autoencoder,unet3plus --classes=1,8 --tasks=segmentation
--seeds=0,1,2 --workdir=DIR [--small] [--ablation] [--supervision=good,tags,masks:5,masks] [--config.x.y=value …]``

Each cell is a run of ``dagm_jax.main`` in ``DIR/cells``. Finished cells are read and an interrupted one goes on, so the
same command completes a grid that a kill or Ctrl-C cut short; the tables are written anew after each cell. Overrides
hold for every cell: ``--config.data.root=DIR`` for real images, ``--config.model.base_channels=16`` for networks of one
width. Start with DIR/index.md. Exit status as of ``dagm_jax.main``; 2 also where a cell failed.
"""

# Free of jax at import, like dagm_jax.main: grain's worker processes import this module again.
from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from absl import flags, logging

from dagm_jax.command_line import guarded, parse_request
from dagm_jax.errors import UserError
from launch.flag_lists import split_overrides
from launch.paper.cells import Grid, Plan

# Overrides refused, since the fields differ from cell to cell → flag that sets them for the grid.
AXES = {"--config.data.classes": "--classes", "--config.seed": "--seeds"}


def parse_flags(argv: Sequence[str]) -> Grid:
    """The grid of the command line, without reports; raises UserError of one line for every mistake in it."""
    # The process's own flags count as read: grain's workers are handed them.
    flags.FLAGS(argv[:1])
    arguments, overrides = split_overrides(argv)
    plan = parse_request(Plan, arguments, __doc__)
    for name in (override.partition("=")[0] for override in overrides):
        if name in AXES:
            raise UserError(f"`{name}` differs from cell to cell; set it with `{AXES[name]}`")
    return Grid(plan, overrides, f"python -m launch.reproduce_tables {shlex.join(argv[1:])}".strip())


def main(grid: Grid) -> int:
    """Runs the grid and writes its tables; returns the exit status."""
    logging.set_verbosity(logging.WARNING)
    from dagm_jax.experiment.run import run
    from launch.paper.reproduce import reproduce

    xla_flags = os.environ.get("XLA_FLAGS", "")
    reproduce(grid, lambda config, workdir: run(config, workdir, xla_flags))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(lambda argv: main(parse_flags(argv)), sys.argv))

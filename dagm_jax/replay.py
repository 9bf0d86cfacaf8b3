"""Repeats the step that training stopped at because its loss or gradient was not finite, and says which slices did it.

``python -m dagm_jax.replay --batch=WORKDIR/non_finite_step_N.npz``

The file holds the batch and the weights from before the step, so neither the images nor the run are needed. The step is
taken on one device. Each line is a slice: its image, its label (-1: too little of a defect to count), its loss in this
step, and the gradient norm of its loss in a batch that holds it in every place. Under batch norm, activations that are
not finite reach all slices of the step and so all losses; the gradient norms, with statistics of each slice alone, then
tell where they come from. Exit status: 0 the step was repeated, whatever came out; 2 a mistake, which the one-line
message explains.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from dagm_jax import command_line
from dagm_jax.main import guarded
from dagm_jax.types import UserError

if TYPE_CHECKING:
    from dagm_jax.train.kept_batch import KeptBatch


@dataclass(frozen=True)
class Repeated:
    """Loss and gradient norm of a step: of the whole batch, and of each slice as `step.make_slice_figures` says."""

    loss: float
    grad_norm: float
    of_slices: tuple[tuple[float, float], ...]


def repeat(kept: KeptBatch) -> Repeated:
    """What the step gives again; raises UserError where the configuration of the file does not fit its arrays."""
    import jax
    import jax.numpy as jnp

    from dagm_jax.config import from_config_dict
    from dagm_jax.train import kept_batch
    from dagm_jax.train.optim import learning_rate, make_optimizer
    from dagm_jax.train.step import make_slice_figures, make_state, make_train_step
    from dagm_jax.trained_model import build_network

    config = from_config_dict(kept.config)
    network, params, stats = build_network(config, kept.mean, kept.std, drawn=False)
    network = network.on(jax.default_backend())
    params, stats = kept.fill(kept_batch.PARAMS, params), kept.fill(kept_batch.STATS, stats)
    optimizer = make_optimizer(config.optim)
    first = make_state(params, stats, optimizer)
    state = replace(first, step=jnp.int32(kept.step), cooldown=jnp.asarray(kept.cooldown))
    schedule = partial(learning_rate, config.optim)
    accumulate = config.train.accumulate
    step = make_train_step(network, config.task, optimizer, schedule, config.seed, accumulate=accumulate)
    figures = make_slice_figures(network, config.task, config.seed, accumulate=accumulate)
    _, metrics = jax.jit(step)(state, kept.batch)
    losses, norms = jax.jit(figures)(state, kept.batch)
    of_slices = zip(losses.tolist(), norms.tolist(), strict=True)
    return Repeated(float(metrics["loss"]), float(metrics["grad_norm"]), tuple(of_slices))


def main(argv: Sequence[str]) -> int:
    """Repeats the step of the file that the command line names; the exit status."""
    values = command_line.make_flags()
    flags.DEFINE_string("batch", None, "The file non_finite_step_N.npz of a workdir.", flag_values=values)
    given = command_line.parse(values, argv, __doc__)
    if not given.batch:
        raise UserError("`--batch` is missing; name a file non_finite_step_N.npz of a workdir")
    from rich.table import Table

    from dagm_jax.data.layouts import printable
    from dagm_jax.train.kept_batch import load
    from dagm_jax.train.progress import console

    kept = load(Path(given.batch).expanduser())
    found = repeat(kept)
    table = Table(title=f"step {kept.step + 1}, slice by slice", title_justify="left")
    for name in ("image", "label", "loss", "gradient norm"):
        table.add_column(name)
    for image_id, label, (loss, norm) in zip(
        kept.image_ids, kept.batch["label"], found.of_slices, strict=True
    ):
        table.add_row(printable(image_id), str(label), f"{loss:.6g}", f"{norm:.6g}")
    table.add_row("whole batch", "", f"{found.loss:.6g}", f"{found.grad_norm:.6g}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

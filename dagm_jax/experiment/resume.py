"""Checks that a workdir's unfinished run may go on under a configuration; its progress."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from dagm_jax.config import RunConfig, differences
from dagm_jax.console import console
from dagm_jax.errors import UserError
from dagm_jax.experiment.data import Data
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.train.stopping import TrainConfig, TrainProgress
from dagm_jax.versions import written_by

# Fields that may change within a run.
FREE_FIELDS = {
    "data.num_workers",
    "data.cache_dir",
    "eval.max_px",
    "eval.tile_px",
    "train.log_every",
    "train.skip_non_finite",
    "parallel.cpu_convolutions",
    "parallel.mode",
}
# Field that may change until the cool-down begins, whose place and length follow from it; see `check_length`.
LENGTH = "train.num_steps"
# Fields that may change until the run is finished; the report alone reads boxes.
UNTIL_FINISHED = {"data.boxes", LENGTH}


def check_same_run(config: RunConfig, workdir: Workdir) -> RunConfig:
    """The configuration, with what the workdir's run has found where it leaves that open.

    That are slices, the rule of the split, and the bound on steps of earlier releases, which had no minutes. Raises
    UserError where that run has another configuration; prints free fields that differ.
    """
    if not workdir.config.exists():
        return config
    stored = workdir.read_config()
    found = stored.slicing
    if config.slicing.mode == "auto" and found.mode in ("strips", "tiles"):
        names = ("slice_px", "slice_height_px", "downscale") if found.mode == "tiles" else ()
        changes = {name: getattr(found, name) for name in names}
        config = replace(config, slicing=replace(config.slicing, mode=found.mode, **changes))
    if config.data.split == "auto":
        config = replace(config, data=replace(config.data, split=stored.data.split))
    if "max_minutes" not in workdir.read_json(workdir.config).get("train", {}):
        length = config.train.num_steps or stored.train.num_steps
        config = replace(config, train=replace(config.train, num_steps=length, max_minutes=0.0))
    changed = differences(stored, config)
    free = FREE_FIELDS if workdir.is_finished else FREE_FIELDS | UNTIL_FINISHED
    # Names first: another network or task differs in many fields.
    refused = sorted(changed.keys() - free, key=lambda name: (not name.endswith(".name"), name))
    if refused:
        old, new = changed[refused[0]]
        flags = " ".join(f"--config.{name}={changed[name][0]}" for name in refused)
        raise UserError(
            f"`workdir` (={workdir}) holds a run with {refused[0]}={old}, not {new} ({len(refused)} fields differ); "
            f"use its configuration ({flags}) or another workdir"
        )
    for name, (old, new) in changed.items():
        console.print(f"{workdir} holds a run with {name}={old}; it goes on with {new}")
    return config


def read_progress(meta: dict[str, Any], data: Data, config: TrainConfig, workdir: Workdir) -> TrainProgress:
    """Progress in a checkpoint's meta.

    Raises UserError where another release wrote other fields, where the training split's grey levels are not those of
    the checkpoint's run, and where it has skipped more steps than ``config`` allows: none would change it any more.
    """
    try:
        progress = TrainProgress(**meta["position"])
    except TypeError as error:
        raise UserError(
            f"`workdir` (={workdir}) holds an unfinished run written by {written_by(meta)}, whose progress this "
            f"release does not read ({error}); finish it with that one, or use another workdir"
        ) from error
    for name, now in (("mean", data.mean), ("std", data.std)):
        if not math.isclose(meta[name], now, rel_tol=1e-9):
            raise UserError(
                f"`workdir` (={workdir}) holds a run on other images: the {name} of its training split is "
                f"{meta[name]:.6g}, and of the images found now {now:.6g}; put its images back, or use another workdir"
            )
    if progress.num_skipped > config.skip_non_finite:
        raise UserError(
            f"`train.skip_non_finite` (={config.skip_non_finite}): `workdir` (={workdir}) holds a run that has skipped "
            f"{progress.num_skipped} steps that were not finite; use at least {progress.num_skipped}, or another "
            "workdir"
        )
    return progress


def check_length(config: TrainConfig, progress: TrainProgress, num_steps: int, workdir: Workdir) -> None:
    """Raises UserError where a run with the bound ``num_steps`` would have differed so far with that of ``config``.

    Before the cool-down, a run with another bound has taken the same steps, unless it would cool down by now. 0 asks
    for the bound that the run has.
    """
    if config.num_steps in (0, num_steps or progress.num_steps):
        return
    what = f"at step {progress.step}, at or past the {config.last_cooldown_begin} at which so short a one cools down"
    if progress.end_step is not None:
        what = f"that cools down towards its end at step {progress.end_step}, which can no longer move"
    # At that step too: it has been validated without a cool-down, or would be saved a second time.
    elif progress.step < config.last_cooldown_begin:
        return
    raise UserError(
        f"`{LENGTH}` (={config.num_steps}): `workdir` (={workdir}) holds a run with {LENGTH}={num_steps} {what}; use "
        f"{num_steps}, or another workdir"
    )

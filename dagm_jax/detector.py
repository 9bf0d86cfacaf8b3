"""A trained detector without the data that it was trained on: what a run builds, and what its workdir gives back."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dagm_jax import evaluate
from dagm_jax.config import RunConfig
from dagm_jax.data.images.files import is_image_shape, is_white_level
from dagm_jax.data.slicing import Slicer, make_slicer, padded_shape
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.optim import make_optimizer
from dagm_jax.train.parallel import Devices
from dagm_jax.train.step import Network, make_judge, make_network, make_state, most_slices
from dagm_jax.types import UserError, written_by
from dagm_jax.verdict import DecisionRule

# Of images that are judged at a time; 1,024 of DAGM's.
MOST_JUDGED_PIXELS = 1 << 28
# How far trained weights shrink when they are packed: not at all, and the optimiser's zeros to nothing.
MOST_PACKED = 50


def build_network(
    config: RunConfig, mean: float, std: float, axis_name: str | None = None, drawn: bool = True
) -> tuple[Network, Any, Any]:
    """(network, initial parameters, initial norm statistics) of a configuration.

    mean, std: of the training side's grey levels in [0, 255]. axis_name: the mapped axis that a batch is spread over.
    drawn: whether there are initial values, or only shapes and types (see `make_network`).
    Raises UserError for float64 where JAX has not switched it on.
    """
    if config.model.compute_dtype == "float64" and jnp.result_type(float) != jnp.float64:
        raise UserError(
            "`model.compute_dtype` (=float64) needs JAX_ENABLE_X64=1 in the environment; set it, or use float32"
        )

    def build(rngs: nnx.Rngs) -> nnx.Module:
        out_channels = config.task.out_channels(config.in_channels)
        return config.model.build(
            in_channels=config.in_channels, out_channels=out_channels, axis_name=axis_name, rngs=rngs
        )

    return make_network(
        build, seed=config.seed, in_channels=config.in_channels, mean=mean, std=std, drawn=drawn
    )


def make_slicers(config: RunConfig, height_px: int, width_px: int) -> tuple[Slicer, Slicer]:
    """How images of at most this size are cut in training, and how those are whose verdict counts.

    The second shows each pixel in several positions, mirror images and turns, as far as the network has been trained on
    them.
    """
    mirrored = config.augment.flip and config.augment.rotate90
    slicer = make_slicer(config.slicing, *padded_shape(config.slicing, height_px, width_px))
    slicer = replace(slicer, mirrored=mirrored)
    return slicer, slicer.crossed() if config.augment.rotate90 else slicer


def compile_judge(
    config: RunConfig,
    network: Network,
    params: Any,
    stats: Any,
    slicer: Slicer,
    devices: Devices,
    batch_size: int,
) -> evaluate.Judge:
    """The network with these weights, compiled to judge ``batch_size`` images of the slicer's size at a time."""
    shape = (batch_size, slicer.height_px, slicer.width_px)
    empty = np.zeros(shape, np.uint8), np.zeros(shape, bool), np.zeros(batch_size, np.int32)
    most = most_slices(devices.platform, slicer, -(-batch_size // devices.num_devices))
    function = make_judge(network.on(devices.platform), config.task, slicer, most)
    compiled = devices.compile_judge(function, params, stats, *devices.shard_batch(empty))
    return evaluate.Judge(
        compiled,
        params,
        stats,
        devices,
        batch_size,
        (slicer.height_px, slicer.width_px),
        config.verdict,
        config.task.evidence,
    )


@dataclass(frozen=True)
class Detector:
    """The weights of a finished run, which its report speaks of, with all that is needed to judge with them.

    shape: (h, w) in px of the largest training image. white: what was white in 16-bit images, None where
    there can be none. model_id: 12 hex digits that any other weights, configuration or rule change.
    """

    config: RunConfig
    network: Network
    params: Any
    stats: Any
    shape: tuple[int, int]
    white: int | None
    rule: DecisionRule
    model_id: str

    def compile_judge(
        self, devices: Devices, batch_size: int, shape: tuple[int, int] | None = None
    ) -> evaluate.Judge:
        """Compiled for images of up to ``shape`` (h, w) px, by default the training data's."""
        slicer = make_slicers(self.config, *(shape or self.shape))[1]
        params, stats = devices.replicate((self.params, self.stats))
        return compile_judge(self.config, self.network, params, stats, slicer, devices, batch_size)


def load_detector(path: Path) -> Detector:
    """The detector that the finished run in the workdir ``path`` has judged its test side with.

    Raises UserError where there is no finished run, or a part of it is missing or damaged.
    """
    workdir = Workdir(path, "model")
    report = workdir.read_report("finish the run first: python -m dagm_jax.main with the same --workdir")
    step, shape, white = _read_report(workdir, report)
    config = workdir.read_config()
    rule = workdir.read_rule()
    network, params, stats = build_network(config, mean=0.0, std=1.0, drawn=False)
    averaged = config.optim.average_decay > 0
    initial = partial(make_state, optimizer=make_optimizer(config.optim), averaged=averaged)
    shapes = jax.eval_shape(initial, params, stats)
    _check_size(workdir, shapes)
    most_px = config.train.judge_batch_size * shape[0] * shape[1]
    if most_px > MOST_JUDGED_PIXELS:
        raise UserError(
            f"`model` (={workdir}): its images and `train.judge_batch_size` (={config.train.judge_batch_size}) take "
            f"{most_px} pixels at a time, more than the limit of {MOST_JUDGED_PIXELS}; train with a smaller one"
        )
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        try:
            state, meta = checkpoints.restore(step, like)
        except Exception as error:  # orbax raises many kinds for missing and damaged files
            raise UserError(
                f"`model` (={workdir}): the checkpoint of step {step}, which its report speaks of, cannot be read "
                f"({type(error).__name__}); written by {written_by(report)}; restore it from a copy or train again"
            ) from error
    greys = [meta.get(name) if isinstance(meta, dict) else None for name in ("mean", "std")]
    if not all(isinstance(value, int | float) and 0 <= value <= 255 for value in greys):
        raise UserError(
            f"`model` (={workdir}): the checkpoint of step {step} has a mean or spread of grey that is none; "
            "restore it from a copy or train again"
        )
    mean, std = (float(value) for value in greys if value is not None)
    network = replace(network, mean=mean, std=std if std > 0 else 1.0)
    params, stats = state.judged
    model_id = _digest(config, params, stats, rule)
    return Detector(config, network, params, stats, shape, white, rule, model_id)


def _read_report(workdir: Workdir, report: Any) -> tuple[int, tuple[int, int], int | None]:
    """(step of the weights, (h, w) in px of the largest image, white level) of a report, maybe a stranger's."""
    try:
        step, data = report["training"]["best_step"], report["data"]
        shape, white = data["largest_px"], data["white"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"`model` (={workdir}): report.json lacks {error}, which reports of this version have; "
            "restore it from a copy"
        ) from error
    if type(step) is not int or step < 0 or not is_image_shape(shape) or not is_white_level(white):
        raise UserError(
            f"`model` (={workdir}): report.json has a training.best_step, data.largest_px or data.white that cannot "
            "be; restore it from a copy"
        )
    return step, (shape[0], shape[1]), white


def _check_size(workdir: Workdir, shapes: Any) -> None:
    """Nothing; raises UserError where the state would take far more memory than its checkpoints do on the disk."""
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    there = sum(path.lstat().st_size for path in workdir.checkpoints.rglob("*"))
    if needed > MOST_PACKED * there + (64 << 20):
        raise UserError(
            f"`model` (={workdir}): the network of config.json takes {needed} bytes, and its checkpoints hold {there}; "
            "restore both from a copy"
        )


def _digest(config: RunConfig, params: Any, stats: Any, rule: DecisionRule) -> str:
    digest = hashlib.sha256(f"{config}{rule.to_json()}".encode())
    for leaf in jax.tree.leaves((params, stats)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:12]

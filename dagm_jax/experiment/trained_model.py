"""Trained models: networks as a run builds them, and as a workdir holds them."""

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

from dagm_jax.config import RunConfig, differences
from dagm_jax.data.config import PADDED_PX
from dagm_jax.distributed.devices import Devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.predictor import Predictor
from dagm_jax.evaluation.programs import Programs, Shape
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.models.network import Network, make_network
from dagm_jax.schema import GREY, IMAGE_SHAPE, STEP, WHITE_LEVEL, Rule, find_fault, is_image_shape
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.optim import make_optimizer
from dagm_jax.train.step import make_state
from dagm_jax.types import MAX_PIXELS
from dagm_jax.versions import written_by

# Limit of pixels in a batch of images (1,024 of DAGM's): a stranger's report could ask for any amount of memory.
MOST_BATCH_PIXELS = 1 << 28
# Limit of the state's size in memory over that of its checkpoints: weights do not compress, an optimiser's zeros do.
MOST_PACKED = 50
# Schemas of the parts of report.json and of a checkpoint's metadata that are read.
REPORT_SCHEMA = {"training": {"best_step": STEP}, "data": {"largest_px": IMAGE_SHAPE, "white": WHITE_LEVEL}}
# Schema of what reports of earlier releases, which cut images into slices, lack.
PADDED_SHAPES = Rule(
    f"a list of [height, width], multiples of {PADDED_PX} of at most {MAX_PIXELS} pixels, at least one",
    lambda x: (
        isinstance(x, list)
        and x != []
        and all(is_image_shape(shape) and not any(edge % PADDED_PX for edge in shape) for shape in x)
    ),
)
PADDED_SCHEMA = {"data": {"padded_px": PADDED_SHAPES}}
META_SCHEMA = {"mean": GREY, "std": GREY}


@dataclass(frozen=True)
class TrainedModel:
    """The tested weights of a finished run, with all that prediction needs.

    shape: (h, w) in px that holds every image of the set; padded: their padded sizes, see `choose_shapes`.
    white: value that was white in 16-bit images, None where there can be none. model_id: 12 hex digits, different for
    other weights, configurations or rules.
    """

    config: RunConfig
    network: Network
    params: Any
    stats: Any
    shape: Shape
    padded: tuple[Shape, ...]
    white: int | None
    rule: Thresholds
    model_id: str

    def make_predictor(self, devices: Devices, batch_size: int) -> Predictor:
        """Predictor for batches of ``batch_size`` images or as many as suit their size; programs are compiled late."""
        config, tiling = self.config, make_tiling(self.config, self.shape, self.padded)
        weights = devices.replicate((self.params, self.stats))
        parts = (self.network, config.task, tiling, config.verdict, devices, weights, batch_size)
        return Predictor(Programs(*parts, scores_alone=True), *weights)


def load_trained_model(path: Path) -> TrainedModel:
    """The trained model that the finished run in the workdir ``path`` was tested with.

    Raises UserError where there is no finished run, or a part of it is missing or damaged.
    """
    workdir = Workdir(path, "model")
    report = workdir.read_report("finish the run first: python -m dagm_jax.main with the same --workdir")
    config, rule = workdir.read_config(), workdir.read_rule()
    schemas = (REPORT_SCHEMA, PADDED_SCHEMA) if config.eval.tiling == "whole" else (REPORT_SCHEMA,)
    if fault := next(filter(None, (find_fault(report, schema) for schema in schemas)), None):
        raise UserError(f"`model` (={workdir}): report.json: {fault}; restore it from a copy")
    step, (height, width) = report["training"]["best_step"], report["data"]["largest_px"]
    network, params, stats = build_network(config, mean=0.0, std=1.0, drawn=False)
    averaged = config.optim.average_decay > 0
    initial = partial(make_state, optimizer=make_optimizer(config.optim), averaged=averaged)
    shapes = jax.eval_shape(initial, params, stats)
    # A stranger's configuration could ask for any amount of memory.
    needed = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    there = sum(path.lstat().st_size for path in workdir.checkpoints.rglob("*"))
    if needed > MOST_PACKED * there + (64 << 20):
        raise UserError(
            f"`model` (={workdir}): the network of config.json takes {needed} bytes, and its checkpoints hold {there}; "
            "restore both from a copy"
        )
    padded = tuple((int(h), int(w)) for h, w in report["data"].get("padded_px", []))
    most_px = config.train.judge_batch_size * max(h * w for h, w in [(height, width), *padded])
    if most_px > MOST_BATCH_PIXELS:
        raise UserError(
            f"`model` (={workdir}): its images and `train.judge_batch_size` (={config.train.judge_batch_size}) take "
            f"{most_px} pixels at a time, more than the limit of {MOST_BATCH_PIXELS}; train with a smaller one"
        )
    like = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    with Checkpoints(workdir.checkpoints, read_only=True) as checkpoints:
        try:
            state, meta = checkpoints.restore(step, like)
        except Exception as error:  # orbax raises many kinds for missing and damaged files
            raise UserError(
                f"`model` (={workdir}): the checkpoint of step {step}, which its report names, cannot be read "
                f"({type(error).__name__}); written by {written_by(report)}; restore it from a copy or train again"
            ) from error
    if fault := find_fault(meta, META_SCHEMA):
        raise UserError(
            f"`model` (={workdir}): the checkpoint of step {step}: {fault}; restore it from a copy or train again"
        )
    mean, std = float(meta["mean"]), float(meta["std"])
    network = replace(network, mean=mean, std=std if std > 0 else 1.0)
    params, stats = state.eval_weights
    digest = hashlib.sha256(f"{config}{rule.to_json()}".encode())
    for leaf in jax.tree.leaves((params, stats)):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    shape, white, model_id = (height, width), report["data"]["white"], digest.hexdigest()[:12]
    return TrainedModel(config, network, params, stats, shape, padded, white, rule, model_id)


def weights_to_begin_with(path: Path, config: RunConfig, params: Any, stats: Any) -> tuple[Any, Any]:
    """(parameters, norm statistics) of the finished run in ``path``, in the place of those of a new run of ``config``.

    Raises UserError where its network has other weights than ``params`` and ``stats``, and as `load_trained_model`.
    """
    model = load_trained_model(path)
    found, wanted = (model.params, model.stats), (params, stats)
    shapes = [jax.tree.map(lambda x: (x.shape, str(x.dtype)), arrays) for arrays in (found, wanted)]
    if shapes[0] != shapes[1]:
        changed = differences(model.config, config)
        flags = " ".join(
            f"--config.{name}={old}"
            for name, (old, _) in changed.items()
            if name.startswith(("model.", "in_channels"))
        )
        remedy = f"use its network ({flags})" if flags else "use a run of this task"
        raise UserError(f"`train.init_from` (={path}) holds the weights of another network; {remedy}")
    return found


def build_network(
    config: RunConfig, mean: float, std: float, axis_name: str | None = None, drawn: bool = True
) -> tuple[Network, Any, Any]:
    """(network, initial parameters, initial norm statistics) of a configuration.

    mean, std: of the training split's grey levels in [0, 255]. axis_name: mapped axis that a batch is spread over.
    drawn: whether there are initial values, or only shapes and types (see `make_network`).
    Raises UserError for float64 where JAX has not switched it on.
    """
    if config.model.compute_dtype == "float64" and jnp.result_type(float) != jnp.float64:
        raise UserError(
            "`model.compute_dtype` (=float64) needs JAX_ENABLE_X64=1 in the environment; set it, or use float32"
        )
    channels, out_channels = config.in_channels, config.task.out_channels or config.in_channels
    build = partial(config.model.build, in_channels=channels, out_channels=out_channels, axis_name=axis_name)
    seed = config.seed
    network, params, stats = make_network(
        lambda rngs: build(rngs=rngs), seed=seed, in_channels=channels, mean=mean, std=std, drawn=drawn
    )
    return replace(network, downscale=config.slicing.downscale), params, stats

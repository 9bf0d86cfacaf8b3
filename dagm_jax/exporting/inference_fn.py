"""A trained model as one pure function from images to scores and decisions, and that function as StableHLO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, UInt8

from dagm_jax.data.slicing import PadMode
from dagm_jax.evaluation.postprocess import postprocess, reflected
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.trained_model import TrainedModel

# Devices that a StableHLO program is written for.
PLATFORMS = ("cpu", "cuda", "tpu")


def input_shape(model: TrainedModel, format: str) -> tuple[int, int] | None:
    """(h, w) in px of the images that a file of this format takes; None for any.

    Slices lie at places of one size, the mean of the highest pixels sorts as many as that size has, and a guided
    module looks at windows that depend on it.
    """
    config = model.config
    sorts = config.verdict.score == "top_mean" and config.task.score_kind != "slices"
    is_fixed = config.eval.tiling == "slices" or sorts or config.is_guided
    return model.shape if is_fixed or format != "stablehlo" else None


def symbolic_images(model: TrainedModel, format: str) -> jax.ShapeDtypeStruct:
    """Any number of images of `input_shape`, by which the function is traced."""
    height, width = input_shape(model, format) or ("h", "w")
    return jax.ShapeDtypeStruct(export.symbolic_shape(f"b, {height}, {width}"), jnp.uint8)


def make_inference_fn(model: TrainedModel) -> Callable[[Array], tuple[Array, Array, Array, Array]]:
    """``infer(image uint8 [b h w])``: (score float32 [b], defective bool [b], map float32, mask bool [b h w]).

    h, w: the model's shape, or any (see `input_shape`); they and b may be symbolic. The weights are constants inside.
    Scores and maps are those of `evaluation.predictor.Predictor`, decisions those of the model's thresholds.
    """
    config, tiling = model.config, make_tiling(model.config, model.shape, ())
    # Host arrays: device arrays would tie the program to their device.
    params, stats = jax.tree.map(np.asarray, (model.params, model.stats))
    threshold, pixel_threshold = map(float32_at_least, (model.rule.threshold, model.rule.pixel_threshold))

    def infer(image: Array) -> tuple[Array, Array, Array, Array]:
        number, *size = image.shape
        shape = tiling.shape_for((size[0], size[1]))
        # All at once: a runtime has the memory for its images, or not.
        step = tiling.make_step(model.network, config.task, shape, "any", 1, tiled=False)
        padded = continued(continued(image, 1, shape[0], tiling.mode), 2, shape[1], tiling.mode)
        # The mask enters the loss alone, which is not an output and therefore not computed.
        no_mask, no_px = jnp.zeros(padded.shape, bool), jnp.zeros(padded.shape[:1], jnp.int32)
        sizes = None if padded is image else jnp.broadcast_to(jnp.array(size, jnp.int32), (number, 2))
        out = step(params, stats, padded, no_mask, no_px, sizes)
        cut = out["map"] if padded is image else out["map"][:, : size[0], : size[1]]
        map_, score = postprocess(cut, out["slice_scores"], None, config.verdict, config.task.score_kind)
        return score, score >= threshold, map_, map_ >= pixel_threshold

    return infer


def continued(image: UInt8[Array, "b _ _"], dim: int, length: Any, mode: PadMode) -> UInt8[Array, "b _ _"]:
    """``image`` continued along ``dim`` to ``length``, as `data.slicing.pad` does it; itself where it has that."""
    is_symbolic = not isinstance(image.shape[dim], int)
    if not is_symbolic and image.shape[dim] == length:
        return image
    # Symbolic sizes are known when the program runs; other places are constants, which jax2onnx converts.
    xp = jnp if is_symbolic else np
    place = xp.arange(length)
    inside = xp.minimum(place, image.shape[dim] - 1) if mode == "edge" else reflected(place, image.shape[dim])
    return image.take(inside, axis=dim, mode="clip")


def float32_at_least(value: float) -> np.float32:
    """The least float32 number that is not below ``value``: a float32 score reaches both or neither."""
    nearest = np.float32(value)
    return nearest if float(nearest) >= value else np.nextafter(nearest, np.float32(np.inf))


def to_stablehlo(model: TrainedModel) -> bytes:
    """The program as serialised StableHLO for CPUs, NVIDIA GPUs and TPUs, for any number of images of any size.

    The size is the model's own where the function needs it, see `input_shape`.
    """
    limit = "jax_traceback_in_locations_limit"
    before = jax.config.values[limit]
    # JAX then names no source files, and the program holds no path of the machine that exported it.
    jax.config.update(limit, 0)
    try:
        traced = export.export(jax.jit(make_inference_fn(model)), platforms=PLATFORMS)
        return bytes(traced(symbolic_images(model, "stablehlo")).serialize())
    finally:
        jax.config.update(limit, before)

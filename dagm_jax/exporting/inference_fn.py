"""A trained model as one pure function from images to scores and decisions, which exported files hold."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Bool, Float, UInt8

from dagm_jax.evaluation.postprocess import postprocess
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.trained_model import TrainedModel


def make_inference_fn(
    model: TrainedModel,
) -> Callable[
    [UInt8[Array, "b h w"]],
    tuple[Float[Array, " b"], Bool[Array, " b"], Float[Array, "b h w"], Bool[Array, "b h w"]],
]:
    """``infer(image uint8 [b h w])``: (score float32 [b], defective bool [b], map float32, mask bool [b h w]).

    h, w: the model's shape; b: any, also symbolic. The weights are constants inside. Scores and maps are those of
    `evaluation.predictor.Predictor`, decisions those of the model's thresholds.
    """
    config, size = model.config, model.shape
    tiling = make_tiling(config, size, ())
    shape = tiling.shape_for(size)
    # One program for images of any number of pixels: the runtime has the memory or not.
    eval_step = tiling.make_step(model.network, config.task, shape, "any", 1, tiled=False)
    # Host arrays: device arrays would tie the program to their device.
    params, stats = jax.tree.map(np.asarray, (model.params, model.stats))
    threshold, pixel_threshold = (
        float32_at_least(value) for value in (model.rule.threshold, model.rule.pixel_threshold)
    )

    def infer(image: Array) -> tuple[Array, Array, Array, Array]:
        more = [(0, 0), *((0, wide - length) for wide, length in zip(shape, size, strict=True))]
        padded = jnp.pad(image, more, tiling.mode)
        # The mask enters the loss alone, which is not an output and therefore not computed.
        no_mask, no_px = jnp.zeros(padded.shape, bool), jnp.zeros(padded.shape[:1], jnp.int32)
        sizes = None if shape == size else jnp.broadcast_to(jnp.array(size), (image.shape[0], 2))
        out = eval_step(params, stats, padded, no_mask, no_px, sizes)
        cut = out["map"][:, : size[0], : size[1]]
        map_, score = postprocess(cut, out["slice_scores"], None, config.verdict, config.task.score_kind)
        return score, score >= threshold, map_, map_ >= pixel_threshold

    return infer


def float32_at_least(value: float) -> np.float32:
    """The least float32 number that is not below ``value``: a float32 score reaches both or neither."""
    nearest = np.float32(value)
    return nearest if float(nearest) >= value else np.nextafter(nearest, np.float32(np.inf))


def symbolic_images(model: TrainedModel) -> jax.ShapeDtypeStruct:
    """Any number of images of the model's size, by which the function is traced."""
    (batch,) = export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((batch, *model.shape), jnp.uint8)

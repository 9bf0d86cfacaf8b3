"""A trained model as one pure function from images to scores and decisions, which exported files hold."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Bool, Float, UInt8

from dagm_jax.evaluation.postprocess import mirrored, postprocess
from dagm_jax.evaluation.step import make_eval_step
from dagm_jax.experiment.trained_model import TrainedModel, make_slicers


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
    config, (height, width) = model.config, model.shape
    slicer = make_slicers(config, height, width)[1]
    eval_step = make_eval_step(model.network, config.task, slicer)
    # Host arrays: device arrays would tie the program to their device.
    params, stats = jax.tree.map(np.asarray, (model.params, model.stats))
    threshold, pixel_threshold = (
        float32_at_least(value) for value in (model.rule.threshold, model.rule.pixel_threshold)
    )

    def infer(image: Array) -> tuple[Array, Array, Array, Array]:
        padded = mirrored(image, 1, 0, slicer.height_px - height)
        padded = mirrored(padded, 2, 0, slicer.width_px - width)
        # The mask enters the loss alone, which is not an output and therefore not computed.
        no_mask, no_px = jnp.zeros(padded.shape, bool), jnp.zeros(padded.shape[:1], jnp.int32)
        out = eval_step(params, stats, padded, no_mask, no_px)
        cut = out["map"][:, :height, :width]
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

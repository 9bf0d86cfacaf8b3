"""A trained model as one pure function from images to scores and decisions, and its StableHLO and ONNX programs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Bool, Float, UInt8

from dagm_jax.errors import UserError
from dagm_jax.evaluation.postprocess import mirrored, postprocess
from dagm_jax.evaluation.step import make_eval_step
from dagm_jax.experiment.trained_model import TrainedModel, make_slicers
from dagm_jax.exporting.runners import INPUT, OUTPUTS

PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 23
# Installs jax2onnx without dependencies: it forbids the orbax release of our checkpoints, and never imports orbax.
ONNX_COMMAND = "pip install 'dagm-jax[onnx]' && pip install --no-deps 'jax2onnx>=0.17.1'"


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


def to_stablehlo(model: TrainedModel) -> bytes:
    """The program as serialised StableHLO for CPUs, NVIDIA GPUs and TPUs, for any number of images."""
    with _no_source_locations():
        exported = export.export(jax.jit(make_inference_fn(model)), platforms=PLATFORMS)(
            _symbolic_images(model)
        )
    return bytes(exported.serialize())


@contextlib.contextmanager
def _no_source_locations() -> Iterator[None]:
    """Inside, JAX names no source files in programs, which then hold no path of the machine that exported them."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def to_onnx(model: TrainedModel) -> bytes:
    """The program as an ONNX model of opset ``OPSET``, for any number of images; raises UserError."""
    if model.config.model.compute_dtype != "float32":
        raise UserError(
            f"`--format` (=onnx) needs a network that computes in float32, which onnxruntime has convolutions for, not "
            f"`model.compute_dtype` (={model.config.model.compute_dtype}); export as stablehlo"
        )
    # Both warn of examples that they cannot import, of untyped fixed shapes, and of float64 that they request.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import jax2onnx
        except ModuleNotFoundError as error:
            raise UserError(f"`--format` (=onnx) needs the package {error.name}: {ONNX_COMMAND}") from error
        converted = jax2onnx.to_onnx(
            make_inference_fn(model),
            [_symbolic_images(model)],
            opset=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
        )
    content: bytes = converted.SerializeToString()
    return content


def _symbolic_images(model: TrainedModel) -> jax.ShapeDtypeStruct:
    (batch,) = export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((batch, *model.shape), jnp.uint8)

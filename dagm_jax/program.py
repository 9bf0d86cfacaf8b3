"""A detector as one pure function, from the pixels of images to their verdicts, for runtimes that know no more of us.

What ``verdict`` does in numpy after the network is done here in jax.numpy, in the forms that StableHLO and ONNX both
take: gathers with fixed indices, convolutions and top-k.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import Array, Bool, Float, UInt8

from dagm_jax.detector import Detector, make_slicers
from dagm_jax.runtimes import INPUT, OUTPUTS
from dagm_jax.train.step import make_judge
from dagm_jax.types import UserError
from dagm_jax.verdict import VerdictConfig, gaussian_weights

PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 23
# jax2onnx forbids the orbax that checkpoints are written with, and never imports it.
ONNX_COMMAND = "pip install 'dagm-jax[onnx]' && pip install --no-deps 'jax2onnx>=0.17.1'"


def make_program(
    detector: Detector,
) -> Callable[
    [UInt8[Array, "b h w"]],
    tuple[Float[Array, " b"], Bool[Array, " b"], Float[Array, "b h w"], Bool[Array, "b h w"]],
]:
    """``program(image uint8 [b h w])``: (score float32 [b], defective bool [b], map float32, mask bool [b h w]).

    h, w: the detector's shape; b: any, also symbolic. The weights are constants inside. Scores and maps are those of
    `evaluate.Judge`, decisions those of the detector's rule.
    """
    config, (height, width) = detector.config, detector.shape
    slicer = make_slicers(config, height, width)[1]
    judge = make_judge(detector.network, config.task, slicer)
    # Host arrays: as arrays of a device they would tie the program to it.
    params, stats = jax.tree.map(np.asarray, (detector.params, detector.stats))
    threshold, pixel_threshold = (
        float32_at_least(value) for value in (detector.rule.threshold, detector.rule.pixel_threshold)
    )

    def program(image: Array) -> tuple[Array, Array, Array, Array]:
        padded = mirrored(mirrored(image, 1, 0, slicer.height_px - height), 2, 0, slicer.width_px - width)
        # The mask is for the loss, which nobody reads here, so that it is not computed.
        no_mask, no_px = jnp.zeros(padded.shape, bool), jnp.zeros(padded.shape[:1], jnp.int32)
        out = judge(params, stats, padded, no_mask, no_px)
        evidence = smooth(out["map"][:, :height, :width].astype(jnp.float32), config.verdict.smoothing_px)
        if config.task.evidence == "deviation":
            evidence = deviation(evidence)
        if config.task.evidence == "slices":
            score = slices_score(out["slice_scores"].astype(jnp.float32), config.verdict)
        else:
            score = image_score(evidence, config.verdict)
        return score, score >= threshold, evidence, evidence >= pixel_threshold

    return program


def float32_at_least(value: float) -> np.float32:
    """The least float32 number that is not below ``value``: a float32 score reaches both or neither."""
    nearest = np.float32(value)
    return nearest if float(nearest) >= value else np.nextafter(nearest, np.float32(np.inf))


def mirrored(x: Array, dim: int, before: int, after: int) -> Array:
    """``x`` continued along ``dim`` by its own mirror images, the edge repeated (numpy's "symmetric")."""
    if not before and not after:
        return x
    return x.take(np.pad(np.arange(x.shape[dim]), (before, after), mode="symmetric"), axis=dim, mode="clip")


def smooth(maps: Float[Array, "b h w"], smoothing_px: float) -> Float[Array, "b h w"]:
    """`verdict.smooth_map` of each map."""
    if smoothing_px == 0:
        return maps
    weights = gaussian_weights(smoothing_px).astype(np.float32)
    radius = len(weights) // 2
    for dim, kernel in ((1, weights[:, None]), (2, weights[None, :])):
        x = mirrored(maps, dim, radius, radius)[:, None]
        # Of a convolution's own precision, TPUs and some GPUs would keep three digits.
        y = jax.lax.conv(
            x, jnp.asarray(kernel[None, None]), (1, 1), "VALID", precision=jax.lax.Precision.HIGHEST
        )
        maps = y[:, 0]
    return maps


def deviation(maps: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """`verdict.deviation_map` of each map."""
    pixels = maps.reshape(maps.shape[0], -1)
    size = maps.shape[1] * maps.shape[2]
    highest = jax.lax.top_k(pixels, size // 2 + 1)[0]
    upper, lower = highest[:, (size - 1) // 2], highest[:, size // 2]
    return jnp.abs(maps - ((upper + lower) / 2)[:, None, None])


def image_score(maps: Float[Array, "b h w"], config: VerdictConfig) -> Float[Array, " b"]:
    """`verdict.image_score` of each map."""
    if config.score == "max":
        return maps.max(axis=(1, 2))
    size = maps.shape[1] * maps.shape[2]
    num_top = max(1, round(config.top_fraction * size))
    return jax.lax.top_k(maps.reshape(maps.shape[0], size), num_top)[0].mean(axis=1)


def slices_score(scores: Float[Array, "b n"], config: VerdictConfig) -> Float[Array, " b"]:
    """`verdict.slices_score` of each image."""
    num_top = 1 if config.score == "max" else min(config.top_slices, scores.shape[1])
    return jax.lax.top_k(scores, num_top)[0].mean(axis=1)


# --- files --------------------------------------------------------------------------------------------------


def to_stablehlo(detector: Detector) -> bytes:
    """The program as serialised StableHLO for CPUs, NVIDIA GPUs and TPUs, for any number of images."""
    with _without_source_locations():
        exported = export.export(jax.jit(make_program(detector)), platforms=PLATFORMS)(
            _symbolic_images(detector)
        )
    return bytes(exported.serialize())


@contextlib.contextmanager
def _without_source_locations() -> Iterator[None]:
    """Inside, JAX names no source file in what it lowers: a file says nothing of the machine that made it."""
    before = jax.config.values["jax_traceback_in_locations_limit"]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def to_onnx(detector: Detector) -> bytes:
    """The program as an ONNX model of opset ``OPSET``, for any number of images; raises UserError."""
    if detector.config.model.compute_dtype != "float32":
        raise UserError(
            f"`--format` (=onnx) needs a network that computes in float32, which onnxruntime has convolutions for, not "
            f"`model.compute_dtype` (={detector.config.model.compute_dtype}); export as stablehlo"
        )
    # Of examples that it cannot import, of fixed shapes that have no type, and of float64 that it asks JAX for.
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import jax2onnx
        except ModuleNotFoundError as error:
            raise UserError(f"`--format` (=onnx) needs the package {error.name}: {ONNX_COMMAND}") from error
        model = jax2onnx.to_onnx(
            make_program(detector),
            [_symbolic_images(detector)],
            opset=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
        )
    _spell_out_sigmoids(model)
    content: bytes = model.SerializeToString()
    return content


def _spell_out_sigmoids(model: Any) -> None:
    """Sigmoids of the ONNX model become 1 / (1 + exp(-x)).

    onnxruntime's own is exact to some 1e-8: a share of 2e-3 of a probability of 3e-6, which a good image may well have.
    """
    from onnx import helper, numpy_helper

    one, nodes = "sigmoid_one", []
    for node in model.graph.node:
        if node.op_type != "Sigmoid":
            nodes.append(node)
            continue
        (source,), (result,) = node.input, node.output
        steps = [f"{result}_{name}" for name in ("negative", "exp", "sum")]
        nodes += [
            helper.make_node("Neg", [source], [steps[0]]),
            helper.make_node("Exp", [steps[0]], [steps[1]]),
            helper.make_node("Add", [steps[1], one], [steps[2]]),
            helper.make_node("Div", [one, steps[2]], [result]),
        ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), one))


def _symbolic_images(detector: Detector) -> jax.ShapeDtypeStruct:
    (batch,) = export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((batch, *detector.shape), jnp.uint8)

"""A trained model as a StableHLO program."""

from __future__ import annotations

import jax
from jax import export

from dagm_jax.experiment.trained_model import TrainedModel
from dagm_jax.exporting.inference_fn import make_inference_fn, symbolic_images

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(model: TrainedModel) -> bytes:
    """The program as serialised StableHLO for CPUs, NVIDIA GPUs and TPUs, for any number of images of any size.

    Of the model's size alone where the function needs it, see `input_shape`.
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

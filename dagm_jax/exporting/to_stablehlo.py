"""A trained model as a StableHLO program."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax import export

from dagm_jax.experiment.trained_model import TrainedModel
from dagm_jax.exporting.inference_fn import make_inference_fn, symbolic_images, takes_any_size

PLATFORMS = ("cpu", "cuda", "tpu")


def to_stablehlo(model: TrainedModel) -> bytes:
    """The program as serialised StableHLO for CPUs, NVIDIA GPUs and TPUs, for any number of images of any size.

    Of the model's size alone where the function needs it, see `takes_any_size`.
    """
    with _no_source_locations():
        exported = export.export(jax.jit(make_inference_fn(model)), platforms=PLATFORMS)(
            symbolic_images(model, takes_any_size(model))
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

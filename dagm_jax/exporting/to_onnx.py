"""A trained model as an ONNX program."""

from __future__ import annotations

import logging
import warnings

from dagm_jax.errors import UserError
from dagm_jax.experiment.trained_model import TrainedModel
from dagm_jax.exporting.inference_fn import make_inference_fn, symbolic_images
from dagm_jax.exporting.runners import INPUT, OPSET, OUTPUTS

# Version of the file format that came with each opset: runtimes refuse later ones than they know.
FILE_FORMATS = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
# Installs jax2onnx without dependencies: it forbids the orbax release of our checkpoints, and never imports orbax.
ONNX_COMMAND = "pip install 'dagm-jax[onnx]' && pip install --no-deps 'jax2onnx>=0.17.1'"


def to_onnx(model: TrainedModel, opset: int = OPSET) -> bytes:
    """The program as an ONNX model of this opset, for any number of images of the model's size; raises UserError."""
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
            [symbolic_images(model)],
            opset=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
        )
    converted.ir_version = FILE_FORMATS[opset]
    content: bytes = converted.SerializeToString()
    return content

"""A trained model as an ONNX program, and its convolutions in 8 bits for CPUs that multiply these faster."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagm_jax.errors import UserError
from dagm_jax.experiment.trained_model import TrainedModel
from dagm_jax.exporting.inference_fn import make_inference_fn, symbolic_images
from dagm_jax.exporting.runners import INPUT, OPSET, OUTPUTS
from dagm_jax.models.network import STANDARD

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
            import onnxruntime
        except ModuleNotFoundError as error:
            raise UserError(f"`--format` (=onnx) needs the package {error.name}: {ONNX_COMMAND}") from error
        converted = jax2onnx.to_onnx(
            make_inference_fn(replace(model, network=replace(model.network, forms=STANDARD))),
            [symbolic_images(model, "onnx")],
            opset=opset,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
        )
    converted.ir_version = FILE_FORMATS[opset]
    with tempfile.TemporaryDirectory() as folder:
        plain, simplified = Path(folder) / "plain.onnx", Path(folder) / "simplified.onnx"
        plain.write_bytes(converted.SerializeToString())
        # Constants folded into kernels, transpositions that undo one another left out: onnxruntime does it whenever it
        # opens a file, and other runtimes do not. Every operation is still one of the standard.
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(simplified)
        onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
        return _read_standard(simplified)


def _read_standard(path: Path) -> bytes:
    """The model that onnxruntime has written, without the versions of operations that it does not use.

    onnxruntime names those of all domains that it knows, and an older one refuses versions that it does not know.
    """
    import onnx

    written = onnx.load(path)
    used = [opset for opset in written.opset_import if not opset.domain]
    del written.opset_import[:]
    written.opset_import.extend(used)
    content: bytes = written.SerializeToString()
    return content


def to_int8(content: bytes, images: Iterable[NDArray[np.uint8]]) -> bytes:
    """The ONNX program ``content`` with its convolutions in 8 bits, kernels by channel; raises UserError.

    Ranges of activations are those of these images, uint8 [h w] of the program's size. All other operations, among them
    padding, smoothing, score and thresholds, stay in float32.
    """
    try:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError as error:
        raise UserError(f"`--int8` needs the package {error.name}: {ONNX_COMMAND}") from error

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
        """The images, one at a time."""

        batches = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.batches, None)
            return None if image is None else {INPUT: image[None]}

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        plain.write_bytes(content)
        # Shapes, without which only a part of the convolutions is found. The symbolic batch needs no inference.
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
        quantization.quantize_static(
            prepared,
            small,
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            # Between convolutions too, or every one would convert its input and its output.
            op_types_to_quantize=["Conv", "Relu", "Concat", "MaxPool"],
            # Maps have channels within the network alone.
            nodes_to_exclude=[node.name for node in graph.node if ranks.get(node.output[0]) != 4],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return _read_standard(small)

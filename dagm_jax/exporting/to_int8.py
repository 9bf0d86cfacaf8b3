"""An ONNX program with convolutions of 8 bits, for CPUs that multiply bytes faster than floats."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagm_jax.errors import UserError
from dagm_jax.exporting.runners import INPUT
from dagm_jax.exporting.to_onnx import ONNX_COMMAND


def to_int8(content: bytes, images: Iterable[NDArray[np.uint8]]) -> bytes:
    """The ONNX program ``content`` with its convolutions in 8 bits, kernels by channel; raises UserError.

    Ranges of activations are those of these images, uint8 [h w] of the program's size. All other operations, among them
    padding, smoothing, score and thresholds, stay in float32.
    """
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ModuleNotFoundError as error:
        raise UserError(f"`--int8` needs the package {error.name}: {ONNX_COMMAND}") from error

    class Calibration(quantization.CalibrationDataReader):  # type: ignore[misc]
        """The images, one at a time."""

        def __init__(self) -> None:
            self._batches: Iterator[dict[str, Any]] = iter([{INPUT: image[None]} for image in images])

        def get_next(self) -> dict[str, Any] | None:
            return next(self._batches, None)

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, small = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        plain.write_bytes(content)
        # Shapes, without which only a part of the convolutions is found. The symbolic batch needs no inference.
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            small,
            Calibration(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return small.read_bytes()

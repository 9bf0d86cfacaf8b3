"""Runs an exported file without the rest of this package: with jax, onnxruntime or OpenVINO alone.

``python runners.py jax|onnxruntime|openvino FILE IMAGES.npz OUTPUTS.npz`` runs FILE on uint8 images [h w]. This module
imports nothing of ``dagm_jax``, so that the check of an exported file sees the file alone; it may be copied beside the
file.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT = "image"
# Limits of ONNX's opset: the lowest that the converter writes well, and the newest that it knows.
OPSET, NEWEST_OPSET = 18, 23
# Limits the custom calls of a program: any other runs code of this machine, at worst at an address of its choice.
HARMLESS_CALL = "custom_call @shape_assertion("
OUTPUTS = ("score", "defective", "map", "mask")
# Images per call of `main`: no divisor of most numbers of images, so that the last call has another batch size.
CHECK_BATCH = 3
# Number of calls of `main` that are timed.
NUM_TIMED = 5

# uint8 [b h w] → (score float32 [b], defective bool [b], map float32 [b h w], mask bool [b h w]).
Program = Callable[[NDArray[np.uint8]], tuple[NDArray[Any], ...]]


def open_stablehlo(path: Path) -> Program:
    """The program in a StableHLO file, compiled by jax once for each batch size.

    Raises ValueError for a program that calls code outside of itself, which no file of `dagm_jax.export` does.
    """
    import jax
    from jax import export

    exported = export.deserialize(bytearray(path.read_bytes()))
    program = exported.mlir_module()
    if program.count("custom_call") != program.count(HARMLESS_CALL):
        raise ValueError("it calls code outside of itself")
    call = jax.jit(exported.call)
    return lambda images: tuple(np.asarray(output) for output in call(images))


def open_onnx(path: Path) -> Program:
    """The program in an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: tuple(session.run(list(OUTPUTS), {INPUT: images}))


def compile_openvino(path: Path, precision: str = "f32") -> Any:
    """The file compiled for one image at a time by OpenVINO.

    It is faster for numbers of images that it knows, and one fills a CPU. It would leave float32 for bfloat16 by itself
    where a CPU has that.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape([1, *list(model.input(INPUT).partial_shape)[1:]])
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})


def openvino_program(compiled: Any) -> Program:
    """The program of `compile_openvino`."""

    def run(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        found = [compiled(image[None]) for image in images]
        return tuple(np.concatenate([one[name] for one in found]) for name in OUTPUTS)

    return run


RUNTIMES: dict[str, Callable[[Path], Program]] = {
    "jax": open_stablehlo,
    "onnxruntime": open_onnx,
    "openvino": lambda path: openvino_program(compile_openvino(path)),
}
# The runtimes that execute a file of each format; the first where none is asked for.
RUNTIMES_OF = {"stablehlo": ("jax",), "onnx": ("onnxruntime", "openvino")}
FORMATS = tuple(RUNTIMES_OF)


def main(runtime: str, file: str, images: str, outputs: str) -> None:
    """Writes the program's OUTPUTS for each image, such as ``score_0``, into the NPZ file ``outputs``.

    ``seconds`` in it is the median time of the first image alone.
    """
    program, named = RUNTIMES[runtime](Path(file)), {}
    with np.load(images, allow_pickle=False) as arrays:
        pixels = list(arrays.values())
    for _, group in itertools.groupby(range(len(pixels)), lambda i: pixels[i].shape):
        places = list(group)
        for start in range(0, len(places), CHECK_BATCH):
            chosen = places[start : start + CHECK_BATCH]
            for name, values in zip(OUTPUTS, program(np.stack([pixels[i] for i in chosen])), strict=True):
                named.update({f"{name}_{i}": value for i, value in zip(chosen, values, strict=True)})
    seconds = []
    for _ in range(NUM_TIMED + 1):
        start_s = time.perf_counter()
        program(pixels[0][None])
        seconds.append(time.perf_counter() - start_s)
    # The first call may compile.
    np.savez(outputs, **named, seconds=np.median(seconds[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])

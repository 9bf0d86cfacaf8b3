"""Runs an exported file without the rest of this package: with jax alone, or with onnxruntime alone.

``python runners.py stablehlo|onnx FILE IMAGES.npy OUTPUTS.npz`` runs FILE on uint8 images [n h w]. This module imports
nothing of ``dagm_jax``, so that the check of an exported file sees the file alone; it may be copied beside the file.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT = "image"
# Limits the custom calls of a program: any other runs code of this machine, at worst at an address of its choice.
HARMLESS_CALL = "custom_call @shape_assertion("
OUTPUTS = ("score", "defective", "map", "mask")
# Images per call of `main`: no divisor of most numbers of images, so that the last call has another batch size.
CHECK_BATCH = 3

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


RUNTIMES: dict[str, Callable[[Path], Program]] = {"stablehlo": open_stablehlo, "onnx": open_onnx}


def main(format: str, file: str, images: str, outputs: str) -> None:
    """Writes the program's OUTPUTS for the images into the NPZ file ``outputs``."""
    program, pixels = RUNTIMES[format](Path(file)), np.load(images, allow_pickle=False)
    parts = [program(pixels[i : i + CHECK_BATCH]) for i in range(0, len(pixels), CHECK_BATCH)]
    joined = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    named: dict[str, Any] = dict(zip(OUTPUTS, joined, strict=True))
    np.savez(outputs, **named)


if __name__ == "__main__":
    main(*sys.argv[1:])

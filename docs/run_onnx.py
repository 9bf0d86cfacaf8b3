"""Judges image files by an exported ONNX file with onnxruntime, numpy and Pillow alone; copy it beside the file.

``python run_onnx.py inspector.onnx IMAGE [IMAGE ...]`` prints a line of JSON for each image: score, decision, and the
box [left, top, right, bottom] in px around all defect pixels. It writes IMAGE.mask.png for a defective image. Exit
status: 0 all are good, 1 one is defective, 2 one could not be judged.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

OUTPUTS = ["score", "defective", "map", "mask"]


def read_grey(path: Path, contract: dict[str, Any]) -> np.ndarray:
    """The image as uint8 [h w], of the size that the file takes; raises ValueError."""
    with Image.open(path) as picture:
        if picture.mode.startswith("I"):
            white = contract["input"]["white"]
            if white is None:
                raise ValueError("has 16 bits, and the model was trained on 8")
            levels = np.asarray(picture).astype(np.float64) * 255 / white
            grey = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        else:
            grey = np.asarray(picture.convert("L"))
    size = contract["input"]["shape"][1:]
    if "h" in size:
        return grey
    if grey.shape[0] > size[0] or grey.shape[1] > size[1]:
        raise ValueError(f"is {grey.shape[0]}x{grey.shape[1]} px, larger than the file's {size[0]}x{size[1]}")
    more = [(0, wanted - length) for wanted, length in zip(size, grey.shape, strict=True)]
    return np.pad(grey, more, mode=contract["input"].get("padding", "symmetric"))


def judge(session: onnxruntime.InferenceSession, contract: dict[str, Any], path: Path) -> dict[str, Any]:
    """The verdict on an image file as JSON values."""
    grey = read_grey(path, contract)
    score, defective, _, mask = (output[0] for output in session.run(OUTPUTS, {"image": grey[None]}))
    box = None
    if mask.any():
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    if defective:
        Image.fromarray(mask.astype(np.uint8) * 255).save(path.with_name(f"{path.name}.mask.png"))
    return {"image": str(path), "score": float(score), "defective": bool(defective), "box": box}


def main(model: str, *images: str) -> int:
    """Prints the verdicts; the exit status."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    contract = json.loads(Path(f"{model}.json").read_text())
    status = 0
    for image in images:
        try:
            verdict = judge(session, contract, Path(image))
            status = max(status, int(verdict["defective"]))
        except (OSError, ValueError) as error:
            verdict, status = {"image": image, "error": str(error)}, 2
        print(json.dumps(verdict), flush=True)
    return status


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: python {sys.argv[0]} inspector.onnx IMAGE [IMAGE ...]")
    sys.exit(main(*sys.argv[1:]))

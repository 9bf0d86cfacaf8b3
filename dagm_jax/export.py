"""Writes a finished run as one file that other runtimes execute, after that file has judged real images alike.

``python -m dagm_jax.export --model=WORKDIR --format=stablehlo|onnx --output=FILE [--num_checked=32]``

The file takes uint8 images and gives score, verdict, map and mask; FILE.json beside it is its contract, FILE.md its
model card; docs/export.md says how to run it. Before it gets its name, it is loaded in a process of its own, without
this package, and judges images of the run's test side; where a score differs from the run's by more than 1e-4 of it, or
a decision differs, nothing is left.

Exit status: 0 the file is there and judges as the run does; 2 a mistake or a difference, which the one-line message
explains.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from dagm_jax import command_line, runtimes
from dagm_jax.main import guarded
from dagm_jax.types import UserError, nearest

if TYPE_CHECKING:
    from dagm_jax.detector import Detector
    from dagm_jax.types import Record

# Scores may differ by this share.
TOLERANCE = 1e-4
RUNTIME_NAMES = {"stablehlo": "jax", "onnx": "onnxruntime"}


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: Path
    format: str
    output: Path
    num_checked: int


def parse_flags(argv: Sequence[str]) -> Request:
    """What the command line asks for; every mistake in it becomes a UserError of one line."""
    values = command_line.make_flags()
    flags.DEFINE_string("model", None, "The workdir of a finished run.", flag_values=values)
    flags.DEFINE_string("format", None, f"One of {', '.join(runtimes.RUNTIMES)}.", flag_values=values)
    flags.DEFINE_string("output", None, "The file to write.", flag_values=values)
    flags.DEFINE_integer(
        "num_checked", 32, "How many test images the file must judge as the run did.", flag_values=values
    )
    given = command_line.parse(values, argv, __doc__)
    if not given.model:
        raise UserError("`--model` is missing; name the workdir of a finished run, such as --model=runs/mine")
    if given.format not in runtimes.RUNTIMES:
        hint = nearest(given.format or "", runtimes.RUNTIMES)
        raise UserError(f"`--format` (={given.format}) must be one of {', '.join(runtimes.RUNTIMES)}{hint}")
    if not given.output:
        raise UserError(f"`--output` is missing; name the file, such as --output=inspector.{given.format}")
    output = Path(given.output).expanduser()
    if not output.parent.is_dir():
        raise UserError(f"`--output` (={output}): there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise UserError(f"`--output` (={output}) is a folder; name a file in it")
    if given.num_checked < 1:
        raise UserError(f"`--num_checked` (={given.num_checked}) must be at least 1")
    return Request(Path(given.model).expanduser(), given.format, output, given.num_checked)


def main(argv: Sequence[str]) -> int:
    """Writes the file that the command line asks for; the exit status."""
    request = parse_flags(argv)
    from dagm_jax.detector import load_detector
    from dagm_jax.experiment.workdir import Workdir
    from dagm_jax.program import to_onnx, to_stablehlo
    from dagm_jax.train.progress import console

    detector = load_detector(request.model)
    report = Workdir(request.model, "model").read_report("finish the run first")
    console.print(f"model {detector.model_id}: writing {request.format}")
    content = {"stablehlo": to_stablehlo, "onnx": to_onnx}[request.format](detector)
    # Under another name until it is checked, and in the same folder, so that renaming it is one step.
    partial = request.output.with_name(f"{request.output.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        checked = check(request, detector, partial)
        write_beside(request, detector, report, checked, partial)
        os.replace(partial, request.output)
    except OSError as error:
        raise UserError(f"`--output` (={request.output}) cannot be written ({error.strerror})") from error
    finally:
        partial.unlink(missing_ok=True)
    console.print(
        f"{request.output} ({len(content) / 1e6:.1f} MB): {checked['num_images']} test images judged alike by "
        f"{checked['runtime']}, scores equal to {checked['largest_relative_difference']:.1e}"
    )
    return 0


def write_beside(
    request: Request, detector: Detector, report: dict[str, Any], checked: dict[str, Any], file: Path
) -> None:
    """Writes the contract and the model card of ``file``, which will be called as the request says."""
    from dagm_jax.evaluate import finite_or_none
    from dagm_jax.experiment.workdir import Workdir
    from dagm_jax.exported import card_path, contract_path, file_digest
    from dagm_jax.exporting.model_card import make_card, make_contract
    from dagm_jax.program import OPSET, PLATFORMS
    from dagm_jax.train.progress import write_atomically

    normals: list[float] = []
    workdir = Workdir(request.model, "model")
    if workdir.validation_scores.exists():
        labels, scores = workdir.read_validation_scores()
        normals = [score for label, score in zip(labels, scores, strict=True) if not label]
    contract = {
        "format": request.format,
        "file": request.output.name,
        "sha256": file_digest(file),
        **({"platforms": list(PLATFORMS)} if request.format == "stablehlo" else {"opset": OPSET}),
        **make_contract(report, detector.rule, detector.model_id, detector.shape, normals),
        "checked": checked,
    }
    text = json.dumps(finite_or_none(contract), indent=2, allow_nan=False)
    write_atomically(contract_path(request.output), text + "\n")
    write_atomically(card_path(request.output), make_card(contract, request.output.name))


# --- the check ----------------------------------------------------------------------------------------------


def check(request: Request, detector: Detector, file: Path) -> dict[str, Any]:
    """How far the file's judgement in a process of its own is from the run's: JSON values. Raises UserError.

    The run's are those of predictions.csv; of images smaller than the file takes, which are judged with their mirror
    images, what the run's network says of these.
    """
    names, images, scores = expected(request, detector)
    found = judge_apart(request.format, file, images)
    differences = np.abs(found["score"] - scores)
    too_far = ~(differences <= TOLERANCE * np.abs(scores))
    decisions = detector.rule.decide(scores)
    problem = ""
    if too_far.any():
        i = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
        problem = f"scores {found['score'][i]:.7g} for {names[i]}, the run {scores[i]:.7g}"
    elif (found["defective"] != decisions).any():
        i = int(np.argmax(found["defective"] != decisions))
        problem = f"decides {bool(found['defective'][i])} for {names[i]}, the run {bool(decisions[i])}"
    elif not np.array_equal(found["mask"], found["map"] >= detector.rule.pixel_threshold):
        problem = "gives a mask that is not its map at the pixel threshold"
    if problem:
        raise UserError(f"`--format` (={request.format}): the file {problem}; it is not kept")
    # A score of 0 is one that the file gives exactly.
    relative = differences / np.where(scores == 0, 1.0, np.abs(scores))
    return {
        "runtime": RUNTIME_NAMES[request.format],
        "num_images": len(names),
        "num_defective": int(decisions.sum()),
        "largest_difference": float(differences.max()),
        "largest_relative_difference": float(relative.max()),
        "tolerance": TOLERANCE,
    }


def judge_apart(format: str, file: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """What the file says of uint8 images [n h w], in a new process that knows only its runtime. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        pixels, outputs = Path(folder) / "images.npy", Path(folder) / "outputs.npz"
        np.save(pixels, images)
        # -I: without this package, whose folder would otherwise be searched first.
        command = [sys.executable, "-I", runtimes.__file__, format, str(file), str(pixels), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"`--format` (={format}): the file does not run in a process of its own: {last}")
        with np.load(outputs, allow_pickle=False) as arrays:
            return dict(arrays)


def expected(request: Request, detector: Detector) -> tuple[list[str], np.ndarray, np.ndarray]:
    """(names, uint8 images [n h w], float64 scores [n]): test images, half of them defective if there are enough."""
    from dagm_jax.data.images.decode import load
    from dagm_jax.data.images.files import BadImage
    from dagm_jax.data.slicing import pad

    records, shape = chosen_records(request, detector)
    try:
        images = [load(record, shape)[0] for record, _ in records]
    except BadImage as error:
        raise UserError(
            f"`--model` (={request.model}): a test image cannot be read again: {error}"
        ) from error
    scores = [score for _, score in records]
    small = [i for i, image in enumerate(images) if image.shape != detector.shape]
    images = [pad(image, detector.shape) for image in images]
    for i, score in zip(small, judge_here(detector, [images[i] for i in small]), strict=True):
        scores[i] = score
    return [record.image_id for record, _ in records], np.stack(images), np.array(scores)


def judge_here(detector: Detector, images: list[np.ndarray]) -> list[float]:
    """The scores of the run's network of images of its largest size."""
    from dagm_jax.train.parallel import make_devices

    if not images:
        return []
    devices = make_devices(detector.config.parallel, os.environ.get("XLA_FLAGS", ""))
    judge = detector.compile_judge(devices, devices.num_devices)
    return [judged.score for judged in judge((image, np.zeros(image.shape, bool)) for image in images)]


def chosen_records(
    request: Request, detector: Detector
) -> tuple[list[tuple[Record, float]], tuple[int, int] | None]:
    """((record, the run's score) of the test images to check with, the size that all must have). Raises UserError."""
    from dagm_jax.data.dataset import find_images
    from dagm_jax.data.images.photos import with_white

    path = request.model / "predictions.csv"
    try:
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise UserError(f"`--model` (={request.model}) lacks {path.name} ({error.strerror})") from error
    manifest, shape = find_images(detector.config.data, detector.config.seed)
    known = {record.image_id: record for record in with_white(manifest.records, detector.white)}
    each = -(-request.num_checked // 2)
    defective = [row for row in rows if row["label"] == "1"]
    good = [row for row in rows if row["label"] == "0"]
    num_defective = max(min(len(defective), each), request.num_checked - len(good))
    wanted = (defective[:num_defective] + good)[: request.num_checked]
    missing = [row["image"] for row in wanted if row["image"] not in known]
    if missing:
        raise UserError(
            f"`--model` (={request.model}): its test image {missing[0]} is not in `data.root` "
            f"(={detector.config.data.root}) any more; put the images back"
        )
    return [(known[row["image"]], float(row["score"])) for row in wanted], shape


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

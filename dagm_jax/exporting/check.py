"""Check of an exported file before it gets its name: its scores of test images against those of the run."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dagm_jax.data.dataset import find_images
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import load, with_white
from dagm_jax.data.slicing import pad
from dagm_jax.distributed.devices import make_devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.metrics import dice
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.trained_model import TrainedModel
from dagm_jax.exporting import runners
from dagm_jax.exporting.inference_fn import input_shape
from dagm_jax.types import Pixels

# Limit of the difference of two scores, which lie in [0, 1]: float32 sums in another order move them by less than 1e-5,
# another program by more than this.
TOLERANCE = 1e-4
# Limit of the mean Dice on defective images that a file of 8 bits may lose.
DICE_LOSS = 0.01
# Limit of the images whose activations give the ranges of 8 bits.
NUM_CALIBRATION = 64


def check(
    model: TrainedModel, workdir: Path, format: str, file: Path, num_checked: int, int8: bool = False
) -> dict[str, Any]:
    """Results of the file and of the run on test images, as JSON values; raises UserError where they differ.

    Decisions must be equal, the mask must be the map at the pixel threshold, and scores equal to `TOLERANCE`. A file of
    8 bits may have other scores, and lose `DICE_LOSS` of the mean Dice on defective images. The run's scores are those
    of predictions.csv; images that the file takes padded are scored anew by the run's network.
    """
    run = expected(model, workdir, num_checked, input_shape(model, format), anew=int8)
    found, seconds = run_apart(format, file, run.images)
    differences = np.abs(np.array(found["score"]) - run.scores)
    worst = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
    decisions = model.rule.decide(run.scores)
    wrong = np.flatnonzero(np.array(found["defective"]) != decisions)
    masks = [map_ >= model.rule.pixel_threshold for map_ in found["map"]]
    dices = [_mean_dice(maps, run.masks) for maps in (masks, run.predicted)]
    problem = ""
    if not differences[worst] <= (1.0 if int8 else TOLERANCE):
        problem = f"scores {found['score'][worst]:.7g} for {run.names[worst]}, run {run.scores[worst]:.7g}"
    elif wrong.size:
        decided = bool(found["defective"][wrong[0]])
        problem = (
            f"decides {decided} for {run.names[wrong[0]]}, score {found['score'][wrong[0]]:.4f}, the run "
            f"{not decided}, {run.scores[wrong[0]]:.4f} ({wrong.size} of {len(run.names)} differ)"
        )
    elif not all(map(np.array_equal, found["mask"], masks)):
        problem = "gives a mask that is not its map at the pixel threshold"
    elif dices[1] is not None and dices[0] is not None and dices[0] < dices[1] - DICE_LOSS:
        problem = f"has Dice {dices[0]:.4f} on defective images, the run {dices[1]:.4f}"
    if problem:
        raise UserError(f"`--format` (={format}): the file {problem}; it is not kept")
    return {
        "runtime": runners.RUNTIMES_OF[format][0],
        "num_images": len(run.names),
        "num_defective": int(decisions.sum()),
        "largest_difference": float(differences[worst]),
        "tolerance": None if int8 else TOLERANCE,
        "dice_defective": dices[0],
        "dice_defective_of_run": dices[1],
        "seconds_an_image": seconds,
    }


def _mean_dice(predicted: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float | None:
    """The mean Dice on images with a marked defect; None without any, or without predictions."""
    pairs = zip(predicted, masks, strict=False)
    found = [dice(one, mask) for one, mask in pairs if mask.any() and not mask.all()]
    return float(np.mean(found)) if found else None


class Expected(NamedTuple):
    """Test images uint8 [h w] with their true masks, and what the run says of them: scores, masks where predicted."""

    names: list[str]
    images: list[np.ndarray]
    masks: list[np.ndarray]
    scores: np.ndarray
    predicted: list[np.ndarray]


def run_apart(
    format: str, file: Path, images: Sequence[np.ndarray]
) -> tuple[dict[str, list[np.ndarray]], float]:
    """(the file's outputs for each uint8 image [h w], median seconds of one), from a process with its runtime alone.

    Raises UserError.
    """
    with tempfile.TemporaryDirectory() as folder:
        pixels, outputs = Path(folder) / "images.npz", Path(folder) / "outputs.npz"
        np.savez(pixels, *images)
        arguments = runners.RUNTIMES_OF[format][0], file, pixels, outputs
        # -I: without this package, whose folder would otherwise be searched first.
        command = [sys.executable, "-I", runners.__file__, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"`--format` (={format}): the file does not run in a process of its own: {last}")
        with np.load(outputs, allow_pickle=False) as arrays:
            found = {name: [arrays[f"{name}_{i}"] for i in range(len(images))] for name in runners.OUTPUTS}
            return found, float(arrays["seconds"])


def expected(
    model: TrainedModel, workdir: Path, num_checked: int, shape: tuple[int, int] | None, anew: bool = False
) -> Expected:
    """The test images to check, half of them defective if there are enough, and the run's scores of them.

    shape: (h, w) that the file takes, None for any. Images that the run has padded to another size than the file does
    are scored anew, as the file sees them; ``anew``: all are, and their masks predicted.
    """
    rows = _read_rows(workdir / "predictions.csv")
    defective, good = ([row for row in rows if row["label"] == label] for label in "10")
    num_defective = max(min(len(defective), -(-num_checked // 2)), num_checked - len(good))
    chosen = (defective[:num_defective] + good)[:num_checked]
    names, scores = [row["image"] for row in chosen], np.array([float(row["score"]) for row in chosen])
    pixels = _read_images(model, workdir, names)
    own, usual = (make_tiling(model.config, model.shape, shapes) for shapes in ((), model.padded))
    sizes = [(image.shape[0], image.shape[1]) for image, _ in pixels]
    changed = [size != shape if shape else own.shape_for(size) != usual.shape_for(size) for size in sizes]
    images, masks = (
        [pad(one[k], shape or size, own.mode) for one, size in zip(pixels, sizes, strict=True)]
        for k in (0, 1)
    )
    predicted = []
    if places := [i for i in range(len(names)) if anew or changed[i]]:
        devices = make_devices(model.config.parallel, os.environ.get("XLA_FLAGS", ""))
        predictor = replace(model, padded=()).make_predictor(devices, devices.num_devices)
        found = predictor((images[i], masks[i]) for i in places)
        for i, one in zip(places, found, strict=True):
            scores[i] = one.score
            predicted.append(one.map >= model.rule.pixel_threshold)
    return Expected(names, images, masks, scores, predicted if anew else [])


def calibration_images(model: TrainedModel, workdir: Path) -> list[np.ndarray]:
    """Validation images uint8 [h w] of the model's size, at most `NUM_CALIBRATION`, half of each label."""
    rows, chosen = _read_rows(workdir / "validation_scores.csv"), []
    for label in "01":
        names = [row["image"] for row in rows if row["label"] == label]
        number = min(len(names), NUM_CALIBRATION // 2)
        chosen += [names[k * len(names) // number] for k in range(number)]
    mode = make_tiling(model.config, model.shape, ()).mode
    return [pad(image, model.shape, mode) for image, _ in _read_images(model, workdir, chosen)]


def _read_rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="") as stream:
            return list(csv.DictReader(stream))
    except OSError as error:
        raise UserError(f"`--model` (={path.parent}) lacks {path.name} ({error.strerror})") from error


def _read_images(model: TrainedModel, workdir: Path, names: Sequence[str]) -> list[Pixels]:
    """The run's images of these names with their masks; raises UserError for one that is gone or damaged."""
    manifest, shape = find_images(model.config.data, model.config.seed)
    samples = {sample.image_id: sample for sample in with_white(manifest.samples, model.white)}
    if missing := [name for name in names if name not in samples]:
        raise UserError(
            f"`--model` (={workdir}): its image {missing[0]} is not in `data.root` (={model.config.data.root}) any "
            "more; put the images back"
        )
    try:
        return [load(samples[name], shape) for name in names]
    except BadImage as error:
        raise UserError(f"`--model` (={workdir}): an image cannot be read again: {error}") from error

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
from typing import Any

import numpy as np

from dagm_jax.data.dataset import find_images
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import load
from dagm_jax.data.images.photos import with_white
from dagm_jax.data.slicing import pad
from dagm_jax.distributed.devices import make_devices
from dagm_jax.errors import UserError
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.trained_model import TrainedModel
from dagm_jax.exporting import runners
from dagm_jax.exporting.inference_fn import takes_any_size
from dagm_jax.exporting.runners import OUTPUTS, RUNTIMES_OF

# Limit of the difference of two scores, which lie in [0, 1]: float32 sums in another order move them by less than 1e-5,
# another program by more than this.
TOLERANCE = 1e-4


def check(model: TrainedModel, workdir: Path, format: str, file: Path, num_checked: int) -> dict[str, Any]:
    """Largest difference between the file's scores and the run's, as JSON values; raises UserError beyond TOLERANCE.

    Decisions must be equal, and the mask must be the map at the pixel threshold. The run's scores are those of
    predictions.csv; images smaller than the file takes are padded by mirroring and scored anew by the run's network.
    """
    runtime = RUNTIMES_OF[format][0]
    shape = None if format == "stablehlo" and takes_any_size(model) else model.shape
    names, images, scores = expected(model, workdir, num_checked, shape)
    found = run_apart(format, runtime, file, images)
    differences = np.abs(np.array(found["score"]) - scores)
    worst = int(np.argmax(np.where(np.isnan(differences), np.inf, differences)))
    decisions = model.rule.decide(scores)
    wrong = np.flatnonzero(np.array(found["defective"]) != decisions)
    masks = [map_ >= model.rule.pixel_threshold for map_ in found["map"]]
    problem = ""
    if not differences[worst] <= TOLERANCE:
        problem = f"scores {found['score'][worst]:.7g} for {names[worst]}, the run {scores[worst]:.7g}"
    elif wrong.size:
        decided = bool(found["defective"][wrong[0]])
        problem = f"decides {decided} for {names[wrong[0]]}, the run {not decided}"
    elif not all(map(np.array_equal, found["mask"], masks)):
        problem = "gives a mask that is not its map at the pixel threshold"
    if problem:
        raise UserError(f"`--format` (={format}): the file {problem}; it is not kept")
    return {
        "runtime": runtime,
        "num_images": len(names),
        "num_defective": int(decisions.sum()),
        "largest_difference": float(differences[worst]),
        "tolerance": TOLERANCE,
    }


def run_apart(
    format: str, runtime: str, file: Path, images: Sequence[np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """The file's outputs for each uint8 image [h w], from a process with its runtime alone; raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        pixels, outputs = Path(folder) / "images.npz", Path(folder) / "outputs.npz"
        np.savez(pixels, *images)
        # -I: without this package, whose folder would otherwise be searched first.
        command = [sys.executable, "-I", runners.__file__, runtime, str(file), str(pixels), str(outputs)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"`--format` (={format}): the file does not run in a process of its own: {last}")
        with np.load(outputs, allow_pickle=False) as arrays:
            return {name: [arrays[f"{name}_{i}"] for i in range(len(images))] for name in OUTPUTS}


def expected(
    model: TrainedModel, workdir: Path, num_checked: int, shape: tuple[int, int] | None
) -> tuple[list[str], list[np.ndarray], np.ndarray]:
    """(names, uint8 images [h w], float64 scores [n]) of test images, half of them defective if there are enough.

    shape: (h, w) that the file takes, None for any. Images that the run has padded to another size than the file does
    are scored anew, as the file sees them.
    """
    try:
        with (workdir / "predictions.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise UserError(f"`--model` (={workdir}) lacks predictions.csv ({error.strerror})") from error
    defective, good = ([row for row in rows if row["label"] == label] for label in "10")
    num_defective = max(min(len(defective), -(-num_checked // 2)), num_checked - len(good))
    chosen = (defective[:num_defective] + good)[:num_checked]
    names, scores = [row["image"] for row in chosen], np.array([float(row["score"]) for row in chosen])
    manifest, size_of_set = find_images(model.config.data, model.config.seed)
    samples = {sample.image_id: sample for sample in with_white(manifest.samples, model.white)}
    if missing := [name for name in names if name not in samples]:
        raise UserError(
            f"`--model` (={workdir}): its test image {missing[0]} is not in `data.root` "
            f"(={model.config.data.root}) any more; put the images back"
        )
    try:
        images = [load(samples[name], size_of_set)[0] for name in names]
    except BadImage as error:
        raise UserError(f"`--model` (={workdir}): a test image cannot be read again: {error}") from error
    own = make_tiling(model.config, model.shape, ())
    usual = make_tiling(model.config, model.shape, model.padded)
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    if shape is None:
        anew = [i for i, size in enumerate(sizes) if own.shape_for(size) != usual.shape_for(size)]
    else:
        anew = [i for i, size in enumerate(sizes) if size != shape]
        images = [pad(image, shape, own.mode) for image in images]
    if anew:
        devices = make_devices(model.config.parallel, os.environ.get("XLA_FLAGS", ""))
        predictor = replace(model, padded=()).make_predictor(devices, devices.num_devices)
        pixels = ((images[i], np.zeros(images[i].shape, bool)) for i in anew)
        scores[anew] = [prediction.score for prediction in predictor(pixels)]
    return names, images, scores

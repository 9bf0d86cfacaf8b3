"""Whole images, their mirror images and slices in turn: the same weights on the test images of a finished run.

``python -m launch.bench.tiling --model=WORKDIR [--num_images=100]`` prints time, AUROC and Dice of each.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.table import Table

from dagm_jax.command_line import flag, guarded, parse_request
from dagm_jax.console import console
from dagm_jax.data.dataset import find_images
from dagm_jax.data.images.load import load, with_white
from dagm_jax.distributed.devices import make_devices
from dagm_jax.evaluation.config import EvalConfig
from dagm_jax.evaluation.metrics import auroc, dice_curve
from dagm_jax.evaluation.predictor import Prediction
from dagm_jax.evaluation.programs import choose_shapes
from dagm_jax.experiment.trained_model import load_trained_model

WAYS = {
    "slices": EvalConfig(tiling="slices"),
    "whole": EvalConfig(),
    "whole, mean of four mirror images": EvalConfig(flips=True),
}
# Limit of images that one way predicts before the next takes its turn.
TURN = 10


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: Path = flag("The workdir of a finished run.", example="runs/mine")
    num_images: int = flag("Limit of test images.", 100, least=TURN)


def main(argv: Sequence[str]) -> int:
    """Prints the table of the run that the command line names; the exit status."""
    request = parse_request(Request, argv, __doc__)
    model = load_trained_model(request.model)
    with (request.model / "predictions.csv").open(newline="") as stream:
        names = [row["image"] for row in csv.DictReader(stream)][: request.num_images]
    manifest, shape = find_images(model.config.data, model.config.seed)
    samples = {sample.image_id: sample for sample in with_white(manifest.samples, model.white)}
    pixels = [load(samples[name], shape) for name in names]
    padded = choose_shapes((image.shape[0], image.shape[1]) for image, _ in pixels)
    devices = make_devices(model.config.parallel, os.environ.get("XLA_FLAGS", ""))
    predictors = {
        name: replace(model, config=replace(model.config, eval=way), padded=padded).make_predictor(
            devices, model.config.train.judge_batch_size
        )
        for name, way in WAYS.items()
    }
    found: dict[str, list[Prediction]] = {name: [] for name in WAYS}
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for predictor in predictors.values():
        list(predictor(pixels[:TURN]))
    for start in range(0, len(pixels), TURN):
        chosen = pixels[start : start + TURN]
        for name, predictor in predictors.items():
            start_s = time.perf_counter()
            found[name] += predictor(chosen)
            seconds[name].append((time.perf_counter() - start_s) / len(chosen))
    title = f"{model.config.model.name}, {model.config.task.name}: {len(pixels)} test images, {devices.kind}"
    names_of = (
        "cut into",
        "ms an image",
        "AUROC",
        "best Dice on defective",
        "lowest defective",
        "highest good",
    )
    table = Table(*names_of, title=title, title_justify="left")
    for name, predictions in found.items():
        labels = [bool(one.mask.any()) for one in predictions]
        scores = np.array([one.score for one in predictions])
        curves = [dice_curve(one.map, one.mask) for one in predictions if one.mask.any()]
        table.add_row(
            name,
            f"{1000 * statistics.median(seconds[name]):.0f}",
            f"{auroc(labels, scores):.4f}",
            f"{np.mean(curves, axis=0).max():.4f}",
            f"{scores[labels].min():.4f}",
            f"{scores[~np.array(labels)].max():.4f}",
        )
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

"""The inspector's backend for the workdir of a finished run: its network, compiled for the sizes that come."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.images.image_reader import ImageReader
from dagm_jax.distributed.devices import Devices, make_devices
from dagm_jax.evaluation.predictor import NonFiniteOutput, Predictor
from dagm_jax.experiment.trained_model import TrainedModel, load_trained_model
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.types import DAGM_SHAPE

# Limit of either edge of an image in multiples of the largest training image's: sixteen times the area takes as much
# memory as a usual batch.
LARGEST_TIMES = 4
# Limit of compiled programs that are kept, each of one image size and batch size.
NUM_PROGRAMS = 4


class TrainedModelBackend:
    """The network of a finished run as a backend of the inspector, compiled for the sizes that come."""

    def __init__(self, model: TrainedModel, devices: Devices, normal_scores: Sequence[float] = ()) -> None:
        self._model, self._devices = model, devices
        self._program = lru_cache(NUM_PROGRAMS)(self._compile)
        self.model_id, self.rule = model.model_id, model.rule
        self.normal_scores = tuple(normal_scores)
        self.batch_size = model.config.train.judge_batch_size * devices.num_devices
        # Squeezed columns are averaged over more pixels in a wider image: another scale than in training.
        times = 1 if model.config.slicing.mode == "squeeze" else LARGEST_TIMES
        largest = times * model.shape[0], times * model.shape[1]
        self.reading = ImageReader(DAGM_SHAPE if model.white is None else None, largest, model.white)

    @classmethod
    def load(cls, workdir: Path, xla_flags: str = "") -> TrainedModelBackend:
        """The backend of the finished run in ``workdir``; raises UserError."""
        model, normal_scores = load_trained_model(workdir), Workdir(workdir, "model").read_normal_scores()
        return cls(model, make_devices(model.config.parallel, xla_flags), normal_scores)

    def predict(
        self, images: Sequence[NDArray[np.uint8]], batch_size: int
    ) -> list[tuple[float, NDArray[np.float32]]]:
        """As `inspector.Backend.predict` says.

        Images larger than in training go one at a time, through programs of their own.
        """
        places: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault(shape_for((image.shape[0], image.shape[1]), self._model), []).append(place)
        found: dict[int, tuple[float, NDArray[np.float32]]] = {}
        for shape, chosen in places.items():
            predictor = self._program(shape, batch_size if shape == self._model.shape else 1)
            pixels = ((images[place], np.zeros(images[place].shape, bool)) for place in chosen)
            try:
                for place, prediction in zip(chosen, predictor(pixels), strict=True):
                    found[place] = prediction.score, prediction.map
            except NonFiniteOutput as error:
                raise NonFiniteOutput(chosen[error.place], error.shape) from error
        return [found[place] for place in range(len(images))]

    def _compile(self, shape: tuple[int, int], batch_size: int) -> Predictor:
        num = self._devices.num_devices
        model = densely_sliced(self._model, shape)
        return model.compile_predictor(self._devices, -(-batch_size // num) * num, shape)


def shape_for(image: tuple[int, int], model: TrainedModel) -> tuple[int, int]:
    """The (h, w) in px that a program for an image of this size is compiled for: the training data's if it fits.

    Otherwise each edge grows by a power of sqrt(2), so that many sizes share few programs and an image's score depends
    on the image alone; both edges are the same where the training data's are, because strips then lie both ways.
    """

    def grown(length: int, usual: int) -> int:
        steps = max(0, math.ceil(2 * math.log2(length / usual)))
        return max(length, math.ceil(usual * 2 ** (steps / 2))) if steps else usual

    usual = model.shape
    if image[0] <= usual[0] and image[1] <= usual[1]:
        return usual
    shape = grown(image[0], usual[0]), grown(image[1], usual[1])
    return (max(shape), max(shape)) if usual[0] == usual[1] else shape


def densely_sliced(model: TrainedModel, shape: tuple[int, int]) -> TrainedModel:
    """The model that cuts images of ``shape`` as densely as it cuts those of its training data."""
    if shape[1] <= model.shape[1]:
        return model
    slicing = model.config.slicing
    pairs = math.ceil(slicing.num_slices / 2 * shape[1] / model.shape[1])
    return replace(model, config=replace(model.config, slicing=replace(slicing, num_slices=2 * pairs)))

"""The inspector's backend for the workdir of a finished run: its network, compiled for the sizes that come."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.images.decode import ImageReader, Largest
from dagm_jax.distributed.devices import Devices, make_devices
from dagm_jax.experiment.trained_model import TrainedModel, load_trained_model
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.types import DAGM_SHAPE, MAX_PIXELS

# Limit of either edge of an image that is cut into slices, in multiples of the largest training image's: sixteen times
# the area takes as much memory as a usual batch.
LARGEST_TIMES = 4


class TrainedModelBackend:
    """The network of a finished run as a backend of the inspector, compiled for the sizes that come."""

    def __init__(self, model: TrainedModel, devices: Devices, normal_scores: Sequence[float] = ()) -> None:
        self.model_id, self.rule = model.model_id, model.rule
        self.normal_scores: Sequence[float] = tuple(normal_scores)
        self.batch_size = model.config.train.judge_batch_size * devices.num_devices
        self._predictor = lru_cache(2)(lambda batch_size: model.make_predictor(devices, batch_size))
        # The size that most images have, as far as it is known.
        self.shape: tuple[int, int] | None = model.shape
        largest: Largest = MAX_PIXELS
        if model.config.eval.tiling == "whole" and model.config.pools:
            largest = model.config.eval.max_px
        elif model.config.eval.tiling == "slices":
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
        """As `inspector.Backend.predict` says."""
        pixels = ((image, np.zeros(image.shape, bool)) for image in images)
        return [(one.score, one.map) for one in self._predictor(batch_size)(pixels)]

"""Predictions of a compiled network on images: map, score, loss and decisions on slices."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import jax
import numpy as np

from dagm_jax.data.slicing import full_batch, pad
from dagm_jax.distributed.devices import Devices
from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.postprocess import postprocess
from dagm_jax.tasks.base import ScoreKind
from dagm_jax.types import Pixels


class NonFiniteOutput(UserError):
    """The network's output for an image is not finite; place: index of this image among those given."""

    def __init__(self, place: int, shape: tuple[int, int]) -> None:
        super().__init__(place, shape)
        self.place, self.shape = place, shape

    def __str__(self) -> str:
        height, width = self.shape
        return (
            f"the network's output for image {self.place + 1} of those given, {height}x{width} px (height x width), "
            "is not finite, so its weights are damaged or have grown beyond float32; if they are being trained, lower "
            "`optim.learning_rate` and train in a new workdir; if they are of a finished model, restore it from a copy"
        )


@dataclass(frozen=True)
class Prediction:
    """An image and its mask ``[h w]`` with map float32 ``[h w]`` in [0, 1], score and loss.

    num_right: decisions on slices that agree with the slice's label, of num_counted.
    """

    image: np.ndarray
    mask: np.ndarray
    map: np.ndarray
    score: float
    loss: float
    num_right: int
    num_counted: int


@dataclass(frozen=True)
class Predictor:
    """A compiled network with its weights; ``batch_size`` images go to the devices at a time.

    shape: (h, w) in px that the network was compiled for; smaller images are padded, and their maps cut to their size.
    devices: those of this process; each of several ``processes`` predicts its share of the images.
    """

    compiled: jax.stages.Compiled
    params: Any
    stats: Any
    devices: Devices
    batch_size: int
    shape: tuple[int, int]
    verdict: VerdictConfig
    score_kind: ScoreKind = "probability"
    processes: Processes = ALONE

    def with_weights(self, params: Any, stats: Any) -> Predictor:
        """The same compiled network with other weights."""
        return replace(self, params=params, stats=stats)

    def __call__(self, pixels: Iterable[Pixels]) -> Iterator[Prediction]:
        """The prediction for each (image uint8 ``[h w]``, mask bool ``[h w]``) in order; the last batch is padded.

        Raises NonFiniteOutput where the network gives no finite numbers.
        """
        waiting = iter(pixels)
        num_before = 0
        while chosen := list(islice(waiting, self.batch_size)):
            padded = ((pad(image, self.shape), pad(mask, self.shape)) for image, mask in chosen)
            images, masks = full_batch(padded, self.batch_size)
            mask_px = np.zeros(self.batch_size, np.int32)
            mask_px[: len(chosen)] = [np.count_nonzero(mask) for _, mask in chosen]
            size = np.ones((self.batch_size, 2), np.int32)
            size[: len(chosen)] = [image.shape for image, _ in chosen]
            *batch, size = self.devices.shard_batch((images, masks, mask_px, size))
            out = self.compiled(self.params, self.stats, *batch)
            map_score = postprocess(out["map"], out["slice_scores"], size, self.verdict, self.score_kind)
            figures = [out[name] for name in ("loss", "num_right", "num_counted")]
            maps, scores, losses, num_right, num_counted = jax.device_get((*map_score, *figures))
            self.processes.heartbeat()
            for i, (image, mask) in enumerate(chosen):
                height, width = image.shape
                # A copy, so that one map that is kept does not keep all of its batch.
                map_, score = maps[i, :height, :width].copy(), float(scores[i])
                if not (math.isfinite(score) and np.isfinite(map_).all()):
                    raise NonFiniteOutput(num_before + i, (height, width))
                counts = int(num_right[i]), int(num_counted[i])
                yield Prediction(image, mask, map_, score, float(losses[i]), *counts)
            num_before += len(chosen)

"""Predictions of a compiled network on images: map, score, loss and decisions on slices."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from dagm_jax.data.slicing import pad
from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.errors import UserError
from dagm_jax.evaluation.postprocess import postprocess
from dagm_jax.evaluation.programs import Programs, Shape
from dagm_jax.types import Pixels

# Limit of images that wait for others of their size, in batches.
MAX_WAITING = 8


class NonFiniteOutput(UserError):
    """The network's output for an image is not finite; place: index of this image among those given."""

    def __init__(self, place: int, shape: tuple[int, int]) -> None:
        self.place, (height, width) = place, shape
        super().__init__(
            f"the network's output for image {place + 1} of those given, {height}x{width} px (height x width), "
            "is not finite, so its weights are damaged or have grown beyond float32; if they are being trained, lower "
            "`optim.learning_rate` and train in a new workdir; if they are of a finished model, restore it from a copy"
        )


@dataclass(frozen=True)
class Prediction:
    """An image and its mask ``[h w]`` with map float32 ``[h w]`` in [0, 1], score and loss.

    num_right: decisions on slices, or on the image, that agree with the label, of num_counted. All three are 0 by
    programs of scores alone.
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
    """A compiled network with its weights, for images of any size; each of several ``processes`` takes its share."""

    programs: Programs
    params: Any
    stats: Any
    processes: Processes = ALONE

    def __call__(self, pixels: Iterable[Pixels]) -> Iterator[Prediction]:
        """The prediction for each (image uint8 ``[h w]``, mask bool ``[h w]``) in order.

        Images of one padded size are predicted together, so that a batch may wait for later images; a batch that does
        not fill up is padded. Raises NonFiniteOutput where the network gives no finite numbers.
        """
        waiting: dict[Shape, list[tuple[int, Pixels]]] = {}
        done: dict[int, Prediction] = {}
        running: deque[tuple[list[tuple[int, Pixels]], Any]] = deque()
        num_out = 0
        # A batch ahead keeps an accelerator busy; on a CPU two would share its cores and caches.
        num_ahead = 0 if self.programs.devices.platform == "cpu" else 1

        def finished(most: int) -> Iterator[Prediction]:
            """The next predictions in order, once no more than ``most`` batches are running."""
            nonlocal num_out
            while len(running) > most:
                done.update(self._finish(*running.popleft()))
                self.processes.heartbeat()
            while num_out in done:
                yield done.pop(num_out)
                num_out += 1

        for place, one in enumerate(pixels):
            shape = self.programs.shape_for((one[0].shape[0], one[0].shape[1]))
            batch = waiting.setdefault(shape, [])
            batch.append((place, one))
            size = self.programs.begin(shape).result().batch_size
            if len(batch) == size:
                running.append((batch, self._start(waiting.pop(shape), shape)))
            elif place - num_out >= MAX_WAITING * size:
                # The oldest image has waited long enough for others of its size.
                oldest = next(iter(waiting))
                running.append((waiting[oldest], self._start(waiting.pop(oldest), oldest)))
            yield from finished(num_ahead)
        for shape, batch in waiting.items():
            running.append((batch, self._start(batch, shape)))
        while running:
            yield from finished(len(running) - 1)

    def _start(self, batch: list[tuple[int, Pixels]], shape: Shape) -> Any:
        """Arrays, which may not have been computed yet, of the outputs for a batch of images."""
        programs = self.programs
        program = programs.begin(shape).result()
        mode = programs.tiling.mode
        pixels = [one for _, one in batch]
        # The last image fills the batch up.
        pixels += pixels[-1:] * (program.batch_size - len(batch))
        images, masks = (np.stack([pad(one[k], shape, mode) for one in pixels]) for k in (0, 1))
        mask_px = np.array([np.count_nonzero(mask) for _, mask in pixels], np.int32)
        size = np.array([image.shape for image, _ in pixels], np.int32)
        images, masks, mask_px, size = programs.devices.shard_batch((images, masks, mask_px, size))
        out = program.step(self.params, self.stats, images, masks, mask_px, size)
        verdict, score_kind = programs.verdict, programs.task.score_kind
        maps, scores = postprocess(out["map"], out["slice_scores"], size, verdict, score_kind)
        none = np.zeros(program.batch_size)
        return maps, scores, *(out.get(name, none) for name in ("loss", "num_right", "num_counted"))

    def _finish(self, batch: list[tuple[int, Pixels]], out: Any) -> Iterator[tuple[int, Prediction]]:
        """(place, prediction) of each image of a batch from its outputs."""
        maps, scores, losses, num_right, num_counted = jax.device_get(out)
        for i, (place, (image, mask)) in enumerate(batch):
            height, width = image.shape
            # A copy, so that one map that is kept does not keep all of its batch.
            map_, score = maps[i, :height, :width].copy(), float(scores[i])
            if not (math.isfinite(score) and np.isfinite(map_).all()):
                raise NonFiniteOutput(place, (height, width))
            counts = int(num_right[i]), int(num_counted[i])
            yield place, Prediction(image, mask, map_, score, float(losses[i]), *counts)

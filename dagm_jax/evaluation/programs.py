"""Compiled evaluation steps: one for each size to which images are padded."""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import jax
import numpy as np

from dagm_jax.data.config import PADDED_PX
from dagm_jax.data.slicing import PadMode, Slicer
from dagm_jax.distributed.devices import Devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import EvalConfig, VerdictConfig
from dagm_jax.evaluation.postprocess import postprocess
from dagm_jax.evaluation.step import EvalStep, make_sliced_step, make_whole_step, most_slices
from dagm_jax.models.network import Network
from dagm_jax.tasks.base import Task

# Limit of programs of a set of images, and of those that are kept: each takes seconds of compilation.
MOST_PROGRAMS = 10
# Limit of sizes among which those that share a program are chosen pair by pair.
MOST_SIZES = 64

# (height, width) in px.
Shape = tuple[int, int]


def padded(size: Shape, multiple: int = PADDED_PX) -> Shape:
    """The least multiples of ``multiple`` that hold an image of this size."""
    height, width = (-(-length // multiple) * multiple for length in size)
    return height, width


def choose_shapes(sizes: Iterable[Shape], most: int = MOST_PROGRAMS) -> tuple[Shape, ...]:
    """The padded sizes of images of these sizes, by area: at most ``most``, of which each takes the first it fits.

    Where there are more, those share one that together add the fewest pixels.
    """
    images, multiple = list(sizes), PADDED_PX
    while len(counts := Counter(padded(size, multiple) for size in images)) > MOST_SIZES:
        multiple *= 2
    while len(counts) > most:
        joined = {(a, b): (max(a[0], b[0]), max(a[1], b[1])) for a, b in combinations(counts, 2)}
        pair = min(
            joined, key=lambda p: sum(counts[one] * (math.prod(joined[p]) - math.prod(one)) for one in p)
        )
        number = sum(counts.pop(one) for one in pair)
        counts[joined[pair]] += number
    return tuple(sorted(counts, key=lambda shape: (math.prod(shape), shape)))


@dataclass(frozen=True)
class WholeImages:
    """Images that go through the network at once, continued by their own edges.

    shapes: padded sizes of the set that the network was trained for, by area. An image takes its own padded size;
    where `MOST_PROGRAMS` sizes are shared by more, the first of them that holds it.
    slice_shape: of the slices in training. pools: whether a norm of the network takes its statistics over an image.
    """

    shapes: tuple[Shape, ...]
    slice_shape: Shape
    halo_px: int
    pools: bool
    config: EvalConfig
    mode: PadMode = "edge"

    @property
    def shares(self) -> bool:
        """Whether an image has the same map in any larger frame."""
        return not self.pools

    def shape_for(self, size: Shape) -> Shape:
        """The size to which an image of this size is padded; the other functions take sizes that this one gave."""
        own = padded(size)
        if len(self.shapes) < MOST_PROGRAMS or own in self.shapes:
            return own
        return next((s for s in self.shapes if s[0] >= size[0] and s[1] >= size[1]), own)

    def images_per_call(self, shape: Shape, platform: str) -> int | None:
        """Limit of images that go through a device together; None for the caller's own."""
        # One image fills a CPU's cores, and none waits for others of its size. Tiles of many would fill the memory.
        return 1 if platform == "cpu" or math.prod(shape) > self.config.max_px else None

    def make_step(
        self, network: Network, task: Task, shape: Shape, platform: str, num_images: int, tiled: bool = True
    ) -> EvalStep:
        """The step for ``num_images`` images on a device; ``tiled``: in bounded memory, whatever their size."""
        tiled = tiled and math.prod(shape) > self.config.max_px
        if self.pools and tiled:
            raise UserError(
                f"`model.norm` (=group) takes its statistics over an image, and tiles of one of {shape[0]}x{shape[1]} "
                f"px do not show it; raise `eval.max_px` (={self.config.max_px}), or train with norm=batch"
            )
        tile_px = self.config.tile_px if tiled else None
        return make_whole_step(network, task, self.slice_shape, self.config.flips, tile_px, self.halo_px)


@dataclass(frozen=True)
class SlicedImages:
    """Images that are cut into slices as in training, continued by their own mirror images.

    usual: size of the training images; slicer_for: the slicer of images of a size. Methods are those of `WholeImages`.
    """

    usual: Shape
    slicer_for: Callable[[Shape], Slicer]
    mode: PadMode = "symmetric"
    shares = False
    _slicers: dict[Shape, Slicer] = field(default_factory=dict)

    def shape_for(self, size: Shape) -> Shape:
        fits = size[0] <= self.usual[0] and size[1] <= self.usual[1]
        slicer = self.slicer_for(self.usual if fits else size)
        shape = slicer.height_px, slicer.width_px
        self._slicers[shape] = slicer
        return shape

    def images_per_call(self, shape: Shape, platform: str) -> int | None:
        return None if shape == self.shape_for(self.usual) else 1

    def make_step(
        self, network: Network, task: Task, shape: Shape, platform: str, num_images: int, tiled: bool = True
    ) -> EvalStep:
        slicer = self._slicers[shape]
        return make_sliced_step(network, task, slicer, most_slices(platform, slicer, num_images))


Tiling = WholeImages | SlicedImages


@dataclass(frozen=True)
class Program:
    """A compiled evaluation step for ``batch_size`` images of one padded size; seconds: of its compilation."""

    step: jax.stages.Compiled
    batch_size: int
    seconds: float


@dataclass(eq=False)
class Programs:
    """The evaluation steps of a network, compiled in another thread as sizes come; the latest `MOST_PROGRAMS` are kept.

    like: parameters and norm statistics, or their shapes. batch_size: images of all devices together in a step.
    scores_alone: the steps return maps and scores, and compute no losses or decisions on slices.
    """

    network: Network
    task: Task
    tiling: Tiling
    verdict: VerdictConfig
    devices: Devices
    like: tuple[Any, Any]
    batch_size: int
    scores_alone: bool = False

    def __post_init__(self) -> None:
        self._found: OrderedDict[Shape, Future[Program]] = OrderedDict()
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compile")

    def begin(self, shape: Shape) -> Future[Program]:
        """The program for this padded size, whose compilation begins now if it has not yet."""
        if shape not in self._found:
            if len(self._found) >= MOST_PROGRAMS:
                self._found.popitem(last=False)
            self._found[shape] = self._compiler.submit(self._compile, shape)
        self._found.move_to_end(shape)
        return self._found[shape]

    def shape_for(self, size: Shape) -> Shape:
        """The padded size in which an image of this size is judged.

        That of the tiling; once `MOST_PROGRAMS` are kept, the least of theirs that holds the image, if what is added
        counts nowhere and is at most three times the image.
        """
        own = self.tiling.shape_for(size)
        if own in self._found or len(self._found) < MOST_PROGRAMS or not self.tiling.shares:
            return own
        holding = [s for s in self._found if s[0] >= own[0] and s[1] >= own[1]]
        least = min(holding, key=math.prod, default=own)
        return least if math.prod(least) <= 4 * math.prod(own) else own

    def cancel(self) -> None:
        """Gives up what has not begun to compile, for which the process would wait at its end."""
        self._compiler.shutdown(wait=False, cancel_futures=True)

    def seconds(self) -> float:
        """Seconds of all compilations that are kept."""
        return sum(one.result().seconds for one in self._found.values())

    def _compile(self, shape: Shape) -> Program:
        start_s = time.perf_counter()
        devices, platform, num = self.devices, self.devices.platform, self.devices.num_devices
        is_alone = self.tiling.images_per_call(shape, platform) == 1
        batch_size = num if is_alone else -(-self.batch_size // num) * num
        network = self.network.for_platform(platform)
        step = self.tiling.make_step(network, self.task, shape, platform, batch_size // num)
        pixels = (batch_size, *shape)
        counts, sizes = np.zeros(batch_size, np.int32), np.ones((batch_size, 2), np.int32)
        empty = np.zeros(pixels, np.uint8), np.zeros(pixels, bool), counts, sizes

        def chosen(*arguments: Any) -> dict[str, Any]:
            outputs = step(*arguments)
            return {name: outputs[name] for name in ("map", "slice_scores")} if self.scores_alone else outputs

        compiled = devices.compile_eval_step(chosen, *self.like, *devices.shard_batch(empty))
        # Called once, so that the first batch does not wait for its compilation.
        outputs = (np.zeros(compiled.out_info[k].shape, np.float32) for k in ("map", "slice_scores"))
        postprocess(*devices.shard_batch((*outputs, sizes)), self.verdict, self.task.score_kind)
        return Program(compiled, batch_size, time.perf_counter() - start_s)

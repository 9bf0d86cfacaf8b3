"""An inspector of images: what a trained model says of one image, of several, or of a stream of them.

``dagm_jax.Inspector.load(workdir).inspect("part.png")`` gives a `Verdict`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.images.image_reader import ImageReader
from dagm_jax.data.layouts import DAGM_SHAPE
from dagm_jax.detector import Detector, load_detector
from dagm_jax.evaluate import Judge, NonFiniteOutput
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.exported import load_exported
from dagm_jax.train.parallel import Devices, make_devices
from dagm_jax.types import UserError, Verdict
from dagm_jax.verdict import DecisionRule

# What an image may be given as: an array [h w], [h w 1] or [h w 3], or the path of a file.
ImageLike = NDArray[Any] | str | Path

# Larger images than in training are judged up to this multiple of either edge; sixteen times the area takes as much
# memory as a usual batch.
LARGEST_TIMES = 4
# Compiled programs that are kept, each of one image size and batch size.
NUM_PROGRAMS = 4


class Engine(Protocol):
    """Something that judges images: a run's network, or a file that was exported from one.

    model_id: 12 hex digits. rule: its thresholds. reading: what images it takes. batch_size: how many at a time
    suit it. normal_scores: scores of the good validation images, empty where they are not known.
    """

    @property
    def model_id(self) -> str: ...
    @property
    def rule(self) -> DecisionRule: ...
    @property
    def reading(self) -> ImageReader: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def normal_scores(self) -> Sequence[float]: ...

    def judge(
        self, images: Sequence[NDArray[np.uint8]], batch_size: int
    ) -> list[tuple[float, NDArray[np.float32]]]:
        """(score, map float32 [h w]) of each image, at most ``batch_size`` of them, which need not be of one size.

        The images, uint8 [h w], have come through ``reading``. A program that is compiled is compiled for
        ``batch_size`` images: the same whatever their number, so that a batch that is not full costs no compilation.
        """
        ...


class RunEngine:
    """The network of a finished run, compiled for the sizes that come."""

    def __init__(self, detector: Detector, devices: Devices, normal_scores: Sequence[float] = ()) -> None:
        self._detector, self._devices = detector, devices
        self._programs: OrderedDict[tuple[tuple[int, int], int], Judge] = OrderedDict()
        self.normal_scores = tuple(normal_scores)
        self.batch_size = detector.config.train.judge_batch_size * devices.num_devices

    @classmethod
    def load(cls, workdir: Path, xla_flags: str = "") -> RunEngine:
        """The engine of the finished run in ``workdir``; raises UserError."""
        detector = load_detector(workdir)
        normals: list[float] = []
        kept = Workdir(workdir, "model")
        if kept.validation_scores.exists():
            labels, scores = kept.read_validation_scores()
            normals = [score for label, score in zip(labels, scores, strict=True) if not label]
        return cls(detector, make_devices(detector.config.parallel, xla_flags), normals)

    @property
    def model_id(self) -> str:
        return self._detector.model_id

    @property
    def rule(self) -> DecisionRule:
        return self._detector.rule

    @property
    def reading(self) -> ImageReader:
        height, width = self._detector.shape
        # Squeezed columns are averaged over more pixels in a wider image: another scale than was learnt.
        times = 1 if self._detector.config.slicing.mode == "squeeze" else LARGEST_TIMES
        white = self._detector.white
        return ImageReader(DAGM_SHAPE if white is None else None, (times * height, times * width), white)

    def judge(
        self, images: Sequence[NDArray[np.uint8]], batch_size: int
    ) -> list[tuple[float, NDArray[np.float32]]]:
        """As `Engine.judge` says. Images larger than in training are judged one at a time, by programs of their own."""
        places: dict[tuple[int, int], list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault(shape_for((image.shape[0], image.shape[1]), self._detector), []).append(place)
        found: dict[int, tuple[float, NDArray[np.float32]]] = {}
        for shape, chosen in places.items():
            judge = self._program(shape, batch_size if shape == self._detector.shape else 1)
            pixels = ((images[place], np.zeros(images[place].shape, bool)) for place in chosen)
            try:
                for place, judged in zip(chosen, judge(pixels), strict=True):
                    found[place] = judged.score, judged.map
            except NonFiniteOutput as error:
                raise NonFiniteOutput(chosen[error.place], error.shape) from error
        return [found[place] for place in range(len(images))]

    def _program(self, shape: tuple[int, int], batch_size: int) -> Judge:
        num = self._devices.num_devices
        key = shape, -(-batch_size // num) * num
        if key not in self._programs:
            detector = as_dense(self._detector, shape)
            self._programs[key] = detector.compile_judge(self._devices, key[1], shape)
        self._programs.move_to_end(key)
        if len(self._programs) > NUM_PROGRAMS:
            self._programs.popitem(last=False)
        return self._programs[key]


def shape_for(image: tuple[int, int], detector: Detector) -> tuple[int, int]:
    """The (h, w) in px that a program for an image of this size is compiled for: the training data's if it fits.

    Otherwise each edge grows by a power of sqrt(2), so that many sizes share few programs and an image's verdict
    depends on the image alone; and to a square where training images are judged as squares, strips lying both ways.
    """

    def grown(length: int, usual: int) -> int:
        steps = max(0, math.ceil(2 * math.log2(length / usual)))
        return max(length, math.ceil(usual * 2 ** (steps / 2))) if steps else usual

    usual = detector.shape
    if image[0] <= usual[0] and image[1] <= usual[1]:
        return usual
    shape = grown(image[0], usual[0]), grown(image[1], usual[1])
    return (max(shape), max(shape)) if usual[0] == usual[1] else shape


def as_dense(detector: Detector, shape: tuple[int, int]) -> Detector:
    """The detector that cuts images of ``shape`` as densely as it cuts those of its training data."""
    slicing = detector.config.slicing
    pairs = math.ceil(slicing.num_slices / 2 * max(1.0, shape[1] / detector.shape[1]))
    if shape[1] <= detector.shape[1]:
        return detector
    return replace(detector, config=replace(detector.config, slicing=replace(slicing, num_slices=2 * pairs)))


@dataclass(frozen=True)
class Inspector:
    """Judges images by a trained model. rule: its own, or with the threshold that the user chose; see `load`."""

    engine: Engine
    rule: DecisionRule
    model_id: str

    @classmethod
    def load(cls, model: str | Path, threshold: float | None = None, xla_flags: str = "") -> Inspector:
        """The inspector of a finished run's workdir, or of a file that was exported from one.

        threshold: in place of the rule's; the id then changes with it.

        xla_flags: the process's XLA_FLAGS, which win over the options set here. Raises UserError where there is no
        finished run, or a part of it or of what lies beside the file is missing or damaged.
        """
        path = Path(model).expanduser()
        engine = load_exported(path) if os.path.isfile(path) else RunEngine.load(path, xla_flags)
        return cls.of_engine(engine, threshold)

    @classmethod
    def of_engine(cls, engine: Engine, threshold: float | None = None) -> Inspector:
        """The inspector that judges by ``engine``; ``threshold`` as of `load`."""
        if threshold is None:
            return cls(engine, engine.rule, engine.model_id)
        if not math.isfinite(threshold):
            raise UserError(f"`threshold` (={threshold}) must be a finite number")
        digest = hashlib.sha256(f"{engine.model_id} {float(threshold)!r}".encode())
        return cls(engine, replace(engine.rule, threshold=float(threshold)), digest.hexdigest()[:12])

    @overload
    def inspect(self, images: str | Path) -> Verdict: ...
    @overload
    def inspect(self, images: NDArray[Any]) -> Verdict | list[Verdict]: ...
    @overload
    def inspect(self, images: list[ImageLike] | tuple[ImageLike, ...]) -> list[Verdict]: ...

    def inspect(self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...]) -> Verdict | list[Verdict]:
        """The verdict on an image (an array [h w], [h w 1] or [h w 3], or a file's path), or the verdicts on several.

        Several are a list or tuple of such images, or an array [b h w] or [b h w c]. Arrays are uint8, or uint16 where
        the model knows 16-bit images. Raises UserError for arrays that cannot be judged, BadImage for such files.
        """
        if isinstance(images, str | Path):
            return self.judge([self.read(images)], 1)[0]
        if isinstance(images, np.ndarray):
            if images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (1, 3)):
                return self.judge([self.engine.reading.of_array(images)], 1)[0]
            return list(self.inspect_all(images))
        if not isinstance(images, list | tuple):
            raise UserError(
                f"`images` (a {type(images).__name__}) must be an array, a path, a list or a tuple; inspect_all takes "
                "any iterable"
            )
        return list(self.inspect_all(images))

    def inspect_all(self, images: Iterable[ImageLike], batch_size: int | None = None) -> Iterator[Verdict]:
        """The verdict on each image in order; no more than ``batch_size`` images are held at a time.

        Raises as `inspect` does, when it comes to that image.
        """
        size = self.check_batch_size(batch_size)
        waiting = iter(images)
        while chosen := list(islice(waiting, size)):
            yield from self.judge([self.read(image) for image in chosen], size)

    def read(self, image: ImageLike) -> NDArray[np.uint8]:
        """The image as uint8 grey [h w], as training read it; raises UserError for arrays, BadImage for files."""
        if isinstance(image, str | Path):
            return self.engine.reading.read(Path(image))
        if not isinstance(image, np.ndarray):
            raise UserError(f"`image` (a {type(image).__name__}) must be a numpy array or a path")
        return self.engine.reading.of_array(image)

    def judge(self, images: Sequence[NDArray[np.uint8]], batch_size: int) -> list[Verdict]:
        """The verdicts on at most ``batch_size`` images that `read` gave, by one call of the engine."""
        verdicts = []
        for score, evidence in self.engine.judge(images, batch_size):
            defective = bool(self.rule.decide([score])[0])
            mask = evidence >= self.rule.pixel_threshold
            verdicts.append(Verdict(defective, score, evidence, mask, self.rule.threshold, self.model_id))
        return verdicts

    def check_batch_size(self, batch_size: int | None) -> int:
        """``batch_size``, by default the engine's own; raises UserError for less than 1."""
        if batch_size is not None and batch_size < 1:
            raise UserError(f"`batch_size` (={batch_size}) must be at least 1")
        return batch_size or self.engine.batch_size

"""The inspector: a trained model's verdicts on one image, on several, or on a stream of them.

``dagm_jax.Inspector.load(workdir).inspect("part.png")`` gives a `Verdict`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.images.decode import ImageReader
from dagm_jax.errors import UserError
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.exporting.exported_model import load_exported_model
from dagm_jax.types import Verdict

# An image: an array [h w], [h w 1] or [h w 3], or the path of a file.
ImageLike = NDArray[Any] | str | Path


class Backend(Protocol):
    """A model that scores images: the network of a run, or a file that was exported from one.

    model_id: 12 hex digits. rule: its thresholds. reading: the images it takes. shape: the (h, w) in px that is usual,
    None where that is not known. batch_size: its default. normal_scores:
    scores of the good validation images, empty where they are not known.
    """

    model_id: str
    rule: Thresholds
    reading: ImageReader
    shape: tuple[int, int] | None
    batch_size: int
    normal_scores: Sequence[float]

    def predict(
        self, images: Sequence[NDArray[np.uint8]], batch_size: int
    ) -> list[tuple[float, NDArray[np.float32]]]:
        """(score, map float32 [h w]) of each image, at most ``batch_size`` of them, which need not be of one size.

        The images, uint8 [h w], come from ``reading``. A program is compiled for ``batch_size`` images whatever their
        number, so that a batch that is not full costs no compilation.
        """


@dataclass(frozen=True)
class Inspector:
    """A trained model applied to images. rule: the model's own, or with the threshold that the user chose."""

    backend: Backend
    rule: Thresholds
    model_id: str

    @classmethod
    def load(
        cls,
        model: str | Path,
        threshold: float | None = None,
        xla_flags: str = "",
        runtime: str | None = None,
    ) -> Inspector:
        """The inspector of a finished run's workdir, or of a file that was exported from one.

        threshold: in place of the rule's; changes the id. xla_flags: the process's XLA_FLAGS, which win over
        options set here. runtime: "openvino" runs an ONNX file in place of onnxruntime. Raises UserError for an
        unfinished run, and a missing or damaged part or file.
        """
        path = Path(model).expanduser()
        if os.path.isfile(path):
            return cls.of_backend(load_exported_model(path, runtime), threshold)
        if runtime is not None:
            raise UserError(f"`runtime` (={runtime}) is for an exported file; leave it out for a workdir")
        # Late: exported files run without jax.
        from dagm_jax.inspection.trained_backend import TrainedModelBackend

        return cls.of_backend(TrainedModelBackend.load(path, xla_flags), threshold)

    @classmethod
    def of_backend(cls, backend: Backend, threshold: float | None = None) -> Inspector:
        """The inspector with this backend; ``threshold`` as in `load`."""
        if threshold is None:
            return cls(backend, backend.rule, backend.model_id)
        if not math.isfinite(threshold):
            raise UserError(f"`threshold` (={threshold}) must be a finite number")
        digest = hashlib.sha256(f"{backend.model_id} {float(threshold)!r}".encode())
        return cls(backend, replace(backend.rule, threshold=float(threshold)), digest.hexdigest()[:12])

    @overload
    def inspect(self, images: str | Path) -> Verdict: ...
    @overload
    def inspect(self, images: NDArray[Any]) -> Verdict | list[Verdict]: ...
    @overload
    def inspect(self, images: list[ImageLike] | tuple[ImageLike, ...]) -> list[Verdict]: ...

    def inspect(self, images: ImageLike | list[ImageLike] | tuple[ImageLike, ...]) -> Verdict | list[Verdict]:
        """The verdict on an image (an array or a file's path), or the verdicts on several.

        Several images are a list or tuple of them, or an array [b h w] or [b h w c]. An array of one image is [h w],
        [h w 1] or [h w 3]; uint8, or uint16 in grey where the model knows 16-bit images. Raises UserError for other
        arrays, BadImage for files that cannot be read.
        """
        if isinstance(images, np.ndarray) and images.ndim > 2 and images.shape[2:] not in ((1,), (3,)):
            return list(self.inspect_all(images))
        if isinstance(images, list | tuple):
            return list(self.inspect_all(images))
        return self.predict([self.read(images)], 1)[0]

    def inspect_all(self, images: Iterable[ImageLike], batch_size: int | None = None) -> Iterator[Verdict]:
        """The verdict on each image in order, ``batch_size`` held at a time; raises as `inspect` does."""
        size = self.check_batch_size(batch_size)
        waiting = iter(images)
        while chosen := list(islice(waiting, size)):
            yield from self.predict([self.read(image) for image in chosen], size)

    def read(self, image: ImageLike) -> NDArray[np.uint8]:
        """The image as uint8 grey [h w], as training read it; raises UserError for arrays, BadImage for files."""
        if isinstance(image, str | Path):
            return self.backend.reading.read(Path(image))
        if not isinstance(image, np.ndarray):
            raise UserError(f"`image` (a {type(image).__name__}) must be a numpy array or a path")
        return self.backend.reading.of_array(image)

    def predict(self, images: Sequence[NDArray[np.uint8]], batch_size: int) -> list[Verdict]:
        """The verdicts on at most ``batch_size`` images from `read`, by one call of the backend."""
        verdicts = []
        for score, score_map in self.backend.predict(images, batch_size):
            defective = bool(self.rule.decide([score])[0])
            mask = score_map >= self.rule.pixel_threshold
            verdicts.append(Verdict(defective, score, score_map, mask, self.rule.threshold, self.model_id))
        return verdicts

    def check_batch_size(self, batch_size: int | None) -> int:
        """``batch_size``, by default the backend's own; raises UserError for less than 1."""
        if batch_size is not None and batch_size < 1:
            raise UserError(f"`batch_size` (={batch_size}) must be at least 1")
        return batch_size or self.backend.batch_size

"""``predict`` with a backend that needs no training, in this process or in one of its own.

``python tests/bright.py --model=X --images=DIR --output=DIR …`` is the command with that backend.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.images.decode import ImageReader
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.inspection.inspector import Inspector


class Bright:
    """A backend whose score is the brightest pixel; notes how many images each call brings."""

    rule = Thresholds(0.5, 0.5, "f1")
    reading = ImageReader(None, (1000, 1000), 65535)
    shape = None
    batch_size = 3

    def __init__(self, model: str = "bright", seconds: float = 0.0) -> None:
        self.model_id = hashlib.sha256(model.encode()).hexdigest()[:12]
        self.normal_scores: Sequence[float] = ()
        self.calls: list[tuple[int, int]] = []
        self._seconds = seconds

    def predict(
        self, images: Sequence[NDArray[np.uint8]], batch_size: int
    ) -> list[tuple[float, NDArray[np.float32]]]:
        assert 0 < len(images) <= batch_size
        time.sleep(self._seconds)
        self.calls.append((len(images), batch_size))
        return [(float(image.max() / 255), (image / 255).astype(np.float32)) for image in images]


def load(
    model: str, threshold: float | None = None, xla_flags: str = "", runtime: str | None = None
) -> Inspector:
    """In place of ``Inspector.load``: the model named "slow" takes a tenth of a second for a batch."""
    return Inspector.of_backend(Bright(model, 0.1 if model == "slow" else 0.0), threshold)


if __name__ == "__main__":
    from dagm_jax import predict
    from dagm_jax.command_line import guarded

    replaced: Any = Inspector
    replaced.load = staticmethod(load)
    sys.exit(guarded(predict.main, sys.argv))

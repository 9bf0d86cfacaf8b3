"""The score of a baseline without training, which a detector has to beat before its numbers mean anything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

# Edge of the window over which texture energy is averaged: that of a small defect.
WINDOW_PX = 15


def local_energy_score(image: NDArray[np.uint8]) -> float:
    """The largest deviation of local texture energy from the image's own usual level: >= 0, higher = defective.

    e(x, y) = mean over a 15x15 window of the squared differences to the left and the upper neighbour; m = log(1 + e);
    score = max |m - median(m)|. Two-sided: defects wipe texture out (class 1) or add edges to it (class 8).
    """
    grey = image.astype(np.float32)
    energy = np.zeros_like(grey)
    energy[:, 1:] += np.diff(grey, axis=1) ** 2
    energy[1:, :] += np.diff(grey, axis=0) ** 2
    # The running sums of the filter may fall below zero by a rounding.
    level = np.log1p(np.maximum(ndimage.uniform_filter(energy, WINDOW_PX, mode="reflect"), 0))
    return float(np.max(np.abs(level - np.median(level))))

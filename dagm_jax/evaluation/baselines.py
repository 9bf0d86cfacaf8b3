"""Baselines without training: the label of most images, and local texture energy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from scipy import ndimage

from dagm_jax.data.cache import ImageCache
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.evaluate import NUM_THREADS
from dagm_jax.evaluation.metrics import ImageCounts, auroc
from dagm_jax.evaluation.threshold import fit_threshold, rule_for

# Edge of the window over which texture energy is averaged: that of a small defect.
WINDOW_PX = 15


def evaluate_baselines(
    cache: ImageCache,
    validation: Sequence[int],
    test: Sequence[int],
    labels: Sequence[int],
    verdict: VerdictConfig,
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Figures of two baselines on the same test images: the label of most of them, and local texture energy.

    The energy's threshold is fitted on the same validation images by the same calibration. ``on_image`` is called
    after each image.
    """

    def scores(indices: Sequence[int]) -> list[float]:
        found = []
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for score in pool.map(lambda i: local_energy_score(cache.image(i)), indices):
                found.append(score)
                on_image()
        return found

    truth = [labels[i] for i in test]
    validation_labels = [labels[i] for i in validation]
    verdict = rule_for(validation_labels, verdict)
    threshold, _ = fit_threshold(validation_labels, scores(validation), verdict)
    test_scores = scores(test)
    energy = ImageCounts.from_decisions(truth, [score >= threshold for score in test_scores])
    return {
        "majority_accuracy": max(truth.count(0), truth.count(1)) / len(truth),
        "local_energy_auroc": auroc(truth, test_scores),
        "local_energy_accuracy": energy.rate("accuracy"),
        "local_energy_f1": energy.f1,
    }


def local_energy_score(image: np.ndarray) -> float:
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

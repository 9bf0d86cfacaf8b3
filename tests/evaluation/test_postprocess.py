"""Post-processing against scipy and numpy, image by image, for images of several sizes in one padded batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.postprocess import postprocess

FRAME = (24, 37)
SIZES = st.lists(st.tuples(st.integers(1, FRAME[0]), st.integers(1, FRAME[1])), min_size=3, max_size=3)


def by_numpy(image: np.ndarray, config: VerdictConfig, score_kind: str) -> tuple[np.ndarray, float]:
    """(map, score) of one map [h w]."""
    if config.smoothing_px:
        image = ndimage.gaussian_filter(image, config.smoothing_px, mode="reflect", truncate=4.0)
    if score_kind == "deviation":
        image = np.abs(image - np.median(image))
    num_top = 1 if config.score == "max" else max(1, round(config.top_fraction * image.size))
    return image, float(np.sort(image, axis=None)[-num_top:].mean(dtype=np.float64))


@pytest.mark.parametrize(
    ("sigma", "score", "score_kind"),
    [
        (0.0, "top_mean", "deviation"),
        (0.6, "top_mean", "probability"),
        (0.6, "max", "deviation"),
        (3.0, "max", "probability"),
        (3.0, "top_mean", "deviation"),
    ],
)
@settings(derandomize=True, max_examples=20, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_each_image_of_a_padded_batch_is_processed_as_alone(
    sigma: float, score: Any, score_kind: Any, sizes: list[tuple[int, int]], seed: int
) -> None:
    """Would catch: padding that reaches a pixel, the median or the score; another border, kernel or median; a radius
    beyond the image; the size of one image used for another; a deviation to one side alone.
    """
    config = VerdictConfig(score=score, smoothing_px=sigma, top_fraction=0.07)
    rng = np.random.default_rng(seed)
    maps = rng.random((3, *FRAME), np.float32)
    size = np.array(sizes, np.int32)
    found, scores = postprocess(maps, np.zeros((3, 2), np.float32), size, config, score_kind)
    for i, (height, width) in enumerate(sizes):
        expected, expected_score = by_numpy(maps[i, :height, :width], config, score_kind)
        np.testing.assert_allclose(found[i, :height, :width], expected, atol=1e-5)
        assert float(scores[i]) == pytest.approx(expected_score, abs=1e-5)


@pytest.mark.parametrize("sigma", [0.0, 0.6, 2.0, 4.0])
def test_a_map_stays_within_0_and_1(sigma: float) -> None:
    """Would catch: a rounding above 1 where a trained network is sure of a whole region, which ends the run."""
    sure = np.ones((1, *FRAME), np.float32)
    for size in (None, np.array([[20, 30]], np.int32)):
        found, (score,) = postprocess(
            sure, np.zeros((1, 2), np.float32), size, VerdictConfig(smoothing_px=sigma), "probability"
        )
        assert score <= 1 and (found[0, :20, :30] <= 1).all()
        np.testing.assert_allclose(found[0, :20, :30], 1, atol=1e-6)


@pytest.mark.parametrize("score_kind", ["probability", "deviation"])
@pytest.mark.parametrize("score", ["max", "top_mean"])
def test_a_full_frame_needs_no_sizes(score: Any, score_kind: Any) -> None:
    """Would catch: an exported file, whose images fill the frame, that scores otherwise than evaluation."""
    config = VerdictConfig(score=score, top_fraction=0.07)
    maps = np.random.default_rng(0).random((2, *FRAME), np.float32)
    size, nothing = np.array([FRAME] * 2, np.int32), np.zeros((2, 3), np.float32)
    fixed, traced = (postprocess(maps, nothing, s, config, score_kind) for s in (None, size))
    for one, other in zip(fixed, traced, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_slices_score_is_the_highest_or_the_mean_of_the_highest() -> None:
    """Would catch: the mean over all slices, which dilutes a defect that few slices hold."""
    maps, scores = np.zeros((1, 4, 4), np.float32), np.array([[0.1, 0.9, 0.3, 0.6]], np.float32)
    for config, expected in (
        (VerdictConfig(), 0.9),
        (VerdictConfig(score="top_mean", top_slices=3), 0.6),
        (VerdictConfig(score="top_mean", top_slices=9), 0.475),
    ):
        assert float(postprocess(maps, scores, None, config, "slices")[1][0]) == pytest.approx(expected)

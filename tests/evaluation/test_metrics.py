"""Counts, rates and areas against scikit-learn, hand values and sums over parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as oracle

from dagm_jax.evaluation import metrics
from dagm_jax.evaluation.metrics import (
    ImageCounts,
    auroc,
    auroc_bound,
    balanced_dice,
    balanced_dice_bound,
    best_pixel_threshold,
    dice,
    dice_curve,
    pixel_histogram,
    regions,
)

# Scores from few values: every list has heavy ties.
SCORE = st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 1.0])
# Dice curves of no good images.
NO_IMAGES = np.zeros((0, 256))
TIED = st.lists(st.tuples(st.integers(0, 1), SCORE), min_size=2)


def _smooth_map(seed: int, with_defect: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A map float32 [64 64] in (0, 1) with overlapping groups, and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 64), bool)
    if with_defect:
        mask[20:40, 10:30] = True
    logit = ndimage.gaussian_filter(rng.normal(0, 6, mask.shape), 1.5) + 1.5 * mask
    return (1 / (1 + np.exp(-logit))).astype(np.float32), mask


def test_wilson_by_hand_and_at_its_ends() -> None:
    """Would catch: a Wald or Clopper-Pearson interval under Wilson's name; a zero-width interval at a share of 1, and
    NaN instead of None without trials."""
    p, n, z = 28 / 30, 30, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert metrics.wilson_interval(28, 30) == pytest.approx(expected, abs=1e-12)
    interval = metrics.wilson_interval(230, 230)
    assert interval is not None and 0.98 < interval[0] < 0.99 and interval[1] == pytest.approx(1.0)
    assert metrics.wilson_interval(0, 0) is None
    with pytest.raises(ValueError, match=r"must not be greater than n"):
        metrics.wilson_interval(3, 2)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1))
def test_rates_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Would catch: a wrong denominator, and 0 or NaN where a ratio is undefined."""
    labels, decisions = np.array(pairs).T
    counts = ImageCounts.from_decisions(labels, decisions)
    nan = {"zero_division": np.nan}
    expected = {
        "accuracy": oracle.accuracy_score(labels, decisions),
        "precision": oracle.precision_score(labels, decisions, **nan),
        "recall": oracle.recall_score(labels, decisions, **nan),
        "f1": oracle.f1_score(labels, decisions, **nan),
        "specificity": oracle.recall_score(1 - labels, 1 - decisions, **nan),
    }
    for name, value in expected.items():
        found = counts.f1 if name == "f1" else counts.rate(name)
        assert (found is None and np.isnan(value)) or found == pytest.approx(value, abs=1e-12), name
    if 0 < labels.sum() < labels.size:
        assert counts.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(labels, decisions))


def test_undefined_is_none() -> None:
    """Would catch: NaN in a report, which JSON has none of, and 0 that would be taken for a result."""
    empty, good, missed = ImageCounts(), ImageCounts(tn=5), ImageCounts(fn=2)
    assert [empty.rate(name) for name in empty.shares()] == [None] * 4
    assert empty.f1 is None and empty.balanced_accuracy is None
    assert good.balanced_accuracy is None and good.rate("accuracy") == 1
    assert missed.f1 == 0 and missed.rate("precision") is None


def test_counts_merge_to_the_whole() -> None:
    """Would catch: a mean of means: uneven batches give the counts of all images at once."""
    rng = np.random.default_rng(0)
    labels, decisions = rng.integers(0, 2, (2, 100))
    parts = [ImageCounts.from_decisions(labels[a:b], decisions[a:b]) for a, b in ((0, 7), (7, 7), (7, 100))]
    whole = ImageCounts.from_decisions(labels, decisions)
    assert sum(parts, ImageCounts()) == whole


def test_bad_labels_are_refused() -> None:
    """Would catch: label -1 ("neither") or a score counted as a decision."""
    with pytest.raises(ValueError, match=r"`labels` .* values 0 and 1"):
        ImageCounts.from_decisions([1, -1], [1, 0])
    with pytest.raises(ValueError, match=r"`decisions` .* values 0 and 1"):
        ImageCounts.from_decisions([1, 0], [0.9, 0.1])
    with pytest.raises(ValueError, match=r"`decisions` \(3,\) must have the shape of `labels` \(2,\)"):
        ImageCounts.from_decisions([1, 0], [1, 0, 0])


@settings(derandomize=True, max_examples=150, deadline=None)
@given(TIED)
def test_areas_and_curve_equal_scikit_learn_under_ties(rows: list[tuple[int, float]]) -> None:
    """Would catch: ties broken by the order of the images, areas for a part with one class; a curve with a point inside
    a tie, or rates that belong to another point."""
    labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if labels.min() == labels.max():
        assert metrics.auroc(labels, scores) is None and metrics.average_precision(labels, scores) is None
        with pytest.raises(ValueError, match="must hold both classes"):
            metrics.rank_curve(labels, scores)
        return
    assert metrics.auroc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
    area = oracle.average_precision_score(labels, scores)
    assert metrics.average_precision(labels, scores) == pytest.approx(area, abs=1e-12)
    curve = metrics.rank_curve(labels, scores)
    # scikit-learn adds the points (0, 0) of the ROC and (1, 0) of the other curve, which runs upwards.
    roc = oracle.roc_curve(labels, scores, drop_intermediate=False)
    precision, recall, _ = oracle.precision_recall_curve(labels, scores)
    expected = roc[0][1:], recall[-2::-1], precision[-2::-1]
    for found, value in zip(curve, expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-12)


def test_areas_refuse_nan() -> None:
    """Would catch: a diverged network ranked as if NaN were the highest score."""
    with pytest.raises(ValueError, match="`scores` hold 1 NaN"):
        metrics.auroc([0, 1], [0.5, np.nan])


def _areas(histogram: np.ndarray) -> tuple[float | None, float | None]:
    """(AUROC, average precision) of a pixel histogram."""
    positive, negative = histogram[:, ::-1]
    return metrics.auroc_of_counts(positive, negative), metrics.average_precision_of_counts(
        positive, negative
    )


def test_pixel_histograms_add_up_to_scikit_learns_areas() -> None:
    """Would catch: a wrong bin edge or direction, and a sum that drops or doubles a map."""
    maps = [_smooth_map(seed, seed != 1) for seed in range(4)]
    areas = _areas(sum(pixel_histogram(*pair) for pair in maps))
    scores = np.concatenate([pair[0].ravel() for pair in maps])
    truth = np.concatenate([pair[1].ravel() for pair in maps])
    rounded = np.floor(scores.astype(np.float64) * 4096)
    for found, area, tolerance in zip(
        areas, (oracle.roc_auc_score, oracle.average_precision_score), (1e-4, 1e-3), strict=True
    ):
        assert found == pytest.approx(area(truth, rounded), abs=1e-12)
        assert found == pytest.approx(area(truth, scores), abs=tolerance)


def test_pixel_histogram_edges_and_errors() -> None:
    """Would catch: 1.0 falling out of the last bin, and maps that are no probabilities being clipped silently."""
    histogram = pixel_histogram(np.array([[0.0, 1.0]]), np.array([[False, True]]))
    assert histogram[1, 0] == 1 and histogram[0, -1] == 1 and _areas(histogram) == (1.0, 1.0)
    assert _areas(np.zeros((2, 4096), np.int64)) == (None, None)
    mask = np.zeros((1, 1), bool)
    for value in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            pixel_histogram(np.array([[value]]), mask)
    with pytest.raises(ValueError, match=r"`mask` \(dtype uint8\) must be bool"):
        pixel_histogram(np.zeros((1, 1)), mask.astype(np.uint8))
    with pytest.raises(ValueError, match="must have the shape of the map"):
        pixel_histogram(np.zeros((2, 2)), mask)


def test_dice() -> None:
    """Would catch: IoU for Dice (the incumbent's "IoU" is Dice), and another both-empty convention."""
    rng = np.random.default_rng(0)
    prediction, mask = rng.random((2, 16, 16)) < 0.3
    assert dice(prediction, mask) == pytest.approx(oracle.f1_score(mask.ravel(), prediction.ravel()))
    empty = np.zeros((16, 16), bool)
    assert (dice(empty, empty), dice(empty, mask), dice(mask, empty)) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"`prediction` \(float64\) and `mask` \(bool\) must be bool"):
        dice(empty.astype(float), mask)
    with pytest.raises(ValueError, match="must have the shape"):
        dice(empty[:1], mask)


def test_dice_curve_by_brute_force() -> None:
    """Would catch: an off-by-one between bins and thresholds, and a good image whose false pixels cost nothing."""
    for with_defect in (True, False):
        map_, mask = _smooth_map(3, with_defect)
        # Values that lie exactly on thresholds, both ends among them.
        map_.ravel()[:257] = np.arange(257) / 256
        map_ *= 0.5 if not with_defect else 1
        expected = [dice(map_ >= k / 256, mask) for k in range(256)]
        np.testing.assert_allclose(dice_curve(map_, mask), expected, atol=1e-12)


def test_balanced_dice_is_the_mean_of_both_labels() -> None:
    """Would catch: a mean over all images, of which the many good ones would decide."""
    defective, good = np.full((2, 256), 0.5), np.ones((6, 256))
    assert balanced_dice(defective, good)[7] == 0.75
    assert balanced_dice(defective, good[:0])[7] == 0.5


def test_a_good_image_that_is_not_empty_moves_the_pixel_threshold() -> None:
    """Would catch: a pixel threshold that draws defects well and paints good images too."""
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    defective = dice_curve(np.where(mask, 0.9, 0.1), mask)[None]
    good = dice_curve(np.full((4, 4), 0.7), np.zeros((4, 4), bool))[None]
    # Only 0.7 < threshold <= 0.9 serves both: bins 180 … 230, the middle is 205.
    assert best_pixel_threshold(defective, good) == 205 / 256
    # One of many: what a single good image costs is its share exactly, and no error of a mean forgives it.
    many = np.concatenate([good, np.ones((20, 256))])
    assert best_pixel_threshold(defective, many) == 205 / 256


def test_thresholds_that_the_images_cannot_tell_apart_are_equally_good() -> None:
    """Would catch: the highest point of a flat curve taken at its word, and an error of single images for the mean's.

    Nine images gain and nine lose .1 above bin 128; one wins .05 more at bin 200 alone. The mean difference is far
    below its error, so bins 0 … 255 are one plateau. Where all images agree, nothing is forgiven.
    """
    rows = np.full((19, 256), 0.6)
    rows[:9, 128:] += 0.1
    rows[9:18, 128:] -= 0.1
    rows[18, 200] += 0.05
    assert best_pixel_threshold(rows, NO_IMAGES) == 127 / 256
    agreed = np.full((19, 256), 0.6)
    agreed[:, 200:211] += 0.001
    assert best_pixel_threshold(agreed, NO_IMAGES) == 205 / 256
    # Lag .02 ± .01 per image: the error of the mean of 16 is .0026, less than the lag.
    clear = np.full((16, 256), 0.6)
    clear[:, 200:211] += 0.02 + 0.01 * np.array([-1, 1] * 8)[:, None]
    assert best_pixel_threshold(clear, NO_IMAGES) == 205 / 256


def test_best_threshold_is_the_middle_of_the_longest_plateau() -> None:
    """Would catch: a threshold at the edge of a plateau, where the least shift of the map costs."""
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    perfect = dice_curve(np.where(mask, 0.9, 0.1), mask)[None]
    # Bins 26 … 230 separate 0.1 (25.6 of 256) from 0.9 (230.4): the middle is 128.
    assert best_pixel_threshold(perfect, NO_IMAGES) == 128 / 256
    values = np.zeros(256)
    values[[10, 11, 50, 51, 52, 53, 54]] = 1.0
    assert best_pixel_threshold(values[None], NO_IMAGES) == 52 / 256
    values[52] -= 1e-13
    assert best_pixel_threshold(values[None], NO_IMAGES) == 52 / 256


@pytest.mark.parametrize(("num_good", "num_defective"), [(19, 8), (60, 18)])
def test_a_guess_is_seldom_above_its_bounds(num_good: int, num_defective: int) -> None:
    """Would catch: a bound of both sides, a standard error of one group alone, and masks of defects that a map of
    chance touches taken for found."""
    rng = np.random.default_rng(0)
    labels = np.arange(num_good + num_defective) >= num_good
    above = both = 0
    for _ in range(1000):
        scores = rng.normal(size=labels.size)
        is_above = (auroc_bound(labels, scores) or 0.0) > 0.5
        # Maps of chance that overlap a little with some masks.
        touched = np.where(scores > 1, rng.uniform(0, 0.1, labels.size), 0.0)
        curves = np.repeat(np.where(labels, touched, scores <= 1)[:, None], 256, axis=1)
        above += is_above
        both += is_above and balanced_dice_bound(curves[labels], curves[~labels]) > 0.5
    assert 0.03 < above / 1000 < 0.07 and both < 0.7 * above


def test_bounds_of_a_detector_lie_below_its_figures_and_above_a_guess() -> None:
    """Would catch: a bound that no small validation split passes, and one that is the figure itself."""
    labels, scores = [0] * 6 + [1] * 4, np.arange(10.0)
    bound = auroc_bound(labels, scores)
    assert auroc(labels, scores) == 1 and bound is not None and 0.5 < bound < 1
    # So few images are in this order by chance.
    assert auroc_bound([0, 0, 1], [0.1, 0.2, 0.9]) is None and auroc_bound([0, 0], [0.1, 0.2]) is None
    found = np.linspace(0.4, 0.8, 4)[:, None] * np.ones(256)
    assert 0.5 < balanced_dice_bound(found, np.ones((6, 256))) < 0.8
    assert balanced_dice_bound(np.zeros((4, 256)), np.ones((6, 256))) == 0.5


def test_regions_by_hand() -> None:
    """Would catch: corners that part a thin scratch, parts counted by pixels, a part of the map that touches two masks
    counted as false, and one that touches none as none."""
    drawn = ["##...#..", "..#..#..", "........", "#......#", "#......#"]
    found = ["#.......", ".....##.", "..#.....", "........", "......#."]
    mask, map_ = (np.array([list(row) for row in rows]) == "#" for rows in (drawn, found))
    # The two-part scratch at the left is one by a corner; two marks are missed; two parts of the map lie elsewhere.
    assert regions(map_, mask) == (4, 2, 2)
    assert regions(map_, np.zeros_like(mask)) == (0, 0, 4) and regions(~mask & False, mask) == (4, 0, 0)
    assert regions(np.ones_like(mask), mask) == (4, 4, 0)

"""Counts, rates and areas against scikit-learn, hand values and sums over parts."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn import metrics as oracle

from dagm_jax.evaluation import metrics, pixel_metrics
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.evaluation.pixel_metrics import DiceCurve, OverlapCounts, PixelHistogram

# Scores from few values: every list has heavy ties.
SCORE = st.sampled_from([0.0, 0.1, 0.5, 0.5000001, 1.0])
TIED = st.lists(st.tuples(st.integers(0, 1), SCORE), min_size=2)


def _smooth_map(seed: int, with_defect: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A map float32 [64 64] in (0, 1) with overlapping groups, and its mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((64, 64), bool)
    if with_defect:
        mask[20:40, 10:30] = True
    logit = ndimage.gaussian_filter(rng.normal(0, 6, mask.shape), 1.5) + 1.5 * mask
    return (1 / (1 + np.exp(-logit))).astype(np.float32), mask


def test_wilson_hand_value() -> None:
    """Catches a Wald or Clopper-Pearson interval under Wilson's name; the formula for 28 of 30."""
    p, n, z = 28 / 30, 30, 1.959963984540054
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    expected = (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
    assert metrics.wilson_interval(28, 30) == pytest.approx(expected, abs=1e-12)


def test_wilson_ends() -> None:
    """Catches a zero-width interval at a share of 1, and NaN instead of None without trials."""
    interval = metrics.wilson_interval(230, 230)
    assert interval is not None and 0.98 < interval[0] < 0.99 and interval[1] == pytest.approx(1.0)
    assert metrics.wilson_interval(0, 0) is None
    with pytest.raises(ValueError, match=r"`successes` \(=3\) must lie in \[0, `trials` \(=2\)\]"):
        metrics.wilson_interval(3, 2)
    with pytest.raises(ValueError, match=r"`confidence` \(=95\) must lie in \(0, 1\)"):
        metrics.wilson_interval(1, 2, confidence=95)


def test_counts_cells() -> None:
    """Catches swapped cells (false alarms for misses): each cell holds another number."""
    labels = [1] * 3 + [0] * 7
    decisions = [1, 1, 0, 1, 1, 1, 0, 0, 0, 0]
    assert ImageCounts.from_decisions(labels, decisions) == ImageCounts(tp=2, fp=3, fn=1, tn=4)
    assert ImageCounts(tp=2, fp=3, fn=1, tn=4).cost() == 3 + 20
    assert ImageCounts(tp=2, fp=3, fn=1, tn=4).cost(fp=2, fn=5) == 11


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1))
def test_rates_equal_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    """Catches a wrong denominator, and 0 or NaN where a ratio is undefined."""
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
        found = getattr(counts, name)
        assert (found is None and np.isnan(value)) or found == pytest.approx(value, abs=1e-12), name
    if 0 < labels.sum() < labels.size:
        assert counts.balanced_accuracy == pytest.approx(oracle.balanced_accuracy_score(labels, decisions))


def test_f1_is_the_harmonic_mean() -> None:
    """Catches a table that contradicts itself as the paper's does: F1 = 2PR/(P + R) in every row."""
    counts = ImageCounts(tp=28, fp=3, fn=2, tn=197)
    assert counts.precision is not None and counts.recall is not None
    assert counts.f1 == pytest.approx(2 / (1 / counts.precision + 1 / counts.recall))


def test_undefined_is_none_and_json() -> None:
    """Catches NaN in a report: JSON has none, and a reader would take 0 for a result."""
    empty = ImageCounts()
    names = ("accuracy", "precision", "recall", "f1", "specificity", "balanced_accuracy")
    assert all(getattr(empty, name) is None for name in names)
    good_only = ImageCounts(tn=5)
    assert good_only.recall is None and good_only.balanced_accuracy is None and good_only.accuracy == 1
    assert ImageCounts(fn=2).f1 == 0 and ImageCounts(fn=2).precision is None
    text = json.dumps(good_only.rates(), allow_nan=False)
    assert json.loads(text)["recall"] == {"value": None, "low": None, "high": None}


def test_rates_carry_their_intervals() -> None:
    """Catches an interval of one rate on another's trials."""
    rates = ImageCounts(tp=28, fp=3, fn=2, tn=197).rates()
    trials = {"accuracy": (225, 230), "precision": (28, 31), "recall": (28, 30), "specificity": (197, 200)}
    assert set(rates) == set(trials)
    for name, (successes, num) in trials.items():
        assert rates[name]["value"] == successes / num
        assert (rates[name]["low"], rates[name]["high"]) == metrics.wilson_interval(successes, num)


def test_counts_merge_to_the_whole() -> None:
    """Catches a mean of means: uneven batches give the counts of all images at once."""
    rng = np.random.default_rng(0)
    labels, decisions = rng.integers(0, 2, (2, 100))
    parts = [ImageCounts.from_decisions(labels[a:b], decisions[a:b]) for a, b in ((0, 7), (7, 7), (7, 100))]
    whole = ImageCounts.from_decisions(labels, decisions)
    assert sum(parts, ImageCounts()) == whole


def test_bad_labels_are_refused() -> None:
    """Catches label -1 ("neither") or a score counted as a decision."""
    with pytest.raises(ValueError, match=r"`labels` .* values 0 and 1"):
        ImageCounts.from_decisions([1, -1], [1, 0])
    with pytest.raises(ValueError, match=r"`decisions` .* values 0 and 1"):
        ImageCounts.from_decisions([1, 0], [0.9, 0.1])
    with pytest.raises(ValueError, match=r"`decisions` \(3,\) must have the shape of `labels` \(2,\)"):
        ImageCounts.from_decisions([1, 0], [1, 0, 0])


@settings(derandomize=True, max_examples=150, deadline=None)
@given(TIED)
def test_areas_equal_scikit_learn_under_ties(rows: list[tuple[int, float]]) -> None:
    """Catches ties broken by the order of the images, and areas for a part with one class."""
    labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if labels.min() == labels.max():
        assert metrics.auroc(labels, scores) is None and metrics.average_precision(labels, scores) is None
        return
    assert metrics.auroc(labels, scores) == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)
    expected = oracle.average_precision_score(labels, scores)
    assert metrics.average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(TIED)
def test_curves_equal_scikit_learn(rows: list[tuple[int, float]]) -> None:
    """Catches curves with a point inside a tie, or thresholds that belong to another point."""
    labels, scores = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    if labels.min() == labels.max():
        with pytest.raises(ValueError, match="must hold both classes"):
            metrics.roc_curve(labels, scores)
        with pytest.raises(ValueError, match="must hold both classes"):
            metrics.precision_recall_curve(labels, scores)
        return
    for found, expected in zip(
        metrics.roc_curve(labels, scores),
        oracle.roc_curve(labels, scores, drop_intermediate=False),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    precision, recall, thresholds = oracle.precision_recall_curve(labels, scores)
    curve = metrics.precision_recall_curve(labels, scores)
    # scikit-learn runs upwards and appends the invented point (1, 0).
    np.testing.assert_allclose(curve.precision, precision[-2::-1], atol=1e-12)
    np.testing.assert_allclose(curve.recall, recall[-2::-1], atol=1e-12)
    np.testing.assert_allclose(curve.thresholds, thresholds[::-1])


def test_areas_refuse_nan() -> None:
    """Catches a diverged network ranked as if NaN were the highest score."""
    with pytest.raises(ValueError, match="`scores` hold 1 NaN"):
        metrics.auroc([0, 1], [0.5, np.nan])


def test_pixel_histogram_equals_scikit_learn() -> None:
    """Catches a wrong bin edge or direction: areas of the rounded and of the full scores."""
    maps = [_smooth_map(seed, seed != 1) for seed in range(4)]
    histogram = sum((PixelHistogram.from_map(*pair) for pair in maps), PixelHistogram.empty())
    scores = np.concatenate([pair[0].ravel() for pair in maps])
    truth = np.concatenate([pair[1].ravel() for pair in maps])
    rounded = np.floor(scores.astype(np.float64) * 4096)
    for found, area in (
        (histogram.auroc(), oracle.roc_auc_score),
        (histogram.average_precision(), oracle.average_precision_score),
    ):
        assert found == pytest.approx(area(truth, rounded), abs=1e-12)
    assert histogram.auroc() == pytest.approx(oracle.roc_auc_score(truth, scores), abs=1e-4)
    full = oracle.average_precision_score(truth, scores)
    assert histogram.average_precision() == pytest.approx(full, abs=1e-3)


def test_pixel_histogram_merges_to_the_whole() -> None:
    """Catches a merge that drops or doubles a part: counts of two maps against those of both at once."""
    (map_a, mask_a), (map_b, mask_b) = _smooth_map(0), _smooth_map(1, with_defect=False)
    parts = PixelHistogram.from_map(map_a, mask_a) + PixelHistogram.from_map(map_b, mask_b)
    whole = PixelHistogram.from_map(np.vstack([map_a, map_b]), np.vstack([mask_a, mask_b]))
    np.testing.assert_array_equal(parts.positive, whole.positive)
    np.testing.assert_array_equal(parts.negative, whole.negative)
    assert parts.positive.sum() == mask_a.sum() and parts.negative.sum() == 2 * 64 * 64 - mask_a.sum()


def test_pixel_histogram_edges_and_errors() -> None:
    """Catches 1.0 falling out of the last bin, and maps that are no probabilities being clipped silently."""
    histogram = PixelHistogram.from_map(np.array([[0.0, 1.0]]), np.array([[False, True]]))
    assert histogram.negative[0] == 1 and histogram.positive[-1] == 1 and histogram.auroc() == 1.0
    assert PixelHistogram.empty().auroc() is None and PixelHistogram.empty().average_precision() is None
    mask = np.zeros((1, 1), bool)
    for value in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            PixelHistogram.from_map(np.array([[value]]), mask)
    with pytest.raises(ValueError, match=r"`mask` \(dtype uint8\) must be bool"):
        PixelHistogram.from_map(np.zeros((1, 1)), mask.astype(np.uint8))
    with pytest.raises(ValueError, match="must have the shape of the map"):
        PixelHistogram.from_map(np.zeros((2, 2)), mask)
    wrong: Any = np.zeros(4)
    with pytest.raises(ValueError, match=r"`positive` .* must be int \[4096\]"):
        PixelHistogram(wrong, np.zeros(4096, np.int64))


def test_dice_and_iou() -> None:
    """Catches Dice for IoU and back (the incumbent's "IoU" is Dice), and the both-empty convention."""
    rng = np.random.default_rng(0)
    prediction, mask = rng.random((2, 16, 16)) < 0.3
    expected_dice = oracle.f1_score(mask.ravel(), prediction.ravel())
    expected_iou = oracle.jaccard_score(mask.ravel(), prediction.ravel())
    assert pixel_metrics.dice(prediction, mask) == pytest.approx(expected_dice)
    assert pixel_metrics.iou(prediction, mask) == pytest.approx(expected_iou)
    empty = np.zeros((16, 16), bool)
    assert pixel_metrics.dice(empty, empty) == pixel_metrics.iou(empty, empty) == 1.0
    assert (
        pixel_metrics.dice(empty, mask)
        == pixel_metrics.dice(mask, empty)
        == pixel_metrics.iou(empty, mask)
        == 0.0
    )
    with pytest.raises(ValueError, match=r"`prediction` \(float64\) and `mask` \(bool\) must be bool"):
        pixel_metrics.dice(empty.astype(float), mask)
    with pytest.raises(ValueError, match="must have the shape"):
        pixel_metrics.iou(empty[:1], mask)


def test_predicting_nothing_by_both_dice() -> None:
    """Catches a flattering mean: nothing predicted scores .87 as NVIDIA counts it, and 0 on defects."""
    empty, mask = np.zeros((4, 4), bool), np.eye(4, dtype=bool)
    good, bad = OverlapCounts.from_masks(empty, empty), OverlapCounts.from_masks(empty, mask)
    total = sum([good] * 200 + [bad] * 30, OverlapCounts())
    assert total.mean_dice_all == pytest.approx(200 / 230) and total.mean_dice == total.mean_iou == 0.0
    alarm = OverlapCounts.from_masks(mask, empty)
    assert (alarm.num_good, alarm.num_good_empty) == (1, 0)
    exact = OverlapCounts.from_masks(mask, mask)
    assert exact.mean_dice == exact.mean_iou == 1.0 and exact.num_good == 0
    assert OverlapCounts().mean_dice is None and OverlapCounts().mean_dice_all is None


def test_overlap_table_by_brute_force() -> None:
    """Catches an off-by-one between bins and thresholds: every threshold is applied to the map itself."""
    probability, mask = _smooth_map(3)
    # Values that lie exactly on thresholds, both ends among them.
    probability.ravel()[:257] = np.arange(257) / 256
    overlap, predicted = pixel_metrics.overlap_table(probability, mask)
    for k, threshold in enumerate(DiceCurve().thresholds):
        assert predicted[k] == np.sum(probability >= threshold)
        assert overlap[k] == np.sum((probability >= threshold) & mask)


def test_dice_curve_equals_dice_and_merges() -> None:
    """Catches a mean over all images, not the defective ones, and Dice of summed areas for a mean."""
    maps = [_smooth_map(0), _smooth_map(1, with_defect=False), _smooth_map(2)]
    total = sum((DiceCurve.from_map(*pair) for pair in maps), DiceCurve())
    mean = total.mean_dice()
    assert len(total.dice) == 2 and mean is not None
    for k in (0, 1, 100, 200, 255):
        expected = np.mean([pixel_metrics.dice(maps[i][0] >= k / 256, maps[i][1]) for i in (0, 2)])
        assert mean[k] == pytest.approx(expected, abs=1e-12)
    best = total.best_threshold()
    empty = np.array([not np.any(maps[1][0] >= threshold) for threshold in total.thresholds])
    balanced = total.balanced_dice()
    assert len(total.is_empty) == 1 and balanced is not None
    np.testing.assert_allclose(balanced, (mean + empty) / 2, atol=1e-12)
    assert best is not None
    # Within one standard error of the best, which the two defective images alone have.
    k, top = round(best * 256), int(balanced.argmax())
    lag = total.dice[:, top] - total.dice[:, k]
    assert lag.mean() <= lag.std(ddof=1) / 2**0.5 + 1e-9
    assert empty[k] >= empty[top]


def test_a_good_image_that_is_not_empty_moves_the_pixel_threshold() -> None:
    """Catches a pixel threshold that draws defects well and paints good images too."""
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    defective = DiceCurve.from_map(np.where(mask, 0.9, 0.1), mask)
    good = DiceCurve.from_map(np.full((4, 4), 0.7), np.zeros((4, 4), bool))
    # Only 0.7 < threshold <= 0.9 serves both: bins 180 … 230, the middle is 205.
    assert (defective + good).best_threshold() == 205 / 256
    clean = DiceCurve.from_map(np.zeros((4, 4)), np.zeros((4, 4), bool))
    # One of many: what a single good image costs is its share exactly, and no error of a mean forgives it.
    assert sum([clean] * 20, defective + good).best_threshold() == 205 / 256


def test_thresholds_that_the_images_cannot_tell_apart_are_equally_good() -> None:
    """Catches the highest point of a flat curve taken at its word, and an error of single images for that of the mean.

    Nine images gain and nine lose .1 above bin 128; one wins .05 more at bin 200 alone. The mean difference is far
    below its error, so bins 0 … 255 are one plateau. Where all images agree, nothing is forgiven.
    """
    rows = np.full((19, 256), 0.6)
    rows[:9, 128:] += 0.1
    rows[9:18, 128:] -= 0.1
    rows[18, 200] += 0.05
    assert DiceCurve(rows).best_threshold() == 127 / 256
    agreed = np.full((19, 256), 0.6)
    agreed[:, 200:211] += 0.001
    assert DiceCurve(agreed).best_threshold() == 205 / 256
    # Lag .02 ± .01 per image: the error of the mean of 16 is .0026, less than the lag.
    clear = np.full((16, 256), 0.6)
    clear[:, 200:211] += 0.02 + 0.01 * np.array([-1, 1] * 8)[:, None]
    assert DiceCurve(clear).best_threshold() == 205 / 256


def test_best_threshold_is_the_middle_of_the_longest_plateau() -> None:
    """Catches a threshold at the edge of a plateau, where the least shift of the map costs."""
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    perfect = DiceCurve.from_map(np.where(mask, 0.9, 0.1), mask)
    # Bins 26 … 230 separate 0.1 (25.6 of 256) from 0.9 (230.4): the middle is 128.
    assert perfect.best_threshold() == 128 / 256
    values = np.zeros(256)
    values[[10, 11, 50, 51, 52, 53, 54]] = 1.0
    assert DiceCurve(values[None]).best_threshold() == 52 / 256
    values[52] -= 1e-13
    assert DiceCurve(values[None]).best_threshold() == 52 / 256
    assert DiceCurve().best_threshold() is None and DiceCurve().mean_dice() is None

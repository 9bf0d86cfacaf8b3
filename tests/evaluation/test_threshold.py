"""Thresholds against brute force, and to JSON and back."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.metrics import f1_score

from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.evaluation.threshold import (
    Thresholds,
    fit_threshold,
    lone_outlier,
    normals_threshold,
    rule_for,
    spread_scores,
)

F1 = VerdictConfig(calibration="f1")
COST = VerdictConfig(calibration="expected_cost")

TIED = st.sampled_from([0.0, 1e-9, 2e-7, 0.1, 0.25, 0.5, 0.75, 0.9, 0.9999999, 0.99999999, 1.0])
WIDE = st.floats(-1e3, 1e3, allow_nan=False)
FLOAT32 = st.floats(0, 1, width=32)
ROWS = st.one_of(
    *(st.lists(st.tuples(st.integers(0, 1), kind), min_size=2) for kind in (TIED, WIDE, FLOAT32))
)


def _columns(rows: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


def _cuts(scores: np.ndarray) -> np.ndarray:
    """Every split of the scores that a threshold can make: at each score, and above all of them."""
    return np.append(np.unique(scores), np.inf)


def _cost(labels: np.ndarray, called: np.ndarray) -> int:
    return int(np.sum(called & (labels == 0)) + 20 * np.sum(~called & (labels == 1)))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(ROWS)
def test_f1_and_expected_cost_by_brute_force(rows: list[tuple[int, float]]) -> None:
    """Would catch: a better threshold overlooked, a midpoint that clipping puts outside its gap, FP and FN costs
    swapped, the all-good and all-defective answers left out, and counts of another threshold.
    """
    labels, scores = _columns(rows)
    if labels.min() == labels.max():
        return
    threshold, fit_stats = fit_threshold(labels, scores, F1)
    best = max(f1_score(labels, scores >= cut, zero_division=0) for cut in _cuts(scores))
    called = scores >= threshold
    assert f1_score(labels, called) == pytest.approx(best, abs=1e-12)
    counts = ImageCounts.from_decisions(labels, called)
    assert {name: fit_stats[name] for name in ("tp", "fp", "fn", "tn")} == asdict(counts)
    threshold, _ = fit_threshold(labels, scores, COST)
    assert _cost(labels, scores >= threshold) == min(_cost(labels, scores >= cut) for cut in _cuts(scores))


@settings(derandomize=True, max_examples=200, deadline=None)
@given(ROWS, st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]))
def test_false_alarm_rate_by_brute_force(rows: list[tuple[int, float]], rate: float) -> None:
    """Would catch: a rate above the limit, and a threshold higher than needed (misses given away)."""
    labels, scores = _columns(rows)
    if labels.min() == 1:
        return
    config = VerdictConfig(calibration="false_alarm_rate", max_false_alarm_rate=rate)
    threshold, _ = fit_threshold(labels, scores, config)
    good = scores[labels == 0]
    allowed = [cut for cut in _cuts(scores) if np.mean(good >= cut) <= rate]
    assert np.mean(good >= threshold) <= rate
    np.testing.assert_array_equal(scores >= threshold, scores >= min(allowed))


def test_separated_scores_give_the_middle_of_the_gap() -> None:
    """Would catch: a threshold at the lowest defective score, which the next defective image falls below."""
    threshold, fit_stats = fit_threshold([0, 0, 0, 1, 1], [0.01, 0.02, 0.1, 0.9, 0.99], F1)
    assert threshold == pytest.approx(0.5)
    assert (fit_stats["highest_good_score"], fit_stats["lowest_defective_score"]) == (0.1, 0.9)
    assert fit_stats["num_equally_good"] == 1 and (fit_stats["num_good"], fit_stats["num_defective"]) == (
        3,
        2,
    )
    json.dumps(fit_stats, allow_nan=False)


def test_the_middle_is_taken_in_logits() -> None:
    """Would catch: the plain midpoint where scores pile up: logits 2.197 and 9.210, their middle .99667."""
    middle = (math.log(0.9 / 0.1) + math.log(0.9999 / 0.0001)) / 2
    threshold, _ = fit_threshold([0, 1], [0.9, 0.9999], F1)
    assert threshold == pytest.approx(1 / (1 + math.exp(-middle)), abs=1e-6)


def test_residual_scores_are_not_taken_for_probabilities() -> None:
    """Would catch: scores above 1 clipped to one value: 3 and 5 are different, and 4 lies between."""
    assert fit_threshold([0, 0, 1], [0.5, 3.0, 5.0], F1)[0] == pytest.approx(4.0)
    np.testing.assert_array_equal(spread_scores([0.5, 3.0]), [0.5, 3.0])


@pytest.mark.parametrize(("scale", "num_fp", "num_fn"), [(1.0, 20, 0), (1e-5, 0, 1)])
def test_ties_go_to_the_widest_gap(scale: float, num_fp: int, num_fn: int) -> None:
    """Would catch: the first or last of equally good candidates: one miss costs as much as 20 false alarms.

    The two best gaps are 0 … lowest defective score (logit width 12.4, scaled 0.7) and highest good … .999
    (6.9, scaled 19.1).
    """
    scores = np.array([0.2, *np.linspace(0.45, 0.5, 20), 0.999])
    scores[:-1] *= scale
    _, fit_stats = fit_threshold([1] + [0] * 20 + [1], scores, COST)
    assert fit_stats["num_equally_good"] == 2
    assert (fit_stats["fp"], fit_stats["fn"]) == (num_fp, num_fn)


def test_threshold_decides_alike_in_float32() -> None:
    """Would catch: a threshold that a device's float32 rounds onto the highest good score."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        good, defective = np.float32(rng.random()), np.float32(rng.random())
        low, high = min(good, defective), max(good, defective)
        neighbour = np.nextafter(low, np.float32(2))
        for pair in ((low, high), (low, neighbour)):
            threshold, _ = fit_threshold([0, 1], np.array(pair, np.float32), F1)
            assert float(np.float32(threshold)) == threshold and pair[0] < threshold <= pair[1]


def test_false_alarm_rate_on_whole_counts() -> None:
    """Would catch: floating point at the limit: 1 of 100 good images may alarm at 0.01, 29 at 0.29."""
    scores = np.arange(100) / 128
    config = VerdictConfig(calibration="false_alarm_rate", max_false_alarm_rate=0.01)
    assert fit_threshold(np.zeros(100), scores, config)[1]["fp"] == 1
    config = VerdictConfig(calibration="false_alarm_rate", max_false_alarm_rate=0.29)
    assert fit_threshold(np.zeros(100), scores, config)[1]["fp"] == 29


@pytest.mark.parametrize(
    ("labels", "calibration", "message"),
    [
        ([0, 0], "f1", r"`verdict.calibration` \(=f1\) needs both classes.* 2 good and 0 defective"),
        ([1, 1], "expected_cost", r"\(=expected_cost\) needs both classes.* 0 good and 2 defective"),
        ([1, 1], "false_alarm_rate", r"\(=false_alarm_rate\) needs good images"),
        ([1, 1], "normals", r"\(=normals\) needs good images"),
        ([], "false_alarm_rate", r"0 good and 0 defective"),
    ],
)
def test_a_missing_class_is_refused(labels: list[int], calibration: Any, message: str) -> None:
    """Would catch: a threshold fitted to nothing, and a message without the calibration or its remedy."""
    with pytest.raises(UserError, match=f"{message}.*; enlarge it or choose another") as caught:
        fit_threshold(labels, [0.1, 0.2][: len(labels)], VerdictConfig(calibration=calibration))
    assert "\n" not in str(caught.value)


def test_rule_decides_and_survives_json() -> None:
    """Would catch: > for >= at the threshold itself, digits lost in the file, and NaN passed as good."""
    threshold, fit_stats = fit_threshold([0, 1], [0.1, 0.9 + 1e-9], F1)
    rule = Thresholds(threshold, 1 / 3, "f1", fit_stats)
    assert Thresholds.from_values(json.loads(rule.to_json())) == rule
    below = np.nextafter(threshold, 0)
    np.testing.assert_array_equal(rule.decide([below, threshold, 1.0]), [False, True, True])
    with pytest.raises(UserError, match=r"`scores` \(1 of 2 NaN\) must be numbers"):
        rule.decide([0.5, np.nan])


def test_broken_thresholds_are_refused() -> None:
    """Would catch: a file of another version, or a cut one, read with defaults filled in."""
    whole = {"threshold": 0.5, "pixel_threshold": 0.5, "calibration": "f1", "evidence": {}}
    for values, match in (
        ({"threshold": 0.5}, r"`decision_rule`: pixel_threshold is missing; calibrate again"),
        ([], r"`decision_rule`: .* must be an object"),
        (whole | {"pixel_threshold": "x"}, r"pixel_threshold \(='x'\) must be a finite number"),
    ):
        with pytest.raises(UserError, match=match):
            Thresholds.from_values(values)
    with pytest.raises(UserError, match=r"threshold \(=nan\) must be a finite number"):
        Thresholds(math.nan, 0.5, "f1")


def test_normals_threshold_is_the_gumbel_quantile_of_scipy() -> None:
    """Would catch: a wrong sign or moment in the quantile, which moves every decision of reconstruction."""
    rng = np.random.default_rng(0)
    scores = special.expit(-3 + 0.5 * rng.gumbel(size=20_000))
    for rate in (0.2, 0.01, 0.001):
        expected = stats.gumbel_r(-3, 0.5).ppf(1 - rate)
        assert special.logit(normals_threshold(scores, rate)) == pytest.approx(expected, abs=0.1)
        assert np.mean(scores >= normals_threshold(scores, rate)) == pytest.approx(rate, rel=0.3)
    few = np.array([0.1, 0.2, 0.4])
    scale = np.std(few) * math.sqrt(6) / math.pi
    fitted = stats.gumbel_r(np.mean(few) - np.euler_gamma * scale, scale)
    assert special.logit(normals_threshold(special.expit(few), 0.01)) == pytest.approx(fitted.ppf(0.99))


def test_normals_look_at_good_images_alone() -> None:
    """Would catch: a threshold that defects move, and a validation split without any that is refused."""
    config = VerdictConfig(calibration="normals")
    good = [0.1, 0.12, 0.15, 0.11]
    alone, fit_stats = fit_threshold([0] * 4, good, config)
    assert fit_stats["num_defective"] == 0
    assert fit_stats["lowest_defective_score"] is None
    with_defects, fit_stats = fit_threshold([0, 0, 0, 0, 1, 1], [*good, 0.13, 0.9], config)
    assert with_defects == alone > max(good)
    assert (fit_stats["tp"], fit_stats["fp"], fit_stats["fn"], fit_stats["tn"]) == (1, 0, 1, 4)
    equal, _ = fit_threshold([0] * 3, [0.25] * 3, config)
    assert equal > 0.25
    with pytest.raises(
        UserError, match=r"`verdict.calibration` \(=normals\) takes at least 2 good .* there are 1"
    ):
        fit_threshold([0], [0.25], config)


def test_a_threshold_of_normals_can_be_reached_by_a_probability() -> None:
    """Would catch: a quantile above 1 of good images that spread over [0, 1], at which nothing is ever defective; one
    below a good image's score where scores lie close together; a rule that needs defects where there are none."""
    config = VerdictConfig(calibration="normals")
    for good in (np.linspace(0.02, 0.98, 30), np.array([1e-7, 0.5, 0.9999999]), np.full(5, 0.999999)):
        threshold, _ = fit_threshold([0] * len(good), good, config)
        assert np.median(good) < threshold < 1
    assert rule_for([0, 0], F1).calibration == "normals" and rule_for([0, 1], F1) == F1
    # One real defect that a network of synthetic ones misses must not make every image defective.
    assert rule_for([0, 1, 1], F1, by_synthetic=True).calibration == "normals"
    assert rule_for([0, 1, 1, 1], F1, by_synthetic=True) == F1
    with pytest.raises(UserError, match=r"`verdict\.max_false_alarm_rate` \(=0\)"):
        VerdictConfig(calibration="normals", max_false_alarm_rate=0)


def test_a_good_image_that_sets_the_threshold_alone_is_found() -> None:
    """Would catch: a threshold beyond all but the surest defects, for one label that is wrong, without a word; a word
    about every highest good image; and the image with the highest score of all named in place of the good one."""
    good, defective = [0.001, 0.01, 0.2, 0.981, 0.3], [0.999, 0.9995, 0.9999]
    labels, scores = [0] * len(good) + [1] * len(defective), [*good, *defective]
    threshold, fit_stats = fit_threshold(labels, scores, F1)
    assert fit_stats["margin"] == pytest.approx(math.log(0.999 / 0.001) - math.log(0.981 / 0.019), rel=1e-3)
    found = lone_outlier(labels, scores, threshold, F1)
    assert found is not None and found[0] == 3 and found[1] < 0.975 < 0.99 < threshold
    calm = [0.001, 0.01, 0.2, 0.31, 0.3, *defective]
    assert lone_outlier(labels, calm, fit_threshold(labels, calm, F1)[0], F1) is None
    assert lone_outlier([0, 1], [0.9, 0.95], 0.92, F1) is None


def test_what_validation_has_not_shown_stays_known() -> None:
    """Would catch: a rule file that forgets that nothing was learnt, and rules of earlier releases that are doubted."""
    rule = Thresholds(0.5, 0.5, "f1", {"learnt": False})
    assert not Thresholds.from_values(json.loads(rule.to_json())).has_learnt
    assert Thresholds(0.5, 0.5, "f1").has_learnt

"""The threshold against brute force, and the rule's way to a file and back."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score

from dagm_jax.errors import UserError
from dagm_jax.evaluation.threshold import (
    Thresholds,
    VerdictConfig,
    fit_threshold,
    normals_threshold,
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


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("calibration", "f2", "must be one of f1, false_alarm_rate, expected_cost"),
        ("score", "mean", "must be one of max, top_mean"),
        ("max_false_alarm_rate", 1.5, "must lie in [0, 1]"),
        ("max_false_alarm_rate", math.nan, "must lie in [0, 1]"),
        ("fp_cost", 0.0, "must be positive and finite"),
        ("fn_cost", math.inf, "must be positive and finite"),
        ("top_fraction", 2.0, "must lie in (0, 1]"),
        ("top_fraction", 0.0, "must lie in (0, 1]"),
        ("top_fraction", "0.1", "must be a number"),
        ("smoothing_px", -1.0, "must be 0 (off) or a positive"),
        ("smoothing_px", True, "must be a number"),
    ],
)
def test_config_refuses_by_name_value_and_rule(field: str, value: object, rule: str) -> None:
    """Catches an option that is accepted out of its range, and a message without field, value or rule."""
    values: dict[str, Any] = {field: value}
    with pytest.raises(UserError, match=re.escape(f"`verdict.{field}` (={value!r}) {rule}")) as caught:
        VerdictConfig(**values)
    assert "\n" not in str(caught.value)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(ROWS)
def test_f1_by_brute_force(rows: list[tuple[int, float]]) -> None:
    """Catches a better threshold overlooked, and a midpoint that clipping puts outside its gap."""
    labels, scores = _columns(rows)
    if labels.min() == labels.max():
        return
    threshold, evidence = fit_threshold(labels, scores, F1)
    best = max(f1_score(labels, scores >= cut, zero_division=0) for cut in _cuts(scores))
    called = scores >= threshold
    assert f1_score(labels, called) == pytest.approx(best, abs=1e-12)
    assert evidence["tp"] == np.sum(called & (labels == 1)) and evidence["fp"] == np.sum(
        called & (labels == 0)
    )
    assert evidence["fn"] == labels.sum() - evidence["tp"]
    assert evidence["tn"] == np.sum(labels == 0) - evidence["fp"]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(ROWS)
def test_expected_cost_by_brute_force(rows: list[tuple[int, float]]) -> None:
    """Catches FP and FN costs swapped, and the all-good and all-defective answers left out."""
    labels, scores = _columns(rows)
    if labels.min() == labels.max():
        return
    threshold, _ = fit_threshold(labels, scores, COST)
    best = min(_cost(labels, scores >= cut) for cut in _cuts(scores))
    assert _cost(labels, scores >= threshold) == best


@settings(derandomize=True, max_examples=200, deadline=None)
@given(ROWS, st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0]))
def test_false_alarm_rate_by_brute_force(rows: list[tuple[int, float]], rate: float) -> None:
    """Catches a rate above the limit, and a threshold higher than needed (misses given away)."""
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
    """Catches a threshold at the lowest defective score, which the next defective image falls below."""
    threshold, evidence = fit_threshold([0, 0, 0, 1, 1], [0.01, 0.02, 0.1, 0.9, 0.99], F1)
    assert threshold == pytest.approx(0.5)
    assert (evidence["highest_good_score"], evidence["lowest_defective_score"]) == (0.1, 0.9)
    assert evidence["num_equally_good"] == 1 and (evidence["num_good"], evidence["num_defective"]) == (3, 2)
    assert (evidence["tp"], evidence["fp"], evidence["fn"], evidence["tn"]) == (2, 0, 0, 3)
    json.dumps(evidence, allow_nan=False)


def test_the_middle_is_taken_in_logits() -> None:
    """Catches the plain midpoint where scores pile up: logits 2.197 and 9.210, their middle .99667."""
    middle = (math.log(0.9 / 0.1) + math.log(0.9999 / 0.0001)) / 2
    threshold, _ = fit_threshold([0, 1], [0.9, 0.9999], F1)
    assert threshold == pytest.approx(1 / (1 + math.exp(-middle)), abs=1e-6)


def test_residual_scores_are_not_taken_for_probabilities() -> None:
    """Catches scores above 1 clipped to one value: 3 and 5 are different, and 4 lies between."""
    assert fit_threshold([0, 0, 1], [0.5, 3.0, 5.0], F1)[0] == pytest.approx(4.0)
    np.testing.assert_array_equal(spread_scores([0.5, 3.0]), [0.5, 3.0])


@pytest.mark.parametrize(("scale", "num_fp", "num_fn"), [(1.0, 20, 0), (1e-5, 0, 1)])
def test_ties_go_to_the_widest_gap(scale: float, num_fp: int, num_fn: int) -> None:
    """Catches the first or last of equally good candidates: one miss costs as much as 20 false alarms.

    The two best gaps are 0 … lowest defective score (logit width 12.4, scaled 0.7) and highest good … .999
    (6.9, scaled 19.1).
    """
    scores = np.array([0.2, *np.linspace(0.45, 0.5, 20), 0.999])
    scores[:-1] *= scale
    _, evidence = fit_threshold([1] + [0] * 20 + [1], scores, COST)
    assert evidence["num_equally_good"] == 2
    assert (evidence["fp"], evidence["fn"]) == (num_fp, num_fn)


def test_threshold_decides_alike_in_float32() -> None:
    """Catches a threshold that a device's float32 rounds onto the highest good score."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        good, defective = np.float32(rng.random()), np.float32(rng.random())
        low, high = min(good, defective), max(good, defective)
        neighbour = np.nextafter(low, np.float32(2))
        for pair in ((low, high), (low, neighbour)):
            threshold, _ = fit_threshold([0, 1], np.array(pair, np.float32), F1)
            assert float(np.float32(threshold)) == threshold and pair[0] < threshold <= pair[1]


def test_no_false_alarm_allowed_lies_above_all_good_images() -> None:
    """Catches a rule that cannot pass a saturated good image: the threshold must exceed 1."""
    config = VerdictConfig(calibration="false_alarm_rate", max_false_alarm_rate=0.0)
    threshold, evidence = fit_threshold([0, 0, 0], [0.1, 0.4, 1.0], config)
    assert threshold > 1.0 and evidence["fp"] == 0 and evidence["lowest_defective_score"] is None
    assert fit_threshold([0, 0], [2.0, 7.0], config)[0] > 7.0
    Thresholds(threshold, 0.5, "false_alarm_rate", evidence).to_json()


def test_false_alarm_rate_on_whole_counts() -> None:
    """Catches floating point at the limit: 1 of 100 good images may alarm at 0.01, 29 at 0.29."""
    scores = np.arange(100) / 128
    config = VerdictConfig(calibration="false_alarm_rate", max_false_alarm_rate=0.01)
    assert fit_threshold(np.zeros(100), scores, config)[1]["fp"] == 1
    config = VerdictConfig(calibration="false_alarm_rate", max_false_alarm_rate=0.29)
    assert fit_threshold(np.zeros(100), scores, config)[1]["fp"] == 29


def test_order_of_images_does_not_matter() -> None:
    """Catches labels sorted apart from their scores."""
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 2, 60), rng.random(60)
    order = rng.permutation(60)
    for config in (F1, COST, VerdictConfig(calibration="false_alarm_rate", max_false_alarm_rate=0.2)):
        assert fit_threshold(labels, scores, config) == fit_threshold(labels[order], scores[order], config)


def test_fit_errors_are_one_line() -> None:
    """Catches a threshold fitted to nothing: a missing class, NaN, odd labels, unequal lengths."""
    rate = VerdictConfig(calibration="false_alarm_rate")
    cases = [
        (
            [0, 0],
            [0.1, 0.2],
            F1,
            r"`verdict.calibration` \(='f1'\) needs both classes.* 2 good and 0 defective",
        ),
        ([1, 1], [0.1, 0.2], COST, r"\(='expected_cost'\) needs both classes.* 0 good and 2 defective"),
        ([1, 1], [0.1, 0.2], rate, r"\(='false_alarm_rate'\) needs good images"),
        ([], [], rate, r"0 good and 0 defective"),
        ([0, 1], [0.1, np.nan], F1, r"`scores` \(1 of 2 NaN or infinite\) must be finite"),
        ([0, 1], [0.1, np.inf], F1, r"`scores` \(1 of 2 NaN or infinite\) must be finite"),
        ([0, -1], [0.1, 0.2], F1, r"`labels` \(=\[-1, 0\]\) must be 0 \(good\) or 1"),
        ([0, 1, 1], [0.1, 0.2], F1, r"`scores` \(2,\) must be one row, as long as `labels` \(3,\)"),
    ]
    for labels, scores, config, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            fit_threshold(labels, scores, config)
        assert "\n" not in str(caught.value)


def test_rule_decides_and_survives_json() -> None:
    """Catches > for >= at the threshold itself, digits lost in the file, and NaN passed as good."""
    threshold, evidence = fit_threshold([0, 1], [0.1, 0.9 + 1e-9], F1)
    rule = Thresholds(threshold, 1 / 3, "f1", evidence)
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
    with pytest.raises(UserError, match=r"`verdict\.top_slices` \(=0\)"):
        VerdictConfig(top_slices=0)


# --- good images alone ---


def test_normals_threshold_is_the_gumbel_quantile_of_scipy() -> None:
    """Would catch: a wrong sign or moment in the quantile, which moves every verdict of reconstruction."""
    rng = np.random.default_rng(0)
    scores = 0.1 + 0.02 * rng.gumbel(size=20_000)
    for rate in (0.2, 0.01, 0.001):
        expected = stats.gumbel_r(0.1, 0.02).ppf(1 - rate)
        assert normals_threshold(scores, rate) == pytest.approx(expected, rel=0.02)
        assert np.mean(scores >= normals_threshold(scores, rate)) == pytest.approx(rate, rel=0.3)
    few = np.array([0.1, 0.2, 0.4])
    scale = np.std(few) * math.sqrt(6) / math.pi
    fitted = stats.gumbel_r(np.mean(few) - np.euler_gamma * scale, scale)
    assert normals_threshold(few, 0.01) == pytest.approx(fitted.ppf(0.99))


def test_normals_look_at_good_images_alone() -> None:
    """Would catch: a threshold that defects move, and a validation part without any that is refused."""
    config = VerdictConfig(calibration="normals")
    good = [0.1, 0.12, 0.15, 0.11]
    alone, evidence = fit_threshold([0] * 4, good, config)
    assert evidence["num_defective"] == 0
    assert evidence["lowest_defective_score"] is None
    with_defects, evidence = fit_threshold([0, 0, 0, 0, 1, 1], [*good, 0.13, 0.9], config)
    assert with_defects == alone > max(good)
    assert (evidence["tp"], evidence["fp"], evidence["fn"], evidence["tn"]) == (1, 0, 1, 4)
    equal, _ = fit_threshold([0, 0], [0.25, 0.25], config)
    assert equal > 0.25
    with pytest.raises(UserError, match=r"needs good images in validation"):
        fit_threshold([1], [0.5], config)
    with pytest.raises(UserError, match=r"`verdict\.max_false_alarm_rate` \(=0\)"):
        VerdictConfig(calibration="normals", max_false_alarm_rate=0)

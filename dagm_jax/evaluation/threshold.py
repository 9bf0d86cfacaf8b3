"""Thresholds fitted on validation images: score → defective or good, map → defect pixels.

The threshold is fitted to image scores, never to slice scores: one slice rule applied 30 times multiplies its
false alarms. Labels: 1 = defective, 0 = defect-free. Decision everywhere: score >= threshold means defective.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import LEAST_DEFECTIVE, LEAST_GOOD, VerdictConfig
from dagm_jax.evaluation.metrics import (
    BoolArray,
    FloatArray,
    ImageCounts,
    IntArray,
    counts_per_score,
    labels_and_scores,
)
from dagm_jax.schema import FINITE, OBJECT, TEXT, find_fault

# Limit of probabilities and of their complements before logits are taken: float32 has few digits left nearer to 1.
SCORE_CLIP = 1e-6
# Tolerance of equal costs and F1: they are computed from integers, and equal counts must not differ by a rounding.
_TIE_TOLERANCE = 1e-12
# Limit of the threshold's move on the logit scale by a single good image that needs no words.
LONE_STEP = 1.0
# Text about a model whose `Thresholds.has_learnt` is False.
NOT_LEARNT = (
    "warning: validation has not shown that this model tells defects from good images; its scores, maps and decisions "
    "may be guesses"
)
# Probability that a bound on the escape rate is too low.
_RISK = 0.05

# Schema of decision_rule.json.
THRESHOLDS_SCHEMA = {"threshold": FINITE, "pixel_threshold": FINITE, "calibration": TEXT, "evidence": OBJECT}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Fitted thresholds: score >= threshold is defective, map >= pixel_threshold is a defect pixel.

    fit_stats: JSON values that the threshold was fitted to (see `fit_threshold`); "evidence" in files.
    Raises UserError for a threshold that is not finite.
    """

    threshold: float
    pixel_threshold: float
    calibration: str
    fit_stats: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_thresholds(self.to_values())

    @property
    def has_learnt(self) -> bool:
        """Whether validation has shown that the model tells defects from good images; True where it does not say."""
        return self.fit_stats.get("learnt", True) is not False

    def decide(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """True where an image is defective, bool in the shape of ``scores``.

        Raises UserError for NaN: it would compare as "good" and pass a defect silently.
        """
        values = np.asarray(scores, dtype=np.float64)
        num_nan = int(np.isnan(values).sum())
        if num_nan:
            raise UserError(f"`scores` ({num_nan} of {values.size} NaN) must be numbers; no decision on NaN")
        return np.asarray(values >= self.threshold)

    def to_values(self) -> dict[str, Any]:
        """The thresholds as JSON values, by the keys of decision_rule.json."""
        values = asdict(self)
        return values | {"evidence": values.pop("fit_stats")}

    def to_json(self) -> str:
        """The thresholds as JSON text; numbers survive the way there and back exactly."""
        return json.dumps(self.to_values(), indent=2, allow_nan=False) + "\n"

    @classmethod
    def from_values(cls, values: Any) -> Thresholds:
        """The thresholds in JSON values, which may be a stranger's; raises UserError."""
        _check_thresholds(values)
        return cls(*(values[name] for name in THRESHOLDS_SCHEMA))


def _check_thresholds(values: Any) -> None:
    if fault := find_fault(values, THRESHOLDS_SCHEMA):
        raise UserError(f"`decision_rule`: {fault}; calibrate again")


def fit_threshold(
    labels: ArrayLike, scores: ArrayLike, config: VerdictConfig
) -> tuple[float, dict[str, Any]]:
    """(the threshold on image scores that ``config.calibration`` asks for, fit statistics).

    Candidates are the middles of the gaps between neighbouring distinct scores, on the scale of `spread_scores`, one
    below all scores and one above. "f1" and "expected_cost" take the best, of equally good ones that in the widest gap;
    "false_alarm_rate" the lowest with FP / good <= max_false_alarm_rate; "normals" `normals_threshold` of good scores.

    labels: {0, 1} [n]; scores: finite [n]. Raises UserError for a missing class. Fit statistics: tp fp fn tn,
    num_good, num_defective, num_equally_good, highest_good_score, lowest_defective_score (None without any), and
    margin, what the latter is above the former on the scale of `spread_scores`.
    """
    truth, values = _checked_validation(labels, scores, config.calibration)
    if config.calibration == "normals":
        threshold, num_equal = normals_threshold(values[~truth], config.max_false_alarm_rate), 1
    else:
        threshold, num_equal = _best_candidate(truth, values, config)
    return threshold, _fit_stats(truth, values, threshold, num_equal)


def needs_normals(num_defective: int, by_synthetic: bool) -> bool:
    """Whether so few defective validation images choose no threshold.

    by_synthetic: whether the network has learnt from synthetic defects alone, so that one real one may well be missed.
    """
    return num_defective < (LEAST_DEFECTIVE if by_synthetic else 1)


def rule_for(labels: ArrayLike, config: VerdictConfig, by_synthetic: bool = False) -> VerdictConfig:
    """``config`` with a calibration that these validation images can carry: "normals" by `needs_normals`."""
    few = needs_normals(int(np.sum(labels)), by_synthetic)
    return replace(config, calibration="normals") if few else config


def _checked_validation(
    labels: ArrayLike, scores: ArrayLike, calibration: str
) -> tuple[BoolArray, FloatArray]:
    truth, values = labels_and_scores(labels, scores)
    num_defective, num_good = int(truth.sum()), int((~truth).sum())
    needs_both = calibration in ("f1", "expected_cost")
    if num_good == 0 or (num_defective == 0 and needs_both):
        needed = "both classes" if needs_both else "good images"
        raise UserError(
            f"`verdict.calibration` (={calibration}) needs {needed} in validation, which holds "
            f"{num_good} good and {num_defective} defective images; enlarge it or choose another calibration"
        )
    return truth, values


def _fit_stats(truth: BoolArray, values: FloatArray, threshold: float, num_equal: int) -> dict[str, Any]:
    """Counts and scores of the validation images on both sides of a threshold, as JSON values."""
    return asdict(ImageCounts.from_decisions(truth, values >= threshold)) | {
        "num_good": int((~truth).sum()),
        "num_defective": int(truth.sum()),
        "num_equally_good": num_equal,
        "highest_good_score": float(values[~truth].max()),
        "lowest_defective_score": float(values[truth].min()) if truth.any() else None,
        "margin": margin(truth, values) if truth.any() else None,
    }


def margin(labels: ArrayLike, scores: ArrayLike) -> float:
    """The lowest score of defective images less the highest of good ones, on the scale of `spread_scores`.

    labels: {0, 1} [n], both; scores: [n].
    """
    truth, spread = np.asarray(labels, dtype=bool), spread_scores(scores)
    return float(spread[truth].min() - spread[~truth].max())


def lone_outlier(
    labels: ArrayLike, scores: ArrayLike, threshold: float, config: VerdictConfig
) -> tuple[int, float] | None:
    """(the good image with the highest score, the threshold without it), if that is more than `LONE_STEP` lower.

    None too where so few good images are left that they show nothing.
    """
    truth, values = labels_and_scores(labels, scores)
    highest = int(np.argmax(np.where(truth, -np.inf, values)))
    others = np.arange(len(values)) != highest
    if (~truth[others]).sum() < LEAST_GOOD:
        return None
    without, _ = fit_threshold(truth[others], values[others], config)
    # On one scale, which all scores together choose.
    spread = spread_scores([*values, threshold, without])
    return (highest, without) if spread[-2] - spread[-1] > LONE_STEP else None


def _best_candidate(truth: BoolArray, values: FloatArray, config: VerdictConfig) -> tuple[float, int]:
    """(the threshold that the calibration asks for, the number of candidates that are equally good)."""
    threshold, num_fp, num_fn, width = _make_candidates(truth, values)
    if config.calibration == "false_alarm_rate":
        allowed = num_fp <= config.max_false_alarm_rate * (~truth).sum() + _TIE_TOLERANCE
        return float(threshold[np.argmax(allowed)]), 1
    if config.calibration == "expected_cost":
        loss = config.fp_cost * num_fp + config.fn_cost * num_fn
    else:
        num_tp = truth.sum() - num_fn
        loss = 1 - 2 * num_tp / (2 * num_tp + num_fp + num_fn)
    best = np.flatnonzero(loss <= loss.min() + _TIE_TOLERANCE * max(1.0, abs(float(loss.min()))))
    return float(threshold[best[np.argmax(width[best])]]), int(best.size)


def normals_threshold(good_scores: FloatArray, false_alarm_rate: float) -> float:
    """The score that good images exceed with probability ``false_alarm_rate``, beyond all that were seen if need be.

    A score is a maximum over pixels, so its distribution over images is close to Gumbel's (Fisher and Tippett 1928):
    with its moments, scale = sd·√6/π and mode = mean - γ·scale, the quantile is mode - scale·log(-log(1 - rate)), on
    the scale of `spread_scores`: of probabilities it is below 1, so that a defect can reach it. An empirical quantile
    needs 1/rate images before it is anything but their maximum. Raises UserError for fewer than `LEAST_GOOD` scores.
    """
    if len(good_scores) < LEAST_GOOD:
        raise UserError(
            f"`verdict.calibration` (=normals) takes at least {LEAST_GOOD} good validation images, and there are "
            f"{len(good_scores)}; add images, or choose another calibration"
        )
    spread, are_probabilities = (
        spread_scores(good_scores),
        bool(good_scores.min() >= 0 and good_scores.max() <= 1),
    )
    scale = float(np.std(spread)) * math.sqrt(6) / math.pi
    mode = float(np.mean(spread)) - float(np.euler_gamma) * scale
    threshold = mode - scale * math.log(-math.log1p(-false_alarm_rate))
    if are_probabilities:
        threshold = min(1 / (1 + math.exp(-threshold)), 1 - SCORE_CLIP)
    # Scores that are all the same leave no scale; the next number above them keeps those images good.
    return max(threshold, float(np.nextafter(np.mean(good_scores), np.inf)))


def _make_candidates(
    truth: BoolArray, scores: FloatArray
) -> tuple[FloatArray, IntArray, IntArray, FloatArray]:
    """(threshold, false alarms, misses, width of the gap) of each candidate in rising order, [k + 1] each.

    One candidate per gap between neighbouring distinct scores, one below all of them and one above.
    Probabilities have 0 and 1 as outer neighbours; for other scores the lowest and the next float32 above the highest
    are taken, and these two gaps have no width.
    """
    defective, good, distinct = (column[::-1] for column in counts_per_score(truth, scores))
    bounded = bool(distinct[0] >= 0 and distinct[-1] <= 1)
    ends = (0.0, 1.0) if bounded else (float(distinct[0]), float(distinct[-1]))
    edges = np.concatenate([[ends[0]], distinct, [ends[1]]])
    spread = spread_scores(edges)
    middle = (spread[:-1] + spread[1:]) / 2
    if bounded:
        middle = 1 / (1 + np.exp(-middle))
    # A number of float32 decides alike on a device and in float64 here; for scores nearer to each other than the clip
    # or float32 resolves, the upper one itself still separates them.
    middle = middle.astype(np.float32).astype(np.float64)
    threshold = np.where((edges[:-1] < middle) & (middle <= edges[1:]), middle, edges[1:])
    if threshold[-1] <= distinct[-1]:
        above = float(np.nextafter(np.float32(distinct[-1]), np.float32(np.inf)))
        threshold[-1] = above if above > distinct[-1] else np.nextafter(distinct[-1], np.inf)
    num_fp = good.sum() - np.append(0, np.cumsum(good))
    return threshold, num_fp, np.append(0, np.cumsum(defective)), np.diff(spread)


def spread_scores(scores: ArrayLike) -> FloatArray:
    """The scores on the scale where gaps are measured: logits if all lie in [0, 1], else unchanged.

    A trained network piles probabilities up at 0 and 1: half-way between 0.9 and 0.9999 is 0.95 as a probability, a
    breath above the lower one in the network's own output, and 0.997 as a logit. Probabilities are clipped to
    [1e-6, 1 - 1e-6]: nearer to 1 a gap would measure float32's rounding.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size and (values.min() < 0 or values.max() > 1):
        return values
    clipped = np.clip(values, SCORE_CLIP, 1 - SCORE_CLIP)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def fit_escape_rate(labels: ArrayLike, scores: ArrayLike, target: float) -> tuple[float, dict[str, Any]]:
    """(the highest threshold whose escape rate is at most ``target`` with 95 % confidence, fit statistics).

    Escape rate: the share of defective images called good. How many of n images may be missed, `escape_bound`(k, n) <=
    target, follows from n alone; so the promise holds although the same images choose the threshold (Wilks 1941: the
    rate below the (k + 1)-th lowest score is Beta(k + 1, n - k)), as long as defects come as they did in validation.
    Fit statistics: those of `fit_threshold`, and escape_bound_95. Raises UserError where so few defective validation
    images promise no such rate even if none is missed, and names how many would.
    """
    if not 0 < target < 1:
        raise UserError(f"`target` (={target!r}) must lie between 0 and 1; 0.05 lets one defect in 20 pass")
    truth, values = _checked_validation(labels, scores, "escape_rate")
    num_defective = int(truth.sum())
    num_allowed = sum(escape_bound(missed, num_defective) <= target for missed in range(num_defective))
    if not num_allowed:
        raise UserError(
            f"`target` (={target!r}) cannot be promised: with none of {num_defective} defective validation images "
            f"missed the escape rate may still be {escape_bound(0, num_defective):.3f} (95 % confidence); it takes "
            f"{images_to_promise(target)} defective validation images, or a higher target"
        )
    thresholds, _, num_fn, _ = _make_candidates(truth, values)
    # The number of allowed counts of misses, 0 among them, is one more than the highest of them.
    threshold = float(thresholds[num_fn < num_allowed][-1])
    fit_stats = _fit_stats(truth, values, threshold, 1)
    return threshold, fit_stats | {"escape_bound_95": escape_bound(fit_stats["fn"], num_defective)}


def escape_bound(num_missed: int, num_defective: int) -> float:
    """The one-sided 95 % upper bound on the share of defective images missed (Clopper and Pearson 1934); 1 for none.

    The rate p at which so few as ``num_missed`` of ``num_defective`` are missed with probability 0.05: the 0.95
    quantile of Beta(missed + 1, defective - missed); without a miss 1 - 0.05^(1/defective).
    """
    if num_missed >= num_defective:
        return 1.0
    # Late, because it takes a third of a second, which every use of a fitted threshold would wait for.
    from scipy import special

    return float(special.betaincinv(num_missed + 1, num_defective - num_missed, 1 - _RISK))


def images_to_promise(target: float) -> int:
    """The least number of defective images of which none missed gives an `escape_bound` of at most ``target``."""
    return math.ceil(math.log(_RISK) / math.log1p(-target))


def fit_rule(
    labels: ArrayLike, scores: ArrayLike, rule: str, target: float | None, verdict: VerdictConfig
) -> tuple[float, dict[str, Any]]:
    """(the threshold that ``rule`` asks for, fit statistics): a calibration, or "escape_rate", which needs a target.

    target: in place of the value in ``verdict`` that the rule aims at; for "expected_cost", fn_cost / fp_cost. Raises
    UserError as `fit_threshold` and `fit_escape_rate` do.
    """
    changes: dict[str, Any] = {"calibration": rule}
    if rule == "expected_cost":
        target = verdict.fn_cost / verdict.fp_cost if target is None else target
        changes |= {"fp_cost": 1.0, "fn_cost": target}
    elif rule in ("false_alarm_rate", "normals"):
        target = verdict.max_false_alarm_rate if target is None else target
        changes["max_false_alarm_rate"] = target
    if rule == "escape_rate" and target is not None:
        threshold, fit_stats = fit_escape_rate(labels, scores, target)
    else:
        threshold, fit_stats = fit_threshold(labels, scores, replace(verdict, **changes))
    return threshold, fit_stats | {"rule": rule, "target": target}


def describe_rule(rule: Thresholds, labels: ArrayLike, scores: ArrayLike) -> dict[str, str]:
    """The thresholds' effect on validation images, {0, 1} [n] and finite [n]: name → text."""
    counts = ImageCounts.from_decisions(labels, rule.decide(scores))
    num_good, num_defective = counts.fp + counts.tn, counts.fn + counts.tp
    return {
        "rule": rule.calibration,
        "threshold": f"{rule.threshold:.6f}",
        "false alarms": f"{counts.fp} of {num_good}",
        "escapes": f"{counts.fn} of {num_defective}",
        "escape rate is at most (95 %)": f"{escape_bound(counts.fn, num_defective):.4f}",
        "F1": "undefined" if counts.f1 is None else f"{counts.f1:.4f}",
    }

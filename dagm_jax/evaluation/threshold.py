"""Thresholds fitted on validation images: score → defective or good, map → defect pixels.

The threshold is fitted to image scores, never to slice scores: one slice rule applied 30 times multiplies its
false alarms. Labels: 1 = defective, 0 = defect-free. Decision everywhere: score >= threshold means defective.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from dagm_jax.errors import UserError
from dagm_jax.schema import FINITE, OBJECT, TEXT, find_fault

Calibration = Literal["f1", "false_alarm_rate", "expected_cost", "normals"]
Score = Literal["max", "top_mean"]

SCORE_CLIP = 1e-6
# Tolerance of equal costs and F1: they are computed from integers, and equal counts must not differ by a rounding.
_TIE_TOLERANCE = 1e-12
# Probability that a bound on the escape rate is too low.
_RISK = 0.05

# Schema of decision_rule.json.
THRESHOLDS_SCHEMA = {"threshold": FINITE, "pixel_threshold": FINITE, "calibration": TEXT, "evidence": OBJECT}

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VerdictConfig:
    """How an image is scored and how the threshold on the score is chosen.

    calibration: "f1" (highest F1), "expected_cost" (least fp_cost·FP + fn_cost·FN), "false_alarm_rate"
    (at most the share max_false_alarm_rate of good images called defective), or "normals" (the score that
    good images exceed with probability max_false_alarm_rate, extrapolated; looks at good images alone). score:
    "max" pixel of the map, or "top_mean", the mean of its highest top_fraction of pixels; where slices are
    scored, the highest slice, or the mean of the top_slices highest. smoothing_px: sigma of the Gaussian that
    smooths the map before, 0 = off. Raises UserError, naming the field, its value and the rule.
    """

    calibration: Calibration = "f1"
    max_false_alarm_rate: float = 0.01
    fp_cost: float = 1.0
    fn_cost: float = 20.0
    score: Score = "max"
    top_fraction: float = 0.001
    top_slices: int = 3
    smoothing_px: float = 2.0

    def __post_init__(self) -> None:
        for name, choices in (("calibration", get_args(Calibration)), ("score", get_args(Score))):
            if getattr(self, name) not in choices:
                self._refuse(name, f"must be one of {', '.join(choices)}")
        for item in fields(self):
            value = getattr(self, item.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if item.name not in ("calibration", "score") and not is_number:
                self._refuse(item.name, "must be a number")
        # Each rule is written so that a NaN fails it.
        if not 0 <= self.max_false_alarm_rate <= 1:
            self._refuse("max_false_alarm_rate", "must lie in [0, 1]; 0.01 allows one in a hundred")
        if self.calibration == "normals" and not 0 < self.max_false_alarm_rate < 1:
            self._refuse("max_false_alarm_rate", "must lie between 0 and 1 for calibration=normals")
        for name in ("fp_cost", "fn_cost"):
            if not 0 < getattr(self, name) < math.inf:
                self._refuse(name, "must be positive and finite; only the ratio of the two costs matters")
        if not 0 < self.top_fraction <= 1:
            self._refuse("top_fraction", "must lie in (0, 1]; 0.001 takes the 262 highest of 512x512 pixels")
        if not (isinstance(self.top_slices, int) and self.top_slices >= 1):
            self._refuse("top_slices", "must be a whole number of at least 1")
        if not 0 <= self.smoothing_px < math.inf:
            self._refuse("smoothing_px", "must be 0 (off) or a positive, finite sigma in pixels")

    def _refuse(self, name: str, rule: str) -> None:
        raise UserError(f"`verdict.{name}` (={getattr(self, name)!r}) {rule}")


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

    def decide(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """True where an image is defective, bool in the shape of ``scores``.

        Raises UserError for NaN: it would compare as "good" and pass a defect silently.
        """
        values = np.asarray(scores, dtype=np.float64)
        num_nan = int(np.isnan(values).sum())
        if num_nan:
            raise UserError(f"`scores` ({num_nan} of {values.size} NaN) must be numbers; no verdict on NaN")
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


def spread_scores(scores: ArrayLike) -> FloatArray:
    """The scores on the scale where gaps are measured: logits if all lie in [0, 1], else unchanged.

    A trained network piles probabilities up at 0 and 1: between a good image at 0.001 and a defective one
    at 0.999 half-way is 0.5 on either scale, but between 0.9 and 0.9999 it is 0.95 as a probability, a
    breath above the good image in the network's own output, and 0.997 as a logit. Probabilities are clipped
    to [1e-6, 1 - 1e-6]: nearer to 1 float32 has few digits left, and a gap would measure rounding. Scores
    that are not bounded have no logit and stay as they are.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.size and (values.min() < 0 or values.max() > 1):
        return values
    clipped = np.clip(values, SCORE_CLIP, 1 - SCORE_CLIP)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Thresholds in rising order, the false alarms and misses of each, the width of its gap; [k + 1] each."""

    threshold: FloatArray
    num_fp: NDArray[np.int64]
    num_fn: NDArray[np.int64]
    width: FloatArray


def _between(low: float, high: float, middle: float) -> float:
    """``middle`` as a float32 number if that lies in (low, high], else ``high``.

    A threshold that float32 holds exactly decides alike in float32 on a device and in float64 here; for
    scores nearer to each other than the clip or float32 resolves, ``high`` itself still separates them.
    """
    rounded = float(np.float32(middle))
    return rounded if low < rounded <= high else high


def _make_candidates(truth: NDArray[np.bool_], scores: FloatArray) -> _Candidates:
    """One candidate per gap between neighbouring distinct scores, one below all of them and one above.

    Probabilities have 0 and 1 as outer neighbours; other scores have none, so there the lowest score itself
    and the next float32 above the highest are taken, and these two gaps have no width.
    """
    distinct, place = np.unique(scores, return_inverse=True)
    bounded = bool(distinct[0] >= 0 and distinct[-1] <= 1)
    ends = (0.0, 1.0) if bounded else (float(distinct[0]), float(distinct[-1]))
    edges = np.concatenate([[ends[0]], distinct, [ends[1]]])
    spread = spread_scores(edges)
    middle = (spread[:-1] + spread[1:]) / 2
    if bounded:
        middle = 1 / (1 + np.exp(-middle))
    threshold = np.array([_between(*gap) for gap in zip(edges[:-1], edges[1:], middle, strict=True)])
    if threshold[-1] <= distinct[-1]:
        above = float(np.nextafter(np.float32(distinct[-1]), np.float32(np.inf)))
        threshold[-1] = above if above > distinct[-1] else np.nextafter(distinct[-1], np.inf)
    good = np.bincount(place[~truth], minlength=distinct.size)
    defective = np.bincount(place[truth], minlength=distinct.size)
    num_fp = np.sum(~truth) - np.concatenate([[0], np.cumsum(good)])
    num_fn = np.concatenate([[0], np.cumsum(defective)])
    return _Candidates(threshold, num_fp.astype(np.int64), num_fn.astype(np.int64), np.diff(spread))


def _checked_validation(
    labels: ArrayLike, scores: ArrayLike, config: VerdictConfig
) -> tuple[NDArray[np.bool_], FloatArray]:
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise UserError(f"`scores` {values.shape} must be one row, as long as `labels` {truth.shape}")
    if not np.all((truth == 0) | (truth == 1)):
        raise UserError(f"`labels` (={sorted(set(truth.tolist()))[:5]}) must be 0 (good) or 1 (defective)")
    if not np.isfinite(values).all():
        found = f"{np.sum(~np.isfinite(values))} of {values.size} NaN or infinite"
        raise UserError(f"`scores` ({found}) must be finite; did training diverge?")
    truth = truth.astype(bool)
    num_defective, num_good = int(truth.sum()), int((~truth).sum())
    only_good = config.calibration in ("false_alarm_rate", "normals")
    if num_good == 0 or (num_defective == 0 and not only_good):
        needed = "good images" if only_good else "both classes"
        raise UserError(
            f"`verdict.calibration` (={config.calibration!r}) needs {needed} in validation, which holds "
            f"{num_good} good and {num_defective} defective images; enlarge it or choose another calibration"
        )
    return truth, values


def _loss_of_candidates(candidates: _Candidates, num_defective: int, config: VerdictConfig) -> FloatArray:
    """What the calibration minimises, per candidate: the cost, or 1 - F1; [k + 1]."""
    if config.calibration == "expected_cost":
        return config.fp_cost * candidates.num_fp + config.fn_cost * candidates.num_fn
    num_tp = num_defective - candidates.num_fn
    return 1 - 2 * num_tp / (2 * num_tp + candidates.num_fp + candidates.num_fn)


def fit_threshold(
    labels: ArrayLike, scores: ArrayLike, config: VerdictConfig
) -> tuple[float, dict[str, Any]]:
    """The threshold on image scores that ``config.calibration`` asks for, and the evidence for it.

    Candidates are the middles of the gaps between neighbouring distinct scores, on the scale of
    `spread_scores`, one below all scores and one above. "f1" and "expected_cost" take the best candidate,
    of equally good ones that in the widest gap, so that a perfectly separated validation part gives the
    middle of the gap between good and defective. "false_alarm_rate" takes the lowest candidate with FP /
    good <= max_false_alarm_rate. "normals" takes `normals_threshold` of the good scores.

    labels: {0, 1} [n]; scores: finite [n]. Evidence (JSON values): tp fp fn tn at the threshold, num_good,
    num_defective, num_equally_good, highest_good_score, lowest_defective_score (None without defective
    images). Raises UserError for scores that are not finite and for a missing class.
    """
    truth, values = _checked_validation(labels, scores, config)
    if config.calibration == "normals":
        threshold, num_equal = normals_threshold(values[~truth], config.max_false_alarm_rate), 1
    else:
        threshold, num_equal = _best_candidate(truth, values, config)
    return threshold, _fit_stats(truth, values, threshold, num_equal)


def _fit_stats(
    truth: NDArray[np.bool_], values: FloatArray, threshold: float, num_equal: int
) -> dict[str, Any]:
    """What the validation images say of a threshold, as JSON values."""
    called = values >= threshold
    num_defective, num_good = int(truth.sum()), int((~truth).sum())
    num_fp, num_fn = int((called & ~truth).sum()), int((~called & truth).sum())
    return {
        "tp": num_defective - num_fn,
        "fp": num_fp,
        "fn": num_fn,
        "tn": num_good - num_fp,
        "num_good": num_good,
        "num_defective": num_defective,
        "num_equally_good": num_equal,
        "highest_good_score": float(values[~truth].max()),
        "lowest_defective_score": float(values[truth].min()) if num_defective else None,
    }


def fit_escape_rate(labels: ArrayLike, scores: ArrayLike, target: float) -> tuple[float, dict[str, Any]]:
    """The highest threshold whose escape rate is at most ``target`` with 95 % confidence, and the evidence for it.

    Escape rate: the share of defective images called good. How many of n images may be missed, `escape_bound`(k, n) <=
    target, follows from n alone; so the promise holds although the same images choose the threshold (Wilks 1941: the
    rate below the (k + 1)-th lowest score is Beta(k + 1, n - k)), as long as defects come as they did in validation.
    Evidence: as of `fit_threshold`, and escape_bound_95. Raises UserError where so few defective validation images
    promise no such rate even if none is missed, and names how many would.
    """
    if not 0 < target < 1:
        raise UserError(
            f"`target` (={target!r}) must lie between 0 and 1; 0.05 lets one defect in twenty pass"
        )
    # Good images are all that the candidates need; the lack of defective ones is told below.
    truth, values = _checked_validation(labels, scores, VerdictConfig(calibration="false_alarm_rate"))
    num_defective = int(truth.sum())
    candidates = _make_candidates(truth, values)
    # Candidates share counts of misses.
    bound_of = {missed: escape_bound(missed, num_defective) for missed in set(candidates.num_fn.tolist())}
    bounds = np.array([bound_of[missed] for missed in candidates.num_fn.tolist()])
    kept = np.flatnonzero(bounds <= target)
    if not kept.size:
        raise UserError(
            f"`target` (={target!r}) cannot be promised: with none of {num_defective} defective validation images "
            f"missed the escape rate may still be {bounds[0]:.3f} (95 % confidence); it takes "
            f"{images_to_promise(target)} defective validation images, or a higher target"
        )
    chosen = int(kept[-1])
    threshold = float(candidates.threshold[chosen])
    fit_stats = _fit_stats(truth, values, threshold, 1)
    return threshold, fit_stats | {"escape_bound_95": float(bounds[chosen])}


def escape_bound(num_missed: int, num_defective: int) -> float:
    """The one-sided 95 % upper bound on the share of defective images missed (Clopper and Pearson 1934); 1 for none.

    The rate p at which so few as ``num_missed`` of ``num_defective`` are missed with probability 0.05: the 0.95
    quantile of Beta(missed + 1, defective - missed); without a miss 1 - 0.05^(1/defective).
    """
    if num_missed >= num_defective:
        return 1.0
    return float(special.betaincinv(num_missed + 1, num_defective - num_missed, 1 - _RISK))


def images_to_promise(target: float) -> int:
    """The least number of defective images of which none missed gives an `escape_bound` of at most ``target``."""
    return math.ceil(math.log(_RISK) / math.log1p(-target))


def _best_candidate(truth: NDArray[np.bool_], values: FloatArray, config: VerdictConfig) -> tuple[float, int]:
    """(the threshold that the calibration asks for, the number of candidates that are equally good)."""
    candidates = _make_candidates(truth, values)
    if config.calibration == "false_alarm_rate":
        num_good = int((~truth).sum())
        allowed = candidates.num_fp <= config.max_false_alarm_rate * num_good + _TIE_TOLERANCE
        return float(candidates.threshold[int(np.argmax(allowed))]), 1
    loss = _loss_of_candidates(candidates, int(truth.sum()), config)
    best = np.flatnonzero(loss <= loss.min() + _TIE_TOLERANCE * max(1.0, abs(float(loss.min()))))
    return float(candidates.threshold[best[np.argmax(candidates.width[best])]]), int(best.size)


def normals_threshold(good_scores: FloatArray, false_alarm_rate: float) -> float:
    """The score that good images exceed with probability ``false_alarm_rate``, beyond all that were seen if need be.

    A score is a maximum over pixels, so its distribution over images is close to Gumbel's (Fisher and Tippett 1928):
    with its moments, scale = sd·√6/π and mode = mean - γ·scale, the quantile is mode - scale·log(-log(1 - rate)). An
    empirical quantile needs 1/rate images before it is anything but their maximum.
    """
    scale = float(np.std(good_scores)) * math.sqrt(6) / math.pi
    mode = float(np.mean(good_scores)) - float(np.euler_gamma) * scale
    threshold = mode - scale * math.log(-math.log1p(-false_alarm_rate))
    # Scores that are all the same leave no scale; the next number above them keeps those images good.
    return max(threshold, float(np.nextafter(np.mean(good_scores), np.inf)))

"""The threshold of a finished run fitted anew to its validation scores, by a rule that the user names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import ArrayLike

from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.evaluation.threshold import Thresholds, escape_bound, fit_escape_rate, fit_threshold


def fit_rule(
    labels: ArrayLike,
    scores: ArrayLike,
    rule: str,
    target: float | None,
    verdict: VerdictConfig,
    old: Thresholds,
) -> Thresholds:
    """``old`` with the image threshold that ``rule`` asks for: a calibration, or "escape_rate", which needs a target.

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
    return Thresholds(threshold, old.pixel_threshold, rule, fit_stats | {"rule": rule, "target": target})


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

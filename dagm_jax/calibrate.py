"""Chooses a finished run's threshold anew from its validation scores, and shows what that changes.

``python -m dagm_jax.calibrate --model=WORKDIR --rule=RULE [--target=NUMBER]``

Rules and what their target is: f1 (none: the highest F1); false_alarm_rate (the largest share of good images called
defective; default: the run's verdict.max_false_alarm_rate); escape_rate (the largest share of defective images called
good, promised with 95 % confidence; no default); expected_cost (what a miss costs in false alarms; default: the run's
fn_cost / fp_cost); normals (the share of good images that exceed the threshold, extrapolated from good images alone;
default as of false_alarm_rate).

The new rule replaces decision_rule.json; the old one is appended to decision_rule_history.json. Exit status: 0 the rule
is stored; 2 a mistake, or a target that validation cannot promise, which the one-line message explains.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from dagm_jax import command_line
from dagm_jax.main import guarded
from dagm_jax.types import UserError, load_json, nearest

if TYPE_CHECKING:
    from dagm_jax.evaluation.threshold import Thresholds, VerdictConfig

RULES = ("f1", "false_alarm_rate", "escape_rate", "expected_cost", "normals")
HISTORY = "decision_rule_history.json"


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: Path
    rule: str
    target: float | None


def parse_flags(argv: Sequence[str]) -> Request:
    """What the command line asks for; every mistake in it becomes a UserError of one line."""
    values = command_line.make_flags()
    flags.DEFINE_string("model", None, "The workdir of a finished run.", flag_values=values)
    flags.DEFINE_string("rule", None, f"How the threshold is chosen: {', '.join(RULES)}.", flag_values=values)
    flags.DEFINE_float("target", None, "What the rule aims at; see above.", flag_values=values)
    given = command_line.parse(values, argv, __doc__)
    if not given.model:
        raise UserError("`--model` is missing; name the workdir of a finished run, such as --model=runs/mine")
    if given.rule not in RULES:
        hint = nearest(given.rule or "", RULES)
        raise UserError(f"`--rule` (={given.rule}) must be one of {', '.join(RULES)}{hint}")
    if given.rule == "f1" and given.target is not None:
        raise UserError(f"`--target` (={given.target}) means nothing to --rule=f1; leave it out")
    if given.rule == "escape_rate" and given.target is None:
        raise UserError("`--target` is missing: the share of defects that may pass, such as --target=0.05")
    return Request(Path(given.model).expanduser(), given.rule, given.target)


def main(argv: Sequence[str]) -> int:
    """Stores the rule that the command line asks for; the exit status."""
    request = parse_flags(argv)
    from dagm_jax.experiment import locked
    from dagm_jax.train.progress import console, write_atomically
    from dagm_jax.trained_model import REPORT, RULE, read_config, read_json, read_rule, read_validation_scores

    read_json(request.model, REPORT, "finish the run first: python -m dagm_jax.main with the same --workdir")
    with locked(request.model, "model"):
        config = read_config(request.model, "model")
        labels, scores = read_validation_scores(request.model)
        old = read_rule(request.model)
        new = fit(request, old, labels, scores, config.verdict)
        if new != old:
            path = request.model / HISTORY
            history = read_history(path)
            history.append(json.loads(old.to_json()))
            # Before the rule itself: a kill between the two repeats an entry, the other way round it would lose one.
            write_atomically(path, json.dumps(history, indent=2) + "\n")
            write_atomically(request.model / RULE, new.to_json())
    console.print(comparison(old, new, labels, scores))
    changed = f"stored in {request.model / RULE}" if new != old else "the rule is as it was"
    console.print(f"{changed}; report.json speaks of the threshold that the run was tested with")
    return 0


def read_history(path: Path) -> list[Any]:
    """The rules that were replaced so far; raises UserError for a file that is no list of them."""
    try:
        history = load_json(path) if path.exists() else []
    except (OSError, ValueError) as error:
        raise UserError(f"`model`: {path} cannot be read ({error}); restore it from a copy") from error
    if not isinstance(history, list):
        raise UserError(f"`model`: {path} holds no list of rules; restore it from a copy")
    return history


def fit(
    request: Request, old: Thresholds, labels: list[int], scores: list[float], verdict: VerdictConfig
) -> Thresholds:
    """The rule that the request asks for, with its evidence; the pixel threshold stays. Raises UserError."""
    from dagm_jax.evaluation.threshold import Thresholds, fit_escape_rate, fit_threshold

    target = request.target
    if request.rule == "escape_rate":
        assert target is not None, "the command line has one"
        threshold, evidence = fit_escape_rate(labels, scores, target)
    else:
        changes: dict[str, Any] = {"calibration": request.rule}
        if request.rule == "expected_cost":
            target = verdict.fn_cost / verdict.fp_cost if target is None else target
            changes |= {"fp_cost": 1.0, "fn_cost": target}
        elif request.rule != "f1":
            target = verdict.max_false_alarm_rate if target is None else target
            changes["max_false_alarm_rate"] = target
        threshold, evidence = fit_threshold(labels, scores, replace(verdict, **changes))
    evidence |= {"rule": request.rule, "target": target}
    return Thresholds(threshold, old.pixel_threshold, request.rule, evidence)


def comparison(old: Thresholds, new: Thresholds, labels: list[int], scores: list[float]) -> Any:
    """A table of both rules: their thresholds, and what each does to the validation images."""
    from rich.table import Table

    from dagm_jax.evaluation.metrics import ImageCounts
    from dagm_jax.evaluation.threshold import escape_bound

    table = Table(title=f"{len(labels)} validation images", title_justify="left")
    for name in ("", "before", "now"):
        table.add_column(name)
    counts = [ImageCounts.from_decisions(labels, rule.decide(scores)) for rule in (old, new)]

    def share(part: int, whole: int) -> str:
        return f"{part / whole:.4f} ({part} of {whole})" if whole else "undefined"

    table.add_row("rule", old.calibration, new.calibration)
    table.add_row("threshold", *(f"{rule.threshold:.6f}" for rule in (old, new)))
    table.add_row("false alarms", *(share(c.fp, c.fp + c.tn) for c in counts))
    table.add_row("escapes", *(share(c.fn, c.fn + c.tp) for c in counts))
    table.add_row(
        "escape rate is at most (95 %)", *(f"{escape_bound(c.fn, c.fn + c.tp):.4f}" for c in counts)
    )
    table.add_row("F1", *("undefined" if c.f1 is None else f"{c.f1:.4f}" for c in counts))
    return table


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

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

from dagm_jax.command_line import flag, guarded, parse_request
from dagm_jax.errors import UserError
from dagm_jax.storage import load_json

if TYPE_CHECKING:
    from dagm_jax.evaluation.threshold import Thresholds, VerdictConfig

RULES = ("f1", "false_alarm_rate", "escape_rate", "expected_cost", "normals")
HISTORY = "decision_rule_history.json"


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: Path = flag("The workdir of a finished run.", example="runs/mine")
    rule: str = flag("How the threshold is chosen.", example="f1", choices=RULES)
    target: float | None = flag("What the rule aims at; see above.", None)


def parse_flags(argv: Sequence[str]) -> Request:
    """The command line as a request; every mistake in it becomes a UserError of one line."""
    request = parse_request(Request, argv, __doc__)
    if request.rule == "f1" and request.target is not None:
        raise UserError(f"`--target` (={request.target}) means nothing to --rule=f1; leave it out")
    if request.rule == "escape_rate" and request.target is None:
        raise UserError("`--target` is missing: the share of defects that may pass, such as --target=0.05")
    return request


def main(argv: Sequence[str]) -> int:
    """Stores the rule that the command line asks for; the exit status."""
    request = parse_flags(argv)
    from dagm_jax.console import console
    from dagm_jax.experiment.workdir import Workdir, locked
    from dagm_jax.storage import write_atomically

    workdir = Workdir(request.model, "model")
    workdir.read_report("finish the run first: python -m dagm_jax.main with the same --workdir")
    with locked(request.model, workdir.option):
        config = workdir.read_config()
        labels, scores = workdir.read_validation_scores()
        old = workdir.read_rule()
        new = fit(request, old, labels, scores, config.verdict)
        if new != old:
            path = request.model / HISTORY
            history = [*read_history(path), json.loads(old.to_json())]
            # Before the rule itself: a kill between the two repeats an entry, the other way round it would lose one.
            write_atomically(path, json.dumps(history, indent=2) + "\n")
            write_atomically(workdir.rule, new.to_json())
    console.print(comparison({"before": old, "now": new}, labels, scores))
    changed = f"stored in {workdir.rule}" if new != old else "the rule is as it was"
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

    target, changes = request.target, dict[str, Any](calibration=request.rule)
    if request.rule == "expected_cost":
        target = verdict.fn_cost / verdict.fp_cost if target is None else target
        changes |= {"fp_cost": 1.0, "fn_cost": target}
    elif request.rule in ("false_alarm_rate", "normals"):
        target = verdict.max_false_alarm_rate if target is None else target
        changes["max_false_alarm_rate"] = target
    if request.rule == "escape_rate":
        assert target is not None, "the command line has one"
        threshold, fit_stats = fit_escape_rate(labels, scores, target)
    else:
        threshold, fit_stats = fit_threshold(labels, scores, replace(verdict, **changes))
    fit_stats |= {"rule": request.rule, "target": target}
    return Thresholds(threshold, old.pixel_threshold, request.rule, fit_stats)


def comparison(rules: dict[str, Thresholds], labels: list[int], scores: list[float]) -> Any:
    """A table with a column per rule: its threshold, and what it does to the validation images."""
    from rich.table import Table

    from dagm_jax.evaluation.metrics import ImageCounts
    from dagm_jax.evaluation.threshold import escape_bound

    def share(part: int, whole: int) -> str:
        return f"{part / whole:.4f} ({part} of {whole})" if whole else "undefined"

    table = Table(title=f"{len(labels)} validation images", title_justify="left")
    for name in ("", *rules):
        table.add_column(name)
    counts = [ImageCounts.from_decisions(labels, rule.decide(scores)) for rule in rules.values()]
    bounds = [escape_bound(c.fn, c.fn + c.tp) for c in counts]
    table.add_row("rule", *(rule.calibration for rule in rules.values()))
    table.add_row("threshold", *(f"{rule.threshold:.6f}" for rule in rules.values()))
    table.add_row("false alarms", *(share(c.fp, c.fp + c.tn) for c in counts))
    table.add_row("escapes", *(share(c.fn, c.fn + c.tp) for c in counts))
    table.add_row("escape rate is at most (95 %)", *(f"{bound:.4f}" for bound in bounds))
    table.add_row("F1", *("undefined" if c.f1 is None else f"{c.f1:.4f}" for c in counts))
    return table


def command() -> None:
    """Runs the command line; ends the process with the exit status."""
    sys.exit(guarded(main, sys.argv))


if __name__ == "__main__":
    command()

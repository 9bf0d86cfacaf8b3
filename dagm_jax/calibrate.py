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

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dagm_jax.command_line import flag, guarded, parse_request
from dagm_jax.errors import UserError

RULES = ("f1", "false_alarm_rate", "escape_rate", "expected_cost", "normals")
HISTORY = "decision_rule_history.json"


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: Path = flag("The workdir of a finished run.", example="runs/mine")
    rule: str = flag("How the threshold is chosen.", example="f1", choices=RULES)
    target: float | None = flag("What the rule aims at; see above.", None)

    def __post_init__(self) -> None:
        if self.rule == "f1" and self.target is not None:
            raise UserError(f"`--target` (={self.target}) means nothing to --rule=f1; leave it out")
        if self.rule == "escape_rate" and self.target is None:
            raise UserError(
                "`--target` is missing: the share of defects that may pass, such as --target=0.05"
            )


def main(argv: Sequence[str]) -> int:
    """Stores the rule that the command line asks for; the exit status."""
    request = parse_request(Request, argv, __doc__)
    from rich.table import Table

    from dagm_jax.console import console
    from dagm_jax.evaluation.threshold import describe_rule, fit_rule
    from dagm_jax.experiment.workdir import Workdir
    from dagm_jax.storage import write_atomically, write_json

    workdir = Workdir(request.model, "model")
    workdir.read_report("finish the run first: python -m dagm_jax.main with the same --workdir")
    with workdir.locked():
        (labels, scores), verdict = workdir.read_validation_scores(), workdir.read_config().verdict
        old = workdir.read_rule()
        threshold, fit_stats = fit_rule(labels, scores, request.rule, request.target, verdict)
        # A threshold teaches a model nothing.
        fit_stats |= {name: value for name, value in old.fit_stats.items() if name == "learnt"}
        new = replace(old, threshold=threshold, calibration=request.rule, fit_stats=fit_stats)
        if new != old:
            path = request.model / HISTORY
            history = workdir.read_json(path) if path.exists() else []
            if not isinstance(history, list):
                raise UserError(f"`model`: {path} holds no list of rules; restore it from a copy")
            # Before the rule itself: a kill between the two repeats an entry, the other way round it would lose one.
            write_json(path, [*history, old.to_values()])
            write_atomically(workdir.rule, new.to_json())
    table = Table(f"{len(labels)} validation images", "before", "now")
    now = describe_rule(new, labels, scores)
    for name, before in describe_rule(old, labels, scores).items():
        table.add_row(name, before, now[name])
    console.print(table)
    changed = f"stored in {workdir.rule}" if new != old else "the rule is as it was"
    console.print(f"{changed}; report.json speaks of the threshold that the run was tested with")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

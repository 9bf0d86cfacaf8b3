"""Fake runs that take no time: the files of ``experiment.run``, from a confusion matrix."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sklearn import metrics as sk

from dagm_jax.config import RunConfig, to_json
from dagm_jax.types import DAGM_SHAPE

Counts = tuple[int, int, int, int]
HISTORY = [
    {"step": 5, "kind": "train", "loss": 0.9, "accuracy": 0.6},
    {"step": 10, "kind": "train", "loss": 0.5},
    {"step": 10, "kind": "validation", "loss": 0.6, "accuracy": None},
]


def rates(tp: int, fp: int, fn: int, tn: int) -> dict[str, float | None]:
    """scikit-learn's rates of a confusion matrix; None where the denominator is 0."""
    truth, called = [1] * (tp + fn) + [0] * (fp + tn), [1] * tp + [0] * fn + [1] * fp + [0] * tn
    return {
        "accuracy": float(sk.accuracy_score(truth, called)),
        "precision": float(sk.precision_score(truth, called)) if tp + fp else None,
        "recall": float(sk.recall_score(truth, called)),
        "f1": float(sk.f1_score(truth, called)),
        "balanced_accuracy": float(sk.balanced_accuracy_score(truth, called)),
    }


def make_report(config: RunConfig, counts: Counts, **changes: Any) -> dict[str, Any]:
    """A ``report.json`` with these counts (tp, fp, fn, tn); ``changes`` replace figures of its test side."""
    names = ("tp", "fp", "fn", "tn")
    test = {**dict(zip(names, counts, strict=True)), **rates(*counts)}
    test |= {"auroc": 0.9, "average_precision": 0.8, "dice_defective": 0.7, "cost": -1.0, **changes}
    return {
        "model": config.model.name,
        "task": config.task.name,
        "test": test,
        "cost_of_running": {
            "executing_time_s": 10.0,
            "images_per_s": 2.0,
            "num_parameters": 250_000,
            "gflop_per_slice": 3.25,
        },
        "training": {"seconds_per_1000_slices": 20.0},
        "baselines": {
            "majority_accuracy": 0.5,
            "local_energy_auroc": 1.0,
            "local_energy_accuracy": 0.75,
            "local_energy_f1": None,
        },
        "data": {
            "source": f"fake images of classes {config.data.classes}",
            "largest_px": list(DAGM_SHAPE),
        },
        "seed": config.seed,
        "device": "fake device",
        "versions": {"jax": "0.10"},
        "config": json.loads(to_json(config)),
    }


class FakeRuns:
    """A ``run`` that remembers the workdirs that it was called for, and leaves a finished run in each.

    before: called with the number of the call, to raise what a real run might.
    """

    def __init__(self, before: Callable[[int], None] = lambda number: None) -> None:
        self.calls: list[str] = []
        self._before = before

    def __call__(self, config: RunConfig, workdir: Path) -> dict[str, Any]:
        self.calls.append(workdir.name)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(to_json(config))
        self._before(len(self.calls))
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
        (workdir / "figures").mkdir(exist_ok=True)
        (workdir / "figures" / "pipeline.png").write_bytes(workdir.name.encode())
        report = make_report(config, (9, 1, 1, 9))
        (workdir / "report.json").write_text(json.dumps(report))
        return report

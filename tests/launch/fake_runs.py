"""Fake runs that take no time: the files of ``experiment.run``, made of a confusion matrix."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dagm_jax.config import RunConfig, to_json
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.types import DAGM_SHAPE

Counts = tuple[int, int, int, int]
HISTORY = [
    {"step": 5, "kind": "train", "loss": 0.9, "accuracy": 0.6},
    {"step": 10, "kind": "train", "loss": 0.5},
    {"step": 10, "kind": "validation", "loss": 0.6, "accuracy": None},
]


def make_report(config: RunConfig, counts: Counts, **changes: Any) -> dict[str, Any]:
    """A ``report.json`` with these counts (tp, fp, fn, tn); ``changes`` replace figures of its test split."""
    image_counts = ImageCounts(*counts)
    test = asdict(image_counts) | {
        name: image_counts.rate(name) for name in ("accuracy", "precision", "recall")
    }
    test |= {"f1": image_counts.f1, "balanced_accuracy": image_counts.balanced_accuracy}
    test |= {"auroc": 0.9, "average_precision": 0.8, "dice_defective": 0.7, "cost": -1.0, **changes}
    return {
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
        "data": {"source": f"fake images of classes {config.data.classes}", "largest_px": [*DAGM_SHAPE]},
        "device": "fake device",
        "versions": {"jax": "0.10"},
        "config": json.loads(to_json(config)),
    }


class FakeRuns:
    """A ``run`` that notes the workdirs' names and leaves a finished run in each; call ``at`` raises ``error``."""

    def __init__(self, at: int = 0, error: BaseException | None = None) -> None:
        self.calls: list[str] = []
        self._at, self._error = at, error

    def __call__(self, config: RunConfig, workdir: Path) -> dict[str, Any]:
        self.calls.append(workdir.name)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / "config.json").write_text(to_json(config))
        if self._error and len(self.calls) == self._at:
            raise self._error
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
        report = make_report(config, (9, 1, 1, 9))
        (workdir / "report.json").write_text(json.dumps(report))
        return report

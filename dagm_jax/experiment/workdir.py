"""The folder of a run: paths, lock, readers."""

from __future__ import annotations

import csv
import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dagm_jax.config import RunConfig, from_config_dict
from dagm_jax.errors import UserError
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.storage import load_json, locked
from dagm_jax.versions import written_by

FROM_COPY = "restore it from a copy"


class Workdir:
    """The folder of one run and the paths in it; ``option``, by which the user named it, is quoted in errors."""

    def __init__(self, path: Path, option: str = "workdir") -> None:
        self.path, self.option = path, option
        self.config = path / "config.json"
        self.cache = path / "cache"
        self.checkpoints = path / "checkpoints"
        self.history = path / "metrics.jsonl"
        self.rule = path / "decision_rule.json"
        self.validation_scores = path / "validation_scores.csv"
        self.predictions = path / "predictions.csv"
        self.figures = path / "figures"
        self.batch = self.figures / "batch.png"
        self.pictures = path / "images"
        self.page = path / "index.html"
        self.report = path / "report.json"

    def __str__(self) -> str:
        return str(self.path)

    def locked(self) -> AbstractContextManager[None]:
        """Holds the folder for this process; raises UserError where another holds it (see `storage.locked`)."""
        return locked(self.path, self.option)

    @property
    def is_finished(self) -> bool:
        """Whether there is a report, which a run writes last."""
        return self.report.exists()

    def read_config(self) -> RunConfig:
        """The run's configuration; raises UserError where it is missing, damaged or of an unknown release."""
        values = self.read_json(self.config)
        if isinstance(values, dict):
            # Earlier releases had no such choices.
            values.setdefault("eval", {"tiling": "slices"})
            if isinstance(optim := values.get("optim"), dict):
                optim.setdefault("optimizer", "adamw")
        try:
            return from_config_dict(values)
        except UserError as error:
            known = self.read_json(self.report) if self.is_finished else None
            raise UserError(
                f"`{self.option}` (={self}) holds a {self.config.name} that this release does not read, written by "
                f"{written_by(known)}: {error}; {FROM_COPY}, or use that release"
            ) from error

    def read_report(self, remedy: str = FROM_COPY) -> Any:
        """The report's JSON values, unchecked; raises UserError, with ``remedy`` where it is missing."""
        return self.read_json(self.report, remedy)

    def read_rule(self) -> Thresholds:
        """The thresholds; raises UserError where they are missing or damaged."""
        return Thresholds.from_values(self.read_json(self.rule))

    def read_validation_scores(self) -> tuple[list[int], list[float]]:
        """(labels, scores) of the validation images; raises UserError where they are missing or damaged."""
        name = self.validation_scores.name
        try:
            with self.validation_scores.open(newline="") as stream:
                rows = [(int(row["label"]), float(row["score"])) for row in csv.DictReader(stream)]
            if not all(label in (0, 1) and math.isfinite(score) for label, score in rows):
                raise ValueError("a label is neither 0 nor 1, or a score not finite")
        except OSError as error:
            raise UserError(
                f"`{self.option}` (={self}) lacks {name} ({error.strerror}), which runs of this version write; "
                "train again"
            ) from error
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise UserError(f"`{self.option}` (={self}): {name} is damaged ({error}); {FROM_COPY}") from error
        return [label for label, _ in rows], [score for _, score in rows]

    def read_normal_scores(self) -> list[float]:
        """Scores of the good validation images; empty for runs that kept none."""
        if not self.validation_scores.exists():
            return []
        labels, scores = self.read_validation_scores()
        return [score for label, score in zip(labels, scores, strict=True) if not label]

    def read_json(self, path: Path, remedy: str = FROM_COPY) -> Any:
        """The values in a JSON file of the folder; raises UserError, with ``remedy`` where it is missing."""
        try:
            return load_json(path)
        except OSError as error:
            raise UserError(
                f"`{self.option}` (={self}) has no {path.name} ({error.strerror}); {remedy}"
            ) from error
        except ValueError as error:
            raise UserError(
                f"`{self.option}` (={self}): {path.name} is not JSON ({error}); {FROM_COPY}"
            ) from error

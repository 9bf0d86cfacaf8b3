"""The folder of a run: paths, lock, plain disk errors, readers."""

from __future__ import annotations

import csv
import errno
import importlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from dagm_jax.config import RunConfig, from_config_dict
from dagm_jax.errors import DISK_ERRORS, PASSING_ERRORS, DiskError, UserError, printable
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.storage import load_json
from dagm_jax.versions import written_by

# Remedies by error number for a disk that refuses writes without being full.
REMEDIES = {errno.EROFS: "make it writable", errno.EIO: "check the disk"}
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
        self.pictures = path / "images"
        self.page = path / "index.html"
        self.report = path / "report.json"

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_finished(self) -> bool:
        """Whether there is a report, which a run writes last."""
        return self.report.exists()

    def read_config(self) -> RunConfig:
        """The run's configuration; raises UserError where it is missing, damaged or of an unknown release."""
        values = self.read_json(self.config)
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


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Locks the folder, which the user named by ``option``, for this process; the lock ends with the process.

    Raises UserError where another process holds it, and for errors of its disk within the block.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # In a stranger's workdir this file may be a link to a file of the user's.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        stream = os.fdopen(os.open(folder / ".lock", flags, 0o666), "w")
    except OSError as error:
        raise UserError(
            f"`{option}` (={folder}) cannot be written ({error.strerror}); name another"
        ) from error
    with stream:
        if not _try_lock(stream):
            raise UserError(f"`{option}` (={folder}) is in use by another run; wait for it or name another")
        with plain_disk_errors(folder, option):
            yield


def _try_lock(stream: IO[str]) -> bool:
    """Locks the open file for this process; False where another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        msvcrt: Any = importlib.import_module("msvcrt")
        attempt = partial(msvcrt.locking, stream.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        attempt = partial(fcntl.flock, stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        attempt()
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def plain_disk_errors(folder: Path, option: str) -> Iterator[None]:
    """Within the block errors of the disk of ``folder`` become a DiskError, errors that may pass a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in PASSING_ERRORS:
            where = f": {printable(error.filename)}" if error.filename else ""
            raise UserError(
                f"work in `{option}` (={folder}) met an error of the machine ({error.strerror}{where}); mend it, or "
                "wait, and run the same command again, which goes on from what was saved last"
            ) from error
        if error.errno not in DISK_ERRORS:
            raise
        remedy = REMEDIES.get(error.errno or 0, "make room")
        raise DiskError(
            f"`{option}` (={folder}) cannot be written ({error.strerror}); {remedy} and run the same command again, "
            "which goes on from what was saved last"
        ) from error

"""The record of what was judged: a line per image in ``predictions.jsonl``, and the table and figures made from it."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dagm_jax.data.incoming import LINES, Incoming, Stamp
from dagm_jax.data.replacing import replacing
from dagm_jax.evaluation.metrics import ImageCounts, score_drift
from dagm_jax.types import UserError

TABLE, SUMMARY = "predictions.csv", "summary.json"
# Of unreadable files the summary names so many; predictions.jsonl has them all.
MAX_NAMED = 1000
# So many new records are kept at hand, for a watcher to tell of drift by.
NUM_RECENT = 500


@dataclass(frozen=True, slots=True)
class Prediction:
    """What was found of one content of a file; score, defective, boxes and overlay are None where it cannot be read.

    label, defective: 0 or 1, label None where unknown. boxes: [left, top, width, height] in px of each connected part
    of the defect mask. latency_s: from the start of reading to the verdict. sha256: of the file, None where there was
    nothing to read. size_bytes and mtime_ns tell a file that has not changed. error: why it cannot be read.
    """

    image: str
    label: int | None
    score: float | None
    defective: int | None
    threshold: float
    model_id: str
    sha256: str | None
    size_bytes: int
    mtime_ns: int
    size_px: tuple[int, int] | None
    boxes: list[list[int]] | None
    latency_s: float
    overlay: str | None
    error: str | None

    def to_json(self) -> str:
        """One line of JSON, without the line's end."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Prediction:
        """What `to_json` wrote; raises ValueError for anything else."""
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != {item.name for item in fields(cls)}:
            raise ValueError("other fields than those of a prediction")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of a name: its last line's number, which content that was about, why it was not judged.

    stamp: None where it is to be tried again.
    """

    line: int
    stamp: Stamp | None
    sha256: str | None
    error: str | None


class Predictions:
    """``predictions.jsonl`` of a folder: read back when opened, then only ever appended to.

    A line is on the disk before `append` returns. A last line that a kill cut short is removed. recent: the last ones
    that were appended. Raises UserError where another line is damaged, or the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LINES
        self._known: dict[str, _Known] = {}
        self._num_lines = 0
        for one in self._read_back():
            self._remember(one)
            if one.sha256 is None:
                # Nothing could be read, for a reason that may have passed since.
                self._known[one.image] = replace(self._known[one.image], stamp=None)
        self._num_before = self._num_lines
        self.recent: deque[Prediction] = deque(maxlen=NUM_RECENT)
        self._stream = self._path.open("a", encoding="utf-8")

    def _read_back(self) -> Iterator[Prediction]:
        if not self._path.exists():
            return
        whole = 0
        with self._path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    yield Prediction.from_json(line.decode())
                except ValueError as error:
                    raise UserError(
                        f"`--output` (={self._path.parent}): line {number} of {LINES} is damaged ({error}); remove "
                        "that line, or name another folder"
                    ) from error
        os.truncate(self._path, whole)

    def _remember(self, one: Prediction) -> None:
        stamp = Stamp(one.size_bytes, one.mtime_ns)
        self._known[one.image] = _Known(self._num_lines, stamp, one.sha256, one.error)
        self._num_lines += 1

    def __len__(self) -> int:
        """How many names are recorded."""
        return len(self._known)

    def has(self, file: Incoming) -> bool:
        """Whether this file, as its size and time of change are now, is recorded."""
        known = self._known.get(file.name)
        return known is not None and known.stamp == file.stamp

    def has_content(self, name: str, sha256: str | None, error: str | None) -> bool:
        """Whether the last record of this name says this of this content; without one (None), the same error."""
        known = self._known.get(name)
        if known is None or known.sha256 != sha256:
            return False
        return sha256 is not None or known.error == error

    def is_judged(self, name: str) -> bool:
        """Whether the last record of this name has a verdict."""
        known = self._known.get(name)
        return known is not None and known.error is None

    def touch(self, file: Incoming) -> None:
        """Notes that a recorded content now has another time of change."""
        self._known[file.name] = replace(self._known[file.name], stamp=file.stamp)

    def append(self, one: Prediction) -> None:
        try:
            self._stream.write(one.to_json() + "\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise UserError(
                f"`--output` (={self._path.parent}) cannot be written ({error.strerror}); make room and run the same "
                "command again"
            ) from error
        self._remember(one)
        self.recent.append(one)

    def latest(self) -> Iterator[Prediction]:
        """The last record of each name, in the order of the lines; read from the file, none is kept."""
        return self._lines({known.line for known in self._known.values()})

    def latest_of_now(self) -> Iterator[Prediction]:
        """Of `latest` those that were appended since the file was opened."""
        return self._lines({known.line for known in self._known.values() if known.line >= self._num_before})

    def _lines(self, numbers: set[int]) -> Iterator[Prediction]:
        with self._path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream):
                if number in numbers:
                    yield Prediction.from_json(line)

    def close(self) -> None:
        self._stream.close()


def write_table(rows: Iterable[Prediction], path: Path) -> None:
    """Writes ``image,label,score,defective`` of each row, so that ``path`` is the old table or the new one.

    Names of undecodable bytes are written as these bytes.
    """
    with replacing(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        stream.write("image,label,score,defective\n")
        for row in rows:
            score = "" if row.score is None else repr(row.score)
            stream.write(_csv_line([row.image, _text(row.label), score, _text(row.defective)]))


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _csv_line(cells: list[str]) -> str:
    """The cells as a line of CSV; quoted also where a carriage return is all that asks for it."""
    stream = io.StringIO()
    # The csv module quotes what is in its line terminator.
    csv.writer(stream, lineterminator="\r\n").writerow(cells)
    return stream.getvalue().removesuffix("\r\n") + "\n"


class _Figures:
    """What is gathered of the rows for a summary, by label."""

    def __init__(self) -> None:
        self.scores: dict[int | None, list[float]] = {None: [], 0: [], 1: []}
        self.decisions: dict[int | None, list[bool]] = {None: [], 0: [], 1: []}
        self.latencies_s: list[float] = []
        self.unreadable: list[dict[str, str]] = []
        self.num_unreadable = 0

    def add(self, row: Prediction) -> None:
        if row.score is None:
            self.num_unreadable += 1
            if len(self.unreadable) < MAX_NAMED:
                self.unreadable.append({"image": row.image, "error": row.error or ""})
            return
        self.scores[row.label].append(row.score)
        self.decisions[row.label].append(bool(row.defective))
        self.latencies_s.append(row.latency_s)

    @property
    def has_labels(self) -> bool:
        return bool(self.scores[0] or self.scores[1])

    def confusion(self) -> dict[str, int] | None:
        if not self.has_labels:
            return None
        good, defective = self.decisions[0], self.decisions[1]
        labels = [0] * len(good) + [1] * len(defective)
        counts = ImageCounts.from_decisions(labels, good + defective)
        return {"tp": counts.tp, "fp": counts.fp, "fn": counts.fn, "tn": counts.tn}

    def latency_s(self) -> dict[str, float] | None:
        if not self.latencies_s:
            return None
        return {f"p{share}": float(np.percentile(self.latencies_s, share)) for share in (50, 95, 99)}

    def drift(self, normal_scores: Sequence[float]) -> dict[str, Any]:
        compared = self.scores[0] if self.has_labels else self.scores[None]
        drift = score_drift(compared, normal_scores)
        return {
            "population_stability_index": drift.index,
            "by_chance": drift.by_chance,
            "level": drift.level,
            "num_scores": drift.num_scores,
            "num_validation_normals": drift.num_reference,
            "compared": "images known to be good" if self.has_labels else "judged images",
        }


def summarise(
    rows: Iterable[Prediction], now: Iterable[Prediction], normal_scores: Sequence[float]
) -> dict[str, Any]:
    """Counts of the rows, latencies and drift of those judged ``now``, as JSON values.

    latency_s: p50, p95 and p99 over judged images. confusion: over judged images with a label, None without any. drift:
    of the scores of the images that are known to be good, or of all judged ones where no label is known. Latencies are
    of all rows where none was judged now, drift where those are too few: old records hide a camera that has changed.
    """
    figures, of_now = _gather(rows), _gather(now)
    recent = of_now if of_now.latencies_s else figures
    drift = of_now.drift(normal_scores) | {"records": "of this call"}
    if drift["level"] == "too few":
        drift = figures.drift(normal_scores) | {"records": "of all calls"}
    return {
        "num_files": len(figures.latencies_s) + figures.num_unreadable,
        "num_judged": len(figures.latencies_s),
        "num_defective": sum(map(sum, figures.decisions.values())),
        "num_unreadable": figures.num_unreadable,
        "unreadable": figures.unreadable,
        "confusion": figures.confusion(),
        "latency_s": recent.latency_s(),
        "drift": drift,
    }


def _gather(rows: Iterable[Prediction]) -> _Figures:
    figures = _Figures()
    for row in rows:
        figures.add(row)
    return figures

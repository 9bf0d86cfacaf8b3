"""Predictions for a folder's files: one line each in ``predictions.jsonl``; table and summary of the latest ones."""

from __future__ import annotations

import csv
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from dagm_jax.console import console
from dagm_jax.errors import UserError, printable
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.inspection.drift import WARNING, describe_drift, score_drift
from dagm_jax.inspection.scan import LINES, ORIGIN, ImageFile, Stamp
from dagm_jax.storage import replacing, write_atomically

# Latest predictions kept in memory, from which a watcher computes drift.
NUM_RECENT = 500
# Unreadable files that the summary names, and those that the terminal shows; predictions.jsonl has all of them.
MAX_NAMED, MAX_SHOWN = 1000, 10


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one content of a file; score, defective, boxes and overlay are None where it is unreadable.

    label, defective: 0 or 1, label None where unknown. boxes: [left, top, width, height] in px of each connected part
    of the defect mask. latency_s: from the start of reading to the decision. sha256: of the file, None where there was
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

    @property
    def outcome(self) -> Literal["good", "defective", "unreadable"]:
        return "unreadable" if self.score is None else "defective" if self.defective else "good"

    def to_json(self) -> str:
        """One line of JSON, without the line's end."""
        return json.dumps(asdict(self), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Prediction:
        """The prediction that `to_json` wrote; raises ValueError for anything else."""
        values = json.loads(text)
        if not isinstance(values, dict) or set(values) != {item.name for item in fields(cls)}:
            raise ValueError("other fields than those of a prediction")
        return cls(**values)


@dataclass(slots=True)
class _Known:
    """The last prediction of a name: the number of its line, and the content that it was made for.

    stamp: None where the file is to be tried again.
    """

    line: int
    stamp: Stamp | None
    sha256: str | None
    error: str | None


class Predictions:
    """``predictions.jsonl`` of a folder: read back when opened, then only ever appended to.

    A line is on the disk before `append` returns. A last line that a kill cut short is removed. recent: the last ones
    that were appended. Raises UserError where another line is damaged, OSError where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LINES
        self._known: dict[str, _Known] = {}
        self._num_lines = 0
        for one in self._read_back():
            self._remember(one)
            if one.sha256 is None:
                # Nothing could be read, for a reason that may have passed since.
                self._known[one.image].stamp = None
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
        stamp = one.size_bytes, one.mtime_ns
        self._known[one.image] = _Known(self._num_lines, stamp, one.sha256, one.error)
        self._num_lines += 1

    def has(self, file: ImageFile) -> bool:
        """Whether there is a prediction for this file as its size and time of change are now."""
        known = self._known.get(file.name)
        return known is not None and known.stamp == file.stamp

    def has_content(self, file: ImageFile, sha256: str | None, error: str | None) -> bool:
        """Whether the last prediction of the file is for this content, whose time of change is then noted.

        Where nothing could be read (None) the errors are compared.
        """
        known = self._known.get(file.name)
        if known is None or known.sha256 != sha256 or (sha256 is None and known.error != error):
            return False
        known.stamp = file.stamp
        return True

    def is_unreadable(self, file: ImageFile) -> bool:
        """Whether the last prediction of the file says that it cannot be read."""
        known = self._known.get(file.name)
        return known is not None and known.error is not None

    def append(self, one: Prediction) -> None:
        self._stream.write(one.to_json() + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._remember(one)
        self.recent.append(one)

    def latest(self) -> Iterator[Prediction]:
        """The last prediction of each name, in the order of the lines; read from the file, none is kept."""
        return self._lines({known.line for known in self._known.values()})

    def latest_of_now(self) -> Iterator[Prediction]:
        """The part of `latest` that was appended since the file was opened."""
        return self._lines({known.line for known in self._known.values() if known.line >= self._num_before})

    def _lines(self, numbers: set[int]) -> Iterator[Prediction]:
        with self._path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream):
                if number in numbers:
                    yield Prediction.from_json(line)

    def close(self) -> None:
        self._stream.close()


def check_origin(output: Path, model: str, model_id: str, root: Path) -> None:
    """Notes in ``output`` which model and folder its predictions are of; raises UserError where they are of others."""
    path = output / ORIGIN
    now = {"model_id": model_id, "images": os.fsencode(root).decode(errors="backslashreplace")}
    before = json.loads(path.read_text()) if path.exists() else now
    if before["model_id"] != model_id:
        raise UserError(
            f"`--output` (={output}) holds verdicts of model {before['model_id']}, and `--model` (={model}) with its "
            f"threshold is {model_id}; name another folder"
        )
    if before["images"] != now["images"]:
        raise UserError(
            f"`--output` (={output}) holds verdicts on images of {before['images']}, and `--images` are of "
            f"{now['images']}; name another folder"
        )
    write_atomically(path, json.dumps(now, indent=2) + "\n")


def write_table(rows: Iterable[Prediction], path: Path) -> None:
    """Writes ``image,label,score,defective`` of each row, so that ``path`` is the old table or the new one.

    Names of undecodable bytes are written as these bytes.
    """
    with replacing(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        stream.write("image,label,score,defective\n")
        for row in rows:
            line = io.StringIO()
            # The csv module quotes a carriage return only if its line terminator holds one.
            csv.writer(line, lineterminator="\r\n").writerow([row.image, row.label, row.score, row.defective])
            stream.write(line.getvalue().removesuffix("\r\n") + "\n")


def summarise(
    rows: Iterable[Prediction], now: Iterable[Prediction], normal_scores: Sequence[float]
) -> dict[str, Any]:
    """Counts of the rows, and latencies and drift of those predicted ``now``, as JSON values.

    latency_s: p50, p95 and p99 over readable images; of all rows where none is of now. confusion: over readable images
    with a label, None without any. drift: see `drift_of`; of all rows only where those of now are too few, because old
    ones hide a camera that has changed.
    """
    unreadable: list[dict[str, str]] = []
    every, of_now = _columns(rows, unreadable), _columns(now, [])
    label, _, defective, latency_s = every
    known = ~np.isnan(label)
    counts = ImageCounts.from_decisions(label[known], defective[known])
    if of_now.size:
        latency_s = of_now[3]
    shares = (50, 95, 99) if latency_s.size else ()
    drift = _drift(of_now, normal_scores) | {"records": "of this call"}
    if drift["level"] == "too few":
        drift = _drift(every, normal_scores) | {"records": "of all calls"}
    return {
        "num_files": label.size + len(unreadable),
        "num_judged": label.size,
        "num_defective": int(defective.sum()),
        "num_unreadable": len(unreadable),
        "unreadable": unreadable[:MAX_NAMED],
        "confusion": asdict(counts) if known.any() else None,
        "latency_s": {f"p{share}": float(np.percentile(latency_s, share)) for share in shares} or None,
        "drift": drift,
    }


def drift_of(rows: Iterable[Prediction], normal_scores: Sequence[float]) -> dict[str, Any]:
    """The drift of the images known to be good, or of all readable ones where no label is known, as JSON values."""
    return _drift(_columns(rows, []), normal_scores)


def _columns(rows: Iterable[Prediction], unreadable: list[dict[str, str]]) -> NDArray[np.float64]:
    """Label (NaN where unknown), score, defective and latency in s of the readable rows [4 n].

    The others are appended to ``unreadable``.
    """
    readable = []
    for row in rows:
        if row.score is None:
            unreadable.append({"image": row.image, "error": row.error or ""})
        else:
            readable.append((row.label, row.score, row.defective, row.latency_s))
    return np.array(readable, np.float64).reshape(-1, 4).T


def _drift(columns: NDArray[np.float64], normal_scores: Sequence[float]) -> dict[str, Any]:
    label, score = columns[:2]
    has_labels = bool(np.isfinite(label).any())
    drift = score_drift(score[label == 0] if has_labels else score, normal_scores)
    return asdict(drift) | {"compared": "images known to be good" if has_labels else "judged images"}


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """The summary as a table on the terminal, with unreadable files and a warning of large drift."""
    predicted, defective = summary["num_judged"], summary["num_defective"]
    rows = {
        "predicted": predicted,
        "defective": f"{defective} (score >= {summary['threshold']:.4f})",
        "good": predicted - defective,
        "unreadable": summary["num_unreadable"],
    }
    if counts := summary["confusion"]:
        rows["tp fp fn tn"] = " ".join(str(counts[name]) for name in ("tp", "fp", "fn", "tn"))
    if latency := summary["latency_s"]:
        shown = (f"{name} {1000 * value:.0f} ms" for name, value in latency.items())
        rows["latency, file to prediction"] = ", ".join(shown)
    if summary["images_per_s"]:
        rows["images/s"] = f"{summary['images_per_s']:.1f} ({summary['num_judged_now']} images)"
    rows["score drift"] = describe_drift(summary["drift"])
    table = Table(title=f"{summary['num_files']} files, model {summary['model_id']}", title_justify="left")
    table.add_column("figure")
    table.add_column("value")
    for name, value in rows.items():
        table.add_row(name, str(value))
    console.print(table)
    for one in summary["unreadable"][:MAX_SHOWN]:
        console.print(f"unreadable: {printable(one['image'])}: {printable(one['error'])}")
    if (rest := summary["num_unreadable"] - MAX_SHOWN) > 0:
        console.print(f"… and {rest} more; all are listed in predictions.jsonl")
    if summary["drift"]["level"] == "large":
        console.print(WARNING)
    console.print(f"predictions: {printable(output)}")

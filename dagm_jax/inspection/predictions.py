"""Predictions for a folder's files: one line each in ``predictions.jsonl``; table and summary of the latest ones."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.table import Table

from dagm_jax.console import console
from dagm_jax.errors import UserError, printable
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.inspection.drift import WARNING, describe_drift, score_drift
from dagm_jax.inspection.scan import LINES, ORIGIN, ImageFile, Stamp
from dagm_jax.storage import write_json

# Limits of unreadable files that the summary names and that the terminal shows; predictions.jsonl has all of them.
MAX_NAMED, MAX_SHOWN = 1000, 10


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction for one content of a file; score, defective, boxes and overlay are None where it is unreadable.

    label, defective: 0 or 1, label None where unknown. boxes: [left, top, width, height] in px of each connected part
    of the defect mask. latency_s: from the start of reading to the decision. sha256: of the file, None where nothing
    could be read. size_bytes, mtime_ns: as the file was when it was found. error: why it is unreadable.
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


class Predictions:
    """``predictions.jsonl`` of a folder: read back when opened, then only ever appended to.

    latest: the last prediction of each name in the order of the lines, without boxes, of which a map may give
    thousands. now: those appended since the file was opened. A line is on the disk before `append` returns; a
    last one that a kill cut short is removed. Raises UserError for other damage, OSError of the disk.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LINES
        self.latest: dict[str, Prediction] = {}
        self.now: dict[str, Prediction] = {}
        # Stamps of the files that need not be read again.
        self._stamps: dict[str, Stamp] = {}
        for one in self._read_back():
            self._remember(one)
            if one.sha256 is None:
                # Nothing could be read, for a reason that may have passed since.
                del self._stamps[one.image]
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
                    yield Prediction(**json.loads(line))
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"`--output` (={self._path.parent}): line {number} of {LINES} is damaged; remove that line, or "
                        "name another folder"
                    ) from error
        os.truncate(self._path, whole)

    def _remember(self, one: Prediction) -> Prediction:
        # Out and in again, so that the order is that of the lines.
        self.latest.pop(one.image, None)
        self.latest[one.image] = replace(one, boxes=None)
        self._stamps[one.image] = one.size_bytes, one.mtime_ns
        return self.latest[one.image]

    def has(self, file: ImageFile) -> bool:
        """Whether there is a prediction for this file as its size and time of change are now."""
        return self._stamps.get(file.name) == file.stamp

    def has_content(self, file: ImageFile, sha256: str | None, error: str | None) -> bool:
        """Whether the last prediction of the file is for this content, whose time of change is then noted.

        Where nothing could be read (None) the errors are compared.
        """
        known = self.latest.get(file.name)
        if known is None or known.sha256 != sha256 or (sha256 is None and known.error != error):
            return False
        self._stamps[file.name] = file.stamp
        return True

    def append(self, one: Prediction) -> None:
        self._stream.write(json.dumps(asdict(one), allow_nan=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.now.pop(one.image, None)
        self.now[one.image] = self._remember(one)

    def close(self) -> None:
        self._stream.close()


def check_origin(output: Path, model: str, model_id: str, root: Path) -> None:
    """Notes in ``output`` its model and its folder of images; raises UserError where its predictions are of others."""
    path = output / ORIGIN
    now = {"model_id": model_id, "images": os.fsencode(root).decode(errors="backslashreplace")}
    before = json.loads(path.read_text()) if path.exists() else now
    given = {"model_id": f"`--model` (={model}) with its threshold is", "images": "`--images` are of"}
    for name, option in given.items():
        if before[name] != now[name]:
            raise UserError(
                f"`--output` (={output}) holds predictions of {before[name]}, and {option} {now[name]}; name another "
                "folder"
            )
    write_json(path, now)


def summarise(
    rows: Collection[Prediction], now: Collection[Prediction], normal_scores: Sequence[float]
) -> dict[str, Any]:
    """Counts of the rows, and latencies and drift of those predicted ``now``, as JSON values.

    latency_s: p50, p95 and p99 over readable images; of all rows where none is of now. confusion: over readable images
    with a label, None without any. drift: see `drift_of`; of all rows only where those of now are too few, because old
    ones hide a camera that has changed.
    """
    readable, readable_now = ([row for row in part if row.score is not None] for part in (rows, now))
    unreadable = [{"image": row.image, "error": row.error or ""} for row in rows if row.score is None]
    labelled = [(row.label, row.defective) for row in readable if row.label is not None]
    counts = ImageCounts.from_decisions(*np.array(labelled, np.int64).reshape(-1, 2).T)
    latency_s = [row.latency_s for row in readable_now or readable]
    shares = (50, 95, 99) if latency_s else ()
    drift = drift_of(readable_now, normal_scores) | {"records": "of this call"}
    if drift["level"] == "too few":
        drift = drift_of(readable, normal_scores) | {"records": "of all calls"}
    return {
        "num_files": len(rows),
        "num_judged": len(readable),
        "num_judged_now": len(readable_now),
        "num_defective": sum(row.outcome == "defective" for row in readable),
        "num_unreadable": len(unreadable),
        "unreadable": unreadable[:MAX_NAMED],
        "confusion": asdict(counts) if labelled else None,
        "latency_s": {f"p{share}": float(np.percentile(latency_s, share)) for share in shares} or None,
        "drift": drift,
    }


def drift_of(rows: Iterable[Prediction], normal_scores: Sequence[float]) -> dict[str, Any]:
    """The drift of the images known to be good, or of all readable ones where no label is known, as JSON values."""
    readable = [row for row in rows if row.score is not None]
    has_labels = any(row.label is not None for row in readable)
    scores = [row.score for row in readable if not has_labels or row.label == 0]
    drift = score_drift(np.array(scores, np.float64), normal_scores)
    return drift | {"compared": "images known to be good" if has_labels else "predicted images"}


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """Prints the summary as a table, with unreadable files and a warning of large drift."""
    predicted, defective = summary["num_judged"], summary["num_defective"]
    title = f"{summary['num_files']} files, model {summary['model_id']}"
    table = Table("figure", "value", title=title, title_justify="left")
    table.add_row("predicted", str(predicted))
    table.add_row("defective", f"{defective} (score >= {summary['threshold']:.4f})")
    table.add_row("good", str(predicted - defective))
    table.add_row("unreadable", str(summary["num_unreadable"]))
    if counts := summary["confusion"]:
        table.add_row("tp fp fn tn", " ".join(str(counts[name]) for name in ("tp", "fp", "fn", "tn")))
    if latency := summary["latency_s"]:
        shown = (f"{name} {1000 * value:.0f} ms" for name, value in latency.items())
        table.add_row("latency, file to prediction", ", ".join(shown))
    if summary["images_per_s"]:
        table.add_row("images/s", f"{summary['images_per_s']:.1f} ({summary['num_judged_now']} images)")
    table.add_row("score drift", describe_drift(summary["drift"]))
    console.print(table)
    for one in summary["unreadable"][:MAX_SHOWN]:
        console.print(f"unreadable: {printable(one['image'])}: {printable(one['error'])}")
    if (rest := summary["num_unreadable"] - MAX_SHOWN) > 0:
        console.print(f"… and {rest} more; all are listed in predictions.jsonl")
    if summary["drift"]["level"] == "large":
        console.print(WARNING)
    console.print(f"predictions: {printable(output)}")

"""The history of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dagm_jax.console import console
from dagm_jax.storage import write_atomically


class MetricLogger:
    """Writer of the history: one JSON object per line in ``metrics.jsonl``, and the same numbers for TensorBoard.

    Reopened at a step, it drops the rows after it, which will be written again.
    """

    def __init__(self, workdir: Path, resume_step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_history(self._path) if row["step"] <= resume_step]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._stream = self._path.open("a")
        from dagm_jax.train.event_file import EventFile

        self._events = EventFile(workdir / "tensorboard", resume_step)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Appends a row; those of validation are on the disk when this returns."""
        self._stream.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._stream.flush()
        self._events.write(kind, step, values)
        # Not for every row: this waits for the disk.
        if kind == "validation":
            self._events.flush()

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._events.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl`` without damaged lines, which are reported, and without a last line cut by a kill."""
    if not path.exists():
        return []
    rows, damaged = [], []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, last], start=1):
        row = _read_row(line)
        if row is not None:
            rows.append(row)
        elif number <= len(lines):
            damaged.append(number)
    if damaged:
        console.print(
            f"{path}: {len(damaged)} of {len(lines)} lines are damaged, such as line {damaged[0]}; the other lines are "
            "kept"
        )
    return rows


def _read_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line of the history; None for a damaged line."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("kind"), str)
    return row if is_row else None

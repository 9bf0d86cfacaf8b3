"""The history of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import os
import platform
import time
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
        # Imported here: tensorboardX imports PyTorch where that is installed.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar

        folder = workdir / "tensorboard"
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}"
        # Not tensorboardX's usual writer: a full disk ends its thread, for which the run would then wait.
        self._events = RecordWriter(str(folder / name))
        self._event, self._scalar = Event, scalar
        self._add_event(file_version="brain.Event:2")
        # TensorBoard ignores what earlier files have of later steps.
        self._add_event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Appends a row; those of validation are on the disk when this returns."""
        self._stream.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._stream.flush()
        for name, value in values.items():
            self._add_event(step=step, summary=self._scalar(f"{kind}/{name}", value))
        # Not for every row: this waits for the disk.
        if kind == "validation":
            self._events.flush()

    def _add_event(self, **fields: Any) -> None:
        self._events.write(self._event(wall_time=time.time(), **fields).SerializeToString())

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
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("kind"), str):
            rows.append(row)
        elif number <= len(lines):
            damaged.append(number)
    if damaged:
        console.print(
            f"{path}: {len(damaged)} of {len(lines)} lines are damaged, such as line {damaged[0]}; the other lines are "
            "kept"
        )
    return rows

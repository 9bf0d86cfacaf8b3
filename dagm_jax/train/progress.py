"""Progress of work: a live bar on a terminal, plain lines elsewhere; and the history in files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dagm_jax.data.replacing import replacing

PLAIN_LINE_EVERY_S = 15.0

# Names of files come through as they are: "a[/b].png" would be a tag that was never opened, ":bug:" a picture.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


class Bar:
    """One running piece of work: ``advance`` it and give it a line of figures."""

    def __init__(self, progress: Progress | None, name: str, total: int, done: int) -> None:
        self._progress, self._name, self._total, self._done = progress, name, total, done
        self._start_done, self._start_s, self._spoke_s = done, time.monotonic(), time.monotonic()
        self._task = progress.add_task(name, total=total, completed=done, figures="") if progress else None

    def set_total(self, total: int) -> None:
        """Corrects how many items there are in all."""
        self._total = total
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)

    def advance(self, count: int = 1, figures: str = "") -> None:
        self._done += count
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self._done, figures=figures)
        elif time.monotonic() - self._spoke_s > PLAIN_LINE_EVERY_S:
            self._spoke_s = time.monotonic()
            per_item = (self._spoke_s - self._start_s) / max(self._done - self._start_done, 1)
            left = per_item * (self._total - self._done)
            console.print(
                f"{self._name} {self._done}/{self._total} {figures} at most {left:.0f} s left".replace(
                    "  ", " "
                )
            )


@contextmanager
def show(name: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar of ``total`` items for the length of a with-block, with rate and time left."""
    if not console.is_terminal:
        yield Bar(None, name, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield Bar(progress, name, total, done)


class MetricLogger:
    """Writer of the history: one JSON object per line in ``metrics.jsonl``, and the same numbers for TensorBoard.

    Reopened at a step, it forgets the rows after it: they will be written again.
    """

    def __init__(self, workdir: Path, resume_step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        kept = [row for row in read_history(self._path) if row["step"] <= resume_step]
        write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._stream = self._path.open("a")
        from dagm_jax.train.event_file import EventFile

        self._events = EventFile(workdir / "tensorboard", resume_step)

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        self._stream.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._stream.flush()
        self._events.write(kind, step, values)
        # This waits for the disk.
        if kind == "validation":
            self._events.flush()

    def close(self) -> None:
        try:
            self._stream.close()
        finally:
            self._events.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line that a kill cut short is left out.

    So is any other line that is damaged, which is told.
    """
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
            f"{path}: damaged are {len(damaged)} of {len(lines)} lines, such as line {damaged[0]}; the figures of the "
            "others are kept"
        )
    return rows


def _read_row(line: bytes) -> dict[str, Any] | None:
    """The row in a line of the history; None where it is none."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and type(row.get("step")) is int and isinstance(row.get("kind"), str)
    return row if is_row else None


def write_atomically(path: Path, text: str) -> None:
    """Writes ``text`` so that ``path`` holds the old or the new content, never half of it; see `replacing`."""
    with replacing(path) as stream:
        stream.write(text)

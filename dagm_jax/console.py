"""Progress of work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Seconds between two lines of a piece of work where no terminal shows the bar.
PLAIN_LINE_EVERY_S = 15.0

# No markup: a file name such as "a[/b].png" would be a tag that was never opened, ":bug:" a picture.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


class Bar:
    """Progress of one piece of work; ``figures`` of `advance` stand beside it."""

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
            left = f"at most {per_item * (self._total - self._done):.0f} s left"
            console.print(" ".join(filter(None, (self._name, f"{self._done}/{self._total}", figures, left))))


@contextmanager
def show(name: str, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar of ``total`` items for the length of a with-block, with the time left."""
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

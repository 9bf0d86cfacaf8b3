"""Progress of work: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

# Seconds between two lines of a piece of work where no terminal shows the bar.
PLAIN_LINE_EVERY_S = 15.0

# No markup: a file name such as "a[/b].png" would be a tag that was never opened, ":bug:" a picture.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


class Bar:
    """Progress of one piece of work; ``figures`` of `advance` stand beside it."""

    def __init__(self, progress: Progress, name: str, total: int | None, done: int) -> None:
        self._progress, self._start_done = progress, done
        self._start_s = self._spoke_s = time.monotonic()
        self._task = progress.add_task(name, total=total, completed=done, figures="")

    def set_total(self, total: int) -> None:
        """Corrects how many items there are in all."""
        self._progress.update(self._task, total=total)

    def advance(self, count: int = 1, figures: str = "") -> None:
        self._progress.update(self._task, advance=count, figures=figures)
        now_s = time.monotonic()
        if self._progress.disable and now_s - self._spoke_s > PLAIN_LINE_EVERY_S:
            self._spoke_s, task = now_s, self._progress.tasks[0]
            per_item = (now_s - self._start_s) / max(task.completed - self._start_done, 1)
            done = f"{task.completed}/{'?' if task.total is None else task.total}"
            left = f"at most {per_item * task.remaining:.0f} s left" if task.remaining is not None else ""
            console.print(*filter(None, (task.description, done, figures, left)))


@contextmanager
def show(name: str, total: int | None, done: int = 0) -> Iterator[Bar]:
    """A bar of ``total`` items, None while that is unknown, for the length of a with-block, with the time left."""
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[figures]}")
    is_off = not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=is_off) as progress:
        yield Bar(progress, name, total, done)

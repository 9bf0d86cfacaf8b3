"""The one file that knows orbax: whole checkpoints under their step, the latest and the best kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import LogRecord
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from dagm_jax.processes import ALONE, Processes
from dagm_jax.types import UserError

NUM_LATEST = 2
QUALITY = "quality"
# orbax renames what it no longer keeps into this folder and leaves it there; see ``_sweep``.
DELETED = "deleted"


class Checkpoints:
    """Checkpoints of one folder; each holds a pytree of arrays (``state``) and a JSON value (``meta``).

    A checkpoint is written aside and renamed, so one that is visible is whole. The two latest and the best by
    quality are kept. Use as a context manager: leaving it waits for writes that are under way. Several processes, which
    share the folder, all call the same methods in the same order. ``read_only``: nothing in the folder is changed.
    """

    def __init__(self, directory: Path, processes: Processes = ALONE, read_only: bool = False) -> None:
        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(NUM_LATEST),
                checkpoint_managers.BestN(
                    get_metric_fn=_quality, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self._deleted = directory.absolute() / DELETED
        if not read_only and self._deleted.is_symlink():
            # What a link leads to is not ours: orbax would move checkpoints there, and `_sweep` delete what it finds.
            self._deleted.unlink(missing_ok=True)
        with _quiet():
            self._manager = ocp.CheckpointManager(
                directory.absolute(),
                options=ocp.CheckpointManagerOptions(
                    best_fn=_quality,
                    preservation_policy=policy,
                    # A kill while a folder is being deleted would else leave half of it visible.
                    todelete_subdir=None if read_only else DELETED,
                    read_only=read_only,
                ),
            )
        self._processes = processes
        self._is_read_only = read_only

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
        self._sweep()

    def _sweep(self) -> None:
        """Frees the disk of checkpoints that are no longer kept; a kill leaves a part of one, where none looks."""
        if not self._processes.is_first or self._is_read_only or self._deleted.is_symlink():
            return
        # The folder itself stays: orbax's thread may be about to rename a checkpoint into it.
        for dropped in self._deleted.glob("*"):
            shutil.rmtree(dropped, ignore_errors=True)

    def save(self, step: int, state: Any, meta: dict[str, Any], quality: float | None) -> None:
        """Starts writing; returns once the arrays are copied. ``quality`` None: not a candidate for the best."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        metrics = None if quality is None else {QUALITY: quality}
        with _quiet():
            self._manager.save(step, args=items, metrics=metrics, force=True)
        self._sweep()

    def latest_step(self) -> int | None:
        step: int | None = self._manager.latest_step()
        return step

    def best_step(self) -> int | None:
        """The step of the highest quality; the first of equals."""
        step: int | None = self._manager.best_step()
        return step

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of that step; ``like`` gives the shapes, types and shardings of the arrays."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        return restored["state"], restored["meta"]

    def restore_latest(self, like: Callable[[], Any]) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, meta) of the newest checkpoint that can be read, or None where there is none.

        A damaged one is named in the log, put aside (the run will come to its step again) and the one before it is
        taken. Raises UserError where all are damaged; they stay where they are.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            restored, reason = None, ""
            try:
                restored = self.restore(step, like())
            except Exception as error:  # orbax raises many kinds for damaged files
                reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            # What one process cannot read none may take.
            if not self._processes.any(restored is None) and restored is not None:
                for damaged in steps[:place]:
                    self._manager.delete(damaged)
                return step, *restored
            logging.warning("checkpoint of step %d cannot be read (%s); trying the one before", step, reason)
        if steps:
            raise UserError(
                f"`workdir` (={self._manager.directory}): none of the checkpoints of steps {steps} can be read; "
                "restore them from a copy or start in a new workdir"
            )
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block orbax does not warn of what is done on purpose."""
    logger = logging.get_absl_logger()
    logger.addFilter(_is_news)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: LogRecord) -> bool:
    """False for orbax's warnings of a checkpoint without metrics (an interrupted run has no judgement to save), and of
    a folder that is opened for reading alone.
    """
    on_purpose = ("did not provide metrics", "read_only=True", "directory is read only")
    return not any(words in str(record.msg) for words in on_purpose)


def _quality(metrics: Any) -> float:
    return float(metrics[QUALITY])

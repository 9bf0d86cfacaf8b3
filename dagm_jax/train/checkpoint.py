"""Checkpoints (orbax): whole ones under their step, the latest and the best kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from logging import LogRecord
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint import checkpoint_managers

from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.errors import DISK_ERRORS, PASSING_ERRORS, UserError
from dagm_jax.storage import load_json

NUM_LATEST = 2
# Names of a checkpoint's two parts, and keys of the JSON part.
STATE, META = "state", "meta"
CONTENT, QUALITY, DIGEST = "content", "quality", "sha256"
# Digest of the JSON values alone: the quality decides which checkpoints are kept, before their arrays are read.
TEXT_DIGEST = "sha256_of_text"
# Folder into which orbax moves the checkpoints that it no longer keeps; `_sweep` empties it.
DELETED = "deleted"


class Damaged(Exception):
    """A checkpoint that can be read and is not what was written."""


class Checkpoints(AbstractContextManager["Checkpoints"]):
    """Checkpoints of one folder; each holds a pytree of arrays (``state``) and a JSON value (``meta``).

    A checkpoint is written aside and renamed, so one that is visible is whole; a digest of all that it holds shows
    whether the disk has changed it since. The two latest and the best by quality are kept. Use as a context manager:
    leaving it waits for writes that are under way. Several processes, which share the folder, all call the same methods
    in the same order. ``read_only``: nothing in the folder is changed.
    """

    def __init__(self, directory: Path, processes: Processes = ALONE, read_only: bool = False) -> None:
        self._processes = processes
        self._is_read_only = read_only
        self._deleted = directory.absolute() / DELETED
        if not read_only and self._deleted.is_symlink():
            # The target of a link is not ours: orbax would move checkpoints there, and `_sweep` delete what it finds.
            self._deleted.unlink(missing_ok=True)
        logging.get_absl_logger().addFilter(_is_news)
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_LatestAndBest(self.best_step),
                # A kill while a folder is being deleted would else leave half of it visible.
                todelete_subdir=None if read_only else DELETED,
                read_only=read_only,
            ),
        )
        # orbax would keep qualities too, but does not open a folder in which one is damaged.
        self._qualities = processes.broadcast(self._read_qualities() if processes.is_first else {})

    def _read_qualities(self) -> dict[int, float]:
        """Qualities of the visible checkpoints that have one, by step."""
        qualities = {}
        for step in self._manager.all_steps():
            try:
                written = load_json(Path(self._manager.directory) / str(step) / META / "metadata")
                quality = None if written[QUALITY] is None else float(written[QUALITY])
                if written[TEXT_DIGEST] != _text_digest(written[CONTENT], quality):
                    raise Damaged("its position or quality is not what was written: the digests differ")
            except (OSError, ValueError, LookupError, TypeError, Damaged) as error:
                # Without a quality it is never the best, so that no whole one is deleted in its favour.
                logging.warning("checkpoint of step %d cannot be read (%s)", step, _first_line(error))
                continue
            if quality is not None:
                qualities[step] = quality
        return qualities

    def __exit__(self, *error: object) -> None:
        try:
            with _plain_disk_errors():
                # Waits for what is being written.
                self._manager.close()
        finally:
            logging.get_absl_logger().removeFilter(_is_news)
        self._sweep()

    def _sweep(self) -> None:
        """Deletes the checkpoints that orbax has moved aside; what a kill leaves of one there is never read."""
        if self._processes.is_first and not self._is_read_only:
            # The folder itself stays: orbax's thread may be about to rename a checkpoint into it.
            for dropped in self._deleted.glob("*"):
                shutil.rmtree(dropped, ignore_errors=True)

    def save(self, step: int, state: Any, meta: dict[str, Any], quality: float | None) -> None:
        """Starts writing; returns once the arrays are copied. ``quality`` None: not a candidate for the best."""
        written = {
            CONTENT: meta,
            QUALITY: quality,
            TEXT_DIGEST: _text_digest(meta, quality),
            DIGEST: _digest(state, _text_digest(meta, quality)),
        }
        items = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(written)}
        if quality is not None:
            self._qualities[step] = quality
        with _plain_disk_errors():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._sweep()

    def best_step(self) -> int | None:
        """The step of the highest quality; the first of equals."""
        rated = sorted(set(self._manager.all_steps()) & self._qualities.keys())
        return max(rated, key=self._qualities.__getitem__, default=None)

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of that step; ``like`` gives the shapes, types and shardings of the arrays.

        Raises Damaged where it is not what was saved, and what orbax raises (many kinds) where it cannot be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = {STATE: ocp.args.StandardRestore(abstract), META: ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        state, written = restored[STATE], restored[META]
        if set(written) != {CONTENT, QUALITY, TEXT_DIGEST, DIGEST}:
            raise Damaged(f"it holds {', '.join(map(repr, written))}")
        text = _text_digest(written[CONTENT], written[QUALITY])
        if (written[TEXT_DIGEST], written[DIGEST]) != (text, _digest(state, text)):
            raise Damaged("its content is not what was written: the digests differ")
        return state, written[CONTENT]

    def restore_or_warn(self, step: int, like: Callable[[], Any]) -> tuple[Any, dict[str, Any]] | None:
        """As `restore`; None, and a line in the log, where the checkpoint is damaged for any of the processes."""
        # A write that the disk has refused is an error, not a checkpoint that is missing.
        with _plain_disk_errors():
            self._manager.wait_until_finished()
        restored, reason = None, "another process cannot read it"
        try:
            restored = self.restore(step, like())
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # orbax raises many kinds for damaged files
            passing = _system_error(error, PASSING_ERRORS)
            if passing is not None:
                raise passing from (None if passing is error else error)
            reason = _first_line(error)
        # The processes must go on from one step: a checkpoint that one of them cannot read is used by none.
        if not self._processes.any(restored is None):
            return restored
        logging.warning("checkpoint of step %d cannot be read (%s)", step, reason)
        return None

    def restore_latest(self, like: Callable[[], Any]) -> tuple[int, Any, dict[str, Any]] | None:
        """(step, state, meta) of the newest checkpoint that can be read, or None where there is none.

        A damaged one is named in the log, removed (the run will come to its step again) and the one before it is taken.
        Raises UserError where all are damaged; they stay where they are.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for place, step in enumerate(steps):
            restored = self.restore_or_warn(step, like)
            if restored is not None:
                for damaged in steps[:place]:
                    self._manager.delete(damaged)
                    self._qualities.pop(damaged, None)
                return step, *restored
        if steps:
            raise UserError(
                f"`workdir` (={self._manager.directory}): none of the checkpoints of steps {steps} can be read; "
                "restore them from a copy or start in a new workdir"
            )
        return None


class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the latest checkpoints and the one that ``best_step`` gives."""

    def __init__(self, best_step: Callable[[], int | None]) -> None:
        self._best_step = best_step

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: checkpoint_managers.PreservationContext
    ) -> Sequence[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-NUM_LATEST:], self._best_step()}
        return [step in kept for step in steps]


def _is_news(record: LogRecord) -> bool:
    """False for traces of errors that orbax raises at the next call anyway, and for warnings of read-only folders."""
    is_trace = bool(record.exc_info) and "orbax" in record.pathname
    text = str(record.msg)
    return not (is_trace or "read_only=True" in text or "directory is read only" in text)


def _digest(state: Any, text_digest: str) -> str:
    """SHA-256 of all arrays with their places, types and shapes, and of the digest of the JSON values."""
    digest = hashlib.sha256(text_digest.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        digest.update(f"{place} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _text_digest(meta: dict[str, Any], quality: float | None) -> str:
    """SHA-256 of the JSON values."""
    return hashlib.sha256(json.dumps([meta, quality], sort_keys=True).encode()).hexdigest()


@contextmanager
def _plain_disk_errors() -> Iterator[None]:
    """Raises within the block the disk's own OSError for what orbax and tensorstore make of it."""
    try:
        yield
    except ValueError as error:
        if (refused := _system_error(error, DISK_ERRORS)) is None:
            raise
        raise refused from error


def _system_error(error: BaseException, numbers: Sequence[int]) -> OSError | None:
    """The OSError with one of these numbers that ``error`` is, follows from or quotes; None if there is none.

    tensorstore raises ValueErrors whose text is "KIND: …" with the system's words or number in it.
    """
    cause: BaseException | None = error
    while cause is not None:
        text = str(cause)
        if isinstance(cause, OSError):
            if cause.errno in numbers:
                return cause
        elif isinstance(cause, ValueError) and re.match("[A-Z_]+: ", text):
            for number in numbers:
                if os.strerror(number) in text or f"[os_error_code='{number}']" in text:
                    return OSError(number, os.strerror(number))
        cause = cause.__cause__ or cause.__context__
    return None


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"

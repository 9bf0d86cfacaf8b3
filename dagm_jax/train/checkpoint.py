"""The one file that knows orbax: whole checkpoints under their step, the latest and the best kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import LogRecord
from pathlib import Path
from types import TracebackType
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
# The parts of a checkpoint, and what its JSON part holds.
STATE, META = "state", "meta"
CONTENT, QUALITY, DIGEST = "content", "quality", "sha256"
# Digest of the JSON values alone: the quality decides which checkpoints are kept, before their arrays are read.
TEXT_DIGEST = "sha256_of_text"
# orbax renames what it no longer keeps into this folder and leaves it there; see ``_sweep``.
DELETED = "deleted"


class Damaged(Exception):
    """A checkpoint that can be read and is not what was written."""


class Checkpoints:
    """Checkpoints of one folder; each holds a pytree of arrays (``state``) and a JSON value (``meta``).

    A checkpoint is written aside and renamed, so one that is visible is whole; and it carries a digest of all that it
    holds, so one that a disk has changed since is told from it. The two latest and the best by quality are kept. Use as
    a context manager: leaving it waits for writes that are under way. Several processes, which share the folder, all
    call the same methods in the same order. ``read_only``: nothing in the folder is changed.
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
        # orbax keeps such figures too, but one that is damaged keeps it from opening the folder.
        self._qualities = processes.broadcast(self._read_qualities() if processes.is_first else {})

    def _read_qualities(self) -> dict[int, float]:
        """step → quality of the visible checkpoints that have one."""
        qualities = {}
        for step in self._manager.all_steps():
            path = Path(self._manager.directory) / str(step) / META / "metadata"
            try:
                written = load_json(path)
                quality = None if written[QUALITY] is None else float(written[QUALITY])
                if written[TEXT_DIGEST] != _text_digest(written[CONTENT], quality):
                    raise Damaged("its position or quality is not what was written: the digests differ")
            except (OSError, ValueError, LookupError, TypeError, Damaged) as error:
                # Never the best, for which another would have to go.
                logging.warning("checkpoint of step %d cannot be read (%s)", step, _first_line(error))
                continue
            if quality is not None:
                qualities[step] = quality
        return qualities

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._plain_disk_errors():
                self._manager.wait_until_finished()
                self._manager.close()
        finally:
            logging.get_absl_logger().removeFilter(_is_news)
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
        written = {
            CONTENT: meta,
            QUALITY: quality,
            TEXT_DIGEST: _text_digest(meta, quality),
            DIGEST: _digest(state, _text_digest(meta, quality)),
        }
        items = {STATE: ocp.args.StandardSave(state), META: ocp.args.JsonSave(written)}
        if quality is not None:
            self._qualities[step] = quality
        with self._plain_disk_errors():
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._sweep()

    @contextmanager
    def _plain_disk_errors(self) -> Iterator[None]:
        """Within the block tensorstore's errors that quote one of the disk become that OSError."""
        try:
            yield
        except ValueError as error:
            quoted = [number for number in DISK_ERRORS if os.strerror(number) in str(error)]
            if not quoted:
                raise
            raise OSError(quoted[0], os.strerror(quoted[0]), str(self._manager.directory)) from error

    def best_step(self) -> int | None:
        """The step of the highest quality; the first of equals."""
        prediction = sorted(set(self._manager.all_steps()) & self._qualities.keys())
        return max(prediction, key=self._qualities.__getitem__, default=None)

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
        with self._plain_disk_errors():
            self._manager.wait_until_finished()
        restored, reason = None, "another process cannot read it"
        try:
            restored = self.restore(step, like())
        except (MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # orbax raises many kinds for damaged files
            passing = _passing_error(error)
            if passing is error:
                raise
            if passing is not None:
                raise passing from error
            reason = _first_line(error)
        # A checkpoint that one process cannot read is taken by none.
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
    """False for the traces that orbax's threads log of errors which it raises at the next call anyway, and for its
    warnings of a folder that is opened for reading alone.
    """
    on_purpose = ("read_only=True", "directory is read only")
    is_trace = bool(record.exc_info) and "orbax" in record.pathname
    return not (is_trace or any(words in str(record.msg) for words in on_purpose))


def _digest(state: Any, text_digest: str) -> str:
    """SHA-256 of all arrays with their places, types and shapes, and of the digest of the JSON values."""
    digest = hashlib.sha256(text_digest.encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        # In words of our own: jax may come to print a path in others.
        place = "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)
        digest.update(f"{place} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _text_digest(meta: dict[str, Any], quality: float | None) -> str:
    """SHA-256 of the JSON values."""
    return hashlib.sha256(json.dumps([meta, quality], sort_keys=True).encode()).hexdigest()


def _passing_error(error: BaseException) -> OSError | None:
    """The error of the machine, not of the checkpoint, that is behind one which orbax raises; None if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            if cause.errno in PASSING_ERRORS:
                return cause
        # tensorstore's are ValueErrors that quote the system's, and orbax may have wrapped them once more.
        elif quoted := [number for number in PASSING_ERRORS if _quotes(cause, number)]:
            return OSError(quoted[0], os.strerror(quoted[0]))
        cause = cause.__cause__ or cause.__context__
    return None


def _quotes(error: BaseException, number: int) -> bool:
    """Whether tensorstore's error is of this error of the system; its first word is the kind, its last the number."""
    text = str(error)
    is_tensorstores = isinstance(error, ValueError) and re.match("[A-Z_]+: ", text) is not None
    return is_tensorstores and (os.strerror(number) in text or f"[os_error_code='{number}']" in text)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"

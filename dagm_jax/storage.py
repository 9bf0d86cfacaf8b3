"""Files that appear under their name only when they are whole; the lock of a folder; errors of the disk as one line."""

from __future__ import annotations

import csv
import errno
import importlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from dagm_jax.errors import DISK_ERRORS, PASSING_ERRORS, PATH_ERRORS, DiskError, UserError, printable

# Remedies for a disk that refuses writes without being full.
_REMEDIES = {errno.EROFS: "make it writable", errno.EIO: "check the disk"}


@contextmanager
def replacing(path: Path, mode: str = "x", **options: Any) -> Iterator[Any]:
    """A stream whose content replaces ``path`` at the end of the with-block.

    mode: "x" for text, "xb" or "x+b" for bytes; options: those of `open`. The content is on the disk before it gets
    its name. Links in place of ``path`` or of the temporary file are replaced, not followed. After an exception
    ``path`` is unchanged, and nothing is left beside it. Raises OSError.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    # A killed process with the same number may have left it; or it is a link that leads elsewhere.
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open(mode, **options) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Limit of a JSON file that is read; a report that lists 100,000 files left out takes 30 MB.
MOST_JSON_BYTES = 256 << 20


def load_json(path: Path) -> Any:
    """The content of a JSON file; raises OSError, and ValueError if it is no JSON, nested too deeply, or too large."""
    with path.open("rb") as stream:
        data = stream.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise ValueError(f"more than {MOST_JSON_BYTES} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_atomically(path: Path, text: str) -> None:
    """Writes ``text`` into ``path`` by `replacing`."""
    with replacing(path) as stream:
        stream.write(text)


def write_json(path: Path, values: Any) -> Any:
    """Writes JSON values by `replacing`, NaN and infinities as null; the values as they will be read."""
    read = finite_or_none(values)
    write_atomically(path, json.dumps(read, indent=2) + "\n")
    return read


def finite_or_none(value: Any) -> Any:
    """JSON values as they will be read, NaN and infinities replaced by null, which JSON has."""
    return json.loads(json.dumps(value), parse_constant=lambda name: None)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table by `replacing`; names of undecodable bytes are written as these bytes."""
    with replacing(path, encoding="utf-8", errors="surrogateescape", newline="") as stream:
        # The csv module quotes a carriage return only if its line terminator holds one, which is cut off again.
        cut = SimpleNamespace(write=lambda line: stream.write(line.removesuffix("\r\n") + "\n"))
        writer = csv.writer(cut)
        writer.writerow(header)
        writer.writerows(rows)


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Holds the folder, which the user named by ``option``, for this process; the lock ends with the process.

    Raises UserError where another holds it, and where the disk refuses what is written into it within the block.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A workdir may come from a stranger, and this file in it may be a link to one of ours.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        stream = os.fdopen(os.open(folder / ".lock", flags, 0o666), "w")
    except OSError as error:
        raise UserError(
            f"`{option}` (={folder}) cannot be written ({error.strerror}); name another"
        ) from error
    with stream:
        if not _try_lock(stream):
            raise UserError(f"`{option}` (={folder}) is in use by another run; wait for it or name another")
        with plain_disk_errors(folder, option):
            yield


def _try_lock(stream: IO[str]) -> bool:
    """Locks the open file for this process; False where another process holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        msvcrt: Any = importlib.import_module("msvcrt")
        attempt = partial(msvcrt.locking, stream.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        attempt = partial(fcntl.flock, stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        attempt()
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def plain_disk_errors(folder: Path, option: str) -> Iterator[None]:
    """Within the block what the disk of ``folder`` refuses becomes a DiskError, other errors of paths a UserError."""
    try:
        yield
    except OSError as error:
        where = f": {printable(error.filename)}" if error.filename else ""
        if error.errno in PATH_ERRORS:
            raise UserError(
                f"`{option}` (={folder}) cannot be written ({error.strerror}{where}); name another"
            ) from error
        if error.errno in PASSING_ERRORS:
            raise UserError(
                f"work in `{option}` (={folder}) met an error of the machine ({error.strerror}{where}); mend it, or "
                "wait, and run the same command again, which goes on from what was saved last"
            ) from error
        if error.errno not in DISK_ERRORS:
            raise
        remedy = _REMEDIES.get(error.errno or 0, "make room")
        raise DiskError(
            f"`{option}` (={folder}) cannot be written ({error.strerror}); {remedy} and run the same command again, "
            "which goes on from what was saved last"
        ) from error

"""Exceptions that end a command with one line, and the parts of such a line."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

# Error numbers of a disk that is full, may not be written, or fails.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
# Error numbers that may pass: the checkpoint may be intact, so do not fall back to an older one.
PASSING_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EACCES, errno.ETIMEDOUT)
# Error numbers of a path that cannot be a folder, such as one that is a file.
PATH_ERRORS = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class UserError(Exception):
    """A mistake that the user can mend; its text is one line: argument, value, rule, remedy."""


class DiskError(UserError):
    """The disk is full, or may not be written."""


class ProcessLost(Exception):
    """A process that this one works with is dead; its text is one line. The same command resumes."""


class Interrupted(BaseException):
    """SIGTERM or SIGINT came; the state is saved and the same command resumes.

    Like KeyboardInterrupt no Exception: a signal while a checkpoint is read must not count as damage to it.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the closest of the known words, or nothing: the end of an error message."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def check_choices(group: str, config: Any) -> None:
    """Raises UserError if a field annotated with ``Literal[…]`` of the dataclass ``config`` holds another value."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        value, choices = getattr(config, field.name), get_args(hints[field.name])
        if get_origin(hints[field.name]) is Literal and value not in choices:
            raise UserError(
                f"`{group}.{field.name}` (={value}) must be one of {', '.join(map(str, choices))}"
                f"{nearest(str(value), map(str, choices))}"
            )


def require(group: str, config: Any, names: str, holds: Callable[[Any], bool], rule: str) -> None:
    """Raises UserError for the first of the fields ``names`` that breaks the rule; ``holds`` is False for NaN."""
    for name in names.split():
        if not holds(value := getattr(config, name)):
            raise UserError(f"`{group}.{name}` (={value}) must {rule}")


def printable(text: str | Path) -> str:
    """``text`` on one line: unprintable characters and undecodable bytes of file names are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))

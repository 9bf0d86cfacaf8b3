"""Atomic writes, and JSON read within limits."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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

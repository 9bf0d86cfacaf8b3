"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, mode: str = "x", **options: Any) -> Iterator[Any]:
    """A stream whose content takes the place of ``path`` at the end of the with-block; ``path`` is never half of it.

    mode: "x" for text, "xb" or "x+b" for bytes; options: those of `open`. The content is on the disk before it gets
    its name. Links in place of ``path`` or of the temporary file are replaced, not followed. After an exception
    ``path`` is what it was, and nothing is left beside it. Raises OSError.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    # Of a process that was killed and had the same number; or a link that somebody has put there.
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open(mode, **options) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# A report that lists 100,000 files left out takes 30 MB.
MOST_JSON_BYTES = 256 << 20


def load_json(path: Path) -> Any:
    """What a JSON file holds; raises OSError, and ValueError for what is no JSON, nested too deeply, or too large."""
    with path.open("rb") as stream:
        data = stream.read(MOST_JSON_BYTES + 1)
    if len(data) > MOST_JSON_BYTES:
        raise ValueError(f"more than {MOST_JSON_BYTES} bytes")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def write_atomically(path: Path, text: str) -> None:
    """Writes ``text`` so that ``path`` holds the old or the new content, never half of it; see `replacing`."""
    with replacing(path) as stream:
        stream.write(text)

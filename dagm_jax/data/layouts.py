"""Text and sizes that several packages need; they move to the package's ground modules."""

from __future__ import annotations

from pathlib import Path

# (height, width) of every image of DAGM 2007.
DAGM_SHAPE = (512, 512)


def printable(text: str | Path) -> str:
    """``text`` on one line: unprintable characters and undecodable bytes of file names are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))

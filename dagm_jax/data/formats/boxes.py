"""A CSV table of boxes around defects: what the report counts as found, beside or in place of masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dagm_jax.data.formats.listing import read_table, root_error, row_error
from dagm_jax.errors import nearest, printable
from dagm_jax.types import Box, Sample

EDGES = ("left", "top", "right", "bottom")


def add_boxes(samples: Sequence[Sample], path: Path) -> tuple[Sample, ...]:
    """The samples with the boxes of the table ``path``.

    Columns: image, left, top, right, bottom and, where wanted, kind. image: the name of a defective image in the data
    set, or its file's name with or without the ending. Edges are whole px, right and bottom excluded. Raises UserError
    for a row that means nothing, that names no defective image or more than one.
    """
    named: dict[str, list[Sample]] = {}
    for sample in (one for one in samples if one.label):
        file = PurePosixPath(sample.image_id)
        for name in {sample.image_id, file.name, file.stem}:
            named.setdefault(name, []).append(sample)
    found: dict[str, list[Box]] = {}
    for line, row in read_table(path, ("image", *EDGES), ("kind",), "boxes"):
        name = printable(row["image"])
        samples_named = named.get(name, [])
        if len(samples_named) != 1:
            hint = nearest(name, named) if not samples_named else "; name its folder too"
            what = f"image {name!r} is the name of {len(samples_named)} defective images{hint}"
            raise row_error(path, line, what, "boxes")
        if not all(row[edge].isdecimal() for edge in EDGES):
            raise row_error(path, line, "edges must be whole numbers of px, at least 0", "boxes")
        box = Box(printable(row["kind"]), *(int(row[edge]) for edge in EDGES))
        if box.right <= box.left or box.bottom <= box.top:
            raise row_error(path, line, "right and bottom must lie beyond left and top", "boxes")
        found.setdefault(samples_named[0].image_id, []).append(box)
    if not found:
        raise root_error(path, " holds no boxes; leave it out, or name another table", "boxes")
    return tuple(replace(one, boxes=tuple(found.get(one.image_id, ()))) for one in samples)

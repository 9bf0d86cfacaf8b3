"""A CSV table of boxes around defects: what the report counts as found, beside or in place of masks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from dagm_jax.data.formats.listing import read_table, root_error, row_error
from dagm_jax.errors import nearest, printable
from dagm_jax.types import Box, Sample

EDGES = ("left", "top", "right", "bottom")
_WHOLE_NUMBER = re.compile(r"[0-9]{1,9}")


def read_boxes(
    path: Path, samples: Sequence[Sample], shapes: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[Box, ...]]:
    """Id of a defective sample -> its boxes in the table ``path``.

    Columns: image, left, top, right, bottom and, where wanted, kind. image: the sample's id, also without its ending,
    its folder or both. Edges are whole px, right and bottom excluded. shapes: id -> (h, w) in px, of those samples that
    could be read. Raises UserError for a row that means nothing, that names no defective sample or more than one, and
    for a box that is not inside its image.
    """
    defective = [sample.image_id for sample in samples if sample.label]
    named: dict[str, set[str]] = {}
    for image_id in defective:
        file = PurePosixPath(image_id)
        for name in (file.name, file.stem, str(file.with_suffix(""))):
            named.setdefault(name, set()).add(image_id)
    named |= {image_id: {image_id} for image_id in defective}
    found: dict[str, tuple[Box, ...]] = {}
    for line, row in read_table(path, ("image", *EDGES), ("kind",), "boxes"):
        name = printable(row["image"])
        ids = sorted(named.get(name, ()))
        if len(ids) != 1:
            hint = f", such as {ids[0]} and {ids[1]}" if ids else nearest(name, named)
            what = f"image {name!r} is the name of {len(ids)} defective images{hint}"
            raise row_error(path, line, what, "boxes")
        if not all(_WHOLE_NUMBER.fullmatch(row[edge]) for edge in EDGES):
            raise row_error(path, line, "edges must be whole numbers of px, at least 0", "boxes")
        box = Box(printable(row["kind"]), *(int(row[edge]) for edge in EDGES))
        height, width = shapes.get(ids[0], (box.bottom, box.right))
        if not (box.left < box.right <= width and box.top < box.bottom <= height):
            edges = f"({', '.join(row[edge] for edge in EDGES)})"
            what = f"box {edges} is not inside the image of {width}x{height} px, right and bottom beyond left and top"
            raise row_error(path, line, what, "boxes")
        found[ids[0]] = (*found.get(ids[0], ()), box)
    if not found:
        raise root_error(path, " holds no boxes; leave it out, or name another table", "boxes")
    return found

"""Images written to disk the way DAGM 2007 was published (layout A): PNG files, masks and Labels.txt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

# Number, image uint8 [h w], and mask bool [h w] of a defective image or None of a good one.
Numbered = tuple[int, np.ndarray, np.ndarray | None]


def write_split(folder: Path, images: Iterable[Numbered]) -> None:
    """Writes one split (``ClassN/Train`` or ``ClassN/Test``) into the new folder ``folder``.

    ``0576.PNG`` for each image, ``Label/0576_label.PNG`` (0 and 255) for each defective one, and ``Label/Labels.txt``
    with a row for each image in the order given: tab separated, CRLF, as in the official archives.
    """
    labels = folder / "Label"
    labels.mkdir(parents=True)
    rows = ["1"]
    for number, image, mask in images:
        Image.fromarray(image).save(folder / f"{number:04d}.PNG", format="PNG")
        if mask is None:
            rows.append(f"{number}\t0\t{number:04d}.PNG\t0\t0\t")
        else:
            name = f"{number:04d}_label.PNG"
            Image.fromarray(mask.astype(np.uint8) * 255).save(labels / name, format="PNG")
            rows.append(f"{number}\t1\t{number:04d}.PNG\t0\t{name}")
    (labels / "Labels.txt").write_bytes("".join(f"{row}\r\n" for row in rows).encode())

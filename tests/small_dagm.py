"""DAGM 2007 with a few flat 512x512 images instead of thousands, in layout A, and the truth about it.

``python tests/small_dagm.py`` writes the builder's dummy data anew.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import shutil
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from dagm_jax.types import Ellipse

DUMMY_DATA = Path(__file__).parents[1] / "dagm_jax" / "data" / "dagm2007" / "dummy_data"

# First number, number of images, defective numbers.
HALVES: dict[Literal["test", "train"], tuple[int, int, tuple[int, ...]]] = {
    "test": (1, 10, (2, 3, 5, 9)),
    "train": (11, 12, (11, 14, 15, 16, 18, 21, 22)),
}
DEFECTIVE = sorted(number for _, _, numbers in HALVES.values() for number in numbers)


def truth_table(classes: Iterable[int] = (1,)) -> dict[str, dict[str, dict[str, object]]]:
    """The table of ``read_truth``, as JSON has it."""
    halves: dict[str, dict[str, object]] = {
        name: {"first": first, "count": count, "defective": list(defective)}
        for name, (first, count, defective) in HALVES.items()
    }
    return {str(class_id): halves for class_id in classes}


def write_truth(path: Path, classes: Iterable[int] = (1,)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(truth_table(classes)))
    return path


def grey_of(class_id: int, number: int) -> int:
    """The grey value that fills the image of this number: tells the images of a class apart."""
    return 10 * number + class_id


def picture_of(class_id: int, number: int) -> np.ndarray:
    return np.full((512, 512), grey_of(class_id, number), np.uint8)


def ellipse_of(number: int) -> Ellipse:
    """Different for each number; that of number 22 is clipped by the right border."""
    return Ellipse(30.5 + number, 12.25, 0.1 * number, 40.0 + 20 * number, 200.0 + 3 * number)


def mask_of(number: int) -> np.ndarray:
    return ellipse_of(number).rasterise((512, 512))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, format="PNG")


def layout_a(root: Path, class_id: int = 1) -> Path:
    """Writes ``root/ClassN`` in layout A; returns ``root``."""
    for half, (first, count, defective) in HALVES.items():
        folder = root / f"Class{class_id}" / half.capitalize()
        rows = ["1"]
        for number in range(first, first + count):
            save(folder / f"{number:04d}.PNG", picture_of(class_id, number))
            mask = "0\t"
            if number in defective:
                mask = f"{number:04d}_label.PNG"
                save(folder / "Label" / mask, mask_of(number).astype(np.uint8) * 255)
            rows.append(f"{number}\t{int(number in defective)}\t{number:04d}.PNG\t0\t{mask}")
        (folder / "Label" / "Labels.txt").write_bytes(("\r\n".join(rows) + "\r\n").encode())
    return root


def zip_of(folder: Path, target: Path, below: Path) -> None:
    """Packs what is in ``folder`` under names relative to ``below``."""
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(below))


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serves the folder on this machine; gives what the builder's URL has to be for ``folder/ClassN.zip``."""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/Class{{class_id}}.zip"
        finally:
            server.shutdown()
            thread.join()


def write_dummy_data() -> None:
    """The builder's dummy data: all ten classes, two images in the test half and three in the train half."""
    shutil.rmtree(DUMMY_DATA, ignore_errors=True)
    halves = {"test": (1, 2, (2,)), "train": (3, 3, (4,))}
    HALVES.clear()
    HALVES.update(halves)  # type: ignore[arg-type]
    for class_id in range(1, 11):
        layout_a(DUMMY_DATA, class_id)
    write_truth(DUMMY_DATA / "truth.json", range(1, 11))


if __name__ == "__main__":
    write_dummy_data()

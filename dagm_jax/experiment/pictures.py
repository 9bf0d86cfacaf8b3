"""Pictures of the test side: thumbnails and files of the page, hardest images, and one example."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from dagm_jax import evaluate
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.page import PICTURE_QUALITY, PICTURE_SIDE_PX, PageEntry, draw_pictures
from dagm_jax.processes import Processes
from dagm_jax.types import Record
from dagm_jax.verdict import DecisionRule

# Full pictures of right, and of wrong, decisions that a run writes.
MAX_PICTURES = 250


class TestPictures:
    """What the report page shows of the test images: thumbnails of all, of the first of either outcome files beside it.

    Of several processes each draws the images that it judges.
    """

    def __init__(self, rule: DecisionRule, workdir: Workdir, processes: Processes) -> None:
        self._rule, self._workdir, self._processes = rule, workdir, processes
        self._num_written = {True: 0, False: 0}

    def __call__(self, record: Record, judged: evaluate.Judged) -> Callable[[], PageEntry]:
        is_right = bool(self._rule.decide([judged.score])[0]) == bool(record.label)
        if self._num_written[is_right] >= MAX_PICTURES // self._processes.count:
            return partial(self._draw, record, judged, None)
        name = f"{self._workdir.pictures.name}/{self._processes.index}_{sum(self._num_written.values()):04d}"
        self._num_written[is_right] += 1
        return partial(self._draw, record, judged, name)

    def _draw(self, record: Record, judged: evaluate.Judged, name: str | None) -> PageEntry:
        """The image's entry, with thumbnails; ``name``: of its files, less their endings, None for none."""
        mask = judged.mask if evaluate.is_marked(judged.mask) else None
        draw = partial(draw_pictures, judged.image, judged.map, self._rule.pixel_threshold, mask)
        entry = PageEntry(record.image_id, record.label, judged.score, draw())
        if name is None:
            return entry
        pictures = draw(side_px=PICTURE_SIDE_PX, quality=PICTURE_QUALITY)
        picture, overlay = f"{name}.webp", f"{name}_map.webp"
        (self._workdir.path / picture).write_bytes(pictures.image)
        (self._workdir.path / overlay).write_bytes(pictures.overlay)
        return replace(entry, picture=picture, picture_overlay=overlay)


def clear_folder(folder: Path) -> None:
    """Makes the folder, empty: what an interrupted try left may belong to other images."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()

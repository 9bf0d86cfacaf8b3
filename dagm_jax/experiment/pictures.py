"""Pictures of the test split: thumbnails and files of the report page, hardest images."""

from __future__ import annotations

import heapq
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dagm_jax.distributed.processes import Processes, interleave
from dagm_jax.evaluation.evaluate import NUM_THREADS, TestChunk, is_marked
from dagm_jax.evaluation.predictor import Prediction
from dagm_jax.evaluation.threshold import Thresholds, spread_scores
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.types import MAX_GALLERY_ITEMS, GalleryItem, Sample
from dagm_jax.visualization.overlay import draw_layers
from dagm_jax.visualization.page import (
    PICTURE_QUALITY,
    PICTURE_SIDE_PX,
    THUMBNAIL_SIDE_PX,
    PageEntry,
    draw_pictures,
)

# Limits of the full pictures of right, and of wrong, decisions that a run writes.
MAX_PICTURES = 250


class TestPictures(NamedTuple):
    """Pictures of the whole test split. entries: one for each image, in the order of the samples."""

    entries: list[PageEntry]
    hardest: list[GalleryItem]


class PictureMaker:
    """Draws this process's share of the test split: thumbnails of all images, files of the first right and wrong."""

    def __init__(self, rule: Thresholds, workdir: Workdir, processes: Processes) -> None:
        self._rule, self._workdir, self._processes = rule, workdir, processes
        self._num_written = {True: 0, False: 0}
        self._entries: list[PageEntry] = []
        self._hardest = Hardest(rule)
        # An interrupted run may have left those of other images.
        processes.on_process_0(lambda: shutil.rmtree(workdir.pictures, ignore_errors=True))
        processes.on_process_0(workdir.pictures.mkdir)

    def add(self, chunk: TestChunk) -> None:
        """Draws the images of a chunk in threads, and returns when all are drawn."""
        names = []
        for sample, prediction, decision in zip(
            chunk.samples, chunk.predictions, chunk.decisions, strict=True
        ):
            names.append(self._name(decision == bool(sample.label)))
            self._hardest.offer(sample, prediction, decision)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            self._entries += pool.map(self._draw, chunk.samples, chunk.predictions, names)

    def gathered(self) -> TestPictures:
        """The pictures of all processes."""
        entries = interleave(self._processes.gather(self._entries))
        return TestPictures(entries, self._hardest.gathered(self._processes))

    def _name(self, is_right: bool) -> str | None:
        """Path of the next image's files, relative to the workdir, without endings; None where there are enough."""
        if self._num_written[is_right] >= MAX_PICTURES // self._processes.count:
            return None
        name = f"{self._workdir.pictures.name}/{self._processes.index}_{sum(self._num_written.values()):04d}"
        self._num_written[is_right] += 1
        return name

    def _draw(self, sample: Sample, prediction: Prediction, name: str | None) -> PageEntry:
        """The image's entry: thumbnails and, where it has a ``name``, files."""
        mask = prediction.mask if is_marked(prediction.mask) else None
        draw = partial(draw_layers, prediction.image, prediction.map, self._rule.pixel_threshold, mask)
        thumbnail = draw_pictures(*draw(side_px=THUMBNAIL_SIDE_PX))
        entry = PageEntry(sample.image_id, sample.label, prediction.score, thumbnail, kind=sample.kind)
        if name is None:
            return entry
        pictures = draw_pictures(*draw(side_px=PICTURE_SIDE_PX), PICTURE_QUALITY)
        picture, overlay = f"{name}.webp", f"{name}_map.webp"
        (self._workdir.path / picture).write_bytes(pictures.image)
        (self._workdir.path / overlay).write_bytes(pictures.overlay)
        return replace(entry, picture=picture, picture_overlay=overlay)


class Hardest:
    """Images of each label with scores furthest beyond the threshold in the wrong direction, or else nearest to it."""

    def __init__(self, rule: Thresholds) -> None:
        self._rule = rule
        # Label → (hardness, image id, item), hardest first.
        self._ranked: dict[int, list[tuple[float, str, GalleryItem]]] = {0: [], 1: []}

    def offer(self, sample: Sample, prediction: Prediction, decision: bool) -> None:
        """Keeps the image if it is among the hardest of its label."""
        score, threshold = spread_scores([prediction.score, self._rule.threshold])
        hardness = float(threshold - score) if sample.label else float(score - threshold)
        title = (
            f"{sample.image_id}\n{'defective' if sample.label else 'good'}, "
            f"predicted {'defective' if decision else 'good'}, {prediction.score:.4f}"
        )
        outlined = prediction.mask if is_marked(prediction.mask) else np.zeros_like(prediction.mask)
        item = GalleryItem(prediction.image, prediction.map, outlined, title, decision == bool(sample.label))
        self._ranked[sample.label] = _first([*self._ranked[sample.label], (hardness, sample.image_id, item)])

    def gathered(self, processes: Processes) -> list[GalleryItem]:
        """Items of all processes: hardest first, defective images before good ones."""
        items: list[GalleryItem] = []
        for label in (1, 0):
            entries = [entry for part in processes.gather(self._ranked[label]) for entry in part]
            items += [item for _, _, item in _first(entries)]
        return items


def _first(entries: list[Any]) -> list[Any]:
    """The hardest of (hardness, image id, …), hardest first."""
    return heapq.nlargest(MAX_GALLERY_ITEMS // 2, entries, key=lambda entry: entry[:2])

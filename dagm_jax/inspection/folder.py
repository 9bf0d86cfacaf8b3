"""A folder predicted once or watched: threads decode ahead, the devices predict, another thread writes."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagm_jax.console import console, show
from dagm_jax.data.images.decode import BadImage, read_bytes
from dagm_jax.data.images.load import in_threads
from dagm_jax.errors import Interrupted, UserError, printable
from dagm_jax.evaluation.predictor import NonFiniteOutput
from dagm_jax.evaluation.threshold import NOT_LEARNT
from dagm_jax.inspection.drift import WARNING, describe_drift
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.inspection.predictions import (
    Prediction,
    Predictions,
    check_origin,
    drift_of,
    print_summary,
    summarise,
)
from dagm_jax.inspection.scan import ImageFile, Source, stamp_of
from dagm_jax.storage import write_csv, write_json
from dagm_jax.types import Verdict
from dagm_jax.visualization.overlay import boxes_of, draw_layers, write_overlay
from dagm_jax.visualization.page import THUMBNAIL_SIDE_PX, PageEntry, Pictures, draw_pictures, write_page

OVERLAYS, THUMBNAILS = "overlays", "thumbnails"
# Limit of predictions on their way to the disk; each holds an image and its map.
_MAX_UNWRITTEN = 4
# Limit of an overlay's name in characters that are taken from its image's.
_LONGEST_STEM = 60
# Number of files after which a watcher computes drift, from as many of the latest predictions.
DRIFT_EVERY = 500


@dataclass(frozen=True)
class Loaded:
    """A file with its image uint8 [h w], or the error for which there is none."""

    file: ImageFile
    image: NDArray[np.uint8] | None
    error: str | None
    sha256: str | None
    start_s: float


@dataclass(frozen=True)
class FolderPredictor:
    """Predicts files by ``inspector``; writes to ``predictions`` and pictures into the folder ``output``."""

    inspector: Inspector
    predictions: Predictions
    output: Path
    batch_size: int

    def compile(self, files: Sequence[ImageFile]) -> float:
        """Compiles for the size of the first file, or the usual one, so that its latency holds none; the seconds."""
        start_s = time.perf_counter()
        first = self._load(files[0]).image if files else None
        black = np.zeros(self.inspector.backend.shape or (1, 1) if first is None else first.shape, np.uint8)
        self._verdicts({"a black image": black})
        return time.perf_counter() - start_s

    def predict(
        self, files: Iterable[ImageFile], is_final: Callable[[ImageFile], bool] = lambda file: True
    ) -> Iterator[Prediction]:
        """The prediction for each file in order, on the disk when it comes out.

        Contents that the last prediction of their name is for are left out, and so are unreadable files unless
        ``is_final`` says that they will stay so. Raises OSError where the disk refuses.
        """
        pending: deque[Future[Prediction]] = deque()
        with closing(in_threads(self._load, files)) as loaded, ThreadPoolExecutor(1) as writer:
            new = (one for one in loaded if not self.predictions.has_content(one.file, one.sha256, one.error))
            wanted = (one for one in new if one.image is not None or is_final(one.file))
            while batch := list(islice(wanted, self.batch_size)):
                verdicts = self._verdicts({r.file.name: r.image for r in batch if r.image is not None})
                now_s = time.perf_counter()
                for one in batch:
                    verdict = verdicts.get(one.file.name)
                    pending.append(writer.submit(self._write, one, verdict, now_s - one.start_s))
                    if len(pending) > _MAX_UNWRITTEN:
                        yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _load(self, file: ImageFile) -> Loaded:
        """The file's image and hash, or its error; called in threads."""
        start_s = time.perf_counter()
        image = error = sha256 = None
        try:
            data = read_bytes(file.path)
            sha256 = hashlib.sha256(data).hexdigest()
            image = self.inspector.backend.reading.decode(data, file.path)
        except BadImage as problem:
            # The prediction names the file anyway.
            error = str(problem).removeprefix(printable(file.path)).removeprefix(": ")
        if stamp_of(file.path) != file.stamp:
            # Half of one content and half of another may still decode. The prediction names neither: whatever is there
            # when the command is run again is predicted then.
            image, sha256 = None, None
            error = error or "changed while it was read; run the same command again"
        return Loaded(file, image, error, sha256, start_s)

    def _verdicts(self, images: dict[str, NDArray[np.uint8]]) -> dict[str, Verdict]:
        """The verdict on each image by its name; raises UserError where the model's output for one is not finite."""
        try:
            verdicts = self.inspector.predict(list(images.values()), self.batch_size) if images else []
            return dict(zip(images, verdicts, strict=True))
        except NonFiniteOutput as error:
            raise UserError(
                f"`--model` (={self.inspector.model_id}): its output for {printable(list(images)[error.place])} is "
                "not finite, so its weights are damaged or have grown beyond float32; restore the model from a copy, "
                "or train it anew with a lower `optim.learning_rate`"
            ) from error

    def _write(self, one: Loaded, verdict: Verdict | None, latency_s: float) -> Prediction:
        """Writes pictures, then the prediction; called in the writer's thread."""
        overlay = boxes = size_px = None
        threshold = self.inspector.rule.pixel_threshold
        if verdict is not None and one.image is not None:
            overlay = f"{OVERLAYS}/{overlay_name(one.file.name, one.sha256)}"
            boxes = [list(box) for box in boxes_of(verdict.mask)]
            size_px = one.image.shape[0], one.image.shape[1]
            write_overlay(self.output / overlay, one.image, verdict.map, threshold)
            # Kept as files, so that the page can show the predictions of earlier calls.
            layers = draw_layers(one.image, verdict.map, threshold, side_px=THUMBNAIL_SIDE_PX)
            thumbnail = draw_pictures(*layers)
            image_path, map_path = _thumbnails(self.output, overlay)
            image_path.write_bytes(thumbnail.image)
            map_path.write_bytes(thumbnail.overlay)
        prediction = Prediction(
            image=one.file.name,
            label=one.file.label,
            score=None if verdict is None else verdict.score,
            defective=None if verdict is None else int(verdict.defective),
            threshold=self.inspector.rule.threshold,
            model_id=self.inspector.model_id,
            sha256=one.sha256,
            size_bytes=one.file.stamp[0],
            mtime_ns=one.file.stamp[1],
            size_px=size_px,
            boxes=boxes,
            latency_s=latency_s,
            overlay=overlay,
            error=one.error,
        )
        self.predictions.append(prediction)
        return prediction


def overlay_name(name: str, sha256: str | None) -> str:
    """A file name that no other image and no other content has, beginning with the image's own as far as it can."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).stem).strip("._")[:_LONGEST_STEM]
    digest = hashlib.sha256(f"{name}\0{sha256}".encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{stem}-{digest}.png" if stem else f"{digest}.png"


def _thumbnails(output: Path, overlay: str) -> tuple[Path, Path]:
    """Paths of the thumbnail, and of its map, of the image with this overlay."""
    stem = Path(overlay).stem
    return output / THUMBNAILS / f"{stem}.webp", output / THUMBNAILS / f"{stem}_map.webp"


@dataclass(frozen=True)
class WatchTimes:
    """Times of a watcher in seconds.

    poll_s: between two looks into the folder. patience_s: how long a file may stay unreadable before that is its
    prediction. idle_exit_s: without arrivals, after which watching ends; None for never.
    """

    poll_s: float
    patience_s: float
    idle_exit_s: float | None


def watch(predictor: FolderPredictor, source: Source, times: WatchTimes) -> None:
    """Predicts files as they arrive until nothing has come for long; prints each look's outcomes.

    A file is taken when its size and time of change have been the same for two looks and it can be decoded; one that
    has stayed the same and undecodable for ``patience_s`` is unreadable. A file with another content is another image.
    Large drift is printed once for every ``DRIFT_EVERY`` files.
    """
    predictions = predictor.predictions
    # Files without a prediction, and the time since which each has been as it is.
    waiting: dict[str, tuple[ImageFile, float]] = {}
    active_s, num_unchecked = time.monotonic(), 0

    def is_final(file: ImageFile) -> bool:
        return time.monotonic() - waiting[file.name][1] >= times.patience_s

    while True:
        now_s, before = time.monotonic(), waiting
        waiting, ready = {}, []
        for file in source.files():
            if predictions.has(file):
                continue
            last, since_s = before.get(file.name, (None, now_s))
            is_same = last is not None and last.stamp == file.stamp
            waiting[file.name] = file, since_s if is_same else now_s
            if is_same:
                ready.append(file)
        found = Counter(one.outcome for one in predictor.predict(ready, is_final))
        if found:
            console.print(
                f"{found['good'] + found['defective']} predicted, {found['defective']} of them defective; "
                f"{found['unreadable']} unreadable"
            )
        num_unchecked += found.total()
        if num_unchecked >= DRIFT_EVERY:
            num_unchecked = 0
            recent = list(predictions.now.values())[-DRIFT_EVERY:]
            drift = drift_of(recent, predictor.inspector.backend.normal_scores)
            if drift["level"] == "large":
                console.print(f"{WARNING} ({describe_drift(drift | {'records': 'of late'})})")
        if found or not all(predictions.has(file) for file, _ in waiting.values()):
            active_s = time.monotonic()
        if times.idle_exit_s is not None and time.monotonic() - active_s > times.idle_exit_s:
            return
        time.sleep(times.poll_s)


def predict_folder(
    inspector: Inspector, source: Source, output: Path, model: str, batch_size: int, times: WatchTimes | None
) -> bool:
    """Whether every file that is there could be read; predictions, pictures, page and summary are in ``output``.

    model: the option's value. times: of a watcher, None to predict once. Raises UserError where there is no image, or
    ``output`` holds predictions of another model or folder.
    """
    check_origin(output, model, inspector.model_id, source.root)
    for name in (OVERLAYS, THUMBNAILS):
        (output / name).mkdir(exist_ok=True)
    with closing(Predictions(output)) as predictions:
        predictor = FolderPredictor(inspector, predictions, output, batch_size)
        files = [] if times else list(source.files())
        if not files and not times:
            raise UserError(f"`--images` (={source.images}) holds no image file (.png, .jpg, .bmp, .tif)")
        new = [file for file in files if not predictions.has(file)]
        compile_s = predictor.compile(new) if new or times else 0.0
        start_s = time.perf_counter()
        if times:
            console.print(f"watching {printable(source.images)}")
            # The usual end of a watcher. The writer's thread ends what it has begun.
            with suppress(Interrupted, KeyboardInterrupt):
                watch(predictor, source, times)
        else:
            num_defective = 0
            with show("predicting images", len(files), len(files) - len(new)) as bar:
                for count, one in enumerate(predictor.predict(new), start=1):
                    num_defective += one.outcome == "defective"
                    rate = count / (time.perf_counter() - start_s)
                    bar.advance(figures=f"{rate:.1f} files/s, {num_defective} defective")
        wall_s = time.perf_counter() - start_s
        latest = predictions.latest
        summary = {
            "model": model,
            "model_id": inspector.model_id,
            "threshold": inspector.rule.threshold,
            "pixel_threshold": inspector.rule.pixel_threshold,
            "images": source.images,
            **summarise(latest.values(), predictions.now.values(), inspector.backend.normal_scores),
            "wall_s": wall_s,
            "compile_s": compile_s,
        }
        num_now = summary["num_judged_now"]
        summary["images_per_s"] = num_now / wall_s if num_now and not times else None
        write_results(summary, inspector, latest.values(), output)
    print_summary(summary, output)
    return not any(latest[file.name].error for file in source.files() if file.name in latest)


def write_results(
    summary: dict[str, Any], inspector: Inspector, rows: Iterable[Prediction], output: Path
) -> None:
    """Writes the table, the report page and, last, the summary into ``output``."""
    cells = ((row.image, row.label, row.score, row.defective) for row in rows)
    write_csv(output / "predictions.csv", ("image", "label", "score", "defective"), cells)
    rule, images = inspector.rule, printable(summary["images"])
    write_page(
        output / "index.html",
        (page_entry(row, output) for row in rows),
        title=f"Predictions for {images}",
        threshold=rule.threshold,
        summary={
            "model": f"{printable(summary['model'])} ({inspector.model_id})",
            "images": images,
            "threshold chosen by": rule.calibration if rule == inspector.backend.rule else "--threshold",
            "score drift": describe_drift(summary["drift"]),
        },
        warning="" if rule.has_learnt else NOT_LEARNT,
    )
    write_json(output / "summary.json", summary)


def page_entry(one: Prediction, output: Path) -> PageEntry:
    """The entry of a prediction in the report page in ``output``; without a thumbnail where its files are gone."""
    thumbnail = None
    if one.overlay is not None:
        with suppress(FileNotFoundError):
            thumbnail = Pictures(*(path.read_bytes() for path in _thumbnails(output, one.overlay)))
    return PageEntry(one.image, one.label, one.score, thumbnail, one.overlay, error=one.error or "")

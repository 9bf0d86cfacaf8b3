"""A folder predicted once or watched: threads decode ahead, the devices predict, another thread writes."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagm_jax.console import console, show
from dagm_jax.data.images.decode import in_threads
from dagm_jax.data.images.files import BadImage, read_bytes
from dagm_jax.errors import Interrupted, UserError, printable
from dagm_jax.evaluation.evaluate import finite_or_none
from dagm_jax.evaluation.predictor import NonFiniteOutput
from dagm_jax.inspection.drift import WARNING, describe_drift
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.inspection.predictions import (
    NUM_RECENT,
    Prediction,
    Predictions,
    check_origin,
    drift_of,
    print_summary,
    summarise,
    write_table,
)
from dagm_jax.inspection.scan import ImageFile, Source, stamp_of
from dagm_jax.storage import write_atomically
from dagm_jax.types import Verdict
from dagm_jax.visualization.overlay import boxes_of, write_overlay
from dagm_jax.visualization.page import PageEntry, Pictures, draw_pictures, write_page

TABLE, PAGE, SUMMARY = "predictions.csv", "index.html", "summary.json"
OVERLAYS, THUMBNAILS = "overlays", "thumbnails"
# Predictions on their way to the disk; each holds an image and its map.
_MAX_UNWRITTEN = 4
# Characters of an image's name that its overlay's name begins with.
_LONGEST_STEM = 60


@dataclass(frozen=True)
class Loaded:
    """A file read: its image uint8 [h w], or the error for which there is none; changed: while it was read."""

    file: ImageFile
    image: NDArray[np.uint8] | None
    error: str | None
    sha256: str | None
    changed: bool
    start_s: float


@dataclass(frozen=True)
class FolderPredictor:
    """Predicts files by ``inspector``; writes to ``predictions`` and pictures into the folder ``output``."""

    inspector: Inspector
    predictions: Predictions
    output: Path
    batch_size: int

    def compile(self) -> float:
        """Compiles the program for the usual size, so that no image's latency holds that; the seconds it took."""
        start_s = time.perf_counter()
        shape = self.inspector.backend.reading.shape or (1, 1)
        self._verdicts([("a black image", np.zeros(shape, np.uint8))])
        return time.perf_counter() - start_s

    def predict(
        self,
        files: Iterable[ImageFile],
        is_final: Callable[[Loaded], bool] = lambda one: True,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Iterator[Prediction]:
        """The prediction for each file, on the disk when it comes out.

        Left out are contents that the last prediction of their name is for, and unreadable files unless ``is_final``
        says that they will stay so. ``stopped`` is asked after each batch. Raises OSError where the disk refuses.
        """
        pending: deque[Future[Prediction]] = deque()
        with closing(self._decide(files, stopped)) as decided, ThreadPoolExecutor(1) as writer:
            for one, verdict, latency_s in decided:
                if verdict is None and not is_final(one):
                    continue
                pending.append(writer.submit(self._write, one, verdict, latency_s))
                if len(pending) > _MAX_UNWRITTEN:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _decide(
        self, files: Iterable[ImageFile], stopped: Callable[[], bool]
    ) -> Generator[tuple[Loaded, Verdict | None, float], None, None]:
        """(file, its verdict where it is readable, seconds since its reading began)."""
        with closing(in_threads(self._load, files)) as loaded:
            new = (one for one in loaded if not self._is_known(one))
            for group in _groups(new, self.batch_size):
                images = [(one.file.name, one.image) for one in group if one.image is not None]
                verdicts = iter(self._verdicts(images) if images else ())
                now_s = time.perf_counter()
                for one in group:
                    yield one, None if one.image is None else next(verdicts), now_s - one.start_s
                if stopped():
                    return

    def _load(self, file: ImageFile) -> Loaded:
        """The file's image, hash and what is wrong with it; called in threads."""
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
            # Half of one content and half of another may still decode. The record names neither: whatever is there
            # when the command is run again is predicted then.
            error = error or "changed while it was read; run the same command again"
            return Loaded(file, None, error, None, True, start_s)
        return Loaded(file, image, error, sha256, False, start_s)

    def _is_known(self, one: Loaded) -> bool:
        return not one.changed and self.predictions.has_content(one.file, one.sha256, one.error)

    def _verdicts(self, images: Sequence[tuple[str, NDArray[np.uint8]]]) -> list[Verdict]:
        """The verdicts on these (name, image); raises UserError where the model's output for one is not finite."""
        try:
            return self.inspector.predict([image for _, image in images], self.batch_size)
        except NonFiniteOutput as error:
            raise UserError(
                f"`--model` (={self.inspector.model_id}): its output for {printable(images[error.place][0])} is not "
                "finite, so its weights are damaged or have grown beyond float32; restore the model from a copy, or "
                "train it anew with a lower `optim.learning_rate`"
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
            # Kept as files, so that the page can show what any earlier call has predicted.
            thumbnail = draw_pictures(one.image, verdict.map, threshold)
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


def _groups(loaded: Iterable[Loaded], batch_size: int) -> Iterator[list[Loaded]]:
    """The files in order, in groups of ``batch_size`` images each (the last of fewer) and what lies between them."""
    group: list[Loaded] = []
    num_images = 0
    for one in loaded:
        group.append(one)
        num_images += one.image is not None
        if num_images == batch_size or len(group) >= 4 * batch_size:
            yield group
            group, num_images = [], 0
    if group:
        yield group


def overlay_name(name: str, sha256: str | None) -> str:
    """A file name that no other image and no other content has, beginning with the image's own as far as it can."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).stem).strip("._")[:_LONGEST_STEM]
    digest = hashlib.sha256(f"{name}\0{sha256}".encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{stem}-{digest}.png" if stem else f"{digest}.png"


def _thumbnails(output: Path, overlay: str) -> tuple[Path, Path]:
    """Paths of the thumbnail, and of its map, of the image with this overlay."""
    stem = Path(overlay).stem
    return output / THUMBNAILS / f"{stem}.webp", output / THUMBNAILS / f"{stem}_map.webp"


def page_entry(one: Prediction, output: Path) -> PageEntry:
    """The entry of a prediction in the report page in ``output``; without a thumbnail where its files are gone."""
    if one.overlay is None:
        return PageEntry(one.image, one.label, one.score, error=one.error or "")
    files = _thumbnails(output, one.overlay)
    is_there = all(path.exists() for path in files)
    thumbnail = Pictures(*(path.read_bytes() for path in files)) if is_there else None
    return PageEntry(one.image, one.label, one.score, thumbnail, one.overlay)


@dataclass(frozen=True)
class Watching:
    """Times of a watcher in seconds.

    poll_s: between two looks into the folder. patience_s: how long a file may stay unreadable before that is its
    prediction. idle_exit_s: without arrivals, after which watching ends; None for never.
    """

    poll_s: float
    patience_s: float
    idle_exit_s: float | None


def watch(
    predictor: FolderPredictor, source: Source, times: Watching, stop: threading.Event
) -> Iterator[Counter[str]]:
    """Predicts files as they arrive until ``stop`` is set or nothing has come for long; counts of each look's outcomes.

    A file is taken when its size and time of change have been the same for two looks and it can be decoded; one that
    has stayed the same and undecodable for ``patience_s`` is unreadable. A file with another content is another image.
    """
    # Files without a prediction, and the time since which each has been as it is.
    waiting: dict[str, tuple[ImageFile, float]] = {}
    active_s = time.monotonic()

    def is_final(one: Loaded) -> bool:
        # A file that has changed is another one at the next look.
        return not one.changed and time.monotonic() - waiting[one.file.name][1] >= times.patience_s

    while not stop.is_set():
        now_s, before = time.monotonic(), waiting
        waiting, ready = {}, []
        for file in source.files():
            if predictor.predictions.has(file):
                continue
            last, since_s = before.get(file.name, (None, now_s))
            is_same = last is not None and last.stamp == file.stamp
            waiting[file.name] = file, since_s if is_same else now_s
            if is_same:
                ready.append(file)
        found = Counter[str](one.outcome for one in predictor.predict(ready, is_final, stop.is_set))
        if found:
            yield found
        if found or not all(predictor.predictions.has(file) for file, _ in waiting.values()):
            active_s = time.monotonic()
        if times.idle_exit_s is not None and time.monotonic() - active_s > times.idle_exit_s:
            break
        stop.wait(times.poll_s)


def predict_folder(
    inspector: Inspector, source: Source, output: Path, model: str, batch_size: int, times: Watching | None
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
        start_s = time.perf_counter()
        counts, compile_s = _watch(predictor, source, times) if times else _predict_once(predictor, source)
        wall_s = time.perf_counter() - start_s - compile_s
        num_now = counts["good"] + counts["defective"]
        summary = {
            "model": model,
            "model_id": inspector.model_id,
            "threshold": inspector.rule.threshold,
            "pixel_threshold": inspector.rule.pixel_threshold,
            "images": source.images,
            **summarise(predictions.latest(), predictions.latest_of_now(), inspector.backend.normal_scores),
            "num_judged_now": num_now,
            "wall_s": wall_s,
            "images_per_s": num_now / wall_s if num_now and not times else None,
            "compile_s": compile_s,
        }
        write_results(summary, inspector, predictions, output)
        is_complete = not any(map(predictions.is_unreadable, source.files()))
    print_summary(summary, output)
    return is_complete


def _predict_once(predictor: FolderPredictor, source: Source) -> tuple[Counter[str], float]:
    """(outcomes of all files without a prediction, seconds of compilation before)."""
    files = list(source.files())
    if not files:
        raise UserError(f"`--images` (={source.images}) holds no image file (.png, .jpg, .bmp, .tif)")
    new = [file for file in files if not predictor.predictions.has(file)]
    compile_s = predictor.compile() if new else 0.0
    counts, start_s = Counter[str](), time.perf_counter()
    with show("predicting images", len(files), len(files) - len(new)) as bar:
        for one in predictor.predict(new):
            counts[one.outcome] += 1
            rate = (counts["good"] + counts["defective"]) / (time.perf_counter() - start_s)
            bar.advance(figures=f"{rate:.1f} images/s, {counts['defective']} defective")
    return counts, compile_s


def _watch(predictor: FolderPredictor, source: Source, times: Watching) -> tuple[Counter[str], float]:
    """(outcomes of what arrives until a signal comes, seconds of compilation before); each look's are printed.

    So is large drift, once for every ``NUM_RECENT`` files.
    """
    compile_s = predictor.compile()
    predictions, normal_scores = predictor.predictions, predictor.inspector.backend.normal_scores
    console.print(f"watching {printable(source.images)}")
    counts, num_unchecked = Counter[str](), 0
    with stopped_by_signals() as stop:
        for found in watch(predictor, source, times, stop):
            counts += found
            num_predicted = found["good"] + found["defective"]
            console.print(
                f"{num_predicted} predicted, {found['defective']} of them defective; {found['unreadable']} unreadable"
            )
            num_unchecked += found.total()
            if num_unchecked >= NUM_RECENT:
                num_unchecked = 0
                drift = drift_of(predictions.recent, normal_scores)
                if drift["level"] == "large":
                    console.print(f"{WARNING} ({describe_drift(drift | {'records': 'of late'})})")
    return counts, compile_s


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal interrupts."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise Interrupted("interrupted; the same command goes on from what was saved last")
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_results(
    summary: dict[str, Any], inspector: Inspector, predictions: Predictions, output: Path
) -> None:
    """Writes the table, the report page and, last, the summary into ``output``."""
    write_table(predictions.latest(), output / TABLE)
    rule, images = inspector.rule, printable(summary["images"])
    write_page(
        output / PAGE,
        (page_entry(one, output) for one in predictions.latest()),
        title=f"Predictions for {images}",
        threshold=rule.threshold,
        summary={
            "model": f"{printable(summary['model'])} ({inspector.model_id})",
            "images": images,
            "threshold chosen by": rule.calibration if rule == inspector.backend.rule else "--threshold",
            "score drift": describe_drift(summary["drift"]),
        },
    )
    write_atomically(output / SUMMARY, json.dumps(finite_or_none(summary), indent=2, allow_nan=False) + "\n")

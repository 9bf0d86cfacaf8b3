"""Files of a folder judged once each: threads decode ahead, the devices judge, another thread writes what was found."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.decode import in_threads
from dagm_jax.data.files import BadImage, read_bytes
from dagm_jax.data.incoming import Incoming, Source, Stamp, stamp_of
from dagm_jax.data.layouts import printable
from dagm_jax.evaluation.predictor import NonFiniteOutput
from dagm_jax.inspector import Inspector
from dagm_jax.overlay import boxes_of, write_overlay
from dagm_jax.page import PageEntry, Pictures, draw_pictures
from dagm_jax.predictions import Prediction, Predictions
from dagm_jax.types import UserError, Verdict

OVERLAYS, THUMBNAILS = "overlays", "thumbnails"
# Verdicts on their way to the disk; each holds an image and its map.
_MAX_UNWRITTEN = 4
_LONGEST_STEM = 60


@dataclass(frozen=True)
class Loaded:
    """A file read: its image uint8 [h w], or the error for which there is none; changed: while it was read."""

    file: Incoming
    image: NDArray[np.uint8] | None
    error: str | None
    sha256: str | None
    changed: bool
    start_s: float


@dataclass
class Tally:
    """How many files were judged, of these called defective, and could not be read."""

    judged: int = 0
    defective: int = 0
    unreadable: int = 0

    def __iadd__(self, other: Tally) -> Tally:
        self.judged += other.judged
        self.defective += other.defective
        self.unreadable += other.unreadable
        return self

    @property
    def files(self) -> int:
        return self.judged + self.unreadable


@dataclass(frozen=True)
class FolderJudge:
    """Judges files by ``inspector`` and records them in ``predictions`` and as pictures in ``output``/overlays."""

    inspector: Inspector
    predictions: Predictions
    output: Path
    batch_size: int

    def judge(
        self,
        files: Iterable[Incoming],
        is_final: Callable[[Loaded], bool] = lambda one: True,
        stopped: Callable[[], bool] = lambda: False,
        on_file: Callable[[Tally], None] = lambda tally: None,
    ) -> Tally:
        """Each file recorded once: judged, or as unreadable where ``is_final`` says that it will not become readable.

        A content that the last record of its name is about is not judged again. ``stopped`` is asked before each batch;
        ``on_file`` is called with the tally so far. Raises UserError where the disk refuses.
        """
        tally = Tally()
        with closing(in_threads(self._load, files)) as loaded, _Writer(self) as writer:
            for group in _groups(map(self._unless_known, loaded), self.batch_size):
                images = [(one.file.name, one.image) for one in group if one.image is not None]
                verdicts = iter(self.verdicts(images) if images else ())
                now_s = time.perf_counter()
                for one in group:
                    verdict = next(verdicts) if one.image is not None else None
                    if verdict is None and not is_final(one):
                        continue
                    writer.put(one, verdict, now_s - one.start_s)
                    tally += Tally(verdict is not None, bool(verdict and verdict.defective), verdict is None)
                    on_file(tally)
                if stopped():
                    break
        return tally

    def _load(self, file: Incoming) -> Loaded:
        """The file's image, hash and what is wrong with it; called in threads."""
        start_s = time.perf_counter()
        image = error = sha256 = None
        try:
            data = read_bytes(file.path)
            sha256 = hashlib.sha256(data).hexdigest()
            image = self.inspector.backend.reading.decode(data, file.path)
        except BadImage as problem:
            error = _without_path(str(problem), file.path)
        if stamp_of(file.path) != file.stamp:
            # Half of one content and half of another may still decode. The record names neither: whatever is there
            # when the command is run again is judged then.
            error = error or "changed while it was read; run the same command again"
            return Loaded(file, None, error, None, True, start_s)
        return Loaded(file, image, error, sha256, False, start_s)

    def verdicts(self, images: Sequence[tuple[str, NDArray[np.uint8]]]) -> list[Verdict]:
        """The verdicts on these (name, image); raises UserError where the model's output for one is not finite."""
        try:
            return self.inspector.predict([image for _, image in images], self.batch_size)
        except NonFiniteOutput as error:
            raise UserError(
                f"`--model` (={self.inspector.model_id}): its output for {printable(images[error.place][0])} is not "
                "finite, so its weights are damaged or have grown beyond float32; restore the model from a copy, or "
                "train it anew with a lower `optim.learning_rate`"
            ) from error

    def _unless_known(self, one: Loaded) -> Loaded | None:
        """None for a content that is recorded under this name already."""
        if one.changed or not self.predictions.has_content(one.file.name, one.sha256, one.error):
            return one
        self.predictions.touch(one.file)
        return None

    def record(self, one: Loaded, verdict: Verdict | None, latency_s: float) -> None:
        """Draws and records what was found; called in the writer's thread."""
        overlay = boxes = size_px = None
        if verdict is not None and one.image is not None:
            overlay = f"{OVERLAYS}/{overlay_name(one.file.name, one.sha256)}"
            boxes = [list(box) for box in boxes_of(verdict.mask)]
            size_px = one.image.shape[0], one.image.shape[1]
            rule = self.inspector.rule
            try:
                write_overlay(self.output / overlay, one.image, verdict, rule.pixel_threshold)
                # Kept as files, so that the page can be made of all that any earlier try has judged.
                thumbnail = draw_pictures(one.image, verdict.map, rule.pixel_threshold)
                image_path, map_path = _thumbnails(self.output, overlay)
                image_path.write_bytes(thumbnail.image)
                map_path.write_bytes(thumbnail.overlay)
            except OSError as error:
                raise UserError(
                    f"`--output` (={printable(self.output)}) cannot be written ({error.strerror}); make room and run "
                    "the same command again"
                ) from error
        self.predictions.append(
            Prediction(
                image=one.file.name,
                label=one.file.label,
                score=None if verdict is None else verdict.score,
                defective=None if verdict is None else int(verdict.defective),
                threshold=self.inspector.rule.threshold,
                model_id=self.inspector.model_id,
                sha256=one.sha256,
                size_bytes=one.file.stamp.size_bytes,
                mtime_ns=one.file.stamp.mtime_ns,
                size_px=size_px,
                boxes=boxes,
                latency_s=latency_s,
                overlay=overlay,
                error=one.error,
            )
        )


def _thumbnails(output: Path, overlay: str) -> tuple[Path, Path]:
    """Where the thumbnail, and its map, of the image with this overlay lie."""
    stem = Path(overlay).stem
    return output / THUMBNAILS / f"{stem}.webp", output / THUMBNAILS / f"{stem}_map.webp"


def page_entry(one: Prediction, output: Path) -> PageEntry:
    """What the report page in ``output`` says of a record; without a thumbnail where its files are gone."""
    if one.overlay is None:
        return PageEntry(one.image, one.label, one.score, error=one.error or "")
    files = _thumbnails(output, one.overlay)
    is_there = all(path.exists() for path in files)
    thumbnail = Pictures(*(path.read_bytes() for path in files)) if is_there else None
    return PageEntry(one.image, one.label, one.score, thumbnail, one.overlay)


class _Writer:
    """Records in order in a thread of its own, a bounded number behind; an error comes out at the next call."""

    def __init__(self, judge: FolderJudge) -> None:
        self._judge = judge
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[None]] = deque()

    def put(self, one: Loaded, verdict: Verdict | None, latency_s: float) -> None:
        self._pending.append(self._pool.submit(self._judge.record, one, verdict, latency_s))
        while len(self._pending) > _MAX_UNWRITTEN:
            self._pending.popleft().result()

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._pool.shutdown()
        if kind is None:
            for one in self._pending:
                one.result()


def _groups(loaded: Iterable[Loaded | None], batch_size: int) -> Iterator[list[Loaded]]:
    """The files in order, in groups of ``batch_size`` images each (the last of fewer) and what lies between them."""
    group: list[Loaded] = []
    num_images = 0
    for one in loaded:
        if one is None:
            continue
        group.append(one)
        num_images += one.image is not None
        if num_images == batch_size or len(group) >= 4 * batch_size:
            yield group
            group, num_images = [], 0
    if group:
        yield group


def _without_path(message: str, path: Path) -> str:
    """The reason in a message that begins with its file's path, which the record names anyway."""
    return message.removeprefix(printable(path)).removeprefix(": ")


def overlay_name(name: str, sha256: str | None) -> str:
    """A file name that no other image and no other content has, with what it can of the image's own."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).stem).strip("._")[:_LONGEST_STEM]
    digest = hashlib.sha256(f"{name}\0{sha256}".encode(errors="surrogateescape")).hexdigest()[:16]
    return f"{stem}-{digest}.png" if stem else f"{digest}.png"


def watch(
    judge: FolderJudge,
    source: Source,
    stop: threading.Event,
    *,
    poll_s: float,
    patience_s: float,
    idle_exit_s: float | None,
    on_arrival: Callable[[Tally], None],
) -> Tally:
    """Judges files as they arrive until ``stop`` is set, or until nothing has come for ``idle_exit_s``.

    A file is taken when its size and time of change have been the same for two looks, ``poll_s`` apart, and it can be
    decoded; one that has stayed the same and undecodable for ``patience_s`` is recorded as unreadable. A file with
    another content is another image. ``on_arrival`` is called with what each look has brought.
    """
    total, waiting = Tally(), dict[str, tuple[Stamp, float]]()
    active_s = time.monotonic()
    while not stop.is_set():
        now_s, before = time.monotonic(), waiting
        waiting, ready = {}, list[Incoming]()
        for file in source.files():
            if judge.predictions.has(file):
                continue
            stamp, since_s = before.get(file.name, (None, now_s))
            same = stamp == file.stamp
            waiting[file.name] = file.stamp, since_s if same else now_s
            if same:
                ready.append(file)
        found = _judge_ready(judge, ready, waiting, patience_s, stop)
        if found.files:
            total += found
            on_arrival(found)
        if found.files or waiting.keys() - {file.name for file in ready if judge.predictions.has(file)}:
            active_s = time.monotonic()
        if idle_exit_s is not None and time.monotonic() - active_s > idle_exit_s:
            break
        stop.wait(poll_s)
    return total


def _judge_ready(
    judge: FolderJudge,
    ready: Sequence[Incoming],
    waiting: dict[str, tuple[Stamp, float]],
    patience_s: float,
    stop: threading.Event,
) -> Tally:
    def is_final(one: Loaded) -> bool:
        # What has changed is another file at the next look.
        return not one.changed and time.monotonic() - waiting[one.file.name][1] >= patience_s

    return judge.judge(ready, is_final, stop.is_set) if ready else Tally()

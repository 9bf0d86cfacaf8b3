"""Judges a folder of images by a finished run or by a file exported from one.

``python -m dagm_jax.predict --model=WORKDIR|FILE --images=DIR|GLOB --output=DIR [--batch_size=8] [--threshold=0.5]
[--watch [--idle_exit_s=60] [--poll_s=1] [--patience_s=10]]``

Writes index.html (the report page), predictions.csv, predictions.jsonl, overlays/ and summary.json into the output
folder; docs/inspector.md says what is in them. The same command goes on where it was stopped and judges what has come
or changed since. With --watch it goes on until it gets SIGTERM or SIGINT (Ctrl-C), ends what it has begun and writes
the table, the page and the summary.

Exit status: 0 every file that is there was judged; 3 some could not be read, which are listed; 2 a mistake that the
one-line message explains; 130 interrupted (without --watch, or twice): the same command goes on.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from absl import flags

from dagm_jax import command_line
from dagm_jax.main import guarded
from dagm_jax.types import UserError

if TYPE_CHECKING:
    from dagm_jax.folder import FolderJudge, Tally
    from dagm_jax.inspector import Inspector
    from dagm_jax.predictions import Predictions

EXIT_UNREADABLE = 3
PAGE = "index.html"
DRIFT_WARNING = (
    "warning: the scores have moved far from those of the good validation images: light, camera, material or the share "
    "of defective images has changed; look at the images before trusting the threshold"
)


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: str
    images: str
    output: Path
    batch_size: int | None
    threshold: float | None
    watch: bool
    idle_exit_s: float | None
    poll_s: float
    patience_s: float


def make_flags() -> flags.FlagValues:
    """The flags of this command."""
    values = command_line.make_flags()
    for name, meaning in (
        ("model", "The workdir of a finished run, or a file that dagm_jax.export has made of one."),
        ("images", "A folder, which is looked through with all that is in it, a file, or a glob in quotes."),
        ("output", "Where the verdicts are written."),
    ):
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    flags.DEFINE_integer(
        "batch_size",
        None,
        "Images judged at a time; default: the run's own, 1 with --watch.",
        flag_values=values,
    )
    flags.DEFINE_bool("watch", False, "Judge files as they arrive.", flag_values=values)
    for name, default, meaning in (
        ("threshold", None, "Score from which an image is defective; default: the run's decision rule."),
        ("idle_exit_s", None, "With --watch: end when nothing has come for so long."),
        ("poll_s", 1.0, "With --watch: time between two looks into the folder."),
        (
            "patience_s",
            10.0,
            "With --watch: how long a file may stay unreadable before it is listed as such.",
        ),
    ):
        flags.DEFINE_float(name, default, meaning, flag_values=values)
    return values


def parse_flags(argv: Sequence[str]) -> Request:
    """What the command line asks for; every mistake in it becomes a UserError of one line."""
    values = command_line.parse(make_flags(), argv, __doc__)
    for name, example in (("model", "runs/mine"), ("images", "parts"), ("output", "verdicts")):
        if not values[name].value:
            raise UserError(f"`--{name}` is missing; such as --{name}={example}")
    if values.batch_size is not None and values.batch_size < 1:
        raise UserError(f"`--batch_size` (={values.batch_size}) must be at least 1")
    for name in ("idle_exit_s", "poll_s", "patience_s"):
        if values[name].present and not values.watch:
            raise UserError(f"`--{name}` holds with --watch alone; add it or leave --{name} out")
        if values[name].value is not None and not 0 < values[name].value < math.inf:
            raise UserError(f"`--{name}` (={values[name].value}) must be a positive number of seconds")
    return Request(
        model=values.model,
        images=values.images,
        output=Path(values.output).expanduser(),
        batch_size=values.batch_size or (1 if values.watch else None),
        threshold=values.threshold,
        watch=values.watch,
        idle_exit_s=values.idle_exit_s,
        poll_s=values.poll_s,
        patience_s=values.patience_s,
    )


def main(argv: Sequence[str]) -> int:
    """Judges what the command line names; the exit status."""
    request = parse_flags(argv)
    from dagm_jax.data.incoming import make_source
    from dagm_jax.data.layouts import printable
    from dagm_jax.experiment import locked
    from dagm_jax.folder import OVERLAYS, THUMBNAILS, FolderJudge
    from dagm_jax.inspector import Inspector
    from dagm_jax.predictions import Predictions
    from dagm_jax.train.progress import console

    source = make_source(request.images, request.output)
    console.print(f"images: {printable(source.description)}")
    inspector = Inspector.load(request.model, request.threshold, os.environ.get("XLA_FLAGS", ""))
    batch_size = inspector.check_batch_size(request.batch_size)
    with locked(request.output, "output"):
        check_origin(request, inspector, source.root)
        for name in (OVERLAYS, THUMBNAILS):
            (request.output / name).mkdir(exist_ok=True)
        with closing(Predictions(request.output)) as predictions:
            judge = FolderJudge(inspector, predictions, request.output, batch_size)
            start_s = time.perf_counter()
            tally, compile_s, num_bad = judge_source(judge, source, request)
            wall_s = time.perf_counter() - start_s - compile_s
            timing = {
                "num_judged_now": tally.judged,
                "wall_s": wall_s,
                "images_per_s": tally.judged / wall_s if tally.judged and not request.watch else None,
                "compile_s": compile_s,
            }
            summary = finish(request, inspector, predictions, timing)
    print_summary(summary, request.output)
    return EXIT_UNREADABLE if num_bad else 0


def judge_source(judge: FolderJudge, source: Any, request: Request) -> tuple[Tally, float, int]:
    """(what was judged now, seconds of compilation before, unreadable files that are there) of all files of the source.

    With --watch of those that arrive.
    """
    from dagm_jax.data.layouts import printable
    from dagm_jax.folder import watch
    from dagm_jax.train.progress import console, show

    if request.watch:
        compile_s = compile_engine(judge)
        known = f"{len(judge.predictions)} files are recorded"
        console.print(f"watching {printable(request.images)}; {known}")
        with stopped_by_signals() as stop:
            total = watch(
                judge,
                source,
                stop,
                poll_s=request.poll_s,
                patience_s=request.patience_s,
                idle_exit_s=request.idle_exit_s,
                on_arrival=teller(judge),
            )
        return total, compile_s, total.unreadable
    files = list(source.files())
    if not files:
        raise UserError(f"`--images` (={request.images}) holds no image file (.png, .jpg, .bmp, .tif)")
    new = [file for file in files if not judge.predictions.has(file)]
    compile_s = compile_engine(judge) if new else 0.0
    start_s = time.perf_counter()
    with show("judging images", len(files), len(files) - len(new)) as bar:

        def advance(tally: Tally) -> None:
            rate = tally.judged / (time.perf_counter() - start_s)
            bar.advance(figures=f"{rate:.1f} images/s, {tally.defective} defective")

        tally = judge.judge(new, on_file=advance)
    return tally, compile_s, sum(not judge.predictions.is_judged(file.name) for file in files)


def teller(judge: FolderJudge) -> Callable[[Tally], None]:
    """A function that says what a look has brought, and of drift whenever so many images as are kept have come."""
    from dagm_jax.predictions import summarise
    from dagm_jax.train.progress import console

    recent, unseen = judge.predictions.recent, 0

    def tell(found: Tally) -> None:
        nonlocal unseen
        console.print(
            f"{found.judged} judged, {found.defective} of them defective; {found.unreadable} unreadable"
        )
        unseen += found.files
        if unseen >= (recent.maxlen or 0):
            unseen = 0
            drift = summarise((), recent, judge.inspector.backend.normal_scores)["drift"]
            if drift["level"] == "large":
                console.print(f"{DRIFT_WARNING} ({describe_drift(drift)})")

    return tell


def compile_engine(judge: FolderJudge) -> float:
    """Seconds that the program for the usual size took to compile, so that no image's latency holds them."""
    import numpy as np

    reading = judge.inspector.backend.reading
    start_s = time.perf_counter()
    judge.verdicts([("a black image", np.zeros(reading.shape or (1, 1), np.uint8))])
    return time.perf_counter() - start_s


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal does what it did before."""
    stop = threading.Event()
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number in numbers:
            signal.signal(number, before[number])

    def ask(number: int, frame: FrameType | None) -> None:
        restore()
        stop.set()

    for number in numbers:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()


def check_origin(request: Request, inspector: Inspector, root: Path) -> None:
    """Notes whose verdicts the output folder holds; raises UserError where these are another model's or folder's."""
    from dagm_jax.data.incoming import ORIGIN
    from dagm_jax.train.progress import write_atomically

    path = request.output / ORIGIN
    now = {"model_id": inspector.model_id, "images": os.fsencode(root).decode(errors="backslashreplace")}
    if path.exists():
        before = json.loads(path.read_text())
        if before["model_id"] != now["model_id"]:
            raise UserError(
                f"`--output` (={request.output}) holds verdicts of model {before['model_id']}, and `--model` "
                f"(={request.model}) with its threshold is {now['model_id']}; name another folder"
            )
        if before["images"] != now["images"]:
            raise UserError(
                f"`--output` (={request.output}) holds verdicts on images of {before['images']}, and `--images` are "
                f"of {now['images']}; name another folder"
            )
    write_atomically(path, json.dumps(now, indent=2) + "\n")


def finish(
    request: Request, inspector: Inspector, predictions: Predictions, timing: dict[str, Any]
) -> dict[str, Any]:
    """The summary, after the table, the report page and the summary are written."""
    from dagm_jax.data.layouts import printable
    from dagm_jax.evaluate import finite_or_none
    from dagm_jax.folder import page_entry
    from dagm_jax.page import write_page
    from dagm_jax.predictions import SUMMARY, TABLE, summarise, write_table
    from dagm_jax.train.progress import write_atomically

    write_table(predictions.latest(), request.output / TABLE)
    summary = {
        "model": request.model,
        "model_id": inspector.model_id,
        "threshold": inspector.rule.threshold,
        "pixel_threshold": inspector.rule.pixel_threshold,
        "images": request.images,
        **summarise(predictions.latest(), predictions.latest_of_now(), inspector.backend.normal_scores),
        **timing,
    }
    text = json.dumps(finite_or_none(summary), indent=2, allow_nan=False)
    rule = inspector.rule
    write_page(
        request.output / PAGE,
        (page_entry(one, request.output) for one in predictions.latest()),
        title=f"Verdicts on {printable(request.images)}",
        threshold=rule.threshold,
        pixel_threshold=rule.pixel_threshold,
        summary={
            "model": f"{printable(request.model)} ({inspector.model_id})",
            "images": printable(request.images),
            "threshold chosen by": rule.calibration if request.threshold is None else "--threshold",
            "score drift": describe_drift(summary["drift"]),
        },
    )
    write_atomically(request.output / SUMMARY, text + "\n")
    return summary


def print_summary(summary: dict[str, Any], output: Path) -> None:
    """The summary as a table on the terminal, with what could not be read and a plain word on drift."""
    from rich.table import Table

    from dagm_jax.data.layouts import printable
    from dagm_jax.train.progress import console

    table = Table(title=f"{summary['num_files']} files, model {summary['model_id']}", title_justify="left")
    table.add_column("figure")
    table.add_column("value")
    judged, threshold = summary["num_judged"], summary["threshold"]
    table.add_row("judged", str(judged))
    table.add_row("defective", f"{summary['num_defective']} (score >= {threshold:.4f})")
    table.add_row("good", str(judged - summary["num_defective"]))
    table.add_row("unreadable", str(summary["num_unreadable"]))
    if counts := summary["confusion"]:
        table.add_row("tp fp fn tn", " ".join(str(counts[name]) for name in ("tp", "fp", "fn", "tn")))
    if latency := summary["latency_s"]:
        shown = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in latency.items())
        table.add_row("latency, file to verdict", shown)
    if summary["images_per_s"]:
        table.add_row("images/s", f"{summary['images_per_s']:.1f} ({summary['num_judged_now']} images)")
    table.add_row("score drift", describe_drift(summary["drift"]))
    console.print(table)
    for one in summary["unreadable"][:10]:
        console.print(f"unreadable: {printable(one['image'])}: {printable(one['error'])}")
    if summary["num_unreadable"] > 10:
        console.print(f"… and {summary['num_unreadable'] - 10} more; all are listed in predictions.jsonl")
    if summary["drift"]["level"] == "large":
        console.print(DRIFT_WARNING)
    console.print(f"verdicts: {printable(output)}")


def describe_drift(drift: dict[str, Any]) -> str:
    """One line on how far the scores have moved from those of the good validation images."""
    counts = (
        f"{drift['num_scores']} {drift['compared']} {drift['records']}, {drift['num_validation_normals']} validation "
        "normals"
    )
    if drift["level"] == "too few":
        return f"too few images to say ({counts})"
    index, chance = drift["population_stability_index"], drift["by_chance"]
    return f"{drift['level']}: index {index:.3f}, {chance:.3f} by chance ({counts})"


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

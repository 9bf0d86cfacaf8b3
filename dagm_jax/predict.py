"""Predicts defects in a folder of images by a finished run or by a file exported from one.

``python -m dagm_jax.predict --model=WORKDIR|FILE --images=DIR|GLOB --output=DIR [--batch_size=8] [--threshold=0.5]
[--watch [--idle_exit_s=60] [--poll_s=1] [--patience_s=10]]``

Writes index.html (the report page), predictions.csv, predictions.jsonl, overlays/ and summary.json into the output
folder; docs/inspector.md describes them. The same command goes on where it was stopped and predicts what has come or
changed since. With --watch it waits for files until SIGTERM or SIGINT (Ctrl-C), then writes table, page and summary.

Exit status: 0 every file that is there was read; 3 some could not be read, which are listed; 2 a mistake that the
one-line message explains; 130 interrupted (without --watch, or twice): the same command goes on.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dagm_jax.command_line import flag, guarded, parse_request
from dagm_jax.errors import UserError, printable

EXIT_UNREADABLE = 3


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: str = flag(
        "The workdir of a finished run, or a file that dagm_jax.export has made of one.", example="runs/mine"
    )
    images: str = flag("A folder with all folders in it, a file, or a glob in quotes.", example="parts")
    output: Path = flag("Where the predictions are written.", example="verdicts")
    batch_size: int | None = flag("Images per batch; default: the run's own, 1 with --watch.", None, least=1)
    threshold: float | None = flag("Score from which an image is defective; default: the run's rule.", None)
    runtime: str | None = flag(
        "Runtime of an ONNX file; default: onnxruntime.", None, choices=("onnxruntime", "openvino")
    )
    watch: bool = flag("Predict files as they arrive.", False)
    idle_exit_s: float | None = flag("With --watch: end when nothing has come for so long.", None)
    poll_s: float = flag("With --watch: time between two looks into the folder.", 1.0)
    patience_s: float = flag(
        "With --watch: how long a file may stay unreadable before it is listed as such.", 10.0
    )

    def __post_init__(self) -> None:
        for name in ("idle_exit_s", "poll_s", "patience_s"):
            seconds = getattr(self, name)
            if seconds != getattr(Request, name) and not self.watch:
                raise UserError(f"`--{name}` holds with --watch alone; add it or leave --{name} out")
            if seconds is not None and not 0 < seconds < math.inf:
                raise UserError(f"`--{name}` (={seconds}) must be a positive number of seconds")


def main(argv: Sequence[str]) -> int:
    """Predicts what the command line names; the exit status."""
    request = parse_request(Request, argv, __doc__)
    from dagm_jax.console import console
    from dagm_jax.evaluation.threshold import NOT_LEARNT
    from dagm_jax.inspection.folder import WatchTimes, predict_folder
    from dagm_jax.inspection.inspector import Inspector
    from dagm_jax.inspection.scan import make_source
    from dagm_jax.storage import locked

    source = make_source(request.images, request.output)
    console.print(f"images: {printable(source.description)}")
    xla_flags = os.environ.get("XLA_FLAGS", "")
    inspector = Inspector.load(request.model, request.threshold, xla_flags, request.runtime)
    if not inspector.rule.has_learnt:
        console.print(NOT_LEARNT)
    batch_size = inspector.check_batch_size(request.batch_size or (1 if request.watch else None))
    times = WatchTimes(request.poll_s, request.patience_s, request.idle_exit_s) if request.watch else None
    with locked(request.output, "output"):
        is_complete = predict_folder(inspector, source, request.output, request.model, batch_size, times)
    return 0 if is_complete else EXIT_UNREADABLE


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

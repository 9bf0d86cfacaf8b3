"""DAGM 2007, downloaded or taken from a folder, verified and written as TFDS sets that the main job reads.

``python -m launch.prepare_data --output=DIR [--source=DIR] [--classes=1,8]``

Without ``--source`` each class is downloaded from Zenodo; with it, it is taken from a folder in layout A or B. Each
class is checked against the published set (names, labels, size, depth, masks) and written to ``DIR/dagm2007/classN``.
A class appears when it is whole, never before; the same command goes on after a kill, and writes damaged sets anew.
Downloads stay in ``DIR/downloads``, which can be removed afterwards.

``python -m launch.prepare_data --procedural --output=DIR [--classes=1,8] [--num_defective=75] [--num_good=125]
[--seed=0]``

writes the built-in images instead, as PNG files in layout A. Both end with a table and ``DIR/contact_sheet.png``; the
main job takes DIR as ``--config.data.root``. Exit status as of ``dagm_jax.main``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from absl import app, flags, logging

from dagm_jax.command_line import flag, guarded, parse_request
from dagm_jax.errors import UserError

PROCEDURAL_ONLY = ("num_defective", "num_good", "seed")


@dataclass(frozen=True)
class Request:
    """The flags; None for a number that is not given. Raises UserError for flags that exclude one another."""

    output: Path = flag("The folder for the sets; a TFDS data_dir.", example="data")
    source: Path | None = flag(
        "A folder with the ClassN folders of DAGM 2007; without it they are downloaded.", None
    )
    classes: tuple[int, ...] = flag("Classes; all of them by default.", ())
    procedural: bool = flag("Write the built-in images, in layout A.", False)
    num_defective: int | None = flag(
        "Defective images of each class (with --procedural); 75 by default.", None, least=2
    )
    num_good: int | None = flag(
        "Good images of each class (with --procedural); 125 by default.", None, least=2
    )
    seed: int | None = flag("Seed of the built-in images (with --procedural); 0 by default.", None, least=0)

    def __post_init__(self) -> None:
        if self.procedural and self.source is not None:
            raise UserError(
                f"`--source` (={self.source}) and --procedural exclude one another; leave one out"
            )
        given = [f"--{name}" for name in PROCEDURAL_ONLY if getattr(self, name) is not None]
        if given and not self.procedural:
            raise UserError(
                f"{', '.join(given)}: holds for built-in images alone; add --procedural or leave it out"
            )


def parse_flags(argv: Sequence[str]) -> Request:
    """The request of the command line, its classes in rising order; raises UserError of one line."""
    # The process's own flags count as read.
    flags.FLAGS(argv[:1])
    request = parse_request(Request, argv, __doc__)
    from dagm_jax.data import procedural
    from dagm_jax.data.verify import read_truth

    known = tuple(procedural.CLASSES) if request.procedural else tuple(read_truth())
    for class_id in request.classes:
        if class_id not in known:
            images = "built-in images show" if request.procedural else "data set has"
            raise UserError(
                f"`--classes` (={class_id}): the {images} the classes {', '.join(map(str, known))}; choose among these"
            )
    return replace(request, classes=tuple(sorted(set(request.classes or known))))


def main(request: Request) -> int:
    """Prepares the classes and shows the result; returns the exit status."""
    logging.set_verbosity(logging.ERROR)
    from launch.prepare.prepare import prepare

    prepare(request)
    return 0


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_flags, argv))

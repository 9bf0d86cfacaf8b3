"""DAGM 2007 made ready: downloaded or taken from a folder, verified, written as TFDS sets that the main job reads.

``python -m launch.prepare_data --output=DIR [--source=DIR] [--classes=1,8]``

Without ``--source`` each class is downloaded from Zenodo; with it, it is taken from a folder in layout A or B. Each
class is checked against the published set (which images, which are defective, size, depth, masks) and written to
``DIR/dagm2007/classN``. A class appears when it is whole, never before; the same command goes on after a kill, and
writes anew what it finds damaged. Downloads stay in ``DIR/downloads``, which can be removed afterwards.

``python -m launch.prepare_data --procedural --output=DIR [--classes=1,8] [--num_defective=75] [--num_good=125]
[--seed=0]``

writes the built-in images instead, as PNG files in layout A. Both end with a table and ``DIR/contact_sheet.png``; the
main job takes DIR as ``--config.data.root``. Exit status as of ``dagm_jax.main``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import app, flags, logging

from dagm_jax import command_line
from dagm_jax.data.layouts import printable
from dagm_jax.main import guarded
from dagm_jax.types import Manifest, UserError

SHEET = "contact_sheet.png"
_PROCEDURAL_ONLY = ("num_defective", "num_good", "seed")


@dataclass(frozen=True)
class Request:
    """A command line: which classes, from where, to where. ``source`` is None for a download."""

    classes: tuple[int, ...]
    output: Path
    source: Path | None
    procedural: bool
    num_defective: int
    num_good: int
    seed: int


def make_flags() -> flags.FlagValues:
    """The flags of this program."""
    values = command_line.make_flags()
    for name, meaning in (
        ("output", "Where the sets are written; a TFDS data_dir."),
        ("source", "A folder with the ClassN folders of DAGM 2007; without it they are downloaded."),
    ):
        flags.DEFINE_string(name, None, meaning, flag_values=values)
    flags.DEFINE_list("classes", [], "Classes; without it all that there are.", flag_values=values)
    flags.DEFINE_bool("procedural", False, "Write the built-in images, in layout A.", flag_values=values)
    for name, default, least, meaning in (
        ("num_defective", 75, 2, "Defective images of each class (with --procedural)."),
        ("num_good", 125, 2, "Good images of each class (with --procedural)."),
        ("seed", 0, 0, "What the built-in images are drawn from (with --procedural)."),
    ):
        flags.DEFINE_integer(name, default, meaning, lower_bound=least, flag_values=values)
    return values


def parse_flags(argv: Sequence[str]) -> Request:
    """What the command line asks for; every mistake in it becomes a UserError of one line."""
    # The process's own flags count as read.
    flags.FLAGS(argv[:1])
    values = command_line.parse(make_flags(), argv, __doc__)
    if not values.output:
        raise UserError("`--output` is missing; name the folder for the prepared sets, such as --output=data")
    if values.procedural and values.source is not None:
        raise UserError(f"`--source` (={values.source}) and --procedural exclude one another; leave one out")
    if not values.procedural and any(values[name].present for name in _PROCEDURAL_ONLY):
        names = ", ".join(f"--{name}" for name in _PROCEDURAL_ONLY if values[name].present)
        raise UserError(f"{names}: holds for built-in images alone; add --procedural or leave it out")
    return Request(
        classes=_classes(values.classes, values.procedural),
        output=Path(values.output).expanduser(),
        source=None if values.source is None else Path(values.source).expanduser(),
        procedural=values.procedural,
        num_defective=values.num_defective,
        num_good=values.num_good,
        seed=values.seed,
    )


def _classes(texts: Sequence[str], drawn: bool) -> tuple[int, ...]:
    """The classes asked for, rising, all of them by default; raises UserError for one that there is not."""
    from dagm_jax.data import procedural
    from dagm_jax.data.truth import read_truth
    from launch.cells import whole_numbers

    known = tuple(procedural.CLASSES) if drawn else tuple(read_truth())
    chosen = whole_numbers("classes", texts, least=1) or known
    for class_id in chosen:
        if class_id not in known:
            what = "built-in images show" if drawn else "data set has"
            raise UserError(
                f"`--classes` (={class_id}): the {what} the classes {', '.join(map(str, known))}; choose among these"
            )
    return tuple(sorted(set(chosen)))


def main(request: Request) -> int:
    """Prepares the classes and shows what came out; the exit status."""
    logging.set_verbosity(logging.ERROR)
    from dagm_jax.experiment.workdir import locked

    with locked(request.output, "--output"):
        try:
            manifests = write_procedural(request) if request.procedural else write_prepared(request)
            show_result(request, manifests)
        except OSError as error:
            raise UserError(
                f"`--output` (={printable(request.output)}): preparing stopped ({printable(str(error))});"
                " make room or mend the permissions, then repeat the command"
            ) from error
    return 0


def write_prepared(request: Request) -> dict[int, tuple[Manifest, bool]]:
    """Class -> its manifest, read back, and whether it was written now. Raises UserError at the first that fails."""
    from launch.prepared_sets import prepare_class, read_whole, remove_leftovers

    remove_leftovers(request.output)
    done = {}
    for class_id in request.classes:
        written = prepare_class(class_id, request.output, request.source)
        done[class_id] = (read_whole(class_id, request.output), written)
    return done


def write_procedural(request: Request) -> dict[int, tuple[Manifest, bool]]:
    """Class -> its manifest, read back, and whether it was written now. Raises UserError."""
    from dagm_jax.data.layouts import read_tree
    from dagm_jax.train.progress import show
    from launch.procedural_images import Recipe, write_class

    done = {}
    for class_id in request.classes:
        recipe = Recipe(class_id, request.num_defective, request.num_good, request.seed)
        with show(f"class {class_id}: draw", recipe.num_images) as bar:
            written = write_class(recipe, request.output, bar.advance)
        done[class_id] = (read_tree(request.output, (class_id,)), written)
    return done


def show_result(request: Request, manifests: dict[int, tuple[Manifest, bool]]) -> None:
    """Prints the table and writes the contact sheet."""
    from rich.table import Table

    from dagm_jax.train.progress import console
    from launch.contact_sheet import choose, draw_sheet, save

    table = Table("class", "train", "defective", "test", "defective", "state", title=str(request.output))
    for class_id, (manifest, written) in manifests.items():
        cells = []
        for half in ("train", "test"):
            labels = [record.label for record in manifest.records if record.half == half]
            cells += [str(len(labels)), str(sum(labels))]
        table.add_row(str(class_id), *cells, "written" if written else "was whole already")
    console.print(table)
    kind = "procedural" if request.procedural else "DAGM 2007, CC BY 4.0"
    rows = {f"class {c} ({kind})": choose(manifest.records) for c, (manifest, _) in manifests.items()}
    save(draw_sheet(rows), request.output / SHEET)
    console.print(f"contact sheet: {request.output / SHEET}")
    classes = "".join(f"{class_id}," for class_id in manifests)
    console.print(
        f"use it: python -m dagm_jax.main --config=configs/custom_unet.py --config.data.root={request.output}"
        f" --config.data.classes='({classes})'"
    )


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_flags, argv))

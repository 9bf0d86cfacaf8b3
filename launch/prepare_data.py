"""Prepares DAGM 2007 as ``dagm-jax prepare`` does, or writes the built-in images to files; draws a contact sheet.

``python -m launch.prepare_data --output=DIR [--source=DIR] [--classes=1,8]``

writes the TFDS sets of ``dagm-jax prepare``, whose help has the details.

``python -m launch.prepare_data --procedural --output=DIR [--classes=1,8] [--num_defective=75] [--num_good=125]
[--seed=0]``

writes the built-in images instead, as PNG files in layout A. Both end with a table and ``DIR/contact_sheet.png``; the
main job takes DIR as ``--config.data.root``. Exit status as of ``dagm_jax.main``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from absl import app, flags

from dagm_jax.cli import PrepareRequest
from dagm_jax.command_line import flag, guarded, parse_request
from dagm_jax.errors import UserError

if TYPE_CHECKING:
    from dagm_jax.types import Manifest

PROCEDURAL_ONLY = ("num_defective", "num_good", "seed")


@dataclass(frozen=True)
class Request(PrepareRequest):
    """The flags; None for a number that is not given. Raises UserError for flags that exclude one another."""

    procedural: bool = flag("Write the built-in images, in layout A.", False)
    num_defective: int | None = flag(
        "Defective images a class, with --procedural; default: 75.", None, least=2
    )
    num_good: int | None = flag("Good images a class, with --procedural; default: 125.", None, least=2)
    seed: int | None = flag("Seed of the built-in images, with --procedural; default: 0.", None, least=0)

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

    return request.checked(procedural.CLASSES if request.procedural else ())


def main(request: Request) -> int:
    """Prepares the classes, prints a table and writes the contact sheet; returns the exit status."""
    from dagm_jax.data.prepare import prepare_class, show_prepared
    from dagm_jax.storage import locked
    from dagm_jax.visualization.contact_sheet import write_sheet

    output = request.output
    with locked(output, "--output"):
        prepared = {
            class_id: draw_class(request, class_id)
            if request.procedural
            else prepare_class(class_id, output, request.source)
            for class_id in request.classes
        }
        show_prepared(output, prepared)
        kind = "procedural" if request.procedural else "DAGM 2007, CC BY 4.0"
        rows = {f"class {c} ({kind})": manifest.samples for c, (manifest, _) in prepared.items()}
        write_sheet(rows, output / "contact_sheet.png")
    return 0


def draw_class(request: Request, class_id: int) -> tuple[Manifest, bool]:
    """The manifest of the built-in images of a class, read back from the disk, and whether they were written now."""
    from dagm_jax.console import show
    from dagm_jax.data.formats.dagm_layouts import read_tree
    from launch.prepare.procedural_images import Recipe, write_class

    numbers = {name: value for name in PROCEDURAL_ONLY if (value := getattr(request, name)) is not None}
    recipe = Recipe(class_id, **numbers)
    with show(f"class {class_id}: draw", recipe.num_defective + recipe.num_good) as bar:
        is_new = write_class(recipe, request.output, bar.advance)
    return read_tree(request.output, (class_id,)), is_new


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_flags, argv))

"""All classes of a request prepared one after the other, and the result shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table

from dagm_jax.console import console, show
from dagm_jax.data.formats.dagm_layouts import read_tree
from dagm_jax.errors import UserError, printable
from dagm_jax.storage import locked
from dagm_jax.types import Manifest
from launch.prepare.contact_sheet import choose, draw_sheet, save
from launch.prepare.procedural_images import Recipe, write_class

if TYPE_CHECKING:
    from launch.prepare_data import Request

SHEET = "contact_sheet.png"
NUM_DEFECTIVE, NUM_GOOD = 75, 125


def prepare(request: Request) -> None:
    """Writes what is missing of the classes, a table on the terminal and the contact sheet; raises UserError."""
    with locked(request.output, "--output"):
        try:
            show_result(request, {class_id: prepare_one(request, class_id) for class_id in request.classes})
        except OSError as error:
            raise UserError(
                f"`--output` (={printable(request.output)}): preparing stopped ({printable(str(error))});"
                " make room or mend the permissions, then repeat the command"
            ) from error


def prepare_one(request: Request, class_id: int) -> tuple[Manifest, bool]:
    """The class's manifest, read back from the disk, and whether it was written now. Raises UserError."""
    if not request.procedural:
        # Built-in images do without tensorflow_datasets, which takes seconds to import.
        from launch.prepare.prepared_sets import prepare_class

        return prepare_class(class_id, request.output, request.source)
    numbers = request.num_defective or NUM_DEFECTIVE, request.num_good or NUM_GOOD, request.seed or 0
    recipe = Recipe(class_id, *numbers)
    with show(f"class {class_id}: draw", recipe.num_images) as bar:
        written = write_class(recipe, request.output, bar.advance)
    return read_tree(request.output, (class_id,)), written


def show_result(request: Request, manifests: Mapping[int, tuple[Manifest, bool]]) -> None:
    """Prints the table and the command that uses the sets; writes the contact sheet."""
    table = Table("class", "train", "defective", "test", "defective", "state", title=str(request.output))
    for class_id, (manifest, written) in manifests.items():
        cells = []
        for half in ("train", "test"):
            labels = [sample.label for sample in manifest.samples if sample.half == half]
            cells += [str(len(labels)), str(sum(labels))]
        table.add_row(str(class_id), *cells, "written" if written else "was whole already")
    console.print(table)
    kind = "procedural" if request.procedural else "DAGM 2007, CC BY 4.0"
    rows = {f"class {c} ({kind})": choose(manifest.samples) for c, (manifest, _) in manifests.items()}
    save(draw_sheet(rows), request.output / SHEET)
    console.print(f"contact sheet: {request.output / SHEET}")
    classes = "".join(f"{class_id}," for class_id in manifests)
    console.print(
        f"use it: python -m dagm_jax.main --config=configs/custom_unet.py --config.data.root={request.output}"
        f" --config.data.classes='({classes})'"
    )

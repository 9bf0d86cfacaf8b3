"""The built-in images on disk the way DAGM 2007 was published (layout A): PNG files, masks and Labels.txt."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image

from dagm_jax.data import procedural
from dagm_jax.data.formats.tfds_reader import DATASET_NAME
from dagm_jax.errors import UserError, printable

_RECIPE_FILE = "procedural.json"
# Number, image uint8 [h w], and mask bool [h w] of a defective image or None of a good one.
Numbered = tuple[int, np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class Recipe:
    """The origin of the images of one class, besides the program; kept beside them as JSON."""

    class_id: int
    num_defective: int = 75
    num_good: int = 125
    seed: int = 0


@dataclass(frozen=True)
class Place:
    """An image's number in the file name, and its index among the class's defective or good ones."""

    number: int
    defective: bool
    index: int


def number_splits(recipe: Recipe) -> dict[str, list[Place]]:
    """Test and Train: the low and the high half of one gapless numbering, each with half of the defective images.

    Where a count is odd, Train gets one more. The defective numbers are drawn from seed and class.
    """
    rng = np.random.default_rng([recipe.seed, recipe.class_id])
    numbers, indices, splits = count(1), {True: count(), False: count()}, {}
    for name, extra in (("Test", 0), ("Train", 1)):
        num_defective, num_good = ((n + extra) // 2 for n in (recipe.num_defective, recipe.num_good))
        size = num_defective + num_good
        defective = set(rng.permutation(size)[:num_defective].tolist())
        splits[name] = [
            Place(next(numbers), i in defective, next(indices[i in defective])) for i in range(size)
        ]
    return splits


def write_split(folder: Path, images: Iterable[Numbered]) -> None:
    """Writes one split (``ClassN/Train`` or ``ClassN/Test``) into the new folder ``folder``.

    ``0576.PNG`` for each image, ``Label/0576_label.PNG`` (0 and 255) for each defective one, and ``Label/Labels.txt``
    with a row for each image in the order given: tab separated, CRLF, as in the official archives.
    """
    labels = folder / "Label"
    labels.mkdir(parents=True)
    rows = ["1"]
    for number, image, mask in images:
        Image.fromarray(image).save(folder / f"{number:04d}.PNG", format="PNG")
        if mask is None:
            rows.append(f"{number}\t0\t{number:04d}.PNG\t0\t0\t")
        else:
            name = f"{number:04d}_label.PNG"
            Image.fromarray(mask.astype(np.uint8) * 255).save(labels / name, format="PNG")
            rows.append(f"{number}\t1\t{number:04d}.PNG\t0\t{name}")
    (labels / "Labels.txt").write_bytes("".join(f"{row}\r\n" for row in rows).encode())


def write_class(recipe: Recipe, output: Path, on_image: Callable[[], None]) -> bool:
    """Writes ``output/ClassN``, which appears only when it is whole; returns False if it was there already.

    Raises UserError where another set of images is in its place.
    """
    if (output / DATASET_NAME).exists():
        raise UserError(
            f"`--output` (={printable(output)}) holds prepared sets of real images, which training would read "
            "instead; name another folder"
        )
    folder = output / f"Class{recipe.class_id}"
    if folder.exists():
        try:
            found = json.loads((folder / _RECIPE_FILE).read_text())
        except (OSError, ValueError):
            found = None
        if found == asdict(recipe):
            return False
        origin = "images of another origin" if found is None else f"images made from {found}"
        raise UserError(
            f"`--output` (={printable(output)}) holds in {folder.name} {origin}; name another folder or remove that one"
        )

    def draw(place: Place) -> Numbered:
        on_image()
        picture = procedural.draw(recipe.class_id, place.index, seed=recipe.seed, defective=place.defective)
        return place.number, picture.image, picture.mask if place.defective else None

    # The leading dot hides it from readers of layouts.
    scratch = output / f".Class{recipe.class_id}.partial"
    shutil.rmtree(scratch, ignore_errors=True)
    for split, places in number_splits(recipe).items():
        write_split(scratch / split, map(draw, places))
    (scratch / _RECIPE_FILE).write_text(json.dumps(asdict(recipe)) + "\n")
    os.replace(scratch, folder)
    return True

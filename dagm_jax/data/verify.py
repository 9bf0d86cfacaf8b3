"""The check of DAGM 2007 against the table of the published data set: each image's number, split and label.

The main job takes a part of a class; what calls itself the data set has to be whole, and is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from dagm_jax.data.images.decode import in_threads, load
from dagm_jax.data.images.files import BadImage
from dagm_jax.data.images.png import read_image
from dagm_jax.errors import UserError, printable
from dagm_jax.types import DAGM_SHAPE, Manifest, Sample

_TABLE = Path(__file__).parent / "dagm2007" / "truth.json"
_MAX_NAMED = 5  # names of one kind of difference in a message
# Classes published in layout B: the six of development; the four of the competition came out in layout A only.
_CLASSES_IN_LAYOUT_B = range(1, 7)
_SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


class Published(NamedTuple):
    """The split and the label of an image as published."""

    split: Literal["train", "test"]
    label: Literal[0, 1]


# Number of an image -> its split and label, train before test, rising; both splits share one numbering.
ClassTruth = Mapping[int, Published]
Truth = Mapping[int, ClassTruth]


def read_truth(path: Path = _TABLE) -> Truth:
    """Class number -> truth from a JSON table ``{"1": {"test": {"first", "count", "defective"}, "train": …}, …}``.

    first, count: the split's numbers, without gaps; defective: those of defective images. Without an argument the
    published data set's: ten classes, 16,100 images.
    """
    truth: dict[int, dict[int, Published]] = {}
    for class_id, splits in json.loads(path.read_text()).items():
        images = truth[int(class_id)] = {}
        for split in _SPLITS:
            first, defective = splits[split]["first"], set(splits[split]["defective"])
            for number in range(first, first + splits[split]["count"]):
                images[number] = Published(split, 1 if number in defective else 0)
    return truth


def check_whole(manifest: Manifest, class_id: int, truth: Truth) -> tuple[Sample, ...]:
    """The records of the class under their official ids and splits: train before test, by number.

    ``manifest`` is ``read_tree``'s of this one class. Images of layout B are given the numbers that layout A has for
    them. Raises one UserError that names the differences from the truth.
    """
    expected = truth[class_id]
    places = _places_in_layout_b(class_id, expected) if manifest.samples[0].half is None else None
    found: dict[int, Sample] = {}
    strangers = []
    for sample in manifest.samples:
        number = int(sample.image_id.rpartition("/")[2])
        if places is not None:
            number = places.get((sample.label, number), -1)
        if number in expected and sample.half in (None, expected[number].split):
            found[number] = sample
        else:
            strangers.append(sample.image_id)
    ids = {n: f"Class{class_id}/{image.split.capitalize()}/{n:04d}" for n, image in expected.items()}
    words = ("good", "defective")
    differences = {
        "labelled otherwise": [
            f"{ids[n]} (is {words[found[n].label]}, should be {words[expected[n].label]})"
            for n in sorted(found)
            if found[n].label != expected[n].label
        ],
        "not part of the data set": strangers,
        "missing": [ids[n] for n in sorted(expected.keys() - found.keys())],
    }
    if any(differences.values()):
        differences["left out"] = [f"{skip.what} ({skip.reason})" for skip in manifest.skipped]
        parts = [f"{len(names)} {kind}: {_first_few(names)}" for kind, names in differences.items() if names]
        raise UserError(
            f"class {class_id} differs from the published data set ({manifest.description}): {'; '.join(parts)};"
            f" unpack Class{class_id} again, whole"
        )
    return tuple(replace(found[n], image_id=ids[n], half=expected[n].split) for n in expected)


def _places_in_layout_b(class_id: int, expected: ClassTruth) -> dict[tuple[int, int], int]:
    """(label, number in layout B) -> official number.

    The k-th official number of the defective images belongs to the k-th of their names in lexicographic order ("1",
    "10", "100", "101", …), likewise for the good ones.
    """
    if class_id not in _CLASSES_IN_LAYOUT_B:
        raise UserError(
            f"class {class_id} was never released in layout B (Class{class_id}_def), so its images' official numbers"
            " are unknown; use layout A (Train, Test)"
        )
    places: dict[tuple[int, int], int] = {}
    for label in (0, 1):
        numbers = sorted(number for number, image in expected.items() if image.label == label)
        names = sorted(range(1, len(numbers) + 1), key=str)
        places |= {(label, name): number for name, number in zip(names, numbers, strict=True)}
    return places


def _first_few(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")


def check_pixels(samples: Sequence[Sample], on_image: Callable[[], None] = lambda: None) -> None:
    """Decodes every image and mask: 512x512, 8-bit grey, masks in {0, 255} with some 255.

    ``on_image`` is called once for each record, in this thread. Raises one UserError that names the files at fault.
    """
    problems = []
    for problem in in_threads(_find_problem, samples):
        if problem is not None:
            problems.append(problem)
        on_image()
    if problems:
        raise UserError(
            f"{len(problems)} of {len(samples)} images differ from the published data set: {_first_few(problems)};"
            " unpack them again"
        )


def _find_problem(sample: Sample) -> str | None:
    """The fault of a record's files, or None."""
    try:
        load(sample, DAGM_SHAPE)
        if isinstance(sample.mask, Path):
            between = np.setdiff1d(read_image(sample.mask, DAGM_SHAPE), (0, 255))
            if between.size:
                return f"{printable(sample.mask)}: mask holds {between[0]}, should hold 0 and 255 alone"
    except BadImage as error:
        return str(error)
    return None

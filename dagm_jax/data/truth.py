"""DAGM 2007 as it was published: how many images each half of a class has, which are defective, and a check of it.

Part of a class is legal input to the main job; what calls itself the data set has to be whole, and is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from dagm_jax.data.images.decode import in_threads, load
from dagm_jax.data.images.files import BadImage
from dagm_jax.data.images.png import read_image
from dagm_jax.data.layouts import DAGM_SHAPE, printable
from dagm_jax.types import Manifest, Record, UserError

HalfName = Literal["train", "test"]

_TABLE = Path(__file__).parent / "dagm2007" / "truth.json"
_MAX_NAMED = 5  # names of one kind of difference in a message
# The 2007 release holds the six development classes; the four of the competition came out in layout A only.
_CLASSES_IN_LAYOUT_B = range(1, 7)


@dataclass(frozen=True, slots=True)
class HalfTruth:
    """One half of a class: ``count`` images numbered from ``first`` without gaps; the defective numbers, rising."""

    first: int
    count: int
    defective: tuple[int, ...]

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.count)


@dataclass(frozen=True, slots=True)
class ClassTruth:
    """Both official halves of a class; test is the low half of one numbering."""

    train: HalfTruth
    test: HalfTruth

    def half(self, name: HalfName) -> HalfTruth:
        return self.train if name == "train" else self.test

    def labels(self) -> dict[int, Literal[0, 1]]:
        """Number -> label over both halves, by number."""
        defective = {*self.train.defective, *self.test.defective}
        numbers = sorted([*self.train.numbers, *self.test.numbers])
        return {number: 1 if number in defective else 0 for number in numbers}

    def half_of(self, number: int) -> HalfName:
        return "test" if number in self.test.numbers else "train"


Truth = Mapping[int, ClassTruth]


def read_truth(path: Path = _TABLE) -> Truth:
    """Class number -> truth from a JSON table ``{"1": {"test": {"first", "count", "defective"}, "train": …}, …}``.

    Without an argument the published data set's: ten classes, 16,100 images.
    """
    table = json.loads(path.read_text())
    return {
        int(class_id): ClassTruth(
            **{
                name: HalfTruth(half["first"], half["count"], tuple(half["defective"]))
                for name, half in halves.items()
            }
        )
        for class_id, halves in table.items()
    }


def official_id(class_id: int, half: HalfName, number: int) -> str:
    """The image's id under the official numbering, the same whatever layout it came from: Class1/Train/0576."""
    return f"Class{class_id}/{half.capitalize()}/{number:04d}"


def check_whole(manifest: Manifest, class_id: int, truth: Truth) -> tuple[Record, ...]:
    """The records of the class under their official ids and halves: train before test, by number.

    ``manifest`` is ``read_tree``'s of this one class. Images of layout B are given the numbers that layout A has for
    them: the k-th defective number belongs to the k-th name of the defective images in lexicographic order ("1",
    "10", "100", "101", …), likewise for the good ones. Raises one UserError that names the differences from the truth.
    """
    expected = truth[class_id]
    if any(record.half is None for record in manifest.records):
        found, strangers = _numbered_like_a(manifest.records, class_id, expected)
    else:
        found, strangers = _in_their_half(manifest.records, expected)
    labels = expected.labels()
    wrong = {
        "labelled otherwise": [
            f"{_name(class_id, expected, n)} (is {_WORDS[found[n].label]}, should be {_WORDS[label]})"
            for n, label in labels.items()
            if n in found and found[n].label != label
        ],
        "not part of the data set": strangers,
        "missing": [_name(class_id, expected, n) for n in labels if n not in found],
    }
    if any(wrong.values()):
        wrong["left out"] = [f"{skip.what} ({skip.reason})" for skip in manifest.skipped]
        raise UserError(_differences(manifest, class_id, wrong))
    return tuple(
        replace(found[n], image_id=_name(class_id, expected, n), half=half)
        for half in get_args(HalfName)
        for n in expected.half(half).numbers
    )


_WORDS = ("good", "defective")


def _name(class_id: int, expected: ClassTruth, number: int) -> str:
    return official_id(class_id, expected.half_of(number), number)


def _number(record: Record) -> int:
    """The number at the end of an image id."""
    return int(record.image_id.rpartition("/")[2])


def _in_their_half(records: Iterable[Record], expected: ClassTruth) -> tuple[dict[int, Record], list[str]]:
    """Number -> record of layout A, and the ids of those that stand in the wrong half or in none."""
    found, strangers = {}, []
    for record in records:
        number = _number(record)
        if record.half is not None and number in expected.half(record.half).numbers:
            found[number] = record
        else:
            strangers.append(record.image_id)
    return found, strangers


def _numbered_like_a(
    records: Iterable[Record], class_id: int, expected: ClassTruth
) -> tuple[dict[int, Record], list[str]]:
    """Official number -> record of layout B, and the ids that layout B has no place for."""
    if class_id not in _CLASSES_IN_LAYOUT_B:
        raise UserError(
            f"class {class_id} was never released in layout B (Class{class_id}_def), so its images' official numbers"
            " are unknown; use layout A (Train, Test)"
        )
    places: dict[tuple[int, int], int] = {}
    labels = expected.labels()
    for label in (0, 1):
        numbers = [n for n, other in labels.items() if other == label]
        names = sorted(range(1, len(numbers) + 1), key=str)
        places |= {(label, name): number for name, number in zip(names, numbers, strict=True)}
    found, strangers = {}, []
    for record in records:
        place = places.get((record.label, _number(record)))
        if place is None:
            strangers.append(record.image_id)
        else:
            found[place] = record
    return found, strangers


def _differences(manifest: Manifest, class_id: int, wrong: Mapping[str, Sequence[str]]) -> str:
    """One line that names every kind of difference with its first few files."""
    parts = [f"{len(names)} {kind}: {_first_few(names)}" for kind, names in wrong.items() if names]
    return (
        f"class {class_id} differs from the published data set ({manifest.description}): {'; '.join(parts)};"
        f" unpack Class{class_id} again, whole"
    )


def _first_few(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest:,} more" if rest > 0 else "")


def check_pixels(records: Sequence[Record], on_image: Callable[[], None] = lambda: None) -> None:
    """Nothing, after every image and mask was decoded: 512x512, 8-bit grey, masks in {0, 255} with some 255.

    ``on_image`` is called once for each record, in this thread. Raises one UserError that names the files at fault.
    """
    problems = []
    for problem in in_threads(_pixel_problem, records):
        if problem is not None:
            problems.append(problem)
        on_image()
    if problems:
        raise UserError(
            f"{len(problems)} of {len(records)} images differ from the published data set: {_first_few(problems)};"
            " unpack them again"
        )


def _pixel_problem(record: Record) -> str | None:
    """What is wrong with the files of a record, or None."""
    try:
        load(record, DAGM_SHAPE)
        if isinstance(record.mask, Path):
            grey = read_image(record.mask, DAGM_SHAPE)
            between = np.setdiff1d(grey, (0, 255))
            if between.size:
                return f"{printable(record.mask)}: mask holds {between[0]}, should hold 0 and 255 alone"
    except BadImage as error:
        return str(error)
    return None

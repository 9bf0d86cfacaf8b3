"""Which source images train, validate and test; decided before anything is up-sampled or sliced."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dagm_jax.types import Record, UserError

SplitRule = Literal["random80_20", "official"]
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Places in the manifest, ascending, without overlap; together they are the whole manifest."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def split_records(records: Sequence[Record], rule: SplitRule, validation_share: float, seed: int) -> Split:
    """The split of ``records``, stratified by class and label, the same for the same arguments.

    random80_20 tests on a fifth of each (class, label); official tests on the images of DAGM's Test halves.
    Validation is ``validation_share`` of each label of the rest. Raises UserError where a side would lack a label
    that the manifest has, or (official) where the halves are not both there.
    """
    halves = {record.half for record in records}
    if rule == "official" and halves != {"train", "test"}:
        there = ", ".join(sorted(str(half) for half in halves))
        raise UserError(
            f"`data.split` (=official) needs images of both official halves, found: {there}; "
            "add the missing half or use random80_20"
        )
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        groups[record.class_id, record.label].append(place)
    train: list[int] = []
    validation: list[int] = []
    test: list[int] = []
    for (class_id, label), places in sorted(groups.items()):
        rng = np.random.default_rng(np.random.SeedSequence([seed, class_id, label]))
        shuffled = [places[i] for i in rng.permutation(len(places))]
        if rule == "official":
            tested = [place for place in shuffled if records[place].half == "test"]
        else:
            tested = shuffled[: round(TEST_SHARE * len(shuffled))]
        is_tested = set(tested)
        rest = [place for place in shuffled if place not in is_tested]
        num_validation = round(validation_share * len(rest))
        sides = {"test": tested, "validation": rest[:num_validation], "train": rest[num_validation:]}
        for side, members in sides.items():
            if not members:
                kind = "defective" if label else "defect-free"
                raise UserError(
                    f"`data.split` (={rule}) leaves the {side} side without {kind} images of class {class_id} "
                    f"({len(places)} in all); add images, or change `data.validation_share` or the split"
                )
        test += tested
        validation += sides["validation"]
        train += sides["train"]
    return Split(tuple(sorted(train)), tuple(sorted(validation)), tuple(sorted(test)))

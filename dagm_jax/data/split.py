"""The split of source images into train, validation and test, before anything is up-sampled or sliced."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dagm_jax.data.config import SplitRule
from dagm_jax.errors import UserError
from dagm_jax.types import Photo, Sample

TEST_SHARE = 0.2


@dataclass(frozen=True)
class Split:
    """Places in the manifest, ascending, without overlap."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def find_split(
    samples: Sequence[Sample],
    rule: SplitRule,
    validation_share: float,
    seed: int,
    mask_px: Sequence[int] | None = None,
    trains_on_defects: bool = True,
) -> tuple[SplitRule, Split]:
    """(the rule, the split by it), see `split_samples`.

    ``auto`` is official for users' own images of both halves, where that leaves each split what it needs and the test
    split a defective image if there is any; else random80_20.
    """
    given = validation_share, seed, mask_px, trains_on_defects
    if rule != "auto":
        return rule, split_samples(samples, rule, *given)
    are_own = all(isinstance(sample.image, Photo) for sample in samples)
    has_halves = {sample.half for sample in samples} == {"train", "test"}
    defective = [sample for sample in samples if sample.label]
    if are_own and has_halves and (not defective or any(one.half == "test" for one in defective)):
        with suppress(UserError):
            return "official", split_samples(samples, "official", *given)
    return "random80_20", split_samples(samples, "random80_20", *given)


def limit_labels(
    split: Split, samples: Sequence[Sample], max_masks: int, max_tags: int, seed: int
) -> tuple[Split, list[int]]:
    """(the split less the defective images that are hidden, places of those whose masks are hidden); -1: no limit.

    ``max_masks`` masks and ``max_tags`` defective images without one stay in the train and validation splits, in
    proportion to the sizes of both. Those of a limit are among those of a higher one. The test split is as it was.
    """
    ranked = []
    for number, members in enumerate((split.train, split.validation)):
        defective = [place for place in members if samples[place].label]
        order = np.random.default_rng(np.random.SeedSequence([seed, number])).permutation(len(defective))
        ranked += [((rank + 0.5) / len(defective), defective[i]) for rank, i in enumerate(order)]
    shown = [place for _, place in sorted(ranked)]
    masked = [place for place in shown if samples[place].mask is not None]
    hidden = set(masked[max_masks:]) if max_masks >= 0 else set()
    tagged = [place for place in shown if samples[place].mask is None or place in hidden]
    gone = set(tagged[max_tags:]) if max_tags >= 0 else set()
    train, validation = (
        tuple(place for place in members if place not in gone) for members in (split.train, split.validation)
    )
    return Split(train, validation, split.test), sorted(hidden)


def split_samples(
    samples: Sequence[Sample],
    rule: SplitRule,
    validation_share: float,
    seed: int,
    mask_px: Sequence[int] | None = None,
    trains_on_defects: bool = True,
) -> Split:
    """The split of ``samples``, stratified by class, label and size of the defect, the same for the same arguments.

    ``mask_px``: pixels of each image's mask; None: sizes are ignored. ``trains_on_defects``: whether each split needs
    defective images. random80_20 tests on a fifth of each (class, label); official tests on the images
    of DAGM's Test halves. Validation is ``validation_share`` of each label of the rest. Raises UserError where a split
    would lack a label that the manifest has, or (official) where the halves are not both there.
    """
    halves = Counter(sample.half for sample in samples)
    if rule == "official" and halves.keys() != {"train", "test"}:
        there = ", ".join(
            f"{halves[half]} of {half or 'neither'}" for half in ("train", "test", None) if halves[half]
        )
        raise UserError(
            f"`data.split` (=official) needs each image in one of both official halves, found: {there}; "
            "add the missing half (of a table: fill its column `split`) or use random80_20"
        )
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        groups[sample.class_id, sample.label].append(place)
    splits: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for (class_id, label), places in sorted(groups.items()):
        rng = np.random.default_rng(np.random.SeedSequence([seed, class_id, label]))
        by_size = [places[i] for i in rng.permutation(len(places))]
        if mask_px is not None:
            # A stable sort: images of one size, such as all good ones, stay in random order.
            by_size.sort(key=lambda place: mask_px[place])
        if rule == "official":
            tested = {place for place in by_size if samples[place].half == "test"}
        else:
            tested = set(pick_evenly(by_size, round(TEST_SHARE * len(by_size)), rng))
        rest = [place for place in by_size if place not in tested]
        validated = set(pick_evenly(rest, round(validation_share * len(rest)), rng))
        chosen = {"test": tested, "validation": validated, "train": {*rest} - validated}
        for name, members in chosen.items():
            if not members and (label == 0 or trains_on_defects):
                kind = "defective" if label else "defect-free"
                raise UserError(
                    f"`data.split` (={rule}) leaves the {name} split without {kind} images of class {class_id} "
                    f"({len(places)} in all); add images, or change `data.validation_share` or the split"
                )
            splits[name] += members
    return Split(**{name: tuple(sorted(members)) for name, members in splits.items()})


def pick_evenly(ordered: Sequence[int], count: int, rng: np.random.Generator) -> list[int]:
    """``count`` members of ``ordered``, one at random from each of ``count`` equal runs of neighbours."""
    if count == 0:
        return []
    edges = [k * len(ordered) // count for k in range(count + 1)]
    return [ordered[int(rng.integers(low, high))] for low, high in pairwise(edges)]

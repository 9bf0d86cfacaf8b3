"""Tests of the split: sizes, strata, no image on two sides, and the same split wherever it is made again."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagm_jax.data.split import Split, find_split, limit_labels, split_samples
from dagm_jax.errors import UserError
from dagm_jax.types import Drawn, Photo, Sample

Half = Literal["train", "test"]


def records_of(class_id: int, defective: int, good: int, half: Half | None = None) -> list[Sample]:
    """Records of one class, named after what they are; their pixels are never asked for."""
    made = []
    for label, count in ((1, defective), (0, good)):
        for index in range(count):
            name = f"{class_id}/{half}/{label}/{index}"
            kind: Any = label
            made.append(Sample(name, class_id, kind, half, Drawn(0, class_id, index), None))
    return made


def both_halves(class_id: int = 1) -> list[Sample]:
    return records_of(class_id, 20, 100, "train") + records_of(class_id, 18, 104, "test")


def counts(samples: list[Sample], places: tuple[int, ...], class_id: int | None = None) -> tuple[int, int]:
    """(defective, good) on one side."""
    labels = [samples[p].label for p in places if class_id in (None, samples[p].class_id)]
    return labels.count(1), labels.count(0)


def check_complete(samples: list[Sample], split: Split) -> None:
    """Every image on exactly one side."""
    assert sorted(split.train + split.validation + split.test) == list(range(len(samples)))
    for side in (split.train, split.validation, split.test):
        assert list(side) == sorted(side)


@given(
    sizes=st.lists(st.tuples(st.integers(8, 60), st.integers(8, 60)), min_size=1, max_size=3),
    share=st.floats(0.15, 0.6),
    seed=st.integers(0, 2**31),
    rule=st.sampled_from(["random80_20", "official"]),
)
@settings(max_examples=60, deadline=None)
def test_no_image_stands_on_two_sides(
    sizes: list[tuple[int, int]], share: float, seed: int, rule: Any
) -> None:
    """Would catch: an image that is trained on and tested on, or lost, at any size; a fifth of all instead of each
    label; a validation share of the whole instead of the train split."""
    samples = []
    for class_id, (defective, good) in enumerate(sizes, start=1):
        half = "train" if rule == "official" else None
        samples += records_of(class_id, defective, good, half)
        if rule == "official":
            samples += records_of(class_id, 3, 5, "test")
    split = split_samples(samples, rule, share, seed)
    check_complete(samples, split)
    for class_id, size in enumerate(sizes, start=1):
        tested, validated = counts(samples, split.test, class_id), counts(samples, split.validation, class_id)
        for k in range(2):
            wanted = (3, 5)[k] if rule == "official" else 0.2 * size[k]
            assert abs(tested[k] - wanted) <= 0.5
            rest = size[k] if rule == "official" else size[k] - tested[k]
            assert abs(validated[k] - share * rest) <= 0.5


@pytest.mark.parametrize("rule", ["random80_20", "official"])
def test_every_side_gets_small_and_large_defects(rule: Any) -> None:
    """Would catch: sizes that are ignored, or sorted into the splits: the test split then holds the smallest defects.

    100 (official: 80) defects of sizes 1, 2, … in any order are cut into as many runs as a side has members, and each
    run gives one: a side's k-th smallest member lies in the k-th run.
    """
    samples = records_of(1, 100, 100) if rule == "random80_20" else records_of(1, 80, 80, "train")
    num = len(samples) // 2
    sizes = [(place * 37) % num + 1 if samples[place].label else 0 for place in range(len(samples))]
    if rule == "official":
        samples, sizes = samples + records_of(1, 10, 10, "test"), sizes + [5] * 10 + [0] * 10
    sides = set()
    for seed in range(5):
        split = split_samples(samples, rule, 0.15, seed, sizes)
        check_complete(samples, split)
        chosen = [
            sorted(sizes[p] for p in side if samples[p].label) for side in (split.validation, split.test)
        ]
        sides.add(tuple(chosen[0]))
        if rule == "random80_20":
            assert len(chosen[1]) == 20
            assert all(5 * k < size <= 5 * (k + 1) for k, size in enumerate(chosen[1]))
        # What is left for validation, 80 sizes up to 80 or 100, is cut into 12 runs of six or seven sizes.
        assert len(chosen[0]) == 12
        scale = num / 80
        assert all(abs(size - (k + 0.5) * 80 / 12 * scale) <= 7 * scale for k, size in enumerate(chosen[0]))
    assert len(sides) == 5, "the seed chooses within the runs"


def test_a_task_that_learns_without_defects_needs_none() -> None:
    """Would catch: reconstruction refused for want of defects that it may not look at, or tested without any that are
    there; a set of one or two defective images refused, where none and three do."""
    samples = records_of(1, 3, 100)
    with pytest.raises(UserError, match="validation split without defective images"):
        split_samples(samples, "random80_20", 0.15, 0)
    split = split_samples(samples, "random80_20", 0.15, 0, trains_on_defects=False)
    assert counts(samples, split.test)[0] == 1
    assert counts(samples, split.validation) == (0, 12)
    few = records_of(1, 2, 100)
    assert counts(few, split_samples(few, "random80_20", 0.15, 0, trains_on_defects=False).train) == (2, 68)


def test_same_seed_same_split_and_another_seed_another() -> None:
    """Would catch: a seed that is ignored, and a hidden generator that makes a resumed run test on trained images;
    one permutation for every class and label."""
    samples = records_of(1, 50, 100)
    first = split_samples(samples, "random80_20", 0.15, 3)
    random.seed(99)
    assert split_samples(samples, "random80_20", 0.15, 3) == first
    other = split_samples(samples, "random80_20", 0.15, 4)
    assert set(other.test) != set(first.test)
    assert set(other.validation) != set(first.validation)
    both = records_of(1, 100, 100) + records_of(8, 100, 100)
    test = split_samples(both, "random80_20", 0.15, 0).test
    chosen = [{place % 100 for place in test if place // 100 == group} for group in range(4)]
    assert all(chosen[a] != chosen[b] for a in range(4) for b in range(a))


@pytest.mark.parametrize("rule", ["random80_20", "official"])
def test_another_class_leaves_a_class_split_as_it_was(rule: Any) -> None:
    """Would catch: one generator for all strata, so that adding class 8 moves class 1's test images."""
    alone, more = both_halves(1), both_halves(8)
    split_alone = split_samples(alone, rule, 0.15, 0)
    for together in (alone + more, more + alone):
        split = split_samples(together, rule, 0.15, 0)
        for side in ("train", "validation", "test"):
            names = {together[p].image_id for p in getattr(split, side) if together[p].class_id == 1}
            assert names == {alone[p].image_id for p in getattr(split_alone, side)}


def test_official_tests_on_the_test_halves_only() -> None:
    """Would catch: validation images taken from DAGM's Test half, or test images from its Train half; a test side that
    depends on the seed; random80_20 that keeps to one official half."""
    samples = both_halves()
    split = split_samples(samples, "official", 0.15, 0)
    assert {samples[p].half for p in split.test} == {"test"}
    assert {samples[p].half for p in split.train + split.validation} == {"train"}
    assert counts(samples, split.test) == (18, 104)
    assert counts(samples, split.validation) == (3, 15)  # 15 % of 20 and 100
    other = split_samples(samples, "official", 0.15, 1)
    assert other.test == split.test and other.validation != split.validation
    mixed = split_samples(samples, "random80_20", 0.15, 0)
    assert (
        {samples[p].half for p in mixed.test} == {samples[p].half for p in mixed.train} == {"train", "test"}
    )


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (records_of(1, 20, 20, "train"), "40 of train"),
        (records_of(1, 20, 20, "test"), "40 of test"),
        (records_of(1, 20, 20), "40 of neither"),
        (both_halves() + records_of(1, 2, 3), "120 of train, 122 of test, 5 of neither"),
    ],
)
def test_official_needs_both_halves_of_every_image(samples: list[Sample], found: str) -> None:
    """Would catch: an official split that quietly tests or trains on nothing; a blank in a table's column `split` that
    puts its image into training."""
    with pytest.raises(
        UserError,
        match=rf"`data\.split` \(=official\) .*found: {found}; add .*column `split`.* random80_20",
    ):
        split_samples(samples, "official", 0.15, 0)


@pytest.mark.parametrize(
    ("samples", "rule", "share", "match"),
    [
        (records_of(1, 2, 40), "random80_20", 0.15, r"test split without defective images of class 1 \(2 in"),
        (records_of(1, 4, 40), "random80_20", 0.15, "validation split without defective images of class 1"),
        (records_of(1, 40, 2), "random80_20", 0.15, "test split without defect-free images of class 1"),
        (records_of(8, 40, 40), "random80_20", 0.999, r"train split without defect-free images of class 8 \("),
        (both_halves() + records_of(8, 20, 20, "train"), "official", 0.15,
         r"`data\.split` \(=official\) leaves the test split without defect-free images of class 8 \(20 in all\)"),
    ],
)  # fmt: skip
def test_a_side_without_a_label_is_refused(
    samples: list[Sample], rule: Any, share: float, match: str
) -> None:
    """Would catch: a run that ends in an AUROC of one label, or that tells a class's number wrongly."""
    with pytest.raises(UserError, match=match):
        split_samples(samples, rule, share, 0)


def test_own_images_keep_their_halves_and_dagm_is_split_anew() -> None:
    """Would catch: test images of a set that are trained on; DAGM, or half of a set, held to halves; halves without
    what a split needs that are refused, or that leave no real defect to test on."""
    photos = [replace(one, image=Photo(Path("x"))) for one in both_halves()]

    def rule_of(samples: list[Sample], trains_on_defects: bool = False) -> str:
        rule, split = find_split(samples, "auto", 0.15, 0, None, trains_on_defects)
        assert split == split_samples(samples, rule, 0.15, 0, None, trains_on_defects)
        return rule

    assert rule_of(photos) == rule_of(photos, True) == "official"
    of = {
        (half, label): [p for p in photos if (p.half, p.label) == (half, label)]
        for half in ("train", "test")
        for label in (0, 1)
    }
    unlearnt = [*of["train", 0], *of["test", 0], *of["test", 1]]
    assert (rule_of(unlearnt), rule_of(unlearnt, True)) == ("official", "random80_20")
    assert rule_of([*of["train", 0], *of["test", 1]]) == "random80_20"
    assert rule_of([*of["train", 0], *of["train", 1], *of["test", 0]]) == "random80_20"
    assert rule_of([*of["train", 0], *of["test", 0]]) == "official"
    for samples in (both_halves(), [*of["train", 0], *of["train", 1]]):
        assert rule_of(samples) == "random80_20"
    assert find_split(photos, "random80_20", 0.15, 0)[0] == "random80_20"


def test_fewer_labels_are_among_more_and_the_test_split_stays() -> None:
    """Would catch: a curve over labels whose points see other images; test images that lose their masks; a limit that
    counts one split alone; images hidden for ever where none are limited."""
    samples = [
        replace(one, mask=Drawn(0, 1, place)) if one.label and place % 3 else one
        for place, one in enumerate(records_of(1, 60, 40))
    ]
    split = split_samples(samples, "random80_20", 0.2, 0)
    masked = {i for i in (*split.train, *split.validation) if samples[i].mask is not None}
    defective = {i for i in (*split.train, *split.validation) if samples[i].label}

    def shown(max_masks: int, max_tags: int) -> tuple[set[int], set[int]]:
        """(masks, tags) that stay."""
        limited, hidden = limit_labels(split, samples, max_masks, max_tags, 0)
        assert limited.test == split.test and not set(hidden) & set(split.test)
        members = {*limited.train, *limited.validation}
        assert members >= {i for i in (*split.train, *split.validation) if not samples[i].label}
        left = {i for i in members if samples[i].label}
        return left & (masked - set(hidden)), left - (masked - set(hidden))

    assert shown(-1, -1) == (masked, defective - masked)
    assert shown(0, -1) == (set(), defective) and shown(0, 0) == (set(), set())
    before: set[int] = set()
    for number in range(len(masked) + 1):
        masks, tags = shown(number, -1)
        assert len(masks) == number and before <= masks and masks | tags == defective
        assert shown(number, 3)[1] == set(sorted(shown(number, 3)[1])) and len(shown(number, 3)[1]) == 3
        assert shown(number, 2)[1] <= shown(number, 3)[1]
        before = masks
    assert shown(10, -1)[0] & set(split.validation) and shown(10, -1)[0] & set(split.train)
    assert limit_labels(split, samples, 5, -1, 1)[1] != limit_labels(split, samples, 5, -1, 0)[1]

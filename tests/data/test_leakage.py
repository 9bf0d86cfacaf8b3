"""Tests of copies in a set: one is used, none where labels contradict each other, and both halves are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagm_jax.data.leakage import content_digest, find_copies
from dagm_jax.types import Sample

GOOD_TWIN = "which is labelled good: one label is wrong, so neither is used"
DEFECTIVE_TWIN = "which is labelled defective: one label is wrong, so neither is used"
LEAKAGE = "leakage: has the same pixels as a of the {} half, and is itself of the {} half; left out here"


@pytest.mark.parametrize(
    ("images", "unusable", "expected"),
    [
        # Images a, b, … as (pixels, label, half).
        ([(1, 0, None), (2, 0, None), (3, 1, None)], (), {}),
        ([(1, 0, None), (2, 1, None), (1, 0, None), (1, 0, None)], (),
         {"c": "has the same pixels as a", "d": "has the same pixels as a"}),
        ([(1, 0, None), (1, 1, None), (1, 0, None)], (),
         {"a": f"has the same pixels as b, {DEFECTIVE_TWIN}", "b": f"has the same pixels as a, {GOOD_TWIN}",
          "c": f"has the same pixels as b, {DEFECTIVE_TWIN}"}),
        # A defective copy that cannot be used, say for its mask, still says that the good one is not good.
        ([(1, 0, None), (1, 1, None)], (1,),
         {"a": f"has the same pixels as b, {DEFECTIVE_TWIN}", "b": f"has the same pixels as a, {GOOD_TWIN}"}),
        ([(1, 1, None), (1, 0, None)], (0,),
         {"a": f"has the same pixels as b, {GOOD_TWIN}", "b": f"has the same pixels as a, {DEFECTIVE_TWIN}"}),
        # The first that can be used is used, and the unusable one keeps its own reason.
        ([(1, 1, "train"), (1, 1, "test")], (0,), {}),
        ([(1, 1, None), (1, 1, None)], (0, 1), {}),
        ([(1, 1, "train"), (1, 1, "test"), (1, 1, "train")], (),
         {"b": LEAKAGE.format("train", "test"), "c": "has the same pixels as a"}),
        ([(1, 0, "test"), (1, 0, "train")], (), {"b": LEAKAGE.format("test", "train")}),
        ([(1, 0, "train"), (1, 0, None)], (), {"b": "has the same pixels as a"}),
    ],
    ids=["none", "copies", "labels", "unusable twin", "unusable first", "usable one", "no usable one", "halves",
         "halves turned", "half unknown"],
)  # fmt: skip
def test_copies_and_their_reasons(
    images: list[tuple[int, Any, Any]], unusable: tuple[int, ...], expected: dict[str, str]
) -> None:
    """Would catch: an image tested on that was trained on; the label of whichever copy comes first; a defective picture
    learned as good because its defective copy has no usable mask; a picture lost because its first copy has none."""
    samples = [
        Sample(name, 1, label, half, Path(name), None)
        for name, (_, label, half) in zip("abcd", images, strict=False)
    ]
    digests = {place: bytes([pixels]) for place, (pixels, _, _) in enumerate(images)}
    skips = find_copies(samples, digests, unusable)
    assert {samples[place].image_id: skip.reason for place, skip in skips.items()} == expected
    assert all(skip.what == samples[place].image_id for place, skip in skips.items())
    assert [skip.leaks for skip in skips.values()] == [
        skip.reason.startswith("leakage") for skip in skips.values()
    ]


def test_digests_tell_pixels_and_shapes_apart() -> None:
    """Would catch: images of one value and area but of other edges taken for copies; a view that is none of its own."""
    image = np.random.default_rng(0).integers(0, 256, (6, 4), np.uint8)
    assert content_digest(image[:, ::2]) == content_digest(image[:, ::2].copy())
    flat = [np.full(shape, 7, np.uint8) for shape in ((6, 4), (4, 6), (8, 3))]
    assert len({content_digest(one) for one in [image, image + 1, *flat]}) == 5

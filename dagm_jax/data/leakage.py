"""Copies among the images of a set: one of each is used, so that no image is tested on that was trained on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence

import numpy as np

from dagm_jax.types import Sample, Skip


def content_digest(image: np.ndarray) -> bytes:
    """A digest of the pixels (uint8 ``[h w]``) and their shape; equal for equal images alone."""
    return hashlib.sha256(image.tobytes() + bytes(str(image.shape[1]), "ascii")).digest()


def find_copies(
    samples: Sequence[Sample], digests: Mapping[int, bytes], unusable: Container[int]
) -> dict[int, Skip]:
    """Place → why it is left out, for the images whose pixels are those of another one.

    digests: `content_digest` of the images that could be decoded, by their place in ``samples``, in rising order.
    unusable: places left out for another reason, such as a bad mask. The first usable copy is used, and none where
    labels of copies, unusable ones too, contradict each other.
    """
    copies: dict[bytes, list[int]] = defaultdict(list)
    for place, digest in digests.items():
        copies[digest].append(place)
    skips: dict[int, Skip] = {}
    for places in copies.values():
        used = next((place for place in places if place not in unusable), None)
        for place in places:
            sample = samples[place]
            contrary = next((samples[k] for k in places if samples[k].label != sample.label), None)
            if contrary is not None:
                skips[place] = _skip_copy(sample, contrary)
            elif used is not None and place != used and place not in unusable:
                skips[place] = _skip_copy(sample, samples[used])
    return skips


def _skip_copy(sample: Sample, other: Sample) -> Skip:
    """The reason for leaving out an image that has the same pixels as another one."""
    same = f"has the same pixels as {other.image_id}"
    if sample.label != other.label:
        label = "defective" if other.label else "good"
        return Skip(
            sample.image_id, f"{same}, which is labelled {label}: one label is wrong, so neither is used"
        )
    if {sample.half, other.half} == {"train", "test"}:
        reason = f"leakage: {same} of the {other.half} half, and is itself of the {sample.half} half; left out here"
        return Skip(sample.image_id, reason, leaks=True)
    return Skip(sample.image_id, same)

"""Order of training: which image, and which kind of slice of it, each place of each batch gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np


class SliceKind(IntEnum):
    """The kind of slice that is drawn from an image."""

    ANY = 0
    POSITIVE = 1
    NOT_POSITIVE = 2


class SampleSpec(NamedTuple):
    """One slice of a batch that is still to be drawn: the image's place in the manifest, and the kind of slice."""

    image_index: int
    kind: SliceKind


def pick_slice(labels: np.ndarray, kind: SliceKind, u: float) -> int:
    """The slice that the uniform number ``u`` in [0, 1) picks among those of the kind; labels: one for each slice.

    If none is of the kind, any: a move can push a small defect over the border, a large one can touch every slice.
    """
    if kind is not SliceKind.ANY:
        fitting = np.flatnonzero((labels == 1) == (kind is SliceKind.POSITIVE))
        if fitting.size:
            return int(fitting[int(u * fitting.size)])
    return int(u * labels.size)


class Epochs:
    """A sequence of ``length`` of the given indices: all of them in one random order, then all in another, and so on.

    An element is a function of its place and the seed. grain's own shuffle walks through at least 2^16 numbers, so for
    small sets it takes longer than all that is done to an image: 0.5 ms an element for 80 images.
    """

    def __init__(self, indices: Sequence[int], length: int, seed: int) -> None:
        self._indices, self._length, self._seed = np.array(indices), length, seed
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> int:
        epoch, k = divmod(place, len(self._indices))
        order = self._orders.get(epoch)
        if order is None:
            order = np.random.default_rng((self._seed, epoch)).permutation(self._indices)
            # Readers work ahead of one another by less than an epoch; threads may make an order twice, and the same.
            self._orders = {epoch: order, **dict(list(self._orders.items())[:2])}
        return int(order[k])


@dataclass(frozen=True)
class BalancedSampler:
    """A sequence of batches, each a list of `SampleSpec`.

    With ``defective``, every second slice is a positive one of those images, and the others are not positive and come
    from all images; without, slices are any of any image.
    """

    defective: Epochs | None
    everything: Epochs
    batch_size: int
    num_batches: int

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, number: int) -> list[SampleSpec]:
        places = range(number * self.batch_size, (number + 1) * self.batch_size)
        if self.defective is None:
            return [SampleSpec(self.everything[place], SliceKind.ANY) for place in places]
        return [
            SampleSpec(self.everything[place // 2], SliceKind.NOT_POSITIVE)
            if place % 2
            else SampleSpec(self.defective[place // 2], SliceKind.POSITIVE)
            for place in places
        ]

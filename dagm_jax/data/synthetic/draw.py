"""A synthetic defect: a shape, filled with a content, in a good image, and the mask of what can be seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from dagm_jax.data.cache import ImageCache
from dagm_jax.data.slicing import pad
from dagm_jax.data.synthetic.contents import CONTENTS
from dagm_jax.data.synthetic.shapes import SHAPES
from dagm_jax.types import Pixels

# Limits of the change that is a defect: its mean over the mask, and its area in px; less is not asked for.
LEAST_CHANGE, LEAST_PX = 0.6, 8
# Limit of drawings that are tried for one that can be seen.
TRIES = 4
# Edge in px of the window over which the image's contrast is measured.
WINDOW_PX = 25
# Limit of pixels of drawings that are kept in memory (64 DAGM images).
MAX_KEPT_PX = 1 << 24
# Least contrast in grey levels: on flat images any change is compared with it.
LEAST_CONTRAST = 2.0


def add_defect(
    image: NDArray[np.uint8], other: NDArray[np.uint8], rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]] | None:
    """(the image with a defect, its mask), both [h w]; None where no drawing could be seen.

    other: another good image of the same size. The mask is where the change, over the image's local contrast, exceeds
    1/2 (NSA, Schlüter et al. 2022, labels by such a difference).
    """
    grey, source = image.astype(np.float32), other.astype(np.float32)
    # A box: its cost does not grow with the window.
    mean = ndimage.uniform_filter(grey, WINDOW_PX)
    variance = ndimage.uniform_filter(grey**2, WINDOW_PX) - mean**2
    contrast = np.maximum(np.sqrt(np.maximum(variance, 0)), LEAST_CONTRAST)
    for _ in range(TRIES):
        opacity = SHAPES[rng.integers(len(SHAPES))](image.shape, rng)
        if rng.random() < 0.5:
            opacity = ndimage.gaussian_filter(opacity, rng.uniform(0.5, 2))
        content = CONTENTS[rng.integers(len(CONTENTS))](grey, source, rng)
        drawn = grey + rng.uniform(0.4, 1) * opacity * (content - grey)
        drawn = np.clip(np.rint(drawn), 0, 255)
        change = ndimage.gaussian_filter(np.abs(drawn - grey), 1.0) / contrast
        mask = (change > 0.5) & (opacity > 0.05)
        if mask.sum() >= LEAST_PX and np.average(change, weights=opacity) >= LEAST_CHANGE:
            return drawn.astype(np.uint8), mask
    return None


def any_piece(
    image: NDArray[np.uint8], shape: tuple[int, int], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A piece of ``image`` [h w] from a random place, of (h, w) ``shape``, beyond its edge by its mirror images."""
    spans = [max(0, length - edge) for length, edge in zip(image.shape, shape, strict=True)]
    top, left = (int(rng.integers(span + 1)) for span in spans)
    return pad(image[top : top + shape[0], left : left + shape[1]], shape)


@dataclass(frozen=True)
class WithSynthetic:
    """The images of a cache and, as number len(cache) + i, image i with a synthetic defect, to evaluate a model by.

    good: images that give patches. A drawing is a function of ``seed`` and the number.
    """

    cache: ImageCache
    good: Sequence[int]
    seed: int

    def is_synthetic(self, index: int) -> bool:
        return index >= len(self.cache)

    def synthetic(self, indices: Sequence[int]) -> list[int]:
        """The numbers of these images with a synthetic defect."""
        return [len(self.cache) + i for i in indices]

    def __getitem__(self, index: int) -> Pixels:
        """(uint8 [h w], bool [h w]); the image as it is, with an empty mask, where no drawing could be seen."""
        if not self.is_synthetic(index):
            return self.cache[index]
        if index not in self._kept:
            drawn = self._draw(index)
            if sum(image.size for image, _ in self._kept.values()) + drawn[0].size > MAX_KEPT_PX:
                return drawn
            self._kept[index] = drawn
        return self._kept[index]

    @cached_property
    def _kept(self) -> dict[int, Pixels]:
        """The first drawings: every validation shows them again, and drawing takes longer than reading."""
        return {}

    def _draw(self, index: int) -> Pixels:
        image = self.cache.image(index - len(self.cache))
        rng = np.random.default_rng((self.seed, index, 2))
        for _ in range(TRIES):
            other = self.cache.image(self.good[int(rng.integers(len(self.good)))])
            drawn = add_defect(image, any_piece(other, (image.shape[0], image.shape[1]), rng), rng)
            if drawn is not None:
                return drawn
        return image, np.zeros(image.shape, bool)

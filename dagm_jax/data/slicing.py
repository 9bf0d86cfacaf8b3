"""Cutting images into slices and stitching slices back to images: one rule for training, evaluation and export.

Every function that touches pixels takes the array namespace ``xp`` (numpy or jax.numpy), so that grain's workers and
compiled code share it. Arrays are ``[h w c]`` images and ``[n h w c]`` slices; any dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dagm_jax.data.config import PADDED_PX, SliceMode, SlicingConfig
from dagm_jax.data.sampling import SliceKind

# Continuation of an image: by its own mirror images, or by its edge; that of a mask by nothing.
PadMode = Literal["symmetric", "edge", "constant"]
# A slice is positive if it holds this share of the image's mask, or this many of its pixels.
POSITIVE_MASK_SHARE = 0.25
POSITIVE_MASK_PX = 500
# Limit of tiles that are tried before one of another kind is taken.
TILE_TRIES = 10


@dataclass(frozen=True)
class Slicer:
    """The slices of images of one size: edges in px, counts, and the moves between images and slices.

    Upright slices lie at every (row edge, vertical edge), row by row; then come the horizontal ones, which are turned.
    mirrored: `cut` shows every slice of four another way: as it is, left-right, upside down, both; `stitch` undoes it.
    The slices that cover a pixel overlap, so their mean is one over mirror images too, at no cost.
    """

    mode: SliceMode
    height_px: int
    width_px: int
    slice_shape: tuple[int, int]
    row_edges: tuple[int, ...]
    vertical_edges: tuple[int, ...]
    horizontal_edges: tuple[int, ...] = ()
    mirrored: bool = False

    @property
    def slice_px(self) -> int:
        return self.slice_shape[1]

    @property
    def num_upright(self) -> int:
        return len(self.row_edges) * len(self.vertical_edges)

    @property
    def num_slices(self) -> int:
        return self.num_upright + len(self.horizontal_edges)

    def crossed(self) -> Slicer:
        """As many strips, half of them horizontal, so that every pixel is seen along both axes; this one where that
        does not cover the image (fewer strips, an oblong image, another mode)."""
        each_way = self.num_slices // 2
        is_square = self.height_px == self.width_px
        if self.mode != "strips" or not is_square or each_way * self.slice_px < self.width_px:
            return self
        edges = even_edges(self.width_px, self.slice_px, each_way)
        return replace(self, mode="two_orientations", vertical_edges=edges, horizontal_edges=edges)

    def cut_one(self, image: Any, index: int, xp: ModuleType = np) -> Any:
        """Slice ``index`` of ``image [h w c]`` as ``[slice_height slice_px c]``: upright ones first."""
        if self.mode == "squeeze":
            factor = self.width_px // self.slice_px
            mean = image.reshape(self.height_px, self.slice_px, factor, -1).mean(axis=2)
            return mean if xp.issubdtype(image.dtype, xp.floating) else xp.round(mean).astype(image.dtype)
        if index < self.num_upright:
            row, column = divmod(index, len(self.vertical_edges))
            top, left = self.row_edges[row], self.vertical_edges[column]
            return image[top : top + self.slice_shape[0], left : left + self.slice_px]
        top = self.horizontal_edges[index - self.num_upright]
        return xp.rot90(image[top : top + self.slice_px], 1, axes=(0, 1))

    def cut(self, image: Any, xp: ModuleType = np) -> Any:
        """All slices of ``image [h w c]`` as ``[n slice_height slice_px c]``."""
        return xp.stack([self._mirror(self.cut_one(image, k, xp), k) for k in range(self.num_slices)])

    def _mirror(self, one: Any, index: int) -> Any:
        """Slice ``index`` the way that it is shown; twice, and it is as it was."""
        if not self.mirrored:
            return one
        return one[:: -1 if index % 4 >= 2 else 1, :: -1 if index % 2 else 1]

    def held(self, mask: Any, xp: ModuleType = np) -> Any:
        """Pixels of the bool ``mask [h w]`` in each slice, also those that ``squeeze`` averages: int32 ``[n]``."""
        if self.mode == "squeeze":
            return mask.sum(dtype=np.int32)[None]
        if self.is_strips:
            return self.held_by_strips(mask.sum(0, dtype=np.int32), mask.sum(1, dtype=np.int32), xp)
        return self.cut(mask[..., None], xp).sum((1, 2, 3), dtype=np.int32)

    @property
    def is_strips(self) -> bool:
        """Whether slices are whole columns or rows of the image, so that `held_by_strips` knows what they hold."""
        return self.mode in ("strips", "two_orientations")

    def held_by_strips(self, down: Any, across: Any, xp: ModuleType = np) -> Any:
        """`held` from the mask's sums down its columns, int32 ``[w]``, and across its rows, int32 ``[h]``."""
        parts = []
        for sums, edges in ((down, self.vertical_edges), (across, self.horizontal_edges)):
            if edges:
                until = xp.concatenate([xp.zeros(1, np.int32), xp.cumsum(sums, dtype=np.int32)])
                left = np.array(edges)
                parts.append(until[left + self.slice_px] - until[left])
        return xp.concatenate(parts)

    def stitch(self, slices: Any, xp: ModuleType = np) -> Any:
        """The image ``[h w c]`` whose pixels are the weighted means of all slices ``[n h slice_px c]`` that cover them.

        Weights are those of `edge_weights`: a slice knows least about what lies at its edges.
        ``stitch(cut(x)) == x`` up to rounding in every mode that keeps the pixels; ``squeeze`` repeats columns.
        """
        if self.mirrored:
            slices = xp.stack([self._mirror(slices[k], k) for k in range(self.num_slices)])
        if self.mode == "squeeze":
            return xp.repeat(slices[0], self.width_px // self.slice_px, axis=1)
        # Along each row of upright slices, then over the rows.
        num_columns = len(self.vertical_edges)
        bands = [
            _cover_sum(slices[k : k + num_columns], self.vertical_edges, self.width_px, xp)
            for k in range(0, self.num_upright, num_columns)
        ]
        total = bands[0]
        if len(bands) > 1 or self.slice_shape[0] < self.height_px:
            along = xp.swapaxes(xp.stack(bands), 1, 2)
            total = xp.swapaxes(_cover_sum(along, self.row_edges, self.height_px, xp), 0, 1)
        down = cover_weight(self.row_edges, self.slice_shape[0], self.height_px)
        cover = down[:, None] * cover_weight(self.vertical_edges, self.slice_px, self.width_px)[None, :]
        if self.horizontal_edges:
            # Back from [n h s c] (turned by +90°) to rows, then as strips along the transposed image.
            turned = xp.rot90(slices[self.num_upright :], -1, axes=(1, 2))
            rows = _cover_sum(xp.swapaxes(turned, 1, 2), self.horizontal_edges, self.height_px, xp)
            total = total + xp.swapaxes(rows, 0, 1)
            cover = cover + cover_weight(self.horizontal_edges, self.slice_px, self.height_px)[:, None]
        return total / xp.asarray(cover[..., None], dtype=total.dtype)


def padded_shape(config: SlicingConfig, height_px: int, width_px: int) -> tuple[int, int]:
    """The least (height, width) in px, none below the given ones, that `make_slicer` takes."""

    def up_to(length_px: int, multiple_px: int) -> int:
        return -(-length_px // multiple_px) * multiple_px

    if config.mode == "tiles":
        return max(height_px, config.slice_height_px), max(width_px, config.slice_px)
    if config.mode == "two_orientations":
        height_px = width_px = max(height_px, width_px, config.slice_px)
    multiple_px = config.multiple_px
    width_multiple = {"strips": 1, "squeeze": config.slice_px}.get(config.mode, multiple_px)
    least_width = config.slice_px if config.mode == "strips" else 0
    return up_to(height_px, multiple_px), max(up_to(width_px, width_multiple), least_width)


@lru_cache
def slicer_for(config: SlicingConfig, largest: tuple[int, int], size: tuple[int, int]) -> Slicer:
    """The slicer in training for images of (h, w) px ``size`` in a set whose largest is ``largest``.

    Images smaller than it are continued by their edge. Strips are as long as the largest image and lie side by side in
    the image itself; tiles lie as `random_tile` draws them; other slices hold all of it.
    """
    if config.mode == "tiles":
        return make_slicer(config, *padded_shape(config, *size))
    slicer = make_slicer(config, *padded_shape(config, *largest))
    if not slicer.is_strips or size == (slicer.height_px, slicer.width_px):
        return slicer
    number = len(slicer.vertical_edges)
    across, down = (even_edges(max(length, config.slice_px), config.slice_px, number) for length in size)
    return replace(slicer, vertical_edges=down, horizontal_edges=across if slicer.horizontal_edges else ())


def random_tile(
    mask: NDArray[np.bool_], tile: tuple[int, int], mask_px: int, kind: SliceKind, rng: np.random.Generator
) -> tuple[tuple[slice, slice], int]:
    """(rows and columns of a tile (h, w), its label), of an image with this mask; of any kind where none is found.

    A tile lies at random around a random pixel, of the mask for a positive one, and is moved back into the image, so
    that edges are seen about half as often as the rest. It may reach over the lower and the right edge as far as judged
    images are continued there.
    """
    marked = np.flatnonzero(mask if kind is SliceKind.POSITIVE else [])
    for _ in range(TILE_TRIES):
        if len(marked):
            pixel = divmod(int(marked[rng.integers(len(marked))]), mask.shape[1])
        else:
            pixel = int(rng.integers(mask.shape[0])), int(rng.integers(mask.shape[1]))
        start = []
        for place, edge, length in zip(pixel, tile, mask.shape, strict=True):
            more = min(int(rng.integers(PADDED_PX)), edge // 2)
            start.append(min(max(0, place - int(rng.integers(edge))), max(0, length + more - edge)))
        rows, columns = (slice(at, at + edge) for at, edge in zip(start, tile, strict=True))
        label = int(slice_labels(np.count_nonzero(mask[rows, columns]), mask_px))
        if kind is SliceKind.ANY or (label == 1) == (kind is SliceKind.POSITIVE):
            break
    return (rows, columns), label


def pad(array: np.ndarray, shape: tuple[int, int], mode: PadMode = "symmetric") -> np.ndarray:
    """``array [h w]`` continued below and to the right up to ``shape``: by its mirror images, its edge, or zeros.

    The same array where it has that shape. An image and its mask stay with each other. Raises ValueError where it is
    larger.
    """
    if array.shape == shape:
        return array
    more = [(0, wanted - length) for wanted, length in zip(shape, array.shape, strict=True)]
    return np.pad(array, more, mode=mode)


def make_slicer(config: SlicingConfig, height_px: int, width_px: int) -> Slicer:
    """The slicer of ``config`` for images of one size.

    Raises ValueError unless that is its own `padded_shape`, and for the mode auto, which `SlicingConfig.for_images` is
    to find first.
    """
    shape = (height_px, width_px)
    if config.mode == "auto":
        raise ValueError("the mode of slices must be found by the images first")
    if shape != padded_shape(config, *shape):
        raise ValueError(f"images of {shape} px must be padded to {padded_shape(config, *shape)} px")
    if config.mode in ("whole", "squeeze"):
        width = width_px if config.mode == "whole" else config.slice_px
        return Slicer(config.mode, *shape, (height_px, width), (0,), (0,))
    if config.mode == "tiles":
        rows, columns = (
            even_edges(length, size, fewest_slices(length, size, config.overlap_px))
            for length, size in zip(shape, (config.slice_height_px, config.slice_px), strict=True)
        )
        return Slicer("tiles", *shape, (config.slice_height_px, config.slice_px), rows, columns)
    wanted = config.num_slices if config.mode == "strips" else config.num_slices // 2
    number = max(wanted, fewest_slices(width_px, config.slice_px, config.overlap_px))
    edges = even_edges(width_px, config.slice_px, number)
    across = edges if config.mode == "two_orientations" else ()
    return Slicer(config.mode, *shape, (height_px, config.slice_px), (0,), edges, across)


def slice_labels(held: Any, mask_px: Any, xp: ModuleType = np) -> Any:
    """Labels of slices that hold ``held`` px of an image's mask of ``mask_px`` px: int32, the shape of ``held``.

    1: at least a quarter of the mask or 500 of its px; 0: none; -1: anything between, too little to count.
    """
    positive = (held > 0) & (held >= xp.minimum(POSITIVE_MASK_SHARE * mask_px, POSITIVE_MASK_PX))
    return xp.where(positive, 1, xp.where(held == 0, 0, -1)).astype(xp.int32)


def fewest_slices(length_px: int, slice_px: int, overlap_px: int = 0) -> int:
    """How many slices cover the length, neighbours reaching into one another by ``overlap_px`` at least."""
    return max(1, -(-(length_px - overlap_px) // (slice_px - overlap_px)))


def even_edges(length_px: int, slice_px: int, num_slices: int) -> tuple[int, ...]:
    """Left edges round(k·(length - slice)/(num_slices - 1)), k = 0…num_slices-1: evenly spaced, both borders met."""
    return tuple(round(k * (length_px - slice_px) / max(num_slices - 1, 1)) for k in range(num_slices))


def edge_weights(edges: tuple[int, ...], slice_px: int, length_px: int) -> np.ndarray:
    """How much each column of each slice counts in the stitched image: float ``[n slice_px]`` in (0, 1].

    A Hann window, sin²(π(x + 1/2)/slice): a defect that an edge cuts through is seen in part there, and whole in a
    neighbour. Where an edge is the image's own border, nothing is cut, and that half of the window stays at 1.
    """
    window = np.sin(np.pi * (np.arange(slice_px) + 0.5) / slice_px) ** 2
    weights = np.tile(window, (len(edges), 1))
    half = slice_px // 2
    for weight, edge in zip(weights, edges, strict=True):
        if edge == 0:
            weight[:half] = 1
        if edge + slice_px == length_px:
            weight[half:] = 1
    return weights


def cover_weight(edges: tuple[int, ...], slice_px: int, length_px: int) -> np.ndarray:
    """The sum of the weights of all slices that cover each column: float ``[length_px]``; 0 where none does."""
    places = np.add.outer(edges, np.arange(slice_px))
    return np.bincount(places.ravel(), edge_weights(edges, slice_px, length_px).ravel(), length_px)


def _cover_sum(slices: Any, edges: tuple[int, ...], length_px: int, xp: ModuleType) -> Any:
    """Weighted sum over the strips ``[n h s c]`` laid at their edges: ``[h length c]``.

    A column gathers its (at most m) covering strip columns: m gathers of the image's size, whatever n; scattered
    adds would be sequential in compiled code.
    """
    n, h, s, c = slices.shape
    # The covering places of each column in the row of all strips, -1 for none, and their weights: ``[m length]``.
    places = [
        [k * s + x - edge for k, edge in enumerate(edges) if 0 <= x - edge < s] for x in range(length_px)
    ]
    index = np.array(list(zip_longest(*places, fillvalue=-1)))
    weight = np.where(index < 0, 0, edge_weights(edges, s, length_px).ravel()[index])
    # Sums of bytes would wrap at 256.
    dtype = slices.dtype if xp.issubdtype(slices.dtype, xp.floating) else np.float32
    columns = xp.swapaxes(slices, 0, 1).reshape(h, n * s, c).astype(dtype)
    parts = [
        xp.take(columns, np.maximum(i, 0), axis=1) * w[:, None].astype(dtype)
        for i, w in zip(index, weight, strict=True)
    ]
    return sum(parts[1:], parts[0])

"""Slices of training, and the tiling by which a network of that training judges images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

from dagm_jax.config import RunConfig
from dagm_jax.data.slicing import Slicer, make_slicer, padded_shape, slicer_for
from dagm_jax.evaluation.programs import Shape, SlicedImages, Tiling, WholeImages


def make_tiling(config: RunConfig, largest: Shape, shapes: Sequence[Shape], quick: bool = False) -> Tiling:
    """The tiling that ``config.eval`` asks for.

    largest, shapes: (h, w) that holds every image of the set, and the padded sizes of its images. quick: whole images
    also in place of slices, for validation while training, of networks that can.
    """
    can = config.slicing.mode != "squeeze" and not config.pools
    if config.eval.tiling == "whole" or (quick and can):
        slice_shape = slicer_for(config.slicing, largest, largest).slice_shape
        halo_px = config.model.halo_px * config.slicing.downscale
        return WholeImages(tuple(shapes), slice_shape, halo_px, config.pools, config.eval)

    return SlicedImages(largest, lru_cache(partial(_eval_slicer, config, largest)))


def _eval_slicer(config: RunConfig, usual: Shape, size: Shape) -> Slicer:
    """The slicer by which images of ``size`` are judged: each pixel in several positions, mirrored and turned.

    Mirrored and turned as far as the network has been trained on that. Images beyond ``usual``, the largest of
    training, are cut as densely; their edges grow by powers of sqrt(2), so that many sizes share few programs, and both
    are the same where those of ``usual`` are, because strips then lie both ways.
    """
    slicing, shape = config.slicing, usual
    if size[0] > usual[0] or size[1] > usual[1]:
        grown = [_grown(length, edge) for length, edge in zip(size, usual, strict=True)]
        shape = (max(grown), max(grown)) if usual[0] == usual[1] else (grown[0], grown[1])
        pairs = math.ceil(slicing.num_slices / 2 * shape[1] / usual[1])
        slicing = replace(slicing, num_slices=2 * pairs) if shape[1] > usual[1] else slicing
    slicer = make_slicer(slicing, *padded_shape(slicing, *shape))
    slicer = replace(slicer, mirrored=config.augment.flip and config.augment.rotate90)
    return slicer.crossed() if config.augment.rotate90 else slicer


def _grown(length: int, usual: int) -> int:
    steps = max(0, math.ceil(2 * math.log2(length / usual)))
    return max(length, math.ceil(usual * 2 ** (steps / 2))) if steps else usual

"""Options of the data: which images, how they are cut into slices, how they are augmented.

Nothing is imported but the ground, so that reading a configuration is cheap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dagm_jax.errors import UserError, check_choices

SplitRule = Literal["random80_20", "official"]
SliceMode = Literal["strips", "two_orientations", "tiles", "squeeze", "whole"]
# Edges of a slice are multiples of it: the networks halve a slice four times.
MULTIPLE_PX = 16


@dataclass(frozen=True)
class DataConfig:
    """The images of a run and their split.

    root: a folder with DAGM's ClassN folders or with prepared TFDS sets of them, or a user's own images (see
    ``own_images``); empty: built-in procedural images, ``procedural_defective`` and ``procedural_good`` of each class.
    classes: of DAGM and of the built-in images; one model is trained on all of them together. validation_share: of
    each label of the train split. num_workers: grain's worker processes, 0 = threads. cache_dir: where decoded images
    are kept; empty: in the workdir until the run is finished.
    """

    root: str = ""
    classes: tuple[int, ...] = (1,)
    split: SplitRule = "random80_20"
    validation_share: float = 0.15
    procedural_defective: int = 75
    procedural_good: int = 125
    num_workers: int = 0
    cache_dir: str = ""

    def __post_init__(self) -> None:
        check_choices("data", self)
        if not self.classes or any(not isinstance(c, int) or c < 1 for c in self.classes):
            raise UserError(
                f"`data.classes` (={self.classes}) must be a tuple of class numbers, at least one, "
                "such as (1,) or (1, 8)"
            )
        if len(set(self.classes)) < len(self.classes):
            raise UserError(f"`data.classes` (={self.classes}) names a class twice; name each once")
        if not 0 < self.validation_share < 1:
            raise UserError(
                f"`data.validation_share` (={self.validation_share}) must lie between 0 and 1; 0.15 is usual"
            )
        for name in ("procedural_defective", "procedural_good"):
            if getattr(self, name) < 5:
                raise UserError(
                    f"`data.{name}` (={getattr(self, name)}) must be at least 5, so that each part of "
                    "the split gets one"
                )
        if self.num_workers < 0:
            raise UserError(f"`data.num_workers` (={self.num_workers}) must be at least 0; 0 means threads")


@dataclass(frozen=True)
class SlicingConfig:
    """How an image becomes slices; whatever its size, every pixel lies in one.

    strips: full-height strips of ``slice_px`` columns, evenly spaced.
    two_orientations: half of them vertical, half horizontal and turned by 90°.
    tiles: pieces of ``slice_height_px`` rows and ``slice_px`` columns, as many as it takes, evenly spaced both ways.
    squeeze: the image averaged across to ``slice_px`` columns, one slice (an ablation; does not keep the pixels).
    whole: the image itself, one slice.

    num_slices: of strips and two_orientations; more where so few would not cover the image. overlap_px: how far
    neighbouring strips or tiles reach into one another at least.
    """

    mode: SliceMode = "strips"
    num_slices: int = 30
    slice_px: int = 64
    slice_height_px: int = 64
    overlap_px: int = 0

    def __post_init__(self) -> None:
        check_choices("slicing", self)
        for name in ("slice_px", "slice_height_px"):
            value = getattr(self, name)
            if value < MULTIPLE_PX or value % MULTIPLE_PX:
                raise UserError(
                    f"`slicing.{name}` (={value}) must be a positive multiple of {MULTIPLE_PX}: the networks halve "
                    "it four times"
                )
        if self.num_slices < 2 or (self.mode == "two_orientations" and self.num_slices % 2):
            raise UserError(
                f"`slicing.num_slices` (={self.num_slices}) must be at least 2, and even for two_orientations"
            )
        if not 0 <= self.overlap_px < self.narrowest_px:
            raise UserError(
                f"`slicing.overlap_px` (={self.overlap_px}) must lie in [0, {self.narrowest_px}), less than a slice's "
                "edge"
            )

    @property
    def narrowest_px(self) -> int:
        """The shorter edge of a slice, in modes that cut an image."""
        return min(self.slice_px, self.slice_height_px) if self.mode == "tiles" else self.slice_px


@dataclass(frozen=True)
class AugmentConfig:
    """Training-time moves: k·90° rotations, flips; optionally a small rotation and shift with reflected borders."""

    rotate90: bool = True
    flip: bool = True
    max_angle_deg: float = 0.0
    max_shift_px: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_angle_deg <= 45:
            raise UserError(
                f"`augment.max_angle_deg` (={self.max_angle_deg}) must lie in [0, 45] degrees; "
                "larger turns are what rotate90 is for"
            )
        if not 0 <= self.max_shift_px < math.inf:
            raise UserError(f"`augment.max_shift_px` (={self.max_shift_px}) must be at least 0 and finite")

"""Options of the data: which images, how they are cut into slices, how they are augmented.

Nothing is imported but the ground, so that reading a configuration is cheap.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from dagm_jax.errors import UserError, check_choices, require

SplitRule = Literal["auto", "random80_20", "official"]
SliceMode = Literal["auto", "strips", "two_orientations", "tiles", "squeeze", "whole"]
# Edges of whole images are padded to multiples of it: few sizes, each compiled once, that networks can halve.
PADDED_PX = 128
# Edges of a slice are multiples of it: the networks halve a slice four times.
MULTIPLE_PX = 16
# Limit of defective images up to which synthetic defects are drawn into the whole `DataConfig.synthetic_share`.
FEW_DEFECTIVE = 50
# Limits of the edge of tiles that are sized from the images: one shows what is around a defect, a batch of larger ones
# takes seconds on a CPU.
TILE_PX = (64, 256)
# Limit from which on tiles are shown at half of the resolution: a step then computes a quarter of the pixels.
HALVED_PX = 128


@dataclass(frozen=True)
class DataConfig:
    """The images of a run and their split.

    root: a folder with DAGM's ClassN folders or with prepared TFDS sets of them, or a user's own images (see
    ``own_images``); empty: built-in procedural images, ``procedural_defective`` and ``procedural_good`` of each class.
    classes: of DAGM and of the built-in images; one model is trained on all of them together. validation_share: of
    each label of the train split. num_workers: grain's worker processes, 0 = threads. cache_dir: where decoded images
    are kept; empty: in the workdir until the run is finished. boxes: a CSV table of boxes around defects (see
    ``formats.boxes``), which the report counts; empty: none. synthetic_share: of the slices of good images, those with
    a synthetic defect, where masks are learnt from; less with more than `FEW_DEFECTIVE` of them, as their number grows.
    split: see ``split_samples``; auto: the halves of users' own images where all of them have one, else random80_20.
    good, defect: names of the folders of good and of defective images in ``root``; empty: names that are known.
    flat: what the images show that lie in ``root`` itself, without folders; empty: there are none.
    max_masks, max_tags: masks, and defective images without one, that training and validation may see, the others
    hidden; -1: all.
    """

    root: str = ""
    classes: tuple[int, ...] = (1,)
    split: SplitRule = "auto"
    good: str = ""
    defect: str = ""
    flat: Literal["", "good"] = ""
    max_masks: int = -1
    max_tags: int = -1
    validation_share: float = 0.15
    procedural_defective: int = 75
    procedural_good: int = 125
    num_workers: int = 0
    cache_dir: str = ""
    boxes: str = ""
    synthetic_share: float = 0.5

    def __post_init__(self) -> None:
        check_choices("data", self)
        if self.flat and (self.good or self.defect):
            raise UserError(
                f"`data.flat` (={self.flat}) is of images without folders; leave out data.good and data.defect"
            )
        require(
            "data",
            self,
            "classes",
            lambda x: x and all(isinstance(c, int) and c > 0 for c in x) and len(set(x)) == len(x),
            "be a tuple of class numbers, at least one and each once, such as (1,) or (1, 8)",
        )
        share = "lie between 0 and 1; 0.15 is usual"
        require("data", self, "validation_share", lambda x: 0 < x < 1, share)
        least = "be at least 5, so that each part of the split gets one"
        require("data", self, "procedural_defective procedural_good", lambda x: x >= 5, least)
        require("data", self, "num_workers", lambda x: x >= 0, "be at least 0; 0 means threads")
        require("data", self, "max_masks max_tags", lambda x: x >= -1, "be at least 0, or -1 for all")
        require("data", self, "synthetic_share", lambda x: 0 <= x <= 1, "lie in [0, 1]; 0 draws none")


@dataclass(frozen=True)
class SlicingConfig:
    """How an image becomes slices.

    auto: strips of DAGM's and of built-in images; of users' own images square tiles of the median of their shorter
    edges, at most `TILE_PX`, and half of the resolution for tiles of `HALVED_PX` or more.
    strips: full-height strips of ``slice_px`` columns, evenly spaced.
    two_orientations: half of them vertical, half horizontal and turned by 90°.
    tiles: pieces of ``slice_height_px`` rows and ``slice_px`` columns: in training from anywhere in the image and
    over its lower and right edge, in evaluation as many as it takes, evenly spaced both ways.
    squeeze: the image averaged across to ``slice_px`` columns, one slice (an ablation; does not keep the pixels).
    whole: the image itself, one slice.

    num_slices: of strips and two_orientations; more where so few would not cover the image. overlap_px: how far
    neighbouring strips or tiles reach into one another at least. downscale: the network sees means of as many px each
    way, and its map is up-sampled by as much.
    """

    mode: SliceMode = "strips"
    num_slices: int = 30
    slice_px: int = 64
    slice_height_px: int = 64
    overlap_px: int = 0
    downscale: int = 1

    def __post_init__(self) -> None:
        check_choices("slicing", self)
        require("slicing", self, "downscale", lambda x: x in (1, 2, 4), "be 1, 2 or 4")
        rule = f"be a positive multiple of {self.multiple_px}: the networks halve it four times"
        if self.downscale > 1:
            rule += ", after slicing.downscale"
        require(
            "slicing", self, "slice_px slice_height_px", lambda x: x > 0 and not x % self.multiple_px, rule
        )
        divisor = 2 if self.mode == "two_orientations" else 1
        even = "be at least 2, and even for two_orientations"
        require("slicing", self, "num_slices", lambda x: x >= 2 and not x % divisor, even)
        edge = self.narrowest_px
        inside = f"lie in [0, {edge}), less than a slice's edge"
        require("slicing", self, "overlap_px", lambda x: 0 <= x < edge, inside)

    def for_images(
        self, shapes: Sequence[tuple[int, int]], are_own: bool, may_downscale: bool
    ) -> SlicingConfig:
        """The options with a mode that is not auto, for images of these (h, w).

        are_own: whether they are a user's. Raises UserError for the size of a tile, which auto finds.
        """
        if self.mode != "auto":
            return self
        if not are_own:
            return replace(self, mode="strips")
        for name in ("slice_px", "slice_height_px", "downscale"):
            if (value := getattr(self, name)) != getattr(SlicingConfig, name):
                raise UserError(
                    f"`slicing.{name}` (={value}): slicing.mode=auto sizes tiles by the images; set slicing.mode to "
                    "tiles or strips, or leave it out"
                )
        least, most = TILE_PX
        edge = int(min(max(median(min(shape) for shape in shapes), least), most))
        downscale = 2 if may_downscale and edge >= HALVED_PX else 1
        multiple_px = MULTIPLE_PX * downscale
        edge = edge // multiple_px * multiple_px
        return replace(self, mode="tiles", slice_px=edge, slice_height_px=edge, downscale=downscale)

    @property
    def multiple_px(self) -> int:
        """The number of px that edges of slices are multiples of."""
        return MULTIPLE_PX * self.downscale

    @property
    def has_square_tiles(self) -> bool:
        """Whether a slice is as well one of the image turned by 90°."""
        return self.mode == "tiles" and self.slice_px == self.slice_height_px

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
        angle = "lie in [0, 45] degrees; larger turns are what rotate90 is for"
        require("augment", self, "max_angle_deg", lambda x: 0 <= x <= 45, angle)
        require("augment", self, "max_shift_px", lambda x: 0 <= x < math.inf, "be at least 0 and finite")

"""Configuration of judging: how images are cut, scored and decided on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dagm_jax.data.config import PADDED_PX
from dagm_jax.errors import check_choices, require

# Limit of good validation images from which on a threshold follows from them alone: a spread takes two.
LEAST_GOOD = 2
# Limit of defective validation images below which they choose no threshold for a network that has seen no real defect.
LEAST_DEFECTIVE = 3


@dataclass(frozen=True, slots=True)
class EvalConfig:
    """How images go through the network when they are judged.

    tiling: the "whole" image, or its "slices", as in training, stitched by weighted means. flips: of whole images, the
    mean over four mirror images, in four times the time. max_px: pixels of a padded image above which it is judged in
    tiles with edges of tile_px, to the same map, in bounded memory.
    """

    tiling: Literal["whole", "slices"] = "whole"
    flips: bool = False
    max_px: int = 2**21
    tile_px: int = 1024

    def __post_init__(self) -> None:
        check_choices("eval", self)
        require("eval", self, "max_px", lambda x: x >= 1, "be at least 1")
        multiple = f"be a positive multiple of {PADDED_PX}, to which images are padded"
        require("eval", self, "tile_px", lambda x: x > 0 and not x % PADDED_PX, multiple)


@dataclass(frozen=True, slots=True)
class VerdictConfig:
    """How an image is scored and how the threshold on the score is chosen.

    calibration: "f1" (highest F1), "expected_cost" (least fp_cost·FP + fn_cost·FN), "false_alarm_rate" (at most the
    share max_false_alarm_rate of good images called defective), or "normals" (the score that good images exceed with
    probability max_false_alarm_rate, extrapolated; looks at good images alone), which stands in for the others where no
    validation image is defective. score: "max" pixel of the map, or "top_mean", the mean of its highest top_fraction of
    pixels; where slices are scored, as classification does with eval.tiling=slices, the highest slice, or the mean of
    the top_slices highest. smoothing_px: sigma of the Gaussian that smooths the map before, 0 = off.
    """

    calibration: Literal["f1", "false_alarm_rate", "expected_cost", "normals"] = "f1"
    max_false_alarm_rate: float = 0.01
    fp_cost: float = 1.0
    fn_cost: float = 20.0
    score: Literal["max", "top_mean"] = "max"
    top_fraction: float = 0.001
    top_slices: int = 3
    smoothing_px: float = 0.0

    def __post_init__(self) -> None:
        check_choices("verdict", self)
        rate = "max_false_alarm_rate"
        require("verdict", self, rate, lambda x: 0 <= x <= 1, "lie in [0, 1]; 0.01 allows one in a hundred")
        if self.calibration == "normals":
            require("verdict", self, rate, lambda x: 0 < x < 1, "lie between 0 and 1 for calibration=normals")
        ratio = "be positive and finite; only the ratio of the two costs matters"
        require("verdict", self, "fp_cost fn_cost", lambda x: 0 < x < math.inf, ratio)
        share = "lie in (0, 1]; 0.001 takes the 262 highest of 512x512 pixels"
        require("verdict", self, "top_fraction", lambda x: 0 < x <= 1, share)
        require("verdict", self, "top_slices", lambda x: x >= 1, "be at least 1")
        sigma = "be 0 (off) or a positive, finite sigma in pixels"
        require("verdict", self, "smoothing_px", lambda x: 0 <= x < math.inf, sigma)

"""Types that all layers share.

Axes in shapes and annotations: ``b`` examples of a batch (slices), ``n`` slices of one image,
``h`` rows, ``w`` columns, ``c`` channels. Images are uint8 in [0, 255], masks bool (True = defect).
Labels: 1 = defective, 0 = defect-free; for slices also -1 = neither (too little of the defect to count).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np


@dataclass(frozen=True, slots=True)
class Ellipse:
    """An ellipse in DAGM's convention: semi-axes in px, angle in rad, 1-based centre (x = column, y = row)."""

    semi_a: float
    semi_b: float
    angle_rad: float
    center_x: float
    center_y: float

    def rasterise(self, shape: tuple[int, int]) -> np.ndarray:
        """The filled ellipse as bool [h w], clipped at the border.

        For the 0-based pixel (c, r): dx = c + 1 - x, dy = r + 1 - y, u = dx cos t + dy sin t, v = -dx sin t + dy cos t;
        inside where (u/a)^2 + (v/b)^2 <= 1. With this formula in float64 the official masks come out pixel for pixel.
        """
        mask = np.zeros(shape, bool)
        reach = math.ceil(max(self.semi_a, self.semi_b)) + 2
        rows, cols = (
            slice(max(math.floor(center) - reach, 0), max(math.ceil(center) + reach + 1, 0))
            for center in (self.center_y - 1, self.center_x - 1)
        )
        dy = np.arange(shape[0])[rows, None] + 1 - self.center_y
        dx = np.arange(shape[1])[None, cols] + 1 - self.center_x
        cos, sin = math.cos(self.angle_rad), math.sin(self.angle_rad)
        u, v = dx * cos + dy * sin, -dx * sin + dy * cos
        mask[rows, cols] = (u / self.semi_a) ** 2 + (v / self.semi_b) ** 2 <= 1
        return mask


@dataclass(frozen=True, slots=True)
class Drawn:
    """A procedural image, determined by these numbers and the sample's label."""

    seed: int
    class_id: int
    index: int


@dataclass(frozen=True, slots=True)
class Photo:
    """A file of the user's own: any size, 8- or 16-bit, grey or colour.

    white: the value of a 16-bit file that becomes 255, as cameras of 10, 12 or 14 bits fill a part of 16; None until
    `build_cache` has looked for it.
    """

    path: Path
    white: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """Image and mask in a prepared TFDS set: number ``index`` of ``split``, whose shards lie in ``folder``."""

    folder: Path
    split: Literal["train", "test"]
    index: int


class Box(NamedTuple):
    """A rectangle around a defect: px from the image's left and upper edges, right and bottom excluded."""

    kind: str
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One source image. ``image_id`` is unique in a manifest.

    mask: None for defect-free images, and for defective ones without a marked defect; several masks are one together.
    kind: the name of the defect's kind, empty where it has none. boxes: around its defects, where they are given.
    """

    image_id: str
    class_id: int
    label: Literal[0, 1]
    half: Literal["train", "test"] | None
    image: Path | Drawn | Photo | Stored
    mask: Path | Ellipse | Drawn | Photo | tuple[Photo, ...] | Stored | None
    kind: str = ""
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """A file under the data root that is not used, and why; leaks: it copies an image of the other half."""

    what: str
    reason: str
    leaks: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """All source images of a run in a fixed order, the files left out, and one line about the source."""

    samples: tuple[Sample, ...]
    skipped: tuple[Skip, ...]
    description: str


def at_least_float32(x: Any) -> Any:
    """The array in float32, or in its own precision if that is finer: sums and losses need no less."""
    return x.astype(np.promote_types(x.dtype, np.float32))


# Precision of the convolutions; parameters, statistics and losses are float32. float64, for slow reference runs, is
# the precision of everything and needs JAX_ENABLE_X64=1 in the environment.
ComputeDtype = Literal["float32", "bfloat16", "float64"]


@dataclass(frozen=True, slots=True, eq=False)
class Verdict:
    """The prediction for one image.

    score: higher is more defective; defective: score >= threshold. map: float32 [h w], the score of each pixel, on the
    scale of the image's score; mask: bool [h w], map >= pixel threshold. model_id: 12 hex digits that change with the
    weights, the configuration and the thresholds.
    """

    defective: bool
    score: float
    map: np.ndarray
    mask: np.ndarray
    threshold: float
    model_id: str


# An image and its mask: uint8 [h w] and bool [h w].
Pixels = tuple[np.ndarray, np.ndarray]

# Limit of the hardest test images in the gallery of a report.
MAX_GALLERY_ITEMS = 8


@dataclass(frozen=True, slots=True, eq=False)
class GalleryItem:
    """One image of a gallery: uint8 [h w], map float32 [h w], true mask bool [h w], which may be empty.

    title: lines of at most some 35 characters, a column's width. correct: where False, the frame is red.
    """

    image: np.ndarray
    map: np.ndarray
    mask: np.ndarray
    title: str
    correct: bool


class NetworkOutput(NamedTuple):
    """The output of a network for a batch of slices; a pytree of float32 arrays.

    logits: ``[b h w d]``, of the full-resolution stage. side_logits: of coarser stages, up-sampled to the input's
    size, ``[b h w d]`` each; empty without deep supervision. class_logits: (no defect, defect) before their maxima over
    the slice are taken, ``[b h/16 w/16 2]``; None without a classification-guided module.
    """

    logits: Any
    side_logits: tuple[Any, ...] = ()
    class_logits: Any = None


class Batch(TypedDict):
    """A batch of slices, as the grain pipeline yields it.

    image: uint8 [b h w 1]; mask: uint8 {0, 1} [b h w 1]; label: int32 {1, 0, -1} [b];
    valid: bool [b], False for padding; image_index: int32 [b], the sample's place in the manifest; inside: bool
    [b h w 1], False beyond the image, only of sets with images that are smaller than a slice.
    """

    image: np.ndarray
    mask: np.ndarray
    label: np.ndarray
    valid: np.ndarray
    image_index: np.ndarray
    inside: NotRequired[np.ndarray]


# (height, width) of every image of DAGM 2007.
DAGM_SHAPE = (512, 512)
# Limit of an image's pixels: 64 Mpx.
MAX_PIXELS = 64 * 1024 * 1024

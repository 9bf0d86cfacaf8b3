"""A drawn image of any class: which texture and which defect belong to it, the random stream, the weak mask.

Every random number comes from (seed, class, index, defective), so an image is the same in any process and in
any order. What the images of one class share (the stripes of class 8) comes from (seed, class) alone.
Lengths are in px whatever the image size, as if a smaller image were a crop. A further class is a module with a
texture function and a defect function, and one line of the registry below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dagm_jax.data.procedural import (
    class_01,
    class_02,
    class_03,
    class_04,
    class_05,
    class_06,
    class_07,
    class_08,
    class_09,
    class_10,
)
from dagm_jax.data.procedural.relief import keep_frame
from dagm_jax.types import Ellipse


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to draw a class.

    texture(rng, seed, size_px) -> float32 [h w], free of defects;
    defect(rng, clean) -> (damaged copy of clean, ellipse that holds every pixel changed);
    framed: whether the texture has a dark frame, which no defect may cross;
    stretched: whether the texture spans 0 to 255, as each real image does, so that no extreme tells of a defect.
    """

    texture: Callable[[np.random.Generator, int, int], np.ndarray]
    defect: Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, Ellipse]]
    framed: bool = False
    stretched: bool = True


_RECIPES: dict[int, _Recipe] = {
    1: _Recipe(class_01.texture, class_01.defect, stretched=False),
    2: _Recipe(class_02.texture, class_02.defect),
    3: _Recipe(class_03.texture, class_03.defect),
    4: _Recipe(class_04.texture, class_04.defect, framed=True),
    5: _Recipe(class_05.texture, class_05.defect),
    6: _Recipe(class_06.texture, class_06.defect),
    7: _Recipe(class_07.texture, class_07.defect, framed=True),
    8: _Recipe(class_08.texture, class_08.defect, stretched=False),
    9: _Recipe(class_09.texture, class_09.defect),
    10: _Recipe(class_10.texture, class_10.defect, framed=True),
}
CLASSES: tuple[int, ...] = tuple(_RECIPES)
# Raised when any class is drawn otherwise than before, so that images kept from then are not taken for these.
VERSION = 2


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """One drawn image: image uint8 [h w], mask bool [h w], and the ellipse that the mask fills or None.

    twin: the same image without its defect.
    """

    image: np.ndarray
    mask: np.ndarray
    ellipse: Ellipse | None
    twin: np.ndarray


def draw(class_id: int, index: int, *, seed: int, defective: bool, size_px: int = 512) -> Drawing:
    """One square image of at least 128 px with its weak mask, a filled ellipse that holds the whole defect.

    The same arguments give the same pixels. A good and a defective image of one index have unrelated
    textures, so that no defective image has its clean twin among the good ones.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, class_id, index, int(defective)]))
    recipe = _RECIPES[class_id]
    clean = recipe.texture(rng, seed, size_px)
    if recipe.stretched:
        flat = clean.reshape(-1)
        flat[flat.argmin()], flat[flat.argmax()] = 0, 255
    twin = _to_uint8(clean)
    if not defective:
        return Drawing(twin, np.zeros(twin.shape, bool), None, twin)
    damaged, ellipse = recipe.defect(rng, clean)
    if recipe.framed:
        keep_frame(damaged, clean)
    return Drawing(_to_uint8(damaged), ellipse.rasterise(twin.shape), ellipse, twin)


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """The float image [h w] rounded and clipped to uint8."""
    return image.round().clip(0, 255).astype(np.uint8)

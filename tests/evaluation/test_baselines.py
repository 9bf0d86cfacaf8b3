"""The score without training, on textures made here and on real images where ``DAGM_ROOT`` names them."""

from __future__ import annotations

import numpy as np
import pytest

from dagm_jax.evaluation.baselines import local_energy_score


def _texture(seed: int) -> np.ndarray:
    """Grey noise, uint8 [256 256]."""
    return np.random.default_rng(seed).normal(120, 15, (256, 256)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["wiped out", "scratch"])
def test_both_kinds_of_defect_score_higher(kind: str) -> None:
    """Would catch: a one-sided score: a patch without texture and a line on it must both stand out."""
    defective = [_texture(seed) for seed in range(5, 10)]
    for image in defective:
        if kind == "wiped out":
            image[60:90, 100:140] = 120
        else:
            image[80, 50:90], image[81, 50:90] = 0, 255
    highest_good = max(local_energy_score(_texture(seed)) for seed in range(5))
    assert min(local_energy_score(image) for image in defective) > highest_good + 0.5


def test_score_by_hand() -> None:
    """Would catch: differences wrapping round in uint8, and a wrong window or offset in the logarithm."""
    assert local_energy_score(np.full((64, 64), 200, np.uint8)) == 0.0
    image = np.zeros((64, 64), np.uint8)
    image[:, 32:] = 200
    # One column of squared differences 200² of the 15 in a window; the median level is that of flat grey, 0.
    assert local_energy_score(image) == pytest.approx(np.log1p(200**2 / 15), rel=1e-5)


def test_score_follows_neither_brightness_nor_rotation() -> None:
    """Would catch: a score of brightness, or of one direction; moves and offsets change little."""
    image = _texture(0)
    image[60:90, 100:140] = 120
    score = local_energy_score(image)
    moved = [np.rot90(image, k)[:, ::step] for k in range(4) for step in (1, -1)]
    # The neighbours are left and upper ones: a move shifts the energies by one pixel.
    scores = [local_energy_score(np.ascontiguousarray(view)) for view in moved]
    assert scores == pytest.approx([score] * 8, rel=0.05)
    assert local_energy_score((image // 2 + 20).astype(np.uint8)) == pytest.approx(
        local_energy_score(image // 2), rel=1e-5
    )

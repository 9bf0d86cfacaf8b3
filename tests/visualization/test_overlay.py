"""A score map over its image, as arrays: where the tint lies, what is outlined, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from dagm_jax.visualization.overlay import (
    PREDICTED_LINE,
    STRONGEST_TINT,
    TRUE_LINE,
    boxes_of,
    draw_layers,
    draw_overlay,
)


def opacities(score_map: np.ndarray, threshold: float) -> np.ndarray:
    """The layer's opacity where no line is."""
    layer = draw_layers(np.zeros(score_map.shape, np.uint8), score_map, threshold)[1]
    lined = np.all(layer == (*PREDICTED_LINE, 255), axis=-1)
    return np.where(lined, -1, layer[..., 3].astype(int))


def test_overlay_shows_where_the_map_is_high() -> None:
    """Would catch: an overlay of another image's map, tinted where nothing is, without an outline."""
    image = np.full((20, 30), 120, np.uint8)
    score_map = np.zeros((20, 30), np.float32)
    score_map[4:14, 8:22] = 0.9
    picture = draw_overlay(*draw_layers(image, score_map, 0.5))
    assert picture.shape == (20, 30, 3) and picture.dtype == np.uint8
    assert (picture[score_map == 0] == 120).all()
    assert tuple(picture[4, 8]) == tuple(picture[13, 21]) == PREDICTED_LINE
    red, _, blue = map(int, picture[9, 15])
    assert red > 150 and blue < 80


def test_opacity_follows_the_pixel_threshold() -> None:
    """Would catch: a map painted on the scale of probabilities where its threshold is 0.05, and nothing is seen."""
    score_map = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (50, 1))
    for threshold in (0.05, 0.5, 0.9):
        opacity = opacities(score_map, threshold)[25]
        line = np.flatnonzero(opacity == -1)
        assert line.tolist() == [np.searchsorted(score_map[0], threshold)]
        assert abs(opacity[line[0] - 1] - 255 * STRONGEST_TINT * 0.5**1.5) <= 16
        tinted = np.delete(opacity, line)
        assert np.all(np.diff(tinted) >= 0) and tinted[0] == 0 and tinted[-1] >= 255 * STRONGEST_TINT - 16


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0, -1.0])
def test_thresholds_outside_the_map_give_a_plain_scale(threshold: float) -> None:
    """Would catch: an interpolation over anchors that do not rise, whose tints mean nothing."""
    opacity = opacities(np.tile(np.array([0.0, 0.25, 0.5, 0.9], np.float32), (4, 1)), threshold)[1]
    assert np.all(np.diff(opacity[opacity >= 0]) > 0)


def test_outlines_of_prediction_and_truth() -> None:
    """Would catch: outlines swapped, filled, drawn along the image's own edge, or lost at high resolution."""
    mask = np.zeros((20, 20), bool)
    mask[:8, 5:15] = True
    nothing = np.zeros(mask.shape, np.float32)
    layer = draw_layers(np.zeros(mask.shape, np.uint8), nothing, 0.5, mask)[1]
    lined = layer[..., 3] > 0
    assert not lined[0:7, 6:14].any(), "the inside stays, up to the image's edge"
    assert lined[7, 5:15].all() and lined[:8, 5].all() and lined[:8, 14].all()
    assert lined.sum() == 10 + 7 + 7
    assert tuple(layer[7, 9]) == (*TRUE_LINE, 255)
    whole = draw_layers(np.zeros(mask.shape, np.uint8), nothing, 0.5, np.ones_like(mask))[1]
    assert not whole[..., 3].any(), "a mask of everything bounds nothing"
    large = np.kron(mask, np.ones((30, 30), bool))
    layer = draw_layers(np.zeros(large.shape, np.uint8), np.zeros(large.shape, np.float32), 0.5, large)[1]
    assert np.count_nonzero(layer[:, 300, 3]) == 2


def test_one_pixel_is_seen_when_shrunk() -> None:
    """Would catch: a map shrunk by its mean, in which a small defect fades away; rows and columns exchanged."""
    score_map = np.zeros((1000, 500), np.float32)
    score_map[901, 107] = 1
    image, layer = draw_layers(np.full(score_map.shape, 100, np.uint8), score_map, 0.5, side_px=100)
    assert image.shape == (100, 50) and np.argwhere(layer[..., 3]).tolist() == [[90, 10]]


def test_sizes_are_compared() -> None:
    """Would catch: a map of another size stretched over its image, with the defect somewhere else."""
    image, score_map = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.float32)
    with pytest.raises(ValueError, match="the map"):
        draw_layers(image, score_map[:4], 0.5)
    with pytest.raises(ValueError, match="the mask"):
        draw_layers(image, score_map, 0.5, np.zeros((4, 8), bool))


def test_boxes_of_a_mask() -> None:
    """Would catch: x and y exchanged, an end for a size, a diagonal scratch in as many boxes as pixels."""
    mask = np.zeros((10, 20), bool)
    mask[1, 2] = mask[2, 3] = True
    mask[5:9, 10:17] = True
    assert boxes_of(mask) == [(2, 1, 2, 2), (10, 5, 7, 4)]
    assert boxes_of(np.zeros((3, 3), bool)) == []

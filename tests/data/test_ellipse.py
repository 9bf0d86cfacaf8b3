"""The weak label's shape against hand values; `test_verify` holds it against the official masks."""

import numpy as np

from dagm_jax.types import Ellipse


def test_hand_values() -> None:
    """Catches a 0-based centre, swapped axes, or a border pixel left out."""
    mask = Ellipse(2, 1, 0.0, 3, 2).rasterise((5, 6))
    assert mask.dtype == bool
    assert mask.astype(int).tolist() == [
        [0, 0, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


def test_angle_turns_from_columns_to_rows() -> None:
    """Catches an angle of the wrong sign: at 45 degrees the long axis runs to the lower right."""
    mask = Ellipse(6, 1, np.pi / 4, 8, 8).rasterise((15, 15))
    assert mask[3, 3] and mask[11, 11]
    assert not mask[3, 11] and not mask[11, 3]


def test_window_changes_nothing() -> None:
    """Catches a bounding box that cuts the ellipse, also at and beyond the border."""
    rng = np.random.default_rng(0)
    rows, cols = np.mgrid[:40, :60]
    for _ in range(200):
        e = Ellipse(*rng.uniform(0.5, 40, 2), rng.uniform(-4, 4), rng.uniform(-30, 90), rng.uniform(-30, 70))
        dx, dy = cols + 1 - e.center_x, rows + 1 - e.center_y
        u = dx * np.cos(e.angle_rad) + dy * np.sin(e.angle_rad)
        v = -dx * np.sin(e.angle_rad) + dy * np.cos(e.angle_rad)
        inside = (u / e.semi_a) ** 2 + (v / e.semi_b) ** 2 <= 1
        np.testing.assert_array_equal(e.rasterise((40, 60)), inside)

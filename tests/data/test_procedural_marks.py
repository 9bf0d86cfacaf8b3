"""The tools that place a defect: the ellipse that encloses it, the arc, the shares that end where they say."""

import math

import numpy as np
import pytest

from dagm_jax.data.formats.ellipse import rasterise
from dagm_jax.data.procedural import marks
from dagm_jax.types import Ellipse


@pytest.mark.parametrize("pixel", [(50, 90), (50, 10), (20, 50), (80, 50), (71, 71)])
def test_enclosing_ellipse_just_holds_the_touched_pixel(pixel: tuple[int, int]) -> None:
    """Catches a centre off by one, swapped axes or a flipped angle: the pixel would be missed, or not just held."""
    wanted = Ellipse(8, 4, 0.4, 51, 51)  # 1-based: about the pixel (50, 50)
    touched = np.zeros((101, 101), bool)
    touched[pixel] = True
    window = (slice(0, 101), slice(0, 101))
    grown = marks.enclosing(wanted, touched, window)
    assert rasterise(grown, (101, 101))[pixel]
    tighter = Ellipse(0.975 * grown.semi_a, 0.975 * grown.semi_b, 0.4, 51, 51)
    assert not rasterise(tighter, (101, 101))[pixel]
    assert grown.semi_a / grown.semi_b == pytest.approx(2)


def test_enclosing_leaves_room_as_wanted() -> None:
    """Catches an ellipse that shrinks to the defect: weak labels are loose."""
    wanted = Ellipse(30, 20, 0.4, 51, 51)
    touched = np.zeros((101, 101), bool)
    touched[50, 55] = True
    grown = marks.enclosing(wanted, touched, (slice(0, 101), slice(0, 101)))
    assert 1 <= grown.semi_a / wanted.semi_a < 1.05


@pytest.mark.parametrize("sag", [-30.0, -6.0, 6.0, 30.0])
def test_arc_goes_through_its_ends_and_its_apex_and_ends_there(sag: float) -> None:
    """Catches a bow to the wrong side, a wrong radius, and the far half of the circle as a second defect."""
    u = np.array([[-40.0, 0.0, 40.0]], np.float32)
    v = np.array([[-sag / 2, sag / 2, -sag / 2]], np.float32)
    np.testing.assert_allclose(marks.off_arc(u, v, 40.0, sag), 0, atol=0.01)
    radius = (40**2 + sag**2) / (2 * abs(sag))
    opposite = np.float32(math.copysign(1, sag) * (abs(sag) / 2 - 2 * radius))
    assert np.isinf(marks.off_arc(np.zeros((1, 1), np.float32), np.full((1, 1), opposite), 40.0, sag))


def test_shares_end_where_they_say() -> None:
    """Catches soft edges with tails, which an ellipse cannot enclose."""
    distance = np.array([-3.0, -1.0, 0.0, 0.5, 1.0, 2.9, 3.0, 9.0], np.float32)
    np.testing.assert_allclose(marks.ramp(distance, 2.0), [0, 0, 0, 0.25, 0.5, 1, 1, 1])
    bump = marks.bump(distance, 3.0)
    assert bump[2] == 1 and bump[0] == bump[6] == bump[7] == 0
    assert 0 < bump[5] < bump[4] < bump[3] < 1 and bump[1] == bump[4]


def test_semi_axes_have_the_given_quantiles() -> None:
    """Catches a copula that bends the distributions, a correlation of the wrong sign, and b larger than a."""
    rng = np.random.default_rng(0)
    wanted_a, wanted_b = (20, 25, 35, 45, 55, 80, 100), (10, 12, 18, 22, 27, 36, 46)
    a, b = np.array([marks.semi_axes(rng, wanted_a, wanted_b, rho=0.5) for _ in range(4000)]).T
    shares = (5, 25, 50, 75, 95)
    np.testing.assert_allclose(np.percentile(a, shares), wanted_a[1:-1], rtol=0.05)
    np.testing.assert_allclose(np.percentile(b, shares), wanted_b[1:-1], rtol=0.05)
    assert (b <= a).all()
    assert np.corrcoef(a, b)[0, 1] == pytest.approx(0.47, abs=0.08)

"""Initial weights: their distribution against scipy's, and that none is compiled for."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import scipy.stats

from dagm_jax.models.initial import Initializer, he_normal, lecun_normal

SHAPE = (3, 3, 40, 50)


@pytest.mark.parametrize(("init", "gain"), [(lecun_normal, 1.0), (he_normal, 2.0)])
def test_values_are_a_cut_normal_distribution_of_the_variance(init: Initializer, gain: float) -> None:
    """Catches a fan-in of the wrong dimensions, gains that are exchanged, a variance that the cut has shrunk, tails or
    clipped values."""
    drawn = np.asarray(init(jax.random.key(0), SHAPE, np.float32))
    values = drawn.ravel()
    assert drawn.dtype == np.float32
    std = np.sqrt(gain / (3 * 3 * 40))
    assert values.std() == pytest.approx(std, rel=0.02) and abs(values.mean()) < 0.02 * std
    cut = std / scipy.stats.truncnorm(-2, 2).std()
    assert scipy.stats.kstest(values / cut, scipy.stats.truncnorm(-2, 2).cdf).pvalue > 0.01


def test_draws_depend_on_the_key_alone_also_under_jit() -> None:
    """Catches a global generator, a key that is not used, and one draw for a program that is called twice."""
    first, again, other = (np.asarray(he_normal(jax.random.key(k), (3, 4, 5), np.float32)) for k in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)
    draw = jax.jit(lambda key: he_normal(key, (3, 4, 5), np.float32))
    np.testing.assert_array_equal(draw(jax.random.key(3)), first)
    np.testing.assert_array_equal(draw(jax.random.key(4)), other)


def test_a_new_shape_compiles_nothing(compilations: list[str]) -> None:
    """Would catch: a program for each shape of a kernel, seconds of every start."""
    key = jax.random.key(0)
    he_normal(key, (5, 7), np.float32)
    compilations.clear()
    he_normal(key, (3, 3, 11, 13), np.float32)
    assert not compilations
    jax.random.normal(key, (3, 11, 13))
    assert compilations, "the listener hears what is compiled"

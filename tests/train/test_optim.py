"""The learning rate by hand, and AdamW with clipping against a few lines of numpy."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dagm_jax.train.optim import OptimConfig, make_optimizer
from dagm_jax.train.schedule import learning_rate
from dagm_jax.train.step import NEVER

CONFIG = OptimConfig(learning_rate=0.1, warmup_steps=4)


def rate(step: int, begin: int = NEVER, end: int = NEVER, config: OptimConfig = CONFIG) -> float:
    return float(learning_rate(config, jnp.int32(step), jnp.array([begin, end], jnp.int32)))


def test_warm_up_and_plateau() -> None:
    """Would catch: a first step of rate 0, a warm-up one step too long, a decay before it is asked for, and a division
    by zero without warm-up."""
    expected = [0.02, 0.04, 0.06, 0.08, 0.1, 0.1]
    assert [rate(step) for step in range(6)] == pytest.approx(expected)
    assert (
        rate(100_000) == rate(0, config=OptimConfig(learning_rate=0.1, warmup_steps=0)) == pytest.approx(0.1)
    )


def test_cool_down_is_a_half_cosine_to_one_percent() -> None:
    """Would catch: a jump at the begin, a linear fall, a fall to zero, and a rise after the end."""
    assert rate(9, 10, 20) == rate(10, 10, 20) == pytest.approx(0.1)
    assert rate(15, 10, 20) == pytest.approx(0.1 * (0.01 + 0.99 / 2))
    quarter = 0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2
    assert rate(25, 20, 40) == pytest.approx(0.1 * quarter)
    assert rate(20, 10, 20) == rate(35, 10, 20) == pytest.approx(0.001)
    falling = [rate(step, 10, 20) for step in range(10, 21)]
    assert falling == sorted(falling, reverse=True)


def test_cool_down_of_no_length_and_during_warm_up() -> None:
    """Would catch: 0/0 where training ends on the step that asks for it, and a warm-up that is forgotten."""
    assert math.isfinite(rate(10, 10, 10))
    assert rate(1, 1, 100) == pytest.approx(0.04)


def adamw(params: list[np.ndarray], gradients: list[list[np.ndarray]], config: OptimConfig) -> list[Any]:
    """The directions of the last of several steps with constant parameters (Loshchilov & Hutter 2019), float64."""
    m, v = [0.0 * p for p in params], [0.0 * p for p in params]
    for gradient in gradients:
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradient))
        clipped = [g * min(1.0, config.clip_norm / norm) for g in gradient]
        m = [0.9 * a + 0.1 * g for a, g in zip(m, clipped, strict=True)]
        v = [0.999 * a + 0.001 * g**2 for a, g in zip(v, clipped, strict=True)]
    t = len(gradients)
    adam = [a / (1 - 0.9**t) / (np.sqrt(b / (1 - 0.999**t)) + 1e-8) for a, b in zip(m, v, strict=True)]
    return [d + config.weight_decay * p * (p.ndim > 1) for d, p in zip(adam, params, strict=True)]


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_directions_by_hand(weight_decay: float) -> None:
    """Would catch: clipping per array or after Adam (which hides it), decay of vectors, decay before the moments."""
    rng = np.random.default_rng(0)
    params = [rng.normal(0, 1, shape) for shape in [(3, 4), (4,), (2, 2, 3, 3)]]
    # Norms below and far above the limit: Adam alone would not show one clipped step.
    gradients = [[rng.normal(0, scale, p.shape) for p in params] for scale in (0.05, 100.0, 0.02)]
    config = OptimConfig("adamw", clip_norm=0.7, weight_decay=weight_decay)
    optimizer = make_optimizer(config)
    update, tree = jax.jit(optimizer.update), [jnp.asarray(p, jnp.float32) for p in params]
    state = optimizer.init(tree)
    for gradient in gradients:
        directions, state = update([jnp.asarray(g, jnp.float32) for g in gradient], state, tree)
    for got, expected in zip(directions, adamw(params, gradients, config), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-6)


def test_muon_makes_kernels_orthogonal() -> None:
    """Would catch: a kernel that is cut into matrices along other axes, directions of another size than Adam's, decay
    of vectors, clipping left out, and vectors that Adam does not move."""
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 8), "transposed": (16, 2, 2, 3), "bias": (5,)}
    params = {name: jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for name, shape in shapes.items()}
    gradient = {name: rng.normal(0, 1, shape) for name, shape in shapes.items()}
    optimizer = make_optimizer(OptimConfig(weight_decay=0.3))
    update = jax.jit(optimizer.update)
    found, _ = update(jax.tree.map(jnp.float32, gradient), optimizer.init(params), params)
    for name, matrix in (("conv", (36, 8)), ("transposed", (16, 12))):
        left, _, right = np.linalg.svd(gradient[name].reshape(matrix), full_matrices=False)
        direction = np.asarray(found[name] - 0.3 * params[name]).reshape(matrix)
        # Five steps of Newton and Schulz leave singular values around 1; the scale is Liu et al. 2025's.
        singular = np.diag(left.T @ direction @ right.T) / (0.2 * math.sqrt(max(matrix)))
        assert ((singular > 0.6) & (singular < 1.3)).all()
        rest = direction - (left * np.diag(left.T @ direction @ right.T)) @ right
        assert np.abs(rest).max() < 1e-3 * np.abs(direction).max()
    # Adam's first step with Nesterov's momentum, b = 0.9: b / (1 + b) + 1 times the sign.
    np.testing.assert_allclose(found["bias"], np.sign(gradient["bias"]) * (1 + 0.9 / 1.9), rtol=1e-3)

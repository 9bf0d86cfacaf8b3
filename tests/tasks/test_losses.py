"""The losses against values by hand, numpy in float64 and scikit-learn, one number per example."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss

from dagm_jax.tasks.losses import binary_cross_entropy, soft_dice
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.types import UserError

LOSSES = [binary_cross_entropy, soft_dice]
SHAPE = (3, 4, 5, 1)

Loss = Callable[[jax.Array, jax.Array], jax.Array]


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, SHAPE).astype(np.float32)


@pytest.fixture
def targets() -> np.ndarray:
    return (np.random.default_rng(1).random(SHAPE) < 0.4).astype(np.float32)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def test_cross_entropy_by_hand() -> None:
    """Catches a sum instead of a mean, a swapped sign, and base 2."""
    logits = jnp.array([0.0, math.log(3)]).reshape(1, 1, 2, 1)  # probabilities 1/2 and 3/4
    for targets, expected in (
        ([0.0, 1.0], (math.log(2) + math.log(4 / 3)) / 2),
        ([1.0, 0.0], (math.log(2) + math.log(4)) / 2),
    ):
        got = binary_cross_entropy(logits, jnp.array(targets).reshape(1, 1, 2, 1))
        np.testing.assert_allclose(got, [expected], rtol=1e-6)


def test_cross_entropy_against_scikit_learn(logits: np.ndarray, targets: np.ndarray) -> None:
    """Catches a mean over the batch, or over the pixels of all examples together."""
    expected = [
        log_loss(t.ravel(), sigmoid(z).ravel(), labels=[0, 1]) for z, t in zip(logits, targets, strict=True)
    ]
    np.testing.assert_allclose(binary_cross_entropy(logits, targets), expected, rtol=1e-5)


def test_soft_dice_by_hand() -> None:
    """Catches a missing factor 2, squares in the denominator, and smoothing on one side of the fraction."""
    logits = jnp.array([0.0, math.log(3)]).reshape(1, 1, 2, 1)
    targets = jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1)
    expected = 1 - (2 * 0.75 + 1) / (1.25 + 1 + 1)
    np.testing.assert_allclose(soft_dice(logits, targets), [expected], rtol=1e-6)


def test_soft_dice_against_float64(logits: np.ndarray, targets: np.ndarray) -> None:
    """Catches sums over the batch: Dice of a batch is not the mean of its examples' Dice."""
    p = sigmoid(logits)
    overlap = (p * targets).sum((1, 2, 3))
    expected = 1 - (2 * overlap + 1) / (p.sum((1, 2, 3)) + targets.sum((1, 2, 3)) + 1)
    np.testing.assert_allclose(soft_dice(logits, targets), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_example_changes_its_own_loss_only(loss: Loss, logits: np.ndarray, targets: np.ndarray) -> None:
    """Catches examples that share a denominator: padding would then change the loss of the others."""
    before = np.asarray(loss(logits, targets))
    assert before.shape == (3,)
    logits[1] += 1
    after = np.asarray(loss(logits, targets))
    assert after[1] != before[1]
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("loss", LOSSES)
def test_empty_target(loss: Loss) -> None:
    """Catches 0/0 on defect-free slices, a loss that ignores them, and one that no prediction brings to 0."""
    empty = jnp.zeros((1, 8, 8, 1))
    values = [float(loss(jnp.full((1, 8, 8, 1), z), empty)[0]) for z in (4.0, 0.0, -4.0, -40.0)]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4
    assert values[-1] == pytest.approx(0, abs=1e-6)
    gradient = jax.grad(lambda z: loss(z, empty).sum())(jnp.zeros((1, 8, 8, 1)))
    assert (np.asarray(gradient) > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_extreme_logits_stay_finite(loss: Loss, logit: float, target: float) -> None:
    """Catches log(0) and exp(1e4): one sure mistake would turn every parameter into NaN."""
    z, t = jnp.full((1, 4, 4, 1), logit), jnp.full((1, 4, 4, 1), target)
    value, gradient = jax.value_and_grad(lambda z: loss(z, t).sum())(z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    is_right = (logit > 0) == (target > 0)
    limit = 1e4 if loss is binary_cross_entropy else 1 - 1 / 17
    assert float(value) == pytest.approx(0 if is_right else limit, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_input_gives_a_float32_loss(loss: Loss) -> None:
    """Catches a sum of many pixels in bfloat16, which keeps 8 bits."""
    rng = np.random.default_rng(2)
    z = jnp.asarray(rng.normal(0, 3, (2, 64, 64, 1))).astype(jnp.bfloat16)
    t = jnp.asarray(rng.random((2, 64, 64, 1)) < 0.4)
    got = loss(z, t.astype(jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, loss(z.astype(jnp.float32), t.astype(jnp.float32)))


def test_segmentation_weighs_both_terms(logits: np.ndarray, targets: np.ndarray) -> None:
    """Catches weights that are exchanged or unused, and a mask of integers that is not converted."""
    bce = np.asarray(binary_cross_entropy(logits, targets))
    dice = np.asarray(soft_dice(logits, targets))
    batch = {"mask": targets.astype(np.uint8)}
    got = SegmentationConfig(bce_weight=0.5, dice_weight=3.0).loss(logits, batch)
    np.testing.assert_allclose(got, 0.5 * bce + 3 * dice, rtol=1e-6)


def test_segmentation_map_and_decision(logits: np.ndarray) -> None:
    """Catches a map of logits, and a decision by the mean where one defect pixel must do."""
    task = SegmentationConfig()
    np.testing.assert_allclose(task.map(logits), sigmoid(logits), rtol=1e-5)
    logits[0], logits[1], logits[2] = -1, -1, -9
    logits[1, 2, 3] = 0.01
    assert np.asarray(task.slice_decision(logits)).tolist() == [False, True, False]


@pytest.mark.parametrize("weights", [(-1.0, 1.0), (1.0, -1.0), (0.0, 0.0)])
def test_wrong_weights_are_refused(weights: tuple[float, float]) -> None:
    """Catches a loss that is rewarded for mistakes, or is nothing at all."""
    with pytest.raises(UserError, match="not both 0"):
        SegmentationConfig(*weights)

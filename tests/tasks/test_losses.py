"""The losses against values by hand, numpy in float64, scikit-learn, scikit-image and PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import structural_similarity

from dagm_jax.tasks import losses
from dagm_jax.tasks.losses import binary_cross_entropy, focal, soft_dice, soft_iou

LOSSES = [binary_cross_entropy, soft_dice, focal, soft_iou]
SHAPE = (3, 4, 5, 1)
# Compiled, as in use: operation by operation each new shape takes seconds.
ssim, ssim_map = (jax.jit(function, static_argnums=2) for function in (losses.ssim, losses.ssim_map))
# The definition of Wang et al. 2004, as scikit-image has it.
AS_IN_THE_PAPER = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}

Loss = Callable[[jax.Array, jax.Array], jax.Array]
Similarity = Callable[[jax.Array, jax.Array, float], jax.Array]


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, SHAPE).astype(np.float32)


@pytest.fixture
def targets() -> np.ndarray:
    return (np.random.default_rng(1).random(SHAPE) < 0.4).astype(np.float32)


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def pair(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Blobs of several sizes and the same with noise, float32 in [0, 1]; rows and columns differ in texture."""
    rng = np.random.default_rng(3)
    x = sum(
        np.kron(
            rng.random((shape[0], -(-shape[1] // k), -(-shape[2] // (2 * k)), shape[3])),
            np.ones((1, k, 2 * k, 1)),
        )[:, : shape[1], : shape[2]]
        for k in (1, 4, 16)
    )
    y = x / 3 + rng.normal(0, 0.2, shape)
    return (x / 3).astype(np.float32), np.clip(y, 0, 1).astype(np.float32)


@pytest.mark.parametrize(
    ("loss", "targets", "expected"),
    [
        (binary_cross_entropy, [0, 1], (math.log(2) + math.log(4 / 3)) / 2),
        (binary_cross_entropy, [1, 0], (math.log(2) + math.log(4)) / 2),
        (focal, [0, 1], (0.25 * math.log(2) + 0.25**2 * math.log(4 / 3)) / 2),
        (focal, [1, 0], (0.25 * math.log(2) + 0.75**2 * math.log(4)) / 2),
        (soft_dice, [0, 1], 1 - (2 * 0.75 + 1) / (1.25 + 1 + 1)),
        (soft_iou, [0, 1], 1 - (0.75 + 1) / (1.25 + 1 - 0.75 + 1)),
    ],
)
def test_losses_by_hand(loss: Loss, targets: list[int], expected: float) -> None:
    """Would catch: a sum for a mean, a swapped sign, base 2, (1 - p_t) for p_t, a missing factor 2 of Dice, a union
    that counts the overlap twice, and smoothing on one side of the fraction.
    """
    logits = jnp.array([0.0, math.log(3)]).reshape(1, 1, 2, 1)  # probabilities 1/2 and 3/4
    np.testing.assert_allclose(
        loss(logits, jnp.array(targets, float).reshape(1, 1, 2, 1)), [expected], rtol=1e-6
    )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
def test_focal_against_float64(logits: np.ndarray, targets: np.ndarray, gamma: float) -> None:
    """Would catch: a gamma that is not used, and cancellation in 1 - p_t of confident pixels."""
    p_t = sigmoid(np.where(targets == 1, logits, -logits))
    expected = (-((1 - p_t) ** gamma) * np.log(p_t)).mean((1, 2, 3))
    np.testing.assert_allclose(focal(logits, targets, None, gamma), expected, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_without_limits(gamma: float) -> None:
    """Would catch: 0·∞ at sure pixels: p_t = 1 has an infinite gradient in 0**0.5, p_t = 0 in log."""
    z = jnp.array([-100.0, -100.0, 100.0, 100.0, 20.0]).reshape(5, 1, 1, 1)
    t = jnp.array([0.0, 1.0, 0.0, 1.0, 1.0]).reshape(5, 1, 1, 1)
    np.testing.assert_allclose(
        focal(z, t, None, gamma),
        [0, 100, 100, 0, math.exp(-20 * (gamma + 1))],  # 1 - p_t = -log p_t = exp(-20), to 9 digits
        rtol=1e-5,
        atol=1e-40,
    )
    gradient = jax.grad(lambda z: focal(z, t, None, gamma).sum())(z)
    slope = -(gamma + 1) * math.exp(-20 * (gamma + 1))
    np.testing.assert_allclose(gradient.ravel(), [0, -1, 1, 0, slope], rtol=1e-5, atol=1e-37)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.0, 1.0, 10.0, 1000.0]),
    st.sampled_from([0.0, 0.02, 0.5, 1.0]),
)
def test_losses_stay_in_their_range(seed: int, scale: float, share: float) -> None:
    """Would catch: a sign, a focal loss above cross-entropy, and Dice or IoU outside [0, 1) or in the wrong order.

    With the smoothing too, Dice's loss is at most IoU's.
    """
    rng = np.random.default_rng(seed)
    z = rng.normal(0, scale, (2, 8, 8, 1)).astype(np.float32)
    t = (rng.random((2, 8, 8, 1)) < share).astype(np.float32)
    bce, dice, focal_loss, iou = (np.asarray(loss(z, t)) for loss in LOSSES)
    assert (focal_loss >= 0).all() and (focal_loss <= bce * (1 + 1e-6)).all()
    assert (dice >= -1e-6).all() and (dice <= iou + 1e-6).all() and (iou < 1).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_one_example_changes_its_own_loss_only(loss: Loss, logits: np.ndarray, targets: np.ndarray) -> None:
    """Would catch: a mean or sums over the batch: padding would then change the loss of the others."""
    before = np.asarray(loss(logits, targets))
    assert before.shape == (3,)
    logits[1] += 1
    after = np.asarray(loss(logits, targets))
    assert after[1] != before[1]
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


def test_dice_of_a_good_slice_adds_a_share_of_its_pixels() -> None:
    """Would catch: one pixel added to a large good slice, a share added to one with a mask, or of pixels that do not
    count; a mask beyond the image that makes a slice defective; 0/0 where no pixel counts."""
    t = jnp.zeros((4, 64, 64, 1)).at[:2, 0, 0].set(1)
    valid = jnp.ones((4, 64, 64, 1), bool).at[1, :32].set(False).at[3].set(False)
    n = 64 * 64
    got = soft_dice(jnp.zeros(t.shape), t, valid)
    expected = [1 - 2 / (n / 2 + 2), n / 4 / (n / 4 + n / 2000), n / 2 / (n / 2 + n / 1000), 0]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_empty_target(loss: Loss) -> None:
    """Would catch: 0/0 on defect-free slices, a loss that ignores them, and one that no prediction brings to 0."""
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
    """Would catch: log(0) and exp(1e4): one sure mistake would turn every parameter into NaN."""
    z, t = jnp.full((1, 4, 4, 1), logit), jnp.full((1, 4, 4, 1), target)
    value, gradient = jax.value_and_grad(lambda z: loss(z, t).sum())(z)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    is_right = (logit > 0) == (target > 0)
    limit = 1e4 if loss in (binary_cross_entropy, focal) else 1 - 1 / 17
    assert float(value) == pytest.approx(0 if is_right else limit, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_input_gives_a_float32_loss(loss: Loss) -> None:
    """Would catch: a sum of many pixels in bfloat16, which keeps 8 bits."""
    rng = np.random.default_rng(2)
    z = jnp.asarray(rng.normal(0, 3, (2, 64, 64, 1))).astype(jnp.bfloat16)
    t = jnp.asarray(rng.random((2, 64, 64, 1)) < 0.4)
    got = loss(z, t.astype(jnp.bfloat16))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, loss(z.astype(jnp.float32), t.astype(jnp.float32)))


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_against_scikit_image(data_range: float, channels: int) -> None:
    """Would catch: another window, K1 and K2 exchanged, unbiased variances, another padding, a crop that is off by one,
    constants that do not follow ``data_range``, rows and columns or channels mixed, float32's loss."""
    x, y = (data_range * image for image in pair((3, 40, 23, channels)))
    means, maps = [], []
    for p, q in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        mean, full = structural_similarity(
            p, q, data_range=data_range, channel_axis=2, full=True, **AS_IN_THE_PAPER
        )
        means.append(mean)
        maps.append(full)
    np.testing.assert_allclose(ssim(x, y, data_range), means, atol=2e-6)
    np.testing.assert_allclose(ssim_map(x, y, data_range), maps, atol=2e-5)


def test_gradient_of_ssim_against_scikit_image() -> None:
    """Would catch: a transposed window that is shifted or loses its borders.

    scikit-image's is by the second image, and takes the filter for its own transpose, which it is not in the 5 px
    at each edge that are mirrored.
    """
    x, y = pair((1, 40, 23, 1))
    _, expected = structural_similarity(
        x[0, ..., 0].astype(np.float64),
        y[0, ..., 0].astype(np.float64),
        data_range=1.0,
        gradient=True,
        **AS_IN_THE_PAPER,
    )
    got = jax.grad(lambda y: ssim_map(x, y, 1.0).mean())(jnp.asarray(y))
    inner = np.s_[5:-5, 5:-5]
    np.testing.assert_allclose(got[0, ..., 0][inner], expected[inner], atol=1e-4 * np.abs(expected).max())


@pytest.mark.peer
def test_ssim_and_its_gradient_against_torch() -> None:
    """Would catch: another window, and gradients that lose the borders.

    The gradients are PyTorch's autograd of the whole, borders included, in float64.
    """
    torch = pytest.importorskip("torch", reason="the peer extra is not installed")
    peer = pytest.importorskip("pytorch_msssim", reason="the peer extra is not installed")
    x, y = pair((2, 192, 176, 2))
    p, q = (torch.tensor(v.transpose(0, 3, 1, 2), dtype=torch.float64) for v in (x, y))
    p.requires_grad_()
    expected = peer.ssim(p, q, data_range=1.0, size_average=False)
    expected.sum().backward()

    value, gradient = jax.jit(lambda x: (ssim(x, y, 1.0), jax.grad(lambda x: ssim(x, y, 1.0).sum())(x)))(x)
    np.testing.assert_allclose(value, expected.detach().numpy(), atol=2e-6)
    slopes = p.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, slopes, atol=1e-4 * np.abs(slopes).max())


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.float32, (2, 12, 13, 1), elements=st.floats(-1, 1, width=32)),
    hnp.arrays(np.float32, (2, 12, 13, 1), elements=st.floats(-1, 1, width=32)),
    st.sampled_from([0.01, 1.0, 2.0]),
)
def test_ssim_is_bounded_symmetric_and_1_for_equal_images(
    x: np.ndarray, y: np.ndarray, data_range: float
) -> None:
    """Would catch: rounding that takes a variance below 0 and SSIM above 1, and x and y treated differently."""
    xy, yx = np.asarray(ssim_map(x, y, data_range)), np.asarray(ssim_map(y, x, data_range))
    assert xy.shape == x.shape
    assert (xy >= -1.001).all() and (xy <= 1).all()
    np.testing.assert_array_equal(xy, yx)
    np.testing.assert_array_equal(ssim_map(x, x, data_range), 1)


def test_ssim_far_from_zero_is_bounded() -> None:
    """Would catch: variances that rounding takes below 0 (here larger than they are): SSIM would be of any size."""
    x, y = (100 + 0.01 * image for image in pair((1, 40, 40, 1)))
    values, gradient = jax.value_and_grad(lambda x: (ssim_map(x, y, 1.0) ** 2).sum())(x)
    assert np.abs(ssim_map(x, y, 1.0)).max() <= 1
    assert np.isfinite(values) and np.isfinite(gradient).all()


EXTREMES = {
    "black": (0.0, 0.0),
    "white": (1.0, 1.0),
    "black and white": (0.0, 1.0),
    "0.1, which float32 rounds": (0.1, 0.1),
    "texture and grey": (None, 0.5),
    "equal": (None, None),
}


@pytest.mark.parametrize("extreme", EXTREMES)
def test_gradients_of_ssim_stay_finite(extreme: str) -> None:
    """Would catch: 0/0 on flat patches."""
    texture = pair((2, 48, 48, 1))[0]
    x, y = (jnp.asarray(texture if v is None else np.full_like(texture, v)) for v in EXTREMES[extreme])
    value, gradients = jax.value_and_grad(lambda x, y: (1 - ssim(x, y, 1.0)).sum(), argnums=(0, 1))(x, y)
    assert np.isfinite(value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("similarity", [ssim, ssim_map])
def test_bfloat16_images_are_compared_in_float32(similarity: Similarity) -> None:
    """Would catch: E[x²] - E[x]² in 8 bits, where it is nothing but rounding."""
    x, y = (jnp.asarray(image).astype(jnp.bfloat16) for image in pair((2, 48, 48, 1)))
    got = similarity(x, y, 1.0)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, similarity(x.astype(jnp.float32), y.astype(jnp.float32), 1.0))

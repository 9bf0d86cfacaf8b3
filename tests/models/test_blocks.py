"""Each building block against an independent oracle: XLA's general form, a formula by hand, or numpy in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import second_writing
from flax import nnx
from random_weights import numbers
from second_writing import pool

from dagm_jax.models.blocks import (
    BatchNorm,
    Block,
    Conv,
    ConvTranspose2x2,
    GroupNorm,
    LayerOptions,
    UpConv,
    max_pool,
    upsample,
)

EPSILON = 1e-5
LAYERS = {
    "Conv": lambda rngs: Conv(2, 3, 3, dtype=jnp.dtype("bfloat16"), rngs=rngs),
    "ConvTranspose2x2": lambda rngs: ConvTranspose2x2(2, 3, dtype=jnp.dtype("bfloat16"), rngs=rngs),
    "UpConv": lambda rngs: UpConv(2, 3, dtype=jnp.dtype("bfloat16"), rngs=rngs),
    "BatchNorm": lambda rngs: BatchNorm(2, dtype=jnp.dtype("bfloat16")),
}


def distinct(*shape: int) -> np.ndarray:
    """Float32 numbers of which no two are equal, in random order."""
    return np.random.default_rng(1).permutation(np.prod(shape)).reshape(shape).astype(np.float32)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_max_pool_is_the_maximum_of_disjoint_windows(factor: int) -> None:
    """Would catch: mixed-up axes in the reshape: windows that run along one direction only, or overlap."""
    x = distinct(2, 16, 8, 3)
    expected = pool(x, factor)
    np.testing.assert_array_equal(max_pool(x, factor), expected)


def test_max_pool_sends_the_gradient_to_the_maximum() -> None:
    """Would catch: a gradient that is spread over the window or lands on another pixel."""
    x, cotangent = distinct(2, 8, 4, 3), numbers(2, 4, 2, 3)
    gradient = jax.grad(lambda v: (max_pool(v) * cotangent).sum())(x)
    expected = jax.grad(lambda v: (pool(v, 2) * cotangent).sum())(x)
    np.testing.assert_array_equal(gradient, expected)
    assert np.count_nonzero(gradient) == cotangent.size


def test_upsampling_by_two_by_hand() -> None:
    """Would catch: borders that fade to zero or wrap round instead of repeating the edge."""
    x = jnp.array([0.0, 8.0, 4.0]).reshape(1, 1, 3, 1)
    expected = [0.0, 2.0, 6.0, 7.0, 5.0, 4.0]
    assert upsample(x, 2)[0, :, :, 0].tolist() == [expected, expected]
    assert upsample(x.reshape(1, 3, 1, 1), 2)[0, :, 0, 0].tolist() == expected


def test_conv_transpose_and_its_gradients_are_those_of_the_general_one() -> None:
    """Would catch: rows and columns of the tap exchanged, a missing or repeated bias, gradients to the wrong tap."""
    x, cotangent = numbers(2, 3, 4, 3), numbers(2, 6, 8, 2, seed=2)
    up = ConvTranspose2x2(3, 2, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    up.bias[...] = jnp.asarray(numbers(2, seed=5))
    graphdef, params = nnx.split(up)

    def ours(params: Any, x: jax.Array) -> jax.Array:
        return (nnx.merge(graphdef, params)(x) * cotangent).sum()

    def general(kernel: jax.Array, bias: jax.Array, x: jax.Array) -> jax.Array:
        return (second_writing.up(x, {"kernel": kernel, "bias": bias}) * cotangent).sum()

    value, (got, got_x) = jax.value_and_grad(ours, (0, 1))(params, x)
    expected_value, expected = jax.value_and_grad(general, (0, 1, 2))(up.kernel[...], up.bias[...], x)
    np.testing.assert_allclose(value, expected_value, rtol=1e-4)
    np.testing.assert_allclose(got["kernel"][...], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["bias"][...], expected[1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got_x, expected[2], rtol=1e-4, atol=1e-5)


def test_conv_transpose_keeps_the_spread_of_its_input() -> None:
    """Would catch: a fan-in that counts all four taps and halves the standard deviation at every level."""
    up = ConvTranspose2x2(64, 64, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0))
    assert np.std(up(numbers(4, 8, 8, 64))) == pytest.approx(1.0, rel=0.1)


def batch_norm_reference(
    x: np.ndarray, scale: np.ndarray, bias: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, ...]:
    """(output, dx, dscale, dbias, mean, biased variance) in float64, two passes, gradients by the formula."""
    x, scale, bias, g = (a.astype(np.float64) for a in (x, scale, bias, cotangent))
    mean = x.mean((0, 1, 2))
    var = ((x - mean) ** 2).mean((0, 1, 2))
    std = np.sqrt(var + EPSILON)
    normal = (x - mean) / std
    dx = scale / std * (g - g.mean((0, 1, 2)) - normal * (g * normal).mean((0, 1, 2)))
    dscale, dbias = (g * normal).sum((0, 1, 2)), g.sum((0, 1, 2))
    return normal * scale + bias, dx, dscale, dbias, mean, var


def make_batch_norm(channels: int = 3, axis_name: str | None = None) -> BatchNorm:
    norm = BatchNorm(channels, axis_name=axis_name)
    norm.scale[...] = jnp.asarray(numbers(channels, seed=3, mean=1.0, std=0.3))
    norm.bias[...] = jnp.asarray(numbers(channels, seed=4))
    return norm


def test_batch_norm_and_its_gradients_against_two_passes_in_float64() -> None:
    """Would catch: statistics over the wrong axes, and a gradient that takes them for constants."""
    norm = make_batch_norm()
    x, cotangent = numbers(2, 4, 6, 3, mean=3.0, std=2.0), numbers(2, 4, 6, 3, seed=1)
    graphdef, params, stats = nnx.split(norm, nnx.Param, nnx.BatchStat)

    def weighted(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = nnx.merge(graphdef, params, stats, copy=True)(x, train=True)
        return (y * cotangent).sum(), y

    (_, y), (dparams, dx) = jax.value_and_grad(weighted, (0, 1), has_aux=True)(params, x)
    scale, bias = np.asarray(norm.scale[...]), np.asarray(norm.bias[...])
    expected, expected_dx, dscale, dbias, _, _ = batch_norm_reference(x, scale, bias, cotangent)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(dparams["scale"][...], dscale, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dparams["bias"][...], dbias, rtol=1e-4, atol=1e-4)


def test_running_statistics_by_hand() -> None:
    """Catches momentum the wrong way round and a biased running variance: with 4 values it is 4/3 off."""
    norm = BatchNorm(1)
    x = jnp.array([1.0, 3.0, 5.0, 11.0]).reshape(1, 2, 2, 1)  # mean 5, sum of squared deviations 56
    norm(x, train=True)
    assert norm.mean[0] == pytest.approx(0.1 * 5)
    assert norm.var[0] == pytest.approx(0.9 * 1 + 0.1 * 56 / 3)
    norm(x + 1, train=True)
    assert norm.mean[0] == pytest.approx(0.9 * 0.5 + 0.1 * 6)
    assert norm.var[0] == pytest.approx(0.9 * (0.9 + 5.6 / 3) + 0.1 * 56 / 3)


def test_training_and_evaluation_do_not_mix() -> None:
    """Catches evaluation by batch statistics, training by running ones, and an evaluation that updates them."""
    norm, x = make_batch_norm(), numbers(2, 4, 4, 3, mean=2.0)
    trained = np.asarray(norm(x, train=True))
    norm.mean[...], norm.var[...] = jnp.array([1.0, -2.0, 0.5]), jnp.array([4.0, 0.25, 9.0])
    np.testing.assert_array_equal(norm(x, train=True), trained)
    mean, var = np.array([1.0, -2.0, 0.5]), np.array([4.0, 0.25, 9.0])
    norm.mean[...], norm.var[...] = jnp.asarray(mean), jnp.asarray(var)
    got = np.asarray(norm(x, train=False))
    scale, bias = np.asarray(norm.scale[...]), np.asarray(norm.bias[...])
    np.testing.assert_allclose(got, (x - mean) / np.sqrt(var + EPSILON) * scale + bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(norm.mean[...], mean)
    np.testing.assert_array_equal(norm.var[...], var)
    # One image alone is judged as it is among others.
    np.testing.assert_allclose(norm(x[:1], train=False), got[:1], rtol=1e-6)


def test_batch_norm_of_a_constant_channel() -> None:
    """Catches the square root of a variance that rounding made negative: x² - mean² of equal large values."""
    norm = BatchNorm(1)
    y = norm(jnp.full((1, 7, 9, 1), 1234.567), train=True)
    assert np.isfinite(y).all()
    assert norm.var[0] >= 0.9
    gradient = jax.grad(lambda v: BatchNorm(1)(v, train=True).sum())(jnp.full((1, 3, 3, 1), 0.1))
    assert np.isfinite(gradient).all()


def test_bfloat16_input_keeps_float32_statistics() -> None:
    """Would catch: sums in bfloat16, which stop growing after 256 ones, and statistics stored in bfloat16."""
    x = jnp.asarray(numbers(4, 64, 64, 1, mean=1.0, std=0.5)).astype(jnp.bfloat16)
    norm = BatchNorm(1)
    y = norm(x, train=True)
    assert y.dtype == jnp.bfloat16
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    assert norm.mean[0] == pytest.approx(0.1 * exact.mean(), rel=1e-4)
    assert norm.var[0] == pytest.approx(0.9 + 0.1 * exact.var(ddof=1), rel=1e-4)
    np.testing.assert_allclose(np.asarray(y, np.float32), (exact - exact.mean()) / exact.std(), atol=0.03)


def test_batch_norm_over_a_mapped_axis_is_that_of_the_whole_batch() -> None:
    """Catches statistics per device under pmap, and an unbiased variance that counts one device's values."""
    x = numbers(4, 2, 2, 3, mean=1.0)
    whole = make_batch_norm()
    expected = np.asarray(whole(x, train=True))
    graphdef, params, stats = nnx.split(make_batch_norm(axis_name="devices"), nnx.Param, nnx.BatchStat)

    def apply(part: jax.Array) -> tuple[jax.Array, Any]:
        model = nnx.merge(graphdef, params, stats, copy=True)
        return model(part, train=True), nnx.state(model, nnx.BatchStat)

    y, new = jax.vmap(apply, axis_name="devices")(x.reshape(2, 2, 2, 2, 3))
    np.testing.assert_allclose(y.reshape(x.shape), expected, rtol=1e-5, atol=1e-6)
    for name, statistic in (("mean", whole.mean), ("var", whole.var)):
        np.testing.assert_allclose(new[name][...][0], statistic[...], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(new[name][...][0], new[name][...][1])


@pytest.mark.parametrize(
    ("channels", "group_size"), [(1, 1), (2, 2), (7, 7), (8, 8), (12, 6), (16, 8), (22, 2)]
)
def test_group_norm_by_hand(channels: int, group_size: int) -> None:
    """Catches groups that are not the largest divisor up to eight, statistics over the batch, a lost scale."""
    norm, x = GroupNorm(channels, rngs=nnx.Rngs(0)), numbers(2, 4, 3, channels, mean=2.0, std=3.0)
    scale, bias = numbers(channels, seed=8), numbers(channels, seed=9)
    norm.norm.scale[...], norm.norm.bias[...] = jnp.asarray(scale), jnp.asarray(bias)
    groups = x.astype(np.float64).reshape(2, 4, 3, channels // group_size, group_size)
    mean = groups.mean((1, 2, 4), keepdims=True)
    var = groups.var((1, 2, 4), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + EPSILON)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(norm(x, train=True), expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(norm(x, train=True), norm(x, train=False))
    assert norm(jnp.asarray(x).astype(jnp.bfloat16), train=True).dtype == jnp.bfloat16


@pytest.mark.parametrize(("norm", "has_bias"), [("batch", False), ("group", False), ("none", True)])
def test_block_has_a_bias_only_where_no_norm_follows(norm: Any, has_bias: bool) -> None:
    """Would catch: a bias that the norm would cancel, a missing one, and a block without its last ReLU."""
    block = Block(2, 3, LayerOptions(norm), rngs=nnx.Rngs(0))
    for layer in (block.first, block.second):
        assert (layer.conv.bias is not None) == has_bias
    y = np.asarray(block(numbers(1, 4, 4, 2), train=True))
    assert y.shape == (1, 4, 4, 3)
    assert y.min() == 0
    assert y.max() > 0


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_bfloat16_layers_are_sums_in_float32(name: str) -> None:
    """Catches gradients of biases and scales that are summed over the pixels in bfloat16: they stop growing.

    Of a cotangent of 1 the gradient of a bias is the number of pixels, in any arithmetic that can count so far.
    """
    layer = LAYERS[name](nnx.Rngs(0))
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jnp.asarray(numbers(2, 64, 64, 2), jnp.bfloat16)

    def total(params: Any) -> jax.Array:
        merged = nnx.merge(graphdef, params, rest)
        y = merged(x, train=False) if name == "BatchNorm" else merged(x)
        assert y.dtype == jnp.bfloat16
        return y.astype(jnp.float32).sum()

    gradients = nnx.to_pure_dict(jax.grad(total)(params))
    bias = gradients["conv"]["bias"] if name == "UpConv" else gradients["bias"]
    num_pixels = 2 * 64 * 64 * (1 if name in ("Conv", "BatchNorm") else 4)
    assert np.asarray(bias).tolist() == [num_pixels] * len(bias)
    if name == "BatchNorm":
        expected = np.asarray(x, np.float64).sum((0, 1, 2)) / (1 + EPSILON) ** 0.5
        np.testing.assert_allclose(gradients["scale"], expected, rtol=1e-4, atol=1e-2)

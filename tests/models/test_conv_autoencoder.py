"""The auto-encoder: the paper's parameter counts, a second writing of the forward pass, and no way round its middle."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import numbers, randomised
from second_writing import block, conv, count, pool, up

from dagm_jax.models.config import ConvAutoencoderConfig, NormKind
from dagm_jax.models.conv_autoencoder import ConvAutoencoder

NORMS = get_args(NormKind)
SIZE = (48, 32)
SHAPE = {"base_channels": 2, "bottleneck_channels": 3}


def build(seed: Any = 0, in_channels: int = 1, out_channels: int = 1, **options: Any) -> ConvAutoencoder:
    config = ConvAutoencoderConfig(**{**SHAPE, **options})
    return ConvAutoencoder(config, in_channels=in_channels, out_channels=out_channels, rngs=nnx.Rngs(seed))


def abstract(**options: Any) -> ConvAutoencoder:
    return nnx.eval_shape(lambda: build(**options))


@cache
def network(**options: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(structure, parameters, norm statistics), the latter as plain nested dicts of random arrays."""
    return randomised(abstract(**options))


@cache
def make_apply(train: bool) -> Any:
    """Compiled (parameters, input) -> logits."""
    graphdef, _, stats = network(norm="batch")
    return jax.jit(lambda params, x: nnx.merge(graphdef, params, stats, copy=True)(x, train=train).logits)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return numbers(2, *SIZE, 1)


@pytest.mark.parametrize(("base_channels", "expected"), [(16, 750_451), (32, 2_955_459), (64, 11_729_251)])
def test_parameter_counts_of_the_paper(base_channels: int, expected: int) -> None:
    """Catches any layer too many or too wide: a skip, a fifth stage, a norm or a block at the bottleneck."""
    model = abstract(base_channels=base_channels, bottleneck_channels=32, in_channels=3, out_channels=3)
    assert count(model) == expected


@jax.jit
def reference(params: Any, stats: Any, x: Any) -> jax.Array:
    """The network in evaluation mode, written from its description with XLA's general operations."""
    for i in range(4):
        x = pool(block(x, params["encoder"][i], stats["encoder"][i]))
    x = conv(x, params["bottleneck"])
    for i in (3, 2, 1, 0):
        x = block(up(x, params["ups"][i]), params["decoder"][i], stats["decoder"][i])
    return conv(x, params["head"])


def test_forward_pass_is_that_of_the_description(x: np.ndarray) -> None:
    """Would catch: levels that are exchanged, a norm at the bottleneck, and a pool before the first stage."""
    _, params, stats = network(norm="batch")
    got, expected = make_apply(False)(params, x), np.asarray(reference(params, stats, x))
    assert got.shape == (2, *SIZE, 1)
    assert got.dtype == jnp.float32
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("train", [False, True])
def test_no_path_leads_round_the_bottleneck(train: bool, x: np.ndarray) -> None:
    """Catches a skip: with the bottleneck's kernel at zero, nothing of the input may be left in the output."""
    _, params, _ = network(norm="batch")
    apply, other = make_apply(train), numbers(2, *SIZE, 1, seed=1)
    cut = {**params, "bottleneck": {**params["bottleneck"], "kernel": jnp.zeros((1, 1, 16, 3))}}
    np.testing.assert_array_equal(apply(cut, x), apply(cut, other))
    assert np.abs(apply(params, x) - apply(params, other)).max() > 1e-2


@pytest.mark.parametrize("norm", NORMS)
def test_every_parameter_learns(norm: str, x: np.ndarray) -> None:
    """Would catch: shapes that do not meet, and a parameter that takes no part in the output."""
    graphdef, params, stats = network(norm=norm)
    cotangent = numbers(2, *SIZE, 1, seed=2)

    @jax.jit
    @jax.grad
    def gradients(params: Any) -> jax.Array:
        return (nnx.merge(graphdef, params, stats, copy=True)(x, train=True).logits * cotangent).sum()

    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients(params)):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert np.any(np.asarray(gradient) != 0), jax.tree_util.keystr(path)

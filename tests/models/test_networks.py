"""Behaviour that the three networks share: sizes, initialisation, modes, compute types, options."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dagm_jax.errors import UserError
from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from dagm_jax.models.network import Network, make_network
from dagm_jax.types import NetworkOutput

CONFIGS = {
    "custom_unet": CustomUNetConfig,
    "conv_autoencoder": ConvAutoencoderConfig,
    "unet3plus": UNet3PlusConfig,
}
X = np.random.default_rng(0).normal(0, 1, (2, 32, 16, 1)).astype(np.float32)
NETWORKS = pytest.mark.parametrize("name", CONFIGS)


@cache
def network(name: str, seed: int = 0, compute_dtype: str = "float32") -> tuple[Any, Any, Any]:
    """(structure, parameters, norm statistics) of a network of two channels."""
    config = CONFIGS[name](base_channels=2, compute_dtype=compute_dtype)
    return nnx.split(
        config.build(in_channels=1, out_channels=1, rngs=nnx.Rngs(seed)), nnx.Param, nnx.BatchStat
    )


@cache
def outputs(name: str, train: bool, compute_dtype: str = "float32") -> tuple[Any, Any]:
    """(all outputs for X, norm statistics afterwards), with the parameters of the float32 network."""
    graphdef, (_, params, stats) = network(name, 0, compute_dtype)[0], network(name)

    @jax.jit
    def run(params: Any, stats: Any) -> tuple[Any, Any]:
        model = nnx.merge(graphdef, params, stats, copy=True)
        output = model(X, train=train, key=jax.random.key(0))
        return output, nnx.state(model, nnx.BatchStat)

    return run(params, stats)


@NETWORKS
@pytest.mark.parametrize("size", [(24, 32), (32, 40)])
def test_sizes_that_cannot_be_halved_four_times_are_refused(name: str, size: tuple[int, int]) -> None:
    """Catches a reshape or a concatenation that fails deep inside, where the message names no argument."""
    model = nnx.merge(*network(name), copy=True)
    x = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    with pytest.raises(
        ValueError, match=rf"`x` \(of shape \(1, {size[0]}, {size[1]}, 1\)\) must .* multiples of 16"
    ):
        jax.eval_shape(lambda x: model(x, train=False), x)


@NETWORKS
def test_initialisation_depends_on_the_seed_alone(name: str) -> None:
    """Would catch: parameters from a global generator, and a seed that is not used."""
    first, other = (nnx.to_pure_dict(network(name, seed)[1]) for seed in (3, 4))
    network.cache_clear()
    jax.tree.map(np.testing.assert_array_equal, first, nnx.to_pure_dict(network(name, 3)[1]))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(other), strict=True):
        if a.ndim > 1:
            assert np.any(np.asarray(a) != np.asarray(b)), jax.tree_util.keystr(path)


@NETWORKS
def test_training_mode_differs_from_evaluation(name: str) -> None:
    """Would catch: a mode that is not passed down to the norms, and statistics that stay as they were."""
    stats = network(name)[2]
    (evaluated, same), (trained, new) = outputs(name, False), outputs(name, True)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(same), nnx.to_pure_dict(stats))
    for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(evaluated), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() > 1e-4
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(new), jax.tree.leaves(stats), strict=True):
        assert np.any(np.asarray(a) != np.asarray(b)), jax.tree_util.keystr(path)


@NETWORKS
def test_bfloat16_compute_gives_float32_logits_near_the_float32_ones(name: str) -> None:
    """Would catch: logits or parameters in bfloat16, and a compute type that is not passed on."""
    assert {leaf.dtype for leaf in jax.tree.leaves(network(name, 0, "bfloat16")[1:])} == {
        jnp.dtype("float32")
    }
    exact, half = outputs(name, False)[0], outputs(name, False, "bfloat16")[0]
    for ours, theirs in zip(jax.tree.leaves(half), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32
        error = np.abs(np.asarray(ours) - np.asarray(theirs))
        assert 0 < error.mean() < 0.1 * np.asarray(theirs).std()


@pytest.mark.parametrize("name", ["base_channels", "bottleneck_channels"])
def test_wrong_options_are_refused(name: str) -> None:
    """Would catch: an option that is silently taken for another; those of the default network are in `test_config`."""
    with pytest.raises(UserError, match=rf"`model.{name}` \(=-1\) must be at least 1"):
        ConvAutoencoderConfig(**{name: -1})


@pytest.mark.parametrize("factor", [2, 4])
def test_a_network_that_sees_less_resolution(factor: int) -> None:
    """Would catch: input that is decimated, a map that is moved by half a pixel or blocky, side outputs left small."""
    build = lambda rngs: UNet3PlusConfig(1).build(in_channels=1, out_channels=1, rngs=rngs)  # noqa: E731
    found, params, stats = make_network(build, seed=0, in_channels=1, mean=0.0, std=1.0)
    x = np.random.default_rng(0).normal(0, 1, (1, 64, 128, 1)).astype(np.float32)

    def run(network: Network, x: Any) -> NetworkOutput:
        return jax.jit(lambda x: network.apply(params, stats, train=False)[0](x, None))(x)

    small = run(found, x.reshape(1, 64 // factor, factor, 128 // factor, factor, 1).mean((2, 4)))
    large = run(replace(found, downscale=factor), x)
    np.testing.assert_allclose(large.class_logits, small.class_logits, rtol=1e-4, atol=1e-5)
    for theirs, ours in zip(
        (small.logits, *small.side_logits), (large.logits, *large.side_logits), strict=True
    ):
        np.testing.assert_allclose(
            ours, jax.image.resize(theirs, (1, 64, 128, 1), "bilinear"), rtol=1e-4, atol=1e-5
        )


def test_a_training_split_of_one_grey_level() -> None:
    """Would catch: a division by the spread 0 of images of one grey."""
    build = lambda rngs: CustomUNetConfig(1).build(in_channels=1, out_channels=1, rngs=rngs)  # noqa: E731
    found, _, _ = make_network(build, seed=0, in_channels=1, mean=128.0, std=0.0, drawn=False)
    image = jnp.full((1, 16, 16, 1), 130, jnp.uint8)
    slices = found.preprocess(image, image, jnp.zeros(1), jnp.zeros(1))
    np.testing.assert_array_equal(slices["x"], 2.0)

"""Random numbers in the place of a network's initial weights, for tests that compare two writings of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def numbers(*shape: int, seed: int = 0, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """Float32 normal numbers of the given shape."""
    return np.random.default_rng(seed).normal(mean, std, shape).astype(np.float32)


def randomised(abstract: nnx.Module) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """(structure, parameters, norm statistics) of a network of shapes, the latter as nested dicts of random arrays."""
    graphdef, *states = nnx.split(abstract, nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(0)
    params, stats = (
        jax.tree_util.tree_map_with_path(lambda p, v: _random_leaf(p, v, rng), nnx.to_pure_dict(s))
        for s in states
    )
    return graphdef, params, stats


def _random_leaf(path: Any, leaf: Any, rng: np.random.Generator) -> jax.Array:
    """A number for every weight that none of the network's symmetries hides: no zero biases, no unit scales."""
    name = jax.tree_util.keystr(path)
    if "var" in name:
        return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
    mean = 1.0 if "scale" in name else 0.0
    std = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if len(leaf.shape) == 4 else 0.3
    return jnp.asarray(rng.normal(mean, std, leaf.shape), jnp.float32)

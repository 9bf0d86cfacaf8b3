"""The sums of batch normalisation: both forms against float64, their gradients, and where which form runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from shell import run_python

from dagm_jax.models import moments as module
from dagm_jax.models.moments import channel_sums, moments, scale_and_shift

# Sizes that divide into runs and blocks, that do not (prime ones, one pixel), and more channels than a run has numbers.
SHAPES = [(2, 64, 32, 16), (3, 17, 31, 5), (1, 1, 1, 1), (1, 127, 1, 3), (2, 6, 4, 200)]


def maps(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return (
        rng.normal(0.5, 1, shape).astype(np.float32),
        rng.normal(-0.5, 1, shape).astype(np.float32),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [module.plain_channel_sums, module.channel_sums_in_runs, channel_sums])
def test_sums_over_pixels(form: Any, shape: tuple[int, ...]) -> None:
    """Catches pixels left out where runs do not divide the map, and channels that are mixed by the runs."""
    x, y = maps(shape)
    first, second = jax.jit(form)(x, y)
    wide, product = x.astype(np.float64), x.astype(np.float64) * y
    count = x.size / shape[-1]
    np.testing.assert_allclose(first, wide.sum((0, 1, 2)), rtol=0, atol=1e-6 * count + 1e-6)
    np.testing.assert_allclose(second, product.sum((0, 1, 2)), rtol=0, atol=1e-6 * count + 1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_those_of_the_plain_formulas(shape: tuple[int, ...]) -> None:
    """Catches a wrong factor, a sum over the wrong axes, or scale and shift exchanged in a gradient by hand."""
    x, cotangent = map(jnp.asarray, maps(shape))
    rng = np.random.default_rng(1)
    a, b = (jnp.asarray(rng.normal(1, 1, shape[-1]), jnp.float32) for _ in range(2))

    def plain_moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.mean(x, (0, 1, 2)), jnp.mean(x * x, (0, 1, 2))

    def gradients(of_moments: Any, of_scaling: Any) -> tuple[Any, ...]:
        (from_moments,) = jax.vjp(of_moments, x)[1]((a, b))
        return from_moments, *jax.vjp(of_scaling, x, a, b)[1](cotangent)

    ours = gradients(moments, scale_and_shift)
    plain = gradients(plain_moments, lambda x, scale, shift: x * scale + shift)
    count = x.size / shape[-1]
    for place, (one, other) in enumerate(zip(ours, plain, strict=True)):
        # Of a mean over the pixels, of one pixel, of sums over the pixels.
        atol = (1e-6 / count, 1e-6, 1e-6 * count, 1e-6 * count)[place]
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("platform", "num_reductions"), [("cpu", 3), ("cuda", 2), ("tpu", 2)])
def test_the_form_follows_the_platform(platform: str, num_reductions: int) -> None:
    """Catches a CPU's form on an accelerator, and an accelerator's on a CPU, which nothing but time would show."""
    x, y = maps((2, 64, 32, 16))
    lowered = jax.jit(channel_sums).trace(x, y).lower(lowering_platforms=(platform,))
    # On a CPU one over both maps, and one for the rest of each; else one for each.
    assert lowered.as_text().count("stablehlo.reduce") == num_reductions


TWO_DEVICES = """
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dagm_jax.models.moments import channel_sums
from launch.bench.measure import all_reduce_bytes
spread = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
x = jax.device_put(np.ones((4, 32, 16, 8), np.float32), spread)
hlo = jax.jit(channel_sums).lower(x, x).compile().as_text()
print("gathered" if "all-gather" in hlo else all_reduce_bytes(hlo))
"""


def test_what_devices_exchange_are_sums_of_channels() -> None:
    """Catches sums of a batch that is spread over devices for which maps are gathered, or runs of pixels sent."""
    done = run_python("-c", TWO_DEVICES, JAX_PLATFORMS="cpu", XLA_FLAGS=quick.xla_flags(2))
    # Two sums of eight float32.
    assert done.stdout.strip() == "64", done.stderr

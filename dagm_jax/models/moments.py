"""The sums over pixels that batch normalisation takes, forward and backward: two of each map, in one program each.

Maps are float32 or wider. The step with sums one by one: ``python -m launch.bench.ablation``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Map = Float[Array, "b h w c"]
PerChannel = Float[Array, " c"]

# Numbers in a run, which is summed as one vector, and runs in a block: from 32 on XLA takes CPU sums apart.
RUN_NUMBERS = 128
RUNS = 16


@jax.custom_vjp
def moments(x: Map) -> tuple[PerChannel, PerChannel]:
    """(mean, mean of squares) over all pixels."""
    total, squares = channel_sums(x, x)
    count = x.size // x.shape[-1]
    return total / count, squares / count


def _moments_backward(x: Map, cotangents: tuple[PerChannel, PerChannel]) -> tuple[Map]:
    count = x.size // x.shape[-1]
    of_mean, of_squares = (each / count for each in cotangents)
    return (of_mean + 2 * of_squares * x,)


moments.defvjp(lambda x: (moments(x), x), _moments_backward)


@jax.custom_vjp
def scale_and_shift(x: Map, scale: PerChannel, shift: PerChannel) -> Map:
    """``x`` · ``scale`` + ``shift``."""
    return x * scale + shift


def _scale_and_shift_backward(
    kept: tuple[Map, PerChannel], cotangent: Map
) -> tuple[Map, PerChannel, PerChannel]:
    x, scale = kept
    of_shift, of_scale = channel_sums(cotangent, x)
    return cotangent * scale, of_scale, of_shift


scale_and_shift.defvjp(
    lambda x, scale, shift: (scale_and_shift(x, scale, shift), (x, scale)), _scale_and_shift_backward
)


def channel_sums(x: Map, y: Map) -> tuple[PerChannel, PerChannel]:
    """(sum of ``x``, sum of ``x`` · ``y``) over all pixels."""
    sums: tuple[PerChannel, PerChannel] = jax.lax.platform_dependent(
        x, y, cpu=channel_sums_in_runs, default=plain_channel_sums
    )
    return sums


def plain_channel_sums(x: Map, y: Map) -> tuple[PerChannel, PerChannel]:
    """`channel_sums`, for accelerators: two sums, for the compiler to fuse."""
    return jnp.sum(x, (0, 1, 2)), jnp.sum(x * y, (0, 1, 2))


def channel_sums_in_runs(x: Map, y: Map) -> tuple[PerChannel, PerChannel]:
    """`channel_sums`, for CPUs: blocks of runs of pixels first, both sums in one program.

    XLA's CPU backend makes a program of windows of each longer sum and writes ``x`` · ``y`` to memory for it.
    """
    b, h, w, c = x.shape
    pixels = _largest_divisor(h * w, max(RUN_NUMBERS // c, 1))
    runs = _largest_divisor(h * w // pixels, RUNS)
    blocks = [each.reshape(b, -1, runs, pixels * c) for each in (x, x * y)]
    zeros = [jnp.zeros((), each.dtype) for each in blocks]
    sums = jax.lax.reduce(
        blocks, zeros, lambda one, other: [i + j for i, j in zip(one, other, strict=True)], (2,)
    )
    first, second = (jnp.sum(each.reshape(b, -1, pixels, c), (0, 1, 2)) for each in sums)
    return first, second


def _largest_divisor(number: int, most: int) -> int:
    return next(size for size in range(min(number, most), 0, -1) if number % size == 0)

"""Convolutions of stride 1 that keep the size: as one operation, and in the forms that XLA runs well on CPUs.

Libraries of accelerators choose how to run a convolution. XLA's CPU backend has one way, whose cost lies in gathering
the window of each pixel; there it gets fewer or smaller windows. Arrays are NHWC, kernels HWIO.
docs/method.md has what the forms gain, ``python -m launch.bench.ablation`` the step with fused copies.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

Map = Float[Array, "b h w c"]
Result = Float[Array, "b h w d"]
Kernel = Float[Array, "k l c d"]

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Channels that fill less than one vector of a CPU, and how many pixels of them are taken together instead.
FEW_CHANNELS = 8
BLOCK_PX = 8
# Rows that come out of one transform. Fewer channels, or maps beyond what caches hold, lose more in it than they win;
# fewer multiply-adds, of half a millisecond, win less than its compilation takes.
ROWS = 4
ROWS_CHANNELS = 32
ROWS_BYTES = 12 * 2**20
ROWS_PRODUCTS = 2**25


def convolve(x: Map, kernel: Kernel) -> Result:
    """The convolution of ``x`` with an odd ``kernel``, padded with zeros to the size of ``x``, as one operation."""
    y: Array = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)
    return y


def apart(function: Callable[..., Array]) -> Callable[..., Array]:
    """``function`` as a call of its own within the program, which XLA does not fuse with what it reads.

    XLA's CPU backend fuses cheap operations, such as a norm and its ReLU, into each of their readers. A reader that
    takes the pixels in another order then computes them in that order, which takes longer than to read what stands in
    memory for the forward convolution. The attribute is of XLA's inlining; numbers are the same without.
    """
    compiled = jax.jit(function)
    return lambda *arrays: set_xla_metadata(compiled(*arrays), inlineable="false")


@jax.custom_vjp
def convolve_on_cpu(x: Map, kernel: Kernel) -> Result:
    """`convolve` in the form that suits the shapes; the same to rounding."""
    _, height, width, in_channels = x.shape
    size, out_channels = kernel.shape[0], kernel.shape[-1]
    if size == 3 and x.dtype != jnp.bfloat16:
        if in_channels < FEW_CHANNELS and width % BLOCK_PX == 0:
            return convolve_in_blocks(x, kernel)
        pixels, fewest = x.size // in_channels, min(in_channels, out_channels)
        fits = pixels * max(in_channels, out_channels) * x.dtype.itemsize <= ROWS_BYTES
        if height % ROWS == 0 and fewest >= ROWS_CHANNELS and fits and pixels * kernel.size >= ROWS_PRODUCTS:
            return convolve_by_rows(x, kernel)
    return convolve(x, kernel)


def _backward(kept: tuple[Map, Kernel], cotangent: Result) -> tuple[Map, Kernel]:
    """Both gradients as convolutions with dimensions in XLA's own order.

    XLA brings others into that order outside of loops only; inside, as in `lax.scan`, a convolution in any other order
    is run without the CPU's library, some 25 times as slow. What the kernel's gradient reads is copied into that order
    from memory (`apart`).
    """
    x, kernel = kept
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    of_kernel = jax.lax.conv_general_dilated(
        _channels_first(x),
        _batch_third(cotangent),
        (1, 1),
        [(size // 2, size // 2) for size in kernel.shape[:2]],
        dimension_numbers=DIMENSIONS,
    )
    return convolve_on_cpu(cotangent, turned), of_kernel.transpose(1, 2, 0, 3)


convolve_on_cpu.defvjp(lambda x, kernel: (convolve_on_cpu(x, kernel), (x, kernel)), _backward)


_channels_first = apart(lambda x: x.transpose(3, 1, 2, 0))
_batch_third = apart(lambda x: x.transpose(1, 2, 0, 3))


def convolve_in_blocks(x: Map, kernel: Float[Array, "3 3 c d"]) -> Result:
    """`convolve` for few channels: ``BLOCK_PX`` pixels of a row, which must divide the width, at a time.

    A block and its two neighbours become the channels of one pixel, for a kernel three high and one wide that holds
    the taps of each pixel of the block, and zeros. Those cost more products and save the gathering of windows.
    """
    b, h, w, c = x.shape
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    before, after = padded[:, :, :w:BLOCK_PX], padded[:, :, BLOCK_PX + 1 :: BLOCK_PX]
    blocks = jnp.concatenate([before, x.reshape(b, h, w // BLOCK_PX, BLOCK_PX * c), after], axis=-1)
    placed = [
        jnp.pad(kernel, ((0, 0), (place, BLOCK_PX - 1 - place), (0, 0), (0, 0))) for place in range(BLOCK_PX)
    ]
    wide = jnp.stack(placed, axis=3).reshape(3, 1, (BLOCK_PX + 2) * c, -1)
    y: Array = jax.lax.conv_general_dilated(
        blocks, wide, (1, 1), ((1, 1), (0, 0)), dimension_numbers=DIMENSIONS
    )
    return y.reshape(b, h, w, -1)


def convolve_by_rows(x: Map, kernel: Float[Array, "3 3 c d"]) -> Result:
    """`convolve` by Winograd's F(4, 3) along the height, which must be a multiple of four.

    Six combinations of each four rows and their neighbours are convolved along the width, with as many combinations
    of the kernel's rows: half the products, windows of three pixels, not nine. float32 rounds by some 3e-6 of
    the largest value. A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
    """
    b, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    d = [padded[:, row : row + h - 3 : ROWS] for row in range(6)]
    seen = (
        4 * d[0] - 5 * d[2] + d[4],
        -4 * d[1] - 4 * d[2] + d[3] + d[4],
        4 * d[1] - 4 * d[2] - d[3] + d[4],
        -2 * d[1] - d[2] + 2 * d[3] + d[4],
        2 * d[1] - d[2] - 2 * d[3] + d[4],
        4 * d[1] - 5 * d[3] + d[5],
    )
    top, middle, bottom = kernel[:1], kernel[1:2], kernel[2:]
    taps = (
        top / 4,
        -(top + middle + bottom) / 6,
        -(top - middle + bottom) / 6,
        top / 24 + middle / 12 + bottom / 6,
        top / 24 - middle / 12 + bottom / 6,
        bottom,
    )
    m = [convolve(rows, row) for rows, row in zip(seen, taps, strict=True)]
    y = (
        m[0] + m[1] + m[2] + m[3] + m[4],
        m[1] - m[2] + 2 * m[3] - 2 * m[4],
        m[1] + m[2] + 4 * m[3] + 4 * m[4],
        m[1] - m[2] + 8 * m[3] - 8 * m[4] + m[5],
    )
    return jnp.stack(y, axis=2).reshape(b, h, w, -1)

"""Building blocks of the networks, in the forms that XLA compiles well on CPUs as well as on GPUs and TPUs.

Arrays are NHWC. Convolutions run in ``dtype``; parameters, statistics and reductions are float32, or float64 where
``dtype`` is. Those of the backward pass too: the gradient of what every pixel is added to or multiplied with is a sum
over all of them, which in bfloat16 stands still as soon as it is 256 times what is to be added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dagm_jax.data.config import MULTIPLE_PX
from dagm_jax.models.config import NormKind
from dagm_jax.models.convolution import Map, Result, convolve
from dagm_jax.models.initial import Initializer, he_normal, lecun_normal
from dagm_jax.models.moments import moments, scale_and_shift
from dagm_jax.types import at_least_float32

NORM_EPSILON = 1e-5
NORM_MOMENTUM = 0.9
GROUP_CHANNELS = 8
FLOAT32 = jnp.dtype("float32")


def parameter_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The type of the parameters of layers that compute in ``dtype``."""
    return jnp.promote_types(dtype, jnp.float32)


def check_multiple(x: Array) -> None:
    """Raises ValueError unless height and width of ``x`` ``[b h w c]`` are multiples of the networks' down-sampling."""
    if x.shape[1] % MULTIPLE_PX or x.shape[2] % MULTIPLE_PX:
        raise ValueError(
            f"`x` (of shape {x.shape}) must have a height and a width that are multiples of {MULTIPLE_PX}: "
            "the network down-samples by as much; pad or crop the slices"
        )


def global_place(num_examples: int, axis_name: str | None) -> Int[Array, " b"]:
    """The places in the global batch of this device's ``num_examples``; ``axis_name``: the mapped axis that it is
    spread over, None where one program holds all of it.

    What is drawn at random from these is the same on one device, on a mesh and under pmap.
    """
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * num_examples
    return first + jnp.arange(num_examples)


def max_pool(x: Map, factor: int = 2) -> Float[Array, "b h/f w/f c"]:
    """Maxima of disjoint ``factor`` x ``factor`` windows; height and width must be multiples of ``factor``.

    Written as reshape and max: ``reduce_window``'s gradient (select-and-scatter) is several times slower on CPU.
    """
    b, h, w, c = x.shape
    return x.reshape(b, h // factor, factor, w // factor, factor, c).max(axis=(2, 4))


def upsample_phases(x: Map, axis: int, factor: int) -> list[Array]:
    """``factor`` maps of the size of ``x``: element i of map p is element ``factor``·i + p of ``x`` up-sampled.

    Bilinear with half-pixel centres, edges repeated (align_corners = False): output pixel factor·i + p lies
    o = (p + 1/2) / factor - 1/2 beside the centre of x[i], so it is (1 - |o|) x[i] + |o| x[i ± 1]: weighted shifts
    of the small map, instead of the gathers or matrix products of a general resize.
    """
    size = x.shape[axis]
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, size - 1, size, axis=axis)
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), last], axis)
    offsets = [(p + 0.5) / factor - 0.5 for p in range(factor)]
    return [(1 - abs(o)) * x + abs(o) * (before if o < 0 else after) for o in offsets]


def interleave(phases: list[Array], axis: int) -> Array:
    """One map whose element n·i + p along ``axis`` is element i of the p-th of the n maps."""
    shape = phases[0].shape
    stacked = jnp.stack(phases, axis + 1)
    return stacked.reshape(*shape[:axis], len(phases) * shape[axis], *shape[axis + 1 :])


def upsample(x: Map, factor: int) -> Float[Array, "b f*h f*w c"]:
    """``x`` bilinearly up-sampled by ``factor`` in both directions, half-pixel centres.

    Directly: a second doubling would interpolate between the samples of the first and round off its kinks.
    """
    for axis in (1, 2):
        x = interleave(upsample_phases(x, axis, factor), axis)
    return x


@dataclass(frozen=True)
class LayerOptions:
    """Options of all layers of a network; axis_name: mapped axis over which pmap spreads a batch."""

    norm: NormKind = "batch"
    dtype: jnp.dtype = FLOAT32
    axis_name: str | None = None


class BatchNorm(nnx.Module):
    """Batch normalisation whose statistics take one pass over the batch (mean and mean of squares).

    Scale and shift are folded into one multiply-add. ``axis_name`` names the mapped axis over which statistics are
    averaged under pmap; under jit over a mesh the batch is one global array and needs none. The running variance is
    the unbiased one, as in PyTorch, so that copied weights evaluate alike.
    """

    def __init__(
        self, num_features: int, *, dtype: jnp.dtype = FLOAT32, axis_name: str | None = None
    ) -> None:
        kept = parameter_dtype(dtype)
        self.scale = nnx.Param(jnp.ones((num_features,), kept))
        self.bias = nnx.Param(jnp.zeros((num_features,), kept))
        self.mean = nnx.BatchStat(jnp.zeros((num_features,), kept))
        self.var = nnx.BatchStat(jnp.ones((num_features,), kept))
        self.axis_name = axis_name

    def __call__(self, x: Map, *, train: bool) -> Map:
        wide = at_least_float32(x)
        mean, var = self._batch_statistics(wide) if train else (self.mean[...], self.var[...])
        scale = self.scale[...] * jax.lax.rsqrt(var + NORM_EPSILON)
        shift = self.bias[...] - mean * scale
        return scale_and_shift(wide, scale, shift).astype(x.dtype)

    def _batch_statistics(self, wide: Array) -> tuple[Array, Array]:
        count = wide.size // wide.shape[-1]
        mean, mean_of_squares = moments(wide)
        if self.axis_name is not None:
            mean, mean_of_squares = jax.lax.pmean((mean, mean_of_squares), self.axis_name)
            count = count * jax.lax.axis_size(self.axis_name)
        # One-pass variances can come out slightly negative by rounding.
        var = jnp.maximum(mean_of_squares - mean * mean, 0.0)
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] = NORM_MOMENTUM * self.mean[...] + (1 - NORM_MOMENTUM) * jax.lax.stop_gradient(mean)
        self.var[...] = NORM_MOMENTUM * self.var[...] + (1 - NORM_MOMENTUM) * jax.lax.stop_gradient(unbiased)
        return mean, var


class GroupNorm(nnx.Module):
    """Group normalisation with groups of at most eight channels; needs no running statistics."""

    def __init__(self, num_features: int, *, dtype: jnp.dtype = FLOAT32, rngs: nnx.Rngs) -> None:
        size = next(s for s in range(GROUP_CHANNELS, 0, -1) if num_features % s == 0)
        self.norm = nnx.GroupNorm(
            num_features,
            num_groups=num_features // size,
            epsilon=NORM_EPSILON,
            param_dtype=parameter_dtype(dtype),
            rngs=rngs,
        )

    def __call__(self, x: Map, *, train: bool) -> Map:
        del train
        normed: Array = self.norm(at_least_float32(x))
        return normed.astype(x.dtype)


def add_bias(x: Float[Array, "*b c"], bias: Float[Array, " c"]) -> Float[Array, "*b c"]:
    """``x + bias`` in the type of ``x``; the gradient of the bias, a sum over all pixels, in the bias's own."""
    added: Array = at_least_float32(x) + bias
    return added.astype(x.dtype)


class Conv(nnx.Conv):
    """nnx.Conv of stride 1 that keeps the size, whose bias, where it has one, is added by `add_bias`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        use_bias: bool = True,
        kernel_init: Initializer = lecun_normal,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            (size, size),
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=parameter_dtype(dtype),
            kernel_init=kernel_init,
            rngs=rngs,
        )
        self.convolve = convolve

    def __call__(self, x: Map) -> Result:  # type: ignore[override]
        y = self.convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return y if self.bias is None else add_bias(y, self.bias[...])


class ConvNormRelu(nnx.Module):
    """Conv3x3 → norm → ReLU. The convolution has a bias only where no norm follows."""

    def __init__(self, in_channels: int, out_channels: int, options: LayerOptions, *, rngs: nnx.Rngs) -> None:
        has_bias, dtype = options.norm == "none", options.dtype
        conv = partial(Conv, use_bias=has_bias, kernel_init=he_normal, dtype=dtype, rngs=rngs)
        self.conv = conv(in_channels, out_channels, 3)
        self.norm: BatchNorm | GroupNorm | None
        if options.norm == "batch":
            self.norm = BatchNorm(out_channels, dtype=dtype, axis_name=options.axis_name)
        elif options.norm == "group":
            self.norm = GroupNorm(out_channels, dtype=dtype, rngs=rngs)
        else:
            self.norm = None

    def __call__(self, x: Map, *, train: bool) -> Result:
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x, train=train)
        return nnx.relu(x)


class Block(nnx.Module):
    """Block(c): two times Conv3x3 → norm → ReLU, as ``layer`` has them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: LayerOptions,
        *,
        layer: Callable[..., Any] = ConvNormRelu,
        rngs: nnx.Rngs,
    ) -> None:
        self.first = layer(in_channels, out_channels, options, rngs=rngs)
        self.second = layer(out_channels, out_channels, options, rngs=rngs)

    def __call__(self, x: Map, *, train: bool) -> Result:
        y: Array = self.second(self.first(x, train=train), train=train)
        return y


class ConvTranspose2x2(nnx.Module):
    """Transposed convolution 2x2 with stride 2, as one matrix product to 4·d channels and depth-to-space.

    The kernel's shape is (c, 2, 2, d): kernel[:, i, j] gives output pixel (2y+i, 2x+j). With stride = size the
    windows do not overlap, so this is exact, and cheaper than ``lax.conv_transpose`` on every backend measured.
    """

    def __init__(self, in_channels: int, out_channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        # Every output pixel sees one tap: the fan-in is in_channels, not 4·in_channels.
        kernel = lecun_normal(rngs.params(), (in_channels, 4 * out_channels), parameter_dtype(dtype))
        self.kernel = nnx.Param(kernel.reshape(in_channels, 2, 2, out_channels))
        self.bias = nnx.Param(jnp.zeros((out_channels,), parameter_dtype(dtype)))
        self.dtype = dtype
        self.expand = expand

    def __call__(self, x: Map) -> Float[Array, "b 2h 2w d"]:
        return self.expand(x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.bias[...])


def expand(x: Map, kernel: Float[Array, "c 2 2 d"], bias: Float[Array, " d"]) -> Float[Array, "b 2h 2w d"]:
    """`ConvTranspose2x2` of its kernel and bias."""
    b, h, w, c = x.shape
    d = bias.shape[0]
    y = add_bias((x.reshape(-1, c) @ kernel.reshape(c, 4 * d)).reshape(b, h, w, 2, 2, d), bias)
    return y.transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, d)


class UpConv(nnx.Module):
    """Twice the resolution: bilinear up-sampling, then Conv3x3 with bias (the alternative to ConvTranspose2x2)."""

    def __init__(self, in_channels: int, out_channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.conv = Conv(in_channels, out_channels, 3, dtype=dtype, rngs=rngs)

    def __call__(self, x: Map) -> Float[Array, "b 2h 2w d"]:
        return self.conv(upsample(x, 2))

"""U-Net 3+ (Huang et al., ICASSP 2020, arXiv 2004.08790): every decoder stage sees a map of every scale."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from dagm_jax.models.blocks import (
    BatchNorm,
    Block,
    Conv,
    LayerOptions,
    add_bias,
    check_multiple,
    global_place,
    interleave,
    max_pool,
    parameter_dtype,
    upsample,
    upsample_phases,
)
from dagm_jax.models.config import UNet3PlusConfig
from dagm_jax.models.convolution import Map, Result, convolve
from dagm_jax.models.initial import he_normal
from dagm_jax.types import NetworkOutput, at_least_float32

NUM_LEVELS = 5
DROPOUT_RATE = 0.5


class ConvBatchNormRelu(nnx.Module):
    """Conv3x3 with bias → batch norm → ReLU, of the input bilinearly up-sampled by ``factor`` first."""

    def __init__(
        self, in_channels: int, out_channels: int, options: LayerOptions, *, factor: int = 1, rngs: nnx.Rngs
    ) -> None:
        kept = parameter_dtype(options.dtype)
        self.kernel = nnx.Param(he_normal(rngs.params(), (3, 3, in_channels, out_channels), kept))
        self.bias = nnx.Param(jnp.zeros((out_channels,), kept))
        self.norm = BatchNorm(out_channels, dtype=options.dtype, axis_name=options.axis_name)
        self.factor = factor
        self.dtype = options.dtype
        self.convolve = convolve

    def __call__(self, x: Map, *, train: bool) -> Float[Array, "b f*h f*w d"]:
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...]
        if train:
            # Batch statistics take the bias away again, so its gradient is zero. Computed, it would be rounding noise
            # for which a whole map is summed, and which Adam would scale up to full steps.
            bias = jax.lax.stop_gradient(bias)
        x = x.astype(self.dtype)
        y = self.convolve(x, kernel) if self.factor == 1 else upsampled_conv3x3(x, kernel, self.factor)
        y = add_bias(y, bias)
        return nnx.relu(self.norm(y, train=train))


def upsampled_conv3x3(x: Map, kernel: Float[Array, "3 3 c d"], factor: int) -> Float[Array, "b f*h f*w d"]:
    """Conv3x3, padded with zeros, of ``upsample(x, factor)``; the products are done before the up-sampling.

    Both are linear and up-sampling treats channels alike, so conv(up(x)) = Σ_taps shift(up(x · kernel[tap])): one
    matrix product to 9·d channels on the small map takes the place of 9·c·d products per pixel of the large one,
    factor² times fewer. What is left per pixel and channel are the weighted sums of the up-sampling.
    """
    b, h, w, c = x.shape
    # Taps across outermost: the first of the two sums then finds its three terms in three slices.
    taps = x.reshape(-1, c) @ kernel.transpose(2, 1, 0, 3).reshape(c, -1)
    return _sum_upsampled_taps(_sum_upsampled_taps(taps.reshape(b, h, w, -1), 2, factor), 1, factor)


def _sum_upsampled_taps(taps: Float[Array, "b h w 3*m"], axis: int, factor: int) -> Array:
    """Σ_t up(taps_t)[k + t - 1] over t = 0, 1, 2 along ``axis``, zeros beyond the border of the large map."""
    left, middle, right = (upsample_phases(t, axis, factor) for t in jnp.split(taps, 3, axis=-1))
    # Pixel k - 1 of phase 0 is the last phase of the small pixel before; k + 1 of the last, phase 0 of the next.
    left = [_shift(left[-1], axis, 1), *left[:-1]]
    right = [*right[1:], _shift(right[0], axis, -1)]
    return interleave([a + b + c for a, b, c in zip(left, middle, right, strict=True)], axis)


def _shift(x: Array, axis: int, by: Literal[1, -1]) -> Array:
    """``x`` moved by one element along ``axis``, up for 1 and down for -1; a zero enters."""
    size = x.shape[axis]
    zero = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
    if by == 1:
        return jnp.concatenate([zero, jax.lax.slice_in_dim(x, 0, size - 1, axis=axis)], axis)
    return jnp.concatenate([jax.lax.slice_in_dim(x, 1, size, axis=axis), zero], axis)


class DecoderStage(nnx.Module):
    """D_i: a branch of ``base`` channels per scale, finest first, concatenated; Conv3x3 → norm → ReLU over all five.

    The finer maps come pooled to the size of D_i; the coarser ones are up-sampled by their branch.
    """

    def __init__(
        self, level: int, in_channels: list[int], base_channels: int, options: LayerOptions, *, rngs: nnx.Rngs
    ) -> None:
        layer = partial(ConvBatchNormRelu, options=options, rngs=rngs)
        self.branches = nnx.List(
            [layer(c, base_channels, factor=2 ** max(j - level, 0)) for j, c in enumerate(in_channels)]
        )
        self.fusion = layer(NUM_LEVELS * base_channels, NUM_LEVELS * base_channels)

    def __call__(self, sources: list[Float[Array, "b _ _ _"]], *, train: bool) -> Result:
        seen = [branch(x, train=train) for branch, x in zip(self.branches, sources, strict=True)]
        return self.fusion(jnp.concatenate(seen, axis=-1), train=train)


class UNet3Plus(nnx.Module):
    """U-Net 3+ on ``[b h w in_channels]`` → NetworkOutput; h and w multiples of 16.

    Encoder E1…E5 with max-pools between. D5 = E5; for i = 4…1, D_i fuses branches of the max-pooled E_1…E_{i-1}, of
    E_i, and of the up-sampled D_{i+1}…D_5, each resampled straight to the size of E_i and then convolved. Heads are
    Conv3x3. Weights of the authors' PyTorch code, copied layer by layer, give the same output. Its pools round sizes
    up; at multiples of 16 nothing is rounded.
    """

    def __init__(
        self,
        config: UNet3PlusConfig,
        *,
        in_channels: int,
        out_channels: int,
        axis_name: str | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = jnp.dtype(config.compute_dtype)
        self.axis_name = axis_name
        self.max_pool = max_pool
        base = config.base_channels
        widths = [base * 2**level for level in range(NUM_LEVELS)]
        fused = [*[NUM_LEVELS * base] * (NUM_LEVELS - 1), widths[-1]]
        options = LayerOptions("batch", self.dtype, axis_name)
        encoder_stage = partial(Block, options=options, layer=ConvBatchNormRelu, rngs=rngs)
        decoder_stage = partial(DecoderStage, options=options, rngs=rngs)
        self.encoder = nnx.List([encoder_stage(c, d) for c, d in pairwise([in_channels, *widths])])
        # decoder[i] and heads[i] belong to D_{i+1}: index 0 is the finest level, as in the encoder.
        self.decoder = nnx.List(
            [decoder_stage(i, [*widths[: i + 1], *fused[i + 1 :]], base) for i in range(NUM_LEVELS - 1)]
        )
        conv = partial(Conv, kernel_init=he_normal, dtype=self.dtype, rngs=rngs)
        num_heads = NUM_LEVELS if config.deep_supervision else 1
        self.heads = nnx.List([conv(fused[i], out_channels, 3) for i in range(num_heads)])
        self.classifier = conv(widths[-1], 2, 1) if config.classification_guided else None

    def __call__(self, x: Map, *, train: bool, key: PRNGKeyArray | None = None) -> NetworkOutput:
        """The output; ``key`` is needed for the dropout of a guided network in training, and ignored elsewhere.

        Under jit, side and class logits that the caller leaves unused are not computed.
        """
        check_multiple(x)
        # E1…E5.
        encoded = [self.encoder[0](x.astype(self.dtype), train=train)]
        for stage in list(self.encoder)[1:]:
            encoded.append(stage(self.max_pool(encoded[-1]), train=train))
        class_logits = None
        if self.classifier is not None:
            seen = encoded[-1]
            if train:
                if key is None:
                    raise ValueError(
                        "`key` (=None) must be given to train a network with `classification_guided`: its dropout "
                        "draws from it; pass a key folded with the step"
                    )
                seen = dropout(seen, DROPOUT_RATE, key, self.axis_name)
            # `tasks.base` takes the maxima of both.
            class_logits = at_least_float32(self.classifier(seen))
        # D1…D5.
        features = list(encoded)
        for i in reversed(range(NUM_LEVELS - 1)):
            finer = [self.max_pool(encoded[j], 2 ** (i - j)) for j in range(i)]
            features[i] = self.decoder[i]([*finer, *features[i:]], train=train)
        logits = [
            upsample(at_least_float32(head(f)), 2**i)
            for i, (head, f) in enumerate(zip(self.heads, features, strict=False))
        ]
        return NetworkOutput(logits[0], tuple(logits[1:]), class_logits)


def dropout(x: Map, rate: float, key: PRNGKeyArray, axis_name: str | None = None) -> Map:
    """``x`` whose elements are kept with probability 1 - ``rate``, divided by it, and zero otherwise.

    What an example loses depends on the key and on its place in the global batch alone (``axis_name``: the mapped axis
    over which that batch is spread), so that one device, a mesh and pmap draw the same.
    """
    keys = jax.vmap(partial(jax.random.fold_in, key))(global_place(x.shape[0], axis_name))
    keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)

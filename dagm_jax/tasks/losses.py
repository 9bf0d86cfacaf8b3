"""Losses on logits and SSIM over the valid pixels, one number per example, in float32 or better."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from dagm_jax.types import at_least_float32

# Area in px added above and below in Dice and IoU: IoU's loss of an empty target falls to 0 as predictions empty.
SMOOTHING = 1.0
# Share of a slice's pixels that Dice adds where the target is empty.
EMPTY_SHARE = 0.001

Map = Float[Array, "b h w c"]
PerExample = Float[Array, " b"]
# Pixels that count; None: all.
Valid = Bool[Array, "b h w 1"] | None

# Window of SSIM, and the constants that keep both quotients defined on black and on flat patches (Wang et al. 2004).
SSIM_RADIUS_PX = 5
SSIM_WINDOW_PX = 2 * SSIM_RADIUS_PX + 1
SSIM_SIGMA_PX = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def pixel_mean(values: Map, valid: Valid) -> PerExample:
    """The mean over the valid pixels of each example, and over channels; 0 where none is valid."""
    if valid is None:
        return values.mean(axis=(1, 2, 3))
    count = valid.sum(axis=(1, 2, 3)) * values.shape[-1]
    return (values * valid).sum(axis=(1, 2, 3)) / jnp.maximum(count, 1)


def binary_cross_entropy(logits: Map, targets: Map, valid: Valid = None) -> PerExample:
    """Mean over pixels of -t·log σ(z) - (1 - t)·log(1 - σ(z)), per example, in nats."""
    wide = at_least_float32(logits), at_least_float32(targets)
    return pixel_mean(optax.losses.sigmoid_binary_cross_entropy(*wide), valid)


def soft_dice(logits: Map, targets: Map, valid: Valid = None) -> PerExample:
    """1 - (2·Σpt + s) / (Σp + Σt + s), p = σ(z), per example, in [0, 1) (Milletari et al. 2016, smoothed).

    s is 1, and of an empty target 0.1 % of the valid pixels, where that is more: 1 - 1 / (Σp + 1) would stay near 1,
    and without a gradient, until less than a pixel's worth of probability is left.
    """
    overlap, total = _overlap(logits, targets, valid)
    counts = jnp.ones_like(targets, bool) if valid is None else valid
    is_empty = ~(counts & (targets > 0)).any((1, 2, 3))
    smoothing = jnp.where(is_empty, jnp.maximum(EMPTY_SHARE * counts.sum((1, 2, 3)), SMOOTHING), SMOOTHING)
    return 1 - (2 * overlap + smoothing) / (total + smoothing)


def focal(logits: Map, targets: Map, valid: Valid = None, gamma: float = 2.0) -> PerExample:
    """Mean over pixels of -(1 - p_t)^γ·log p_t, per example, in nats; p_t = σ(z) if t = 1, else 1 - σ(z).

    Targets are 0 or 1, ``gamma`` at least 0 (0: cross-entropy). Lin et al. 2017, equation 4, without α.
    """
    # With s, the logit of being wrong: 1 - p_t = σ(s), log p_t = -softplus(s). Powers and logarithms of
    # probabilities that round to 0 or 1, and their infinite gradients, do not appear.
    wrong = (1 - 2 * at_least_float32(targets)) * at_least_float32(logits)
    return pixel_mean(jnp.exp(-gamma * jax.nn.softplus(-wrong)) * jax.nn.softplus(wrong), valid)


def soft_iou(logits: Map, targets: Map, valid: Valid = None) -> PerExample:
    """1 - (Σpt + 1) / (Σp + Σt - Σpt + 1), p = σ(z), per example, in [0, 1) (Rahman, Wang 2016, smoothed)."""
    overlap, total = _overlap(logits, targets, valid)
    return 1 - (overlap + SMOOTHING) / (total - overlap + SMOOTHING)


def _overlap(logits: Map, targets: Map, valid: Valid) -> tuple[PerExample, PerExample]:
    """(Σpt, Σp + Σt) of each example with p = σ(z)."""
    p, t = jax.nn.sigmoid(at_least_float32(logits)), at_least_float32(targets)
    if valid is not None:
        p, t = p * valid, t * valid
    dims = (1, 2, 3)
    return (p * t).sum(dims), p.sum(dims) + t.sum(dims)


def ssim_map(x: Map, y: Map, data_range: float) -> Map:
    """Structural similarity of the windows around each pixel, in [-1, 1], 1 where they are equal.

    (2·μx·μy + C1)·(2·σxy + C2) / ((μx² + μy² + C1)·(σx² + σy² + C2)) with the means μ, variances σ² (biased) and
    covariance under a Gaussian window of 11x11 px and σ = 1.5 px; C1 = (0.01·L)², C2 = (0.03·L)², and L =
    ``data_range`` the width of the images' range (1 for [0, 1], 255 for uint8). Beyond its edge an image goes on
    mirrored, edge pixel repeated. Images may be bfloat16; all arithmetic is float32, so their offset should not
    exceed ``data_range`` much: variances are E[x²] - E[x]². Wang et al. 2004, equation 13.
    """
    pad = ((0, 0), (SSIM_RADIUS_PX, SSIM_RADIUS_PX), (SSIM_RADIUS_PX, SSIM_RADIUS_PX), (0, 0))
    return _ssim_inside(jnp.pad(x, pad, mode="symmetric"), jnp.pad(y, pad, mode="symmetric"), data_range)


def ssim(x: Map, y: Map, data_range: float, valid: Valid = None) -> PerExample:
    """Mean of ``ssim_map`` over channels and the windows that lie wholly inside the image, per example.

    valid: those count whose middle is valid; pixels that are not are equal in both images.
    """
    if valid is None:
        return _ssim_inside(x, y, data_range).mean(axis=(1, 2, 3))
    middles = valid[:, SSIM_RADIUS_PX:-SSIM_RADIUS_PX, SSIM_RADIUS_PX:-SSIM_RADIUS_PX]
    return pixel_mean(_ssim_inside(x * valid, y * valid, data_range), middles)


def _ssim_inside(x: Map, y: Map, data_range: float) -> Float[Array, "b h-10 w-10 c"]:
    """SSIM of each window that lies wholly inside: its luminance term times its contrast-structure term.

    Written by the sum s = x + y and the difference d = x - y: (2·μx·μy + C1) / (μx² + μy² + C1) is
    1 - 2·μd² / (μs² + μd² + 2·C1), and (2·σxy + C2) / (σx² + σy² + C2) is 1 - 2·σd² / (σs² + σd² + 2·C2). That takes
    four moments instead of five, and however float32 rounds, equal images have exactly 1 and none more.
    """
    b, h, w, c = x.shape
    # Columns and channels as one dimension: a last dimension of 1 would cost 20 %.
    x, y = (at_least_float32(image).reshape(b, h, w * c) for image in (x, y))
    moments = jnp.stack([x + y, x - y, (x + y) ** 2, (x - y) ** 2])
    # The last dimension first, which leaves less for the other; measured 20 % faster.
    mean_s, mean_d, mean_s2, mean_d2 = _window_means(_window_means(moments, 3, c), 2, 1)
    # Rounding leaves variances of flat patches at either side of 0.
    variance_s, variance_d = jnp.maximum(mean_s2 - mean_s**2, 0), jnp.maximum(mean_d2 - mean_d**2, 0)
    c1, c2 = (SSIM_K1 * data_range) ** 2, (SSIM_K2 * data_range) ** 2
    luminance = 1 - 2 * mean_d**2 / (mean_s**2 + mean_d**2 + 2 * c1)
    structure = 1 - 2 * variance_d / (variance_s + variance_d + 2 * c2)
    similarity: Array = (luminance * structure).reshape(b, h - 2 * SSIM_RADIUS_PX, w - 2 * SSIM_RADIUS_PX, c)
    return similarity


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _window_means(a: Array, dim: int, stride: int) -> Array:
    """Means of ``a`` under the Gaussian window along ``dim``, which gets shorter by 10·``stride``.

    Neighbours in the image are ``stride`` apart in ``dim``. A sum of shifted slices and a gradient of the same form:
    value and gradient of ``ssim`` of 8 slices of 512x64 take 11 ms on 2 CPU cores, 80 ms with the gradient of slices
    left to JAX (pads and adds), 34 ms as products with banded matrices, 310 ms as ``lax.conv``.
    """
    weights = [math.exp(-((k / SSIM_SIGMA_PX) ** 2) / 2) for k in range(-SSIM_RADIUS_PX, SSIM_RADIUS_PX + 1)]
    size = a.shape[dim] - 2 * SSIM_RADIUS_PX * stride
    slices = [jax.lax.slice_in_dim(a, k * stride, k * stride + size, axis=dim) for k in range(SSIM_WINDOW_PX)]
    total = sum(weights)
    return sum(
        (weight / total * part for weight, part in zip(weights[1:], slices[1:], strict=True)),
        start=weights[0] / total * slices[0],
    )


def _window_means_backward(dim: int, stride: int, _: None, cotangent: Array) -> tuple[Array]:
    """The transposed map: the window is symmetric, so it is the same sum over the cotangent within zeros."""
    pad = [(0, 0)] * cotangent.ndim
    pad[dim] = (2 * SSIM_RADIUS_PX * stride, 2 * SSIM_RADIUS_PX * stride)
    return (_window_means(jnp.pad(cotangent, pad), dim, stride),)


# The map is linear: nothing is kept for the backward pass.
_window_means.defvjp(lambda a, dim, stride: (_window_means(a, dim, stride), None), _window_means_backward)

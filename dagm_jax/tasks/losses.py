"""Losses, one number per example, in float32; predictions are logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

DICE_SMOOTHING = 1.0


def binary_cross_entropy(
    logits: Float[Array, "b h w c"], targets: Float[Array, "b h w c"]
) -> Float[Array, " b"]:
    """Mean over pixels of -t·log σ(z) - (1 - t)·log(1 - σ(z)), per example, in nats."""
    loss: Array = optax.losses.sigmoid_binary_cross_entropy(
        logits.astype(jnp.float32), targets.astype(jnp.float32)
    )
    return loss.mean(axis=(1, 2, 3))


def soft_dice(logits: Float[Array, "b h w c"], targets: Float[Array, "b h w c"]) -> Float[Array, " b"]:
    """1 - (2·Σpt + 1) / (Σp + Σt + 1) with p = σ(z), per example, in [0, 1) (Milletari et al. 2016, smoothed).

    The smoothing makes an empty target well-posed: its loss falls to 0 as the prediction empties.
    """
    p, t = jax.nn.sigmoid(logits.astype(jnp.float32)), targets.astype(jnp.float32)
    dims = (1, 2, 3)
    overlap = 2 * (p * t).sum(dims) + DICE_SMOOTHING
    return 1 - overlap / (p.sum(dims) + t.sum(dims) + DICE_SMOOTHING)

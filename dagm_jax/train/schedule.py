"""The learning rate: warm-up, plateau, cosine cool-down.

The cool-down begins at a step that is decided while training (see `train.stopping`) and is part of the state: one
schedule serves data sets that are learned in a hundred steps and in a thousand, and the weights that are kept are
always annealed. Known as warmup-stable-decay (Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dagm_jax.train.optim import OptimConfig

# Learning rate at the end of the cool-down, as a share of the peak.
FINAL_SHARE = 0.01


def learning_rate(config: OptimConfig, step: Int[Array, ""], cooldown: Int[Array, " 2"]) -> Float[Array, ""]:
    """Learning rate of that step (from 0), float32.

    peak · min(1, (step + 1)/(warmup + 1)) · (f + (1 - f)·(1 + cos πt)/2) with f = 0.01 and t = the elapsed share of the
    cool-down, steps [begin, end), 0 before it.
    """
    begin, end = cooldown[0], cooldown[1]
    warm = jnp.minimum(1.0, (step + 1) / (config.warmup_steps + 1))
    t = jnp.clip((step - begin) / jnp.maximum(end - begin, 1), 0.0, 1.0)
    share = FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + jnp.cos(jnp.pi * t))
    return (config.learning_rate * warm * share).astype(jnp.float32)

"""The optimiser, AdamW behind gradient clipping (optax), and its learning rate: warm-up, plateau, cosine cool-down.

The cool-down begins at a step that is decided while training (see `train.stopping`) and is part of the state: one
schedule serves data sets that are learned in a hundred steps and in a thousand, and the weights that are kept are
always annealed. Known as warmup-stable-decay (Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from dagm_jax.errors import require

# Learning rate at the end of the cool-down, as a share of the peak.
FINAL_SHARE = 0.01


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. The learning rate rises linearly to ``learning_rate``, stays, and falls by a half cosine to 1 % of it.

    average_decay: share of the moving averages of parameters and norm statistics that every step keeps; evaluation uses
    the averages. 0: no averages.
    """

    learning_rate: float = 2e-3
    warmup_steps: int = 20
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    average_decay: float = 0.0

    def __post_init__(self) -> None:
        require("optim", self, "learning_rate clip_norm", lambda x: x > 0, "be greater than 0")
        require("optim", self, "learning_rate", lambda x: x < math.inf, "be finite")
        average = "lie in [0, 1); 0 keeps no averages"
        require("optim", self, "average_decay", lambda x: 0 <= x < 1, average)
        finite = "be at least 0 and finite"
        require("optim", self, "warmup_steps weight_decay", lambda x: 0 <= x < math.inf, finite)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW without its learning rate, by the negative of which the training step multiplies the directions.

    Gradients are clipped by their global norm; the decay leaves biases and norm parameters (vectors) alone.
    """
    decay = optax.add_decayed_weights(
        config.weight_decay, lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.scale_by_adam(), decay)


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

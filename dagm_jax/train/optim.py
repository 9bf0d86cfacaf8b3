"""The optimiser: AdamW behind gradient clipping (optax)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import optax

from dagm_jax.errors import require


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
    decay = optax.add_decayed_weights(config.weight_decay, lambda t: jax.tree.map(lambda p: p.ndim > 1, t))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.scale_by_adam(), decay)

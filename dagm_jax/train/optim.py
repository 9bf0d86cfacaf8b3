"""The optimiser: AdamW behind gradient clipping (optax)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import optax

from dagm_jax.errors import UserError


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
        for name in ("learning_rate", "clip_norm"):
            if not (value := getattr(self, name)) > 0:
                raise UserError(f"`optim.{name}` (={value}) must be greater than 0")
        if self.learning_rate == math.inf:
            raise UserError(f"`optim.learning_rate` (={self.learning_rate}) must be finite")
        if not 0 <= self.average_decay < 1:
            raise UserError(
                f"`optim.average_decay` (={self.average_decay}) must lie in [0, 1); 0 keeps no averages"
            )
        for name in ("warmup_steps", "weight_decay"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"`optim.{name}` (={value}) must be at least 0 and finite")


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW without its learning rate, by the negative of which the training step multiplies the directions.

    Gradients are clipped by their global norm; the decay leaves biases and norm parameters (vectors) alone.
    """
    decay = optax.add_decayed_weights(
        config.weight_decay, lambda tree: jax.tree.map(lambda p: p.ndim > 1, tree)
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), optax.scale_by_adam(), decay)

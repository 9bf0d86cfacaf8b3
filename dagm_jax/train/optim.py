"""The optimiser: AdamW with warm-up, cosine decay and gradient clipping (optax)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import optax

from dagm_jax.types import UserError


@dataclass(frozen=True)
class OptimConfig:
    """AdamW. The learning rate rises linearly to ``learning_rate`` and falls by a half cosine to 1 % of it."""

    learning_rate: float = 1e-3
    warmup_steps: int = 20
    weight_decay: float = 1e-4
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("learning_rate", self.learning_rate), ("clip_norm", self.clip_norm)):
            if not value > 0:
                raise UserError(f"`optim.{name}` (={value}) must be greater than 0")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise UserError(
                f"`optim.warmup_steps` (={self.warmup_steps}) and `optim.weight_decay` (={self.weight_decay}) "
                "must be at least 0"
            )


def make_schedule(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """step → learning rate."""
    return optax.schedules.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_steps else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, num_steps // 2),
        decay_steps=num_steps,
        end_value=0.01 * config.learning_rate,
    )


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW whose decay leaves biases and norm parameters (vectors) alone."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, num_steps),
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )

"""Segmentation: the network learns the weak ellipse masks; its map is the defect probability of each pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dagm_jax.tasks.losses import binary_cross_entropy, soft_dice
from dagm_jax.types import UserError


@dataclass(frozen=True)
class SegmentationConfig:
    """Weights of the two terms of the loss: ``bce_weight``·BCE + ``dice_weight``·soft Dice."""

    bce_weight: float = 1.0
    dice_weight: float = 1.0

    name: ClassVar[str] = "segmentation"
    out_channels: ClassVar[int] = 1

    def __post_init__(self) -> None:
        # Written so that a NaN fails.
        weights = (self.bce_weight, self.dice_weight)
        if not (all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0):
            raise UserError(
                f"`task.bce_weight` (={self.bce_weight}) and `task.dice_weight` (={self.dice_weight}) "
                "must be at least 0, finite and not both 0"
            )

    def loss(self, logits: Float[Array, "b h w 1"], batch: dict[str, Any]) -> Float[Array, " b"]:
        """The loss of each slice of the batch."""
        targets = batch["mask"].astype(jnp.float32)
        return self.bce_weight * binary_cross_entropy(logits, targets) + self.dice_weight * soft_dice(
            logits, targets
        )

    def slice_decision(self, logits: Float[Array, "b h w 1"]) -> Bool[Array, " b"]:
        """Whether any pixel of a slice is more likely defect than not: the decision behind the accuracy curves."""
        return logits.max(axis=(1, 2, 3)) > 0

    def map(self, logits: Float[Array, "b h w 1"]) -> Float[Array, "b h w 1"]:
        """Defect probability in [0, 1] of each pixel of each slice."""
        return jax.nn.sigmoid(logits)

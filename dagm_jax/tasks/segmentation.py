"""Segmentation: the network learns from masks; its map is the defect probability of each pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dagm_jax.errors import UserError, require
from dagm_jax.tasks.base import (
    Forward,
    LossOutput,
    ScoreKind,
    SlicePrediction,
    Slices,
    gate,
    guidance_loss,
    highest,
    mean_over_outputs,
)
from dagm_jax.tasks.losses import binary_cross_entropy, focal, soft_dice, soft_iou, ssim
from dagm_jax.types import NetworkOutput

# Term of the loss → its function of logits, mask and valid pixels.
TERMS: dict[str, Callable[[Array, Array, Array | None], Array]] = {
    "bce": binary_cross_entropy,
    "dice": soft_dice,
    "focal": focal,
    "ssim": lambda logits, mask, valid: 1 - ssim(jax.nn.sigmoid(logits), mask, 1.0, valid),
    "iou": soft_iou,
}


@dataclass(frozen=True)
class SegmentationConfig:
    """Weights of the terms of the loss; a term of weight 0 is not computed.

    Terms on every output of the network: BCE, soft Dice, focal loss, 1 - SSIM of probability and mask, soft IoU.
    ``class_weight`` is that of a classification-guided module's own cross-entropy, where the network has one.
    """

    bce_weight: float = 1.0
    dice_weight: float = 2.0
    focal_weight: float = 0.0
    ssim_weight: float = 0.0
    iou_weight: float = 0.0
    class_weight: float = 1.0

    name: ClassVar[str] = "segmentation"
    score_kind: ClassVar[ScoreKind] = "probability"
    learns_from_defects: ClassVar[bool] = True
    learns_from_masks: ClassVar[bool] = True
    out_channels: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        weights = " ".join(f"{name}_weight" for name in (*TERMS, "class"))
        require("task", self, weights, lambda x: 0 <= x < math.inf, "be at least 0 and finite")
        if not sum(getattr(self, f"{name}_weight") for name in TERMS):
            names = ", ".join(f"`task.{name}_weight`" for name in TERMS)
            raise UserError(f"{names} (=0) must not all be 0: nothing would be learnt")

    def loss(self, forward: Forward, slices: Slices, key: PRNGKeyArray) -> LossOutput:
        """The loss over all pixels of all slices; every slice counts."""
        return self._loss_output(forward(slices["x"], key), slices)

    def predict(self, forward: Forward, slices: Slices) -> SlicePrediction:
        """The map is the probability of a defect, times `gate`; the score of a slice is the map's maximum."""
        output = forward(slices["x"], None)
        defect = gate(output, slices) * jax.nn.sigmoid(output.logits)
        return SlicePrediction(self._loss_output(output, slices), defect, highest(defect, slices))

    def _loss_output(self, output: NetworkOutput, slices: Slices) -> LossOutput:
        targets = slices["mask"].astype(jnp.float32)
        loss = mean_over_outputs(output, lambda logits: self.pixel_loss(logits, targets, slices["valid"]))
        loss += self.class_weight * guidance_loss(output, slices)
        # Any pixel that is more likely defect than not: the decision behind the accuracy curves.
        decision = highest(gate(output, slices) * jax.nn.sigmoid(output.logits), slices) > 0.5
        return LossOutput(loss, jnp.ones_like(loss), decision)

    def pixel_loss(
        self,
        logits: Float[Array, "b h w 1"],
        targets: Float[Array, "b h w 1"],
        valid: Bool[Array, "b h w 1"] | None,
    ) -> Float[Array, " b"]:
        """The weighted sum of the terms for the logits of one stage, over valid pixels."""
        weights = (self.bce_weight, self.dice_weight, self.focal_weight, self.ssim_weight, self.iou_weight)
        terms = zip(weights, TERMS.values(), strict=True)
        parts = [weight * term(logits, targets, valid) for weight, term in terms if weight]
        total: Array = sum(parts[1:], parts[0])
        return total

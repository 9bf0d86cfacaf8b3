"""Classification: the network learns from labels of slices alone whether a slice holds a defect."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from dagm_jax.errors import require
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
from dagm_jax.types import NetworkOutput


@dataclass(frozen=True)
class ClassificationConfig:
    """``pooling_sharpness``: r of the pooling that makes one logit of a slice; near 0 the mean, large the maximum."""

    pooling_sharpness: float = 5.0

    name: ClassVar[str] = "classification"
    score_kind: ClassVar[ScoreKind] = "slices"
    learns_from_defects: ClassVar[bool] = True
    learns_from_masks: ClassVar[bool] = False
    out_channels: ClassVar[int | None] = 1

    def __post_init__(self) -> None:
        sharp = "be greater than 0 and finite"
        require("task", self, "pooling_sharpness", lambda x: 0 < x < math.inf, sharp)

    def loss(self, forward: Forward, slices: Slices, key: PRNGKeyArray) -> LossOutput:
        """Binary cross-entropy on the slice label; slices that hold too little of a defect do not count."""
        return self._loss_output(forward(slices["x"], key), slices)

    def predict(self, forward: Forward, slices: Slices) -> SlicePrediction:
        """The score of a slice is its probability p, the map p·σ(z) of the logits z of its pixels."""
        output = forward(slices["x"], None)
        probability = self.probability(output, slices)
        spread = probability[:, None, None, None] * jax.nn.sigmoid(output.logits)
        return SlicePrediction(self._loss_output(output, slices), spread, probability)

    def probability(self, output: NetworkOutput, slices: Slices) -> Float[Array, " b"]:
        """The probability that a slice or image holds a defect: σ of the pooled logits, times the highest `gate`."""
        return highest(gate(output, slices), slices) * jax.nn.sigmoid(self.pool(output.logits, slices))

    def pool(self, logits: Float[Array, "b h w 1"], slices: Slices) -> Float[Array, " b"]:
        """log(Σ exp(r·z) / number of pixels)/r, between the mean and the maximum of a slice's logits z.

        Pinheiro and Collobert 2015, section 3.1: every pixel gets a gradient, the larger the higher its logit. A mean
        would drown a scratch of 50 px in 32,768; a maximum has a gradient for one pixel at a time. In a larger image
        the divisor is still the number of a slice's pixels: a smooth maximum over the slices of an image, in which
        those without a defect do not drown the one that has it.
        """
        r, valid = self.pooling_sharpness, slices["valid"]
        count = jnp.array(logits.shape[1] * logits.shape[2]) if valid is None else valid.sum(axis=(1, 2, 3))
        total = jax.nn.logsumexp(r * logits, axis=(1, 2, 3), where=valid)
        return (total - jnp.log(jnp.minimum(count, math.prod(slices["slice_shape"])))) / r

    def _loss_output(self, output: NetworkOutput, slices: Slices) -> LossOutput:
        label = slices["label"]
        target = (label == 1).astype(jnp.float32)
        entropy = optax.losses.sigmoid_binary_cross_entropy
        loss = mean_over_outputs(output, lambda logits: entropy(self.pool(logits, slices), target))
        total = loss + guidance_loss(output, slices)
        return LossOutput(total, (label >= 0).astype(jnp.float32), self.probability(output, slices) > 0.5)

"""The protocol of tasks: a loss for the training step, a map and a score for the evaluation step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypedDict

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dagm_jax.types import NetworkOutput

# (input [b h w c], key for dropout or None) → output of the network.
Forward = Callable[[Float[Array, "b h w c"], PRNGKeyArray | None], NetworkOutput]

# Source of an image's score: its pixels' probabilities, their distances from the map's median, or its slices.
ScoreKind = Literal["probability", "deviation", "slices"]


class Slices(TypedDict):
    """A batch of slices as tasks see it.

    x: float32 ``[b h w c]``, standardised grey, the same in every channel; mask: {0, 1} ``[b h w 1]``; label: int32
    ``[b]``, 1, 0 or -1 (too little of the defect to count); place: int32 ``[b]``, index in the global batch, which
    seeds random numbers. mean, std: of the grey levels in [0, 1], so that mean + std·x gives them back.
    """

    x: Any
    mask: Any
    label: Any
    place: Any
    mean: float
    std: float


class LossOutput(NamedTuple):
    """The loss of each slice; ``weight``: that of each slice in the batch's mean loss.

    is_defective: the decision on each slice, which the accuracy curves count; None where a task makes none.
    """

    loss: Float[Array, " b"]
    weight: Float[Array, " b"]
    is_defective: Bool[Array, " b"] | None


class SlicePrediction(NamedTuple):
    """The loss, the map in [0, 1] and the score of each slice."""

    loss_output: LossOutput
    map: Float[Array, "b h w 1"]
    score: Float[Array, " b"]


class Task(Protocol):
    """A task is its frozen configuration with these functions; all are pure and may be traced.

    learns_from_defects: whether defective images are trained on; learns_from_masks: whether these must have masks.
    """

    name: ClassVar[str]
    score_kind: ClassVar[ScoreKind]
    learns_from_defects: ClassVar[bool]
    learns_from_masks: ClassVar[bool]

    def out_channels(self, in_channels: int) -> int:
        """The number of channels of the network's logits."""
        ...

    def loss(self, forward: Forward, slices: Slices, key: PRNGKeyArray) -> LossOutput:
        """The losses of a batch; ``key`` seeds corruption and dropout."""
        ...

    def predict(self, forward: Forward, slices: Slices) -> SlicePrediction:
        """The prediction for each slice; nothing is random."""
        ...


def mean_over_outputs(
    output: NetworkOutput, loss: Callable[[Float[Array, "b h w d"]], Float[Array, " b"]]
) -> Float[Array, " b"]:
    """The mean of ``loss`` over the logits of all supervised stages: deep supervision, where the network has it."""
    losses = [loss(logits) for logits in (output.logits, *output.side_logits)]
    return sum(losses[1:], losses[0]) / len(losses)


def guidance_loss(output: NetworkOutput, label: Array) -> Float[Array, " b"]:
    """Cross-entropy of the classification-guided module's two logits against the slice label, in nats.

    0 for slices that do not count (label -1), and without the module, which has no other loss.
    """
    if output.class_logits is None:
        return jnp.zeros(label.shape, jnp.float32)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(output.class_logits, jnp.maximum(label, 0))
    return jnp.where(label >= 0, loss, 0.0)


def gate(output: NetworkOutput) -> Float[Array, "b 1 1 1"]:
    """The guided module's probability that a slice holds a defect, a factor of its map; 1 without the module.

    The code of U-Net 3+ multiplies the *logits* by a hard 0 or 1: probability 0.5 everywhere on a good slice, and no
    gradient. The map is gate · σ(logits).
    """
    if output.class_logits is None:
        return jnp.ones((output.logits.shape[0], 1, 1, 1), jnp.float32)
    probability: Array = jax.nn.softmax(output.class_logits)[:, 1, None, None, None]
    return probability


def count_right(is_defective: Array, label: Array, valid: Array) -> tuple[Array, Array]:
    """(right decisions, decisions that count), one int32 per slice; label -1 and padding do not count."""
    counted = valid.astype(bool) & (label >= 0)
    right = counted & (is_defective == (label == 1))
    return right.astype(jnp.int32), counted.astype(jnp.int32)

"""What every task offers the step and the judgement: a loss to learn from, and a map with a score to judge by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypedDict

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dagm_jax.types import NetworkOutput

# (input [b h w c], key for what the network draws or None) → what it says of these slices.
Forward = Callable[[Float[Array, "b h w c"], PRNGKeyArray | None], NetworkOutput]

# What an image's verdict is read off: the defect probability of its pixels; how far each pixel of the map lies from the
# map's median, either way; or the scores of its slices.
ScoreKind = Literal["probability", "deviation", "slices"]


class Slices(TypedDict):
    """A batch of slices as tasks see it.

    x: float32 ``[b h w c]``, standardised grey, the same in every channel; mask: {0, 1} ``[b h w 1]``; label: int32
    ``[b]``, 1, 0 or -1 (too little of the defect to count); place: int32 ``[b]``, in the global batch, for what is
    drawn at random. mean, std: of the grey levels in [0, 1], so that mean + std·x gives them back.
    """

    x: Any
    mask: Any
    label: Any
    place: Any
    mean: float
    std: float


class LossOutput(NamedTuple):
    """What a batch teaches. weight: by how much each slice counts in the batch's mean loss.

    is_defective: the decision on each slice, which the accuracy curves count; None where a task makes none.
    """

    loss: Float[Array, " b"]
    weight: Float[Array, " b"]
    is_defective: Bool[Array, " b"] | None


class SlicePrediction(NamedTuple):
    """What is said of each slice without training on it: its lesson, its map in [0, 1], and one score for all of it."""

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
        """How many channels the network's logits have."""
        ...

    def loss(self, forward: Forward, slices: Slices, key: PRNGKeyArray) -> LossOutput:
        """The lesson of a batch; ``key`` feeds what is drawn at random."""
        ...

    def predict(self, forward: Forward, slices: Slices) -> SlicePrediction:
        """The judgement of each slice; nothing is random."""
        ...


def mean_over_outputs(
    output: NetworkOutput, loss: Callable[[Float[Array, "b h w d"]], Float[Array, " b"]]
) -> Float[Array, " b"]:
    """The mean of ``loss`` over the logits of all supervised stages: deep supervision, where the network has it."""
    losses = [loss(logits) for logits in (output.logits, *output.side_logits)]
    return sum(losses[1:], losses[0]) / len(losses)


def guidance_loss(output: NetworkOutput, label: Array) -> Float[Array, " b"]:
    """Cross-entropy of the classification-guided module's two logits against the slice label, in nats.

    0 for slices that do not count (label -1), and without the module. Nothing else teaches that module.
    """
    if output.class_logits is None:
        return jnp.zeros(label.shape, jnp.float32)
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(output.class_logits, jnp.maximum(label, 0))
    return jnp.where(label >= 0, loss, 0.0)


def gate(output: NetworkOutput) -> Float[Array, "b 1 1 1"]:
    """The probability that a slice holds a defect, by which its map is multiplied; 1 without the module that says it.

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

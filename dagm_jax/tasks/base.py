"""The protocol of tasks: a loss for the training step, a map and a score for the evaluation step."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
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
# Limit of the logits of places beyond an image: no maximum is there, and a difference of two such logits is finite.
LOGIT_LIMIT = 1e9


class Slices(TypedDict):
    """A batch of slices, or of whole images, as tasks see it.

    x: float32 ``[b h w c]``, standardised grey, the same in every channel; mask: {0, 1} ``[b h w 1]``; label: int32
    ``[b]``, 1, 0 or -1 (too little of the defect to count); place: int32 ``[b]``, index in the global batch, which
    seeds random numbers. valid: bool ``[b h w 1]``, False for pixels beyond the image, which count nowhere; None where
    all count. slice_shape: (h, w) in px of the slices that the network is trained on, smaller than whole images.
    mean, std: of the grey levels in [0, 1], so that mean + std·x gives them back.
    """

    x: Any
    mask: Any
    label: Any
    place: Any
    valid: Any
    slice_shape: tuple[int, int]
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

    learns_from_defects: whether defective images are trained on; learns_from_masks: whether those with masks alone are,
    beside synthetic defects.
    out_channels: of the network's logits, one for the logit of a defect; None: as many as its input has.
    """

    name: ClassVar[str]
    score_kind: ClassVar[ScoreKind]
    learns_from_defects: ClassVar[bool]
    learns_from_masks: ClassVar[bool]
    out_channels: ClassVar[int | None]

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


def guidance_loss(output: NetworkOutput, slices: Slices) -> Float[Array, " b"]:
    """Cross-entropy of `defect_logits`, at its highest, against the label, in nats.

    0 for slices that do not count (label -1), and without the module, which has no other loss.
    """
    label = slices["label"]
    if output.class_logits is None:
        return jnp.zeros(label.shape, jnp.float32)
    logits, valid = defect_logits(output, slices)
    highest = jnp.where(valid, logits, -jnp.inf).max(axis=(1, 2, 3))
    loss = optax.losses.sigmoid_binary_cross_entropy(highest, jnp.maximum(label, 0))
    return jnp.where(label >= 0, loss, 0.0)


def gate(output: NetworkOutput, slices: Slices) -> Float[Array, "b _ _ 1"]:
    """The guided module's probability that there is a defect, a factor of its map; 1 without the module.

    ``[b 1 1 1]`` of slices; in larger images of each pixel, from the slice around it: `defect_logits`.
    The code of U-Net 3+ multiplies the *logits* by a hard 0 or 1: probability 0.5 everywhere on a good slice, and no
    gradient. The map is gate · σ(logits).
    """
    if output.class_logits is None:
        return jnp.ones((output.logits.shape[0], 1, 1, 1), jnp.float32)
    probability = jax.nn.sigmoid(defect_logits(output, slices)[0])
    if probability.shape[1:3] == (1, 1):
        return probability
    step = output.logits.shape[1] // probability.shape[1]
    return probability.repeat(step, axis=1).repeat(step, axis=2)


def defect_logits(
    output: NetworkOutput, slices: Slices
) -> tuple[Float[Array, "b _ _ 1"], Bool[Array, "b _ _ 1"]]:
    """(logits of a defect by the classification-guided module, whether they are of the image): ``[b 1 1 1]`` of slices.

    The module has learnt maxima over slices: of the logits of a defect, and of none. Over a larger image both would be
    high wherever one slice has a defect and another none. So each place of an image gets the maxima over a slice around
    it, as `gate` and the loss need them; places beyond the image take no part.
    """
    logits = output.class_logits
    step = output.logits.shape[1] // logits.shape[1]
    valid = jnp.ones_like(logits[..., :1], bool)
    if slices["valid"] is not None:
        b, height, width, _ = logits.shape
        valid = slices["valid"].reshape(b, height, step, width, step, 1).any(axis=(2, 4))
        logits = jnp.where(valid, logits, -LOGIT_LIMIT)
    height, width = (length // step for length in slices["slice_shape"])
    if height >= logits.shape[1] and width >= logits.shape[2]:
        highest, valid = (x.max(axis=(1, 2), keepdims=True) for x in (logits, valid))
    else:
        highest = logits
        for axis, length in ((1, height), (2, width)):
            # An odd number of places has a middle. Written as maxima of shifted maps, which every runtime has.
            reach, size = length // 2, logits.shape[axis]
            more = [(reach, reach) if dim == axis else (0, 0) for dim in range(4)]
            wide = jnp.pad(highest, more, constant_values=-LOGIT_LIMIT)
            shifted = [jax.lax.slice_in_dim(wide, k, k + size, axis=axis) for k in range(2 * reach + 1)]
            highest = reduce(jnp.maximum, shifted)
    return highest[..., 1:] - highest[..., :1], valid


def highest(map_: Float[Array, "b h w 1"], slices: Slices) -> Float[Array, " b"]:
    """The maximum of each map in [0, 1] over its valid pixels."""
    inside = map_ if slices["valid"] is None else jnp.where(slices["valid"], map_, 0.0)
    return inside.max(axis=(1, 2, 3))


def count_right(is_defective: Array, label: Array, valid: Array) -> tuple[Array, Array]:
    """(right decisions, decisions that count), one int32 per slice; label -1 and padding do not count."""
    counted = valid.astype(bool) & (label >= 0)
    right = counted & (is_defective == (label == 1))
    return right.astype(jnp.int32), counted.astype(jnp.int32)

"""The pure training step and the pure judgement of images: no jit, no mesh, nothing closed over but structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8

from dagm_jax.data.slicing import Slicer, slice_labels
from dagm_jax.tasks.segmentation import SegmentationConfig

Metrics = dict[str, Array]

# A cool-down that no step reaches.
NEVER = 2**30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes: int32 step, float32 parameters, norm statistics and optimiser state (pytrees).

    cooldown: int32 (begin, end), the steps over which the learning rate falls; the loop sets it, steps hand it on.
    """

    step: Array
    cooldown: Array
    params: Any
    stats: Any
    opt_state: Any


@dataclass(frozen=True)
class Network:
    """The structure of a network without its arrays, and what its input looks like.

    ``mean`` and ``std`` standardise grey values in [0, 255]; they come from the training side.
    """

    graphdef: nnx.GraphDef[Any]
    in_channels: int
    mean: float
    std: float

    def apply(
        self, params: Any, stats: Any, image: UInt8[Array, "b h w 1"], *, train: bool
    ) -> tuple[Float[Array, "b h w d"], Any]:
        """(logits, new norm statistics) of grey slices, shown to the network as ``in_channels`` equal channels."""
        # copy=True: the merged module gets variables of this trace, so that its statistics may be written.
        model = nnx.merge(self.graphdef, params, stats, copy=True)
        x = (image.astype(jnp.float32) - self.mean) / self.std
        x = jnp.broadcast_to(x, (*x.shape[:-1], self.in_channels))
        logits = model(x, train=train)
        return logits, nnx.state(model, nnx.BatchStat)


def make_network(
    build: Callable[[nnx.Rngs], nnx.Module], *, seed: int, in_channels: int, mean: float, std: float
) -> tuple[Network, Any, Any]:
    """(network, parameters, norm statistics), initialised from ``seed``."""
    graphdef, params, stats = nnx.split(build(nnx.Rngs(seed)), nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    # A training side of one grey level has no spread; 1 leaves it finite.
    return Network(graphdef, in_channels, mean, std if std > 0 else 1.0), params, stats


def make_state(params: Any, stats: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    step, never = jnp.zeros((), jnp.int32), jnp.full((2,), NEVER, jnp.int32)
    return TrainState(step, never, params, stats, optimizer.init(params))


def make_train_step(
    network: Network,
    task: SegmentationConfig,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array, Array], Array],
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
    """``step(state, batch) -> (state, metrics)``; metrics: loss, accuracy, gradient norm and learning rate, float32.

    The parameters move by -schedule(step, cooldown) times the optimiser's direction.
    """

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        weight = batch["valid"].astype(jnp.float32)

        def mean_loss(params: Any) -> tuple[Array, tuple[Any, Array]]:
            logits, stats = network.apply(params, state.stats, batch["image"], train=True)
            loss = (task.loss(logits, batch) * weight).sum() / jnp.maximum(weight.sum(), 1.0)
            correct, counted = slice_accuracy(task, logits, batch["label"], weight)
            return loss, (stats, correct / jnp.maximum(counted, 1.0))

        (loss, (stats, accuracy)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate = schedule(state.step, state.cooldown)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, directions)
        metrics = {
            "loss": loss,
            "accuracy": accuracy,
            "grad_norm": optax.global_norm(grads),
            "learning_rate": rate,
        }
        return TrainState(state.step + 1, state.cooldown, params, stats, opt_state), metrics

    return step


def slice_accuracy(
    task: SegmentationConfig, logits: Array, label: Array, weight: Array
) -> tuple[Array, Array]:
    """(right decisions, decisions that count) over slices ``[b]``; label -1 and weight 0 do not count."""
    counts = weight * (label >= 0)
    return (counts * (task.slice_decision(logits) == (label == 1))).sum(), counts.sum()


def make_judge(
    network: Network, task: SegmentationConfig, slicer: Slicer
) -> Callable[[Any, Any, Array, Array], dict[str, Array]]:
    """``judge(params, stats, image [b h w] uint8, mask [b h w] bool)`` : cut, network, map, stitch.

    Gives, on device: map float32 ``[b h w]``, loss float32 ``[b]`` (mean over the image's slices), and int32 ``[b]``
    num_right of num_counted slices whose decision agrees with their label.
    """

    def judge(params: Any, stats: Any, image: Array, mask: Array) -> dict[str, Array]:
        b, n = image.shape[0], slicer.num_slices

        def slices(x: Array) -> Array:
            cut: Array = jax.vmap(lambda one: slicer.cut(one, jnp))(x[..., None])
            return cut.reshape(b * n, *slicer.slice_shape, 1)

        batch = {"image": slices(image), "mask": slices(mask)}
        logits, _ = network.apply(params, stats, batch["image"], train=False)
        held = batch["mask"].sum((1, 2, 3), dtype=jnp.int32).reshape(b, n)
        label = slice_labels(held, mask.sum((1, 2), dtype=jnp.int32)[:, None], jnp)
        counts = label >= 0
        right = (task.slice_decision(logits).reshape(b, n) == (label == 1)) & counts
        maps = task.map(logits).reshape(b, n, *slicer.slice_shape, 1)
        return {
            "map": jax.vmap(lambda one: slicer.stitch(one, jnp))(maps)[..., 0],
            "loss": task.loss(logits, batch).reshape(b, n).mean(axis=1),
            "num_right": right.sum(axis=1),
            "num_counted": counts.sum(axis=1),
        }

    return judge

"""The pure training step and the pure judgement of images: no jit, no mesh, nothing closed over but structure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, UInt8

from dagm_jax.data.slicing import Slicer, slice_labels
from dagm_jax.models.blocks import global_place
from dagm_jax.tasks.base import Forward, Lesson, Slices, Task
from dagm_jax.types import NetworkOutput

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

    def show(self, image: UInt8[Array, "b h w 1"], mask: Array, label: Array, place: Array) -> Slices:
        """Grey slices as the network and its task see them: standardised, in ``in_channels`` equal channels."""
        x = (image.astype(jnp.float32) - self.mean) / self.std
        x = jnp.broadcast_to(x, (*x.shape[:-1], self.in_channels))
        return Slices(x=x, mask=mask, label=label, place=place, mean=self.mean / 255, std=self.std / 255)

    def bind(self, params: Any, stats: Any, *, train: bool) -> tuple[Forward, Callable[[], Any]]:
        """(forward, a function that gives the norm statistics as the calls of forward have left them)."""
        # copy=True: the merged module gets variables of this trace, so that its statistics may be written.
        model = nnx.merge(self.graphdef, params, stats, copy=True)

        def forward(x: Array, key: Array | None) -> NetworkOutput:
            output: NetworkOutput = model(x, train=train, key=key)
            return output

        return forward, lambda: nnx.state(model, nnx.BatchStat)


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
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array, Array], Array],
    seed: int,
    axis_name: str | None = None,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
    """``step(state, batch) -> (state, metrics)``; metrics: loss, gradient norm and learning rate, float32, and the
    accuracy of the decisions on slices where the task makes any.

    The parameters move by -schedule(step, cooldown) times the optimiser's direction. What is random in a step is a
    function of ``seed``, the step's number and the slice's place in the global batch. ``axis_name``: the mapped axis
    over which pmap spreads that batch; sums are summed over it and divided once, never means averaged.
    """

    def total(x: Any) -> Any:
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        place = global_place(batch["label"].shape[0], axis_name)
        slices = network.show(batch["image"], batch["mask"], batch["label"], place)
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def part_of_mean_loss(params: Any) -> tuple[Array, tuple[Any, Metrics]]:
            forward, stats = network.bind(params, state.stats, train=True)
            lesson = task.learn(forward, slices, key)
            weight = batch["valid"] * lesson.weight
            loss = (lesson.loss * weight).sum() / jnp.maximum(total(weight.sum()), 1.0)
            return loss, (stats(), accuracy(lesson, batch["label"], batch["valid"], total))

        (loss, (stats, shares)), grads = jax.value_and_grad(part_of_mean_loss, has_aux=True)(state.params)
        loss, grads = total((loss, grads))
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate = schedule(state.step, state.cooldown)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, directions)
        metrics = {"loss": loss, **shares, "grad_norm": optax.global_norm(grads), "learning_rate": rate}
        return TrainState(state.step + 1, state.cooldown, params, stats, opt_state), metrics

    return step


def accuracy(
    lesson: Lesson, label: Array, valid: Array, total: Callable[[Any], Any] = lambda x: x
) -> Metrics:
    """The share of right decisions over the valid slices whose label is 0 or 1; nothing where no decision is made.

    ``total`` sums over the devices that hold parts of the batch.
    """
    if lesson.is_defective is None:
        return {}
    right, counted = _count_right(lesson.is_defective, label, valid)
    num_right, num_counted = total((right.sum(), counted.sum()))
    return {"accuracy": num_right / jnp.maximum(num_counted, 1)}


def _count_right(is_defective: Array, label: Array, valid: Array) -> tuple[Array, Array]:
    """(right decisions, decisions that count), one int32 per slice; label -1 and padding do not count."""
    counted = valid.astype(bool) & (label >= 0)
    right = counted & (is_defective == (label == 1))
    return right.astype(jnp.int32), counted.astype(jnp.int32)


def make_judge(
    network: Network, task: Task, slicer: Slicer
) -> Callable[[Any, Any, Array, Array, Array], dict[str, Array]]:
    """``judge(params, stats, image [b h w] uint8, mask [b h w] bool, mask_px [b])`` : cut, network, map, stitch.

    mask_px: int32, how large the mask is without what padding has added to it.

    Gives, on device: map float32 ``[b h w]``, slice_scores float32 ``[b n]``, loss float32 ``[b]`` (mean over the
    image's slices that count), and int32 ``[b]`` num_right of num_counted slices whose decision agrees with their label
    (both 0 where the task decides nothing on slices).
    """

    def judge(params: Any, stats: Any, image: Array, mask: Array, mask_px: Array) -> dict[str, Array]:
        b, n = image.shape[0], slicer.num_slices

        def cut(x: Array) -> Array:
            slices: Array = jax.vmap(lambda one: slicer.cut(one, jnp))(x[..., None])
            return slices.reshape(b * n, *slicer.slice_shape, 1)

        masks = cut(mask)
        held = jax.vmap(lambda one: slicer.held(one, jnp))(mask)
        label = slice_labels(held, mask_px[:, None], jnp).reshape(-1)
        forward, _ = network.bind(params, stats, train=False)
        lesson, maps, scores = task.judge(forward, network.show(cut(image), masks, label, jnp.arange(b * n)))
        weight = lesson.weight.reshape(b, n)
        right = counted = jnp.zeros((b * n,), jnp.int32)
        if lesson.is_defective is not None:
            right, counted = _count_right(lesson.is_defective, label, jnp.ones_like(label))
        stitched = jax.vmap(lambda one: slicer.stitch(one, jnp))(maps.reshape(b, n, *maps.shape[1:]))
        return {
            # A weighted mean may leave the range of its parts by a rounding.
            "map": jnp.clip(stitched[..., 0], 0.0, 1.0),
            "slice_scores": scores.reshape(b, n),
            "loss": (lesson.loss.reshape(b, n) * weight).sum(1) / jnp.maximum(weight.sum(1), 1.0),
            "num_right": right.reshape(b, n).sum(1),
            "num_counted": counted.reshape(b, n).sum(1),
        }

    return judge

"""The training step as a pure function: no jit, no mesh."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from dagm_jax.models.blocks import global_place
from dagm_jax.models.network import Network
from dagm_jax.tasks.base import Task, count_right

Metrics = dict[str, Array]

# Begin and end of a cool-down that no step reaches.
NEVER = 2**30


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Number of the step (int32), float32 parameters, norm statistics and optimiser state (pytrees).

    cooldown: int32 (begin, end), the steps over which the learning rate falls; set by the loop alone.
    average: moving averages of (parameters, norm statistics), or () where none are kept.
    """

    step: Array
    cooldown: Array
    params: Any
    stats: Any
    opt_state: Any
    average: Any = ()

    @property
    def eval_weights(self) -> tuple[Any, Any]:
        """(parameters, norm statistics) for evaluation: the averages where they are kept."""
        return self.average or (self.params, self.stats)


def make_state(
    params: Any, stats: Any, optimizer: optax.GradientTransformation, *, averaged: bool = False
) -> TrainState:
    """The state before the first step; ``averaged``: with moving averages, which start from these weights."""
    step, never = jnp.zeros((), jnp.int32), jnp.full((2,), NEVER, jnp.int32)
    average = (params, stats) if averaged else ()
    return TrainState(step, never, params, stats, optimizer.init(params), average)


def make_train_step(
    network: Network,
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Array, Array], Array],
    seed: int,
    axis_name: str | None = None,
    *,
    accumulate: int = 1,
    num_shards: int = 1,
    average_decay: float = 0.0,
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
    """``step(state, batch) -> (state, metrics)``; metrics: loss, gradient norm and learning rate, float32, and the
    accuracy of the decisions on slices where the task makes any.

    Random numbers are a function of ``seed``, the step's number and the slice's place in the global batch. axis_name:
    mapped axis that pmap spreads that batch over; sums are summed over it and divided once, never means averaged.
    accumulate: number of parts that the batch is computed in, one after the other, with the update of the whole but for
    batch norm, which sees one part at a time. num_shards: number of devices that one program's batch is split over;
    each takes its share of every part. average_decay: see `OptimConfig`.
    """

    def sums_of(params: Any, stats: Any, batch: dict[str, Array], key: Array) -> tuple[Any, Any]:
        """(sums of loss, counts and gradients over a part of the batch; norm statistics after it)."""
        inside = batch.get("inside")
        slices = network.preprocess(batch["image"], batch["mask"], batch["label"], batch["place"], inside)

        def sum_of_losses(params: Any) -> tuple[Array, tuple[Any, dict[str, Array]]]:
            forward, new_stats = network.apply(params, stats, train=True)
            output = task.loss(forward, slices, key)
            weight = batch["valid"] * output.weight
            sums = {"weight": weight.sum()}
            if output.is_defective is not None:
                right, counted = count_right(output.is_defective, batch["label"], batch["valid"])
                sums |= {"right": right.sum(), "counted": counted.sum()}
            return (output.loss * weight).sum(), (new_stats(), sums)

        (loss, (stats, sums)), grads = jax.value_and_grad(sum_of_losses, has_aux=True)(params)
        return (loss, sums, grads), stats

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        batch = batch | {"place": global_place(batch["label"].shape[0], axis_name)}
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulate == 1:
            sums, stats = sums_of(state.params, state.stats, batch, key)
        else:
            parts = jax.tree.map(lambda x: _in_parts(x, accumulate, num_shards), batch)

            def add(carry: tuple[Any, Any], part: tuple[Array, dict[str, Array]]) -> tuple[Any, None]:
                number, rows = part
                more, stats = sums_of(state.params, carry[1], rows, jax.random.fold_in(key, number))
                return (jax.tree.map(jnp.add, carry[0], more), stats), None

            first = jax.tree.map(lambda x: x[0], parts)
            shapes, _ = jax.eval_shape(sums_of, state.params, state.stats, first, key)
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            (sums, stats), _ = jax.lax.scan(add, (zeros, state.stats), (jnp.arange(accumulate), parts))
        loss, counts, grads = sums if axis_name is None else jax.lax.psum(sums, axis_name)
        loss, grads = jax.tree.map(lambda x: x / jnp.maximum(counts["weight"], 1.0), (loss, grads))
        directions, opt_state = optimizer.update(grads, state.opt_state, state.params)
        rate = schedule(state.step, state.cooldown)
        params = jax.tree.map(lambda p, d: p - rate * d, state.params, directions)
        metrics = {"loss": loss, "grad_norm": optax.global_norm(grads), "learning_rate": rate}
        if "counted" in counts:
            metrics["accuracy"] = counts["right"] / jnp.maximum(counts["counted"], 1)
        average = _moving_average(state, (params, stats), average_decay)
        return TrainState(state.step + 1, state.cooldown, params, stats, opt_state, average), metrics

    return step


class Carry(NamedTuple):
    """State handed from step to step, with the number of steps so far that were not finite (int32)."""

    state: TrainState
    num_skipped: Array


def skip_non_finite(
    step: Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]],
    most: int,
    axis_name: str | None = None,
) -> Callable[[Carry, dict[str, Array]], tuple[Carry, Metrics]]:
    """``step`` that changes only the state's number where loss, gradient or norm statistics are not finite.

    Metrics gain non_finite (0 or 1, float32). After more than ``most`` of such steps nothing changes any more, not even
    the number: a loop that reads the metrics only now and then still finds the state before the last of these steps.
    Devices that ``axis_name`` maps over decide as one.
    """

    def guarded(carry: Carry, batch: dict[str, Array]) -> tuple[Carry, Metrics]:
        state, num_skipped = carry
        new, metrics = step(state, batch)
        watched = (metrics["loss"], metrics["grad_norm"], new.stats)
        is_finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(watched)]).all()
        if axis_name is not None:
            is_finite = jax.lax.pmin(is_finite.astype(jnp.int32), axis_name).astype(bool)
        num_skipped = num_skipped + ~is_finite
        is_over = num_skipped > most
        moved = jax.tree.map(partial(jnp.where, is_finite & ~is_over), new, state)
        number = state.step + ~is_over
        metrics = metrics | {"non_finite": 1 - is_finite.astype(jnp.float32)}
        return Carry(replace(moved, step=number), num_skipped), metrics

    return guarded


def _in_parts(x: Array, number: int, num_shards: int) -> Array:
    """``[b …]`` as ``[number b/number …]``; each part has an equal share of each of ``num_shards`` blocks."""
    rows = x.reshape(num_shards, number, -1, *x.shape[1:])
    return jnp.moveaxis(rows, 1, 0).reshape(number, -1, *x.shape[1:])


def _moving_average(state: TrainState, new: tuple[Any, Any], decay: float) -> Any:
    """Moving average of (parameters, norm statistics) after a step; () where none is kept.

    decay · average + (1 - decay) · new, with a decay of at most (1 + step)/(10 + step), by which the first weights are
    soon forgotten (as in TensorFlow's ExponentialMovingAverage with num_updates).
    """
    if not decay:
        return state.average
    share = jnp.minimum(decay, (1 + state.step) / (10 + state.step))
    return jax.tree.map(lambda old, x: share * old + (1 - share) * x, state.average, new)

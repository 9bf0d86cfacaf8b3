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

from dagm_jax.data.slicing import Slicer
from dagm_jax.tasks.segmentation import SegmentationConfig

Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """All that a step changes: int32 step, float32 parameters, norm statistics and optimiser state (pytrees)."""

    step: Array
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
    # A training side of one grey level has no spread; 1 leaves it finite.
    graphdef, params, stats = nnx.split(build(nnx.Rngs(seed)), nnx.Param, nnx.BatchStat)
    return Network(graphdef, in_channels, mean, std if std > 0 else 1.0), params, stats


def make_state(params: Any, stats: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))


def make_train_step(
    network: Network, task: SegmentationConfig, optimizer: optax.GradientTransformation
) -> Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]:
    """``step(state, batch) -> (state, metrics)``; metrics: loss, accuracy, gradient norm (float32 scalars)."""

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        weight = batch["valid"].astype(jnp.float32)
        weight = weight / jnp.maximum(weight.sum(), 1.0)

        def mean_loss(params: Any) -> tuple[Array, tuple[Any, Array]]:
            logits, stats = network.apply(params, state.stats, batch["image"], train=True)
            accuracy = (task.accuracy(logits, batch) * weight).sum()
            return (task.loss(logits, batch) * weight).sum(), (stats, accuracy)

        (loss, (stats, accuracy)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.global_norm(grads)}
        return TrainState(state.step + 1, params, stats, opt_state), metrics

    return step


def make_judge(
    network: Network, task: SegmentationConfig, slicer: Slicer
) -> Callable[[Any, Any, Array, Array], dict[str, Array]]:
    """``judge(params, stats, image [b h w] uint8, mask [b h w] bool)`` → float32 map ``[b h w]``, loss and accuracy
    ``[b]``: cut, network, map, stitch. Loss and accuracy are means over an image's slices."""

    def judge(params: Any, stats: Any, image: Array, mask: Array) -> dict[str, Array]:
        b, n = image.shape[0], slicer.num_slices

        def slices(x: Array) -> Array:
            cut = jax.vmap(lambda one: slicer.cut(one, jnp))(x[..., None])
            return cut.reshape(b * n, *slicer.slice_shape, 1)

        batch = {"image": slices(image), "mask": slices(mask)}
        logits, _ = network.apply(params, stats, batch["image"], train=False)
        maps = task.map(logits).reshape(b, n, *slicer.slice_shape, 1)
        return {
            "map": jax.vmap(lambda one: slicer.stitch(one, jnp))(maps)[..., 0],
            "loss": task.loss(logits, batch).reshape(b, n).mean(axis=1),
            "accuracy": task.accuracy(logits, batch).reshape(b, n).mean(axis=1),
        }

    return judge

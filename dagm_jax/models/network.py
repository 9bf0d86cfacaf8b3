"""A network without its arrays: input, structure, its application to parameters, and forms of its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from dagm_jax.models.blocks import add_bias, upsample
from dagm_jax.models.convolution import DIMENSIONS, Map, convolve_on_cpu
from dagm_jax.tasks.base import Forward, Slices
from dagm_jax.types import NetworkOutput


@dataclass(frozen=True)
class Network:
    """The structure of a network without its arrays, and what its input looks like.

    ``mean`` and ``std`` normalise grey values in [0, 255]; they come from the training split. forms: functions that
    take the place of those which layers hold as attributes, such as ``convolve``: the same operation, faster elsewhere.
    downscale: input is averaged over as many px each way, and logits are up-sampled to the input's size.
    """

    graphdef: nnx.GraphDef[Any]
    in_channels: int
    mean: float
    std: float
    forms: tuple[tuple[str, Callable[..., Array]], ...] = ()
    downscale: int = 1

    def preprocess(
        self,
        image: UInt8[Array, "b h w 1"],
        mask: Array,
        label: Array,
        place: Array,
        valid: Array | None = None,
        slice_shape: tuple[int, int] | None = None,
    ) -> Slices:
        """Grey slices as the network sees them: equal channels; float32, or float64 where that is on.

        ``slice_shape`` is that of the slices of training where these are whole images.
        """
        x = (image.astype(jnp.result_type(float)) - self.mean) / self.std
        x = jnp.concatenate([x] * self.in_channels, axis=-1)
        return Slices(
            x=x,
            mask=mask,
            label=label,
            place=place,
            valid=valid,
            slice_shape=slice_shape or (x.shape[1], x.shape[2]),
            mean=self.mean / 255,
            std=self.std / 255,
        )

    def for_platform(self, platform: str) -> Network:
        """The network in the form that runs well on ``platform``; on any but "cpu" as it is written."""
        return replace(self, forms=(("convolve", convolve_on_cpu),) if platform == "cpu" else ())

    def apply(self, params: Any, stats: Any, *, train: bool) -> tuple[Forward, Callable[[], Any]]:
        """(forward, a function that gives the norm statistics as the calls of forward have left them)."""
        # copy=True: the merged module gets variables of this trace, so that its statistics may be written.
        model = nnx.merge(self.graphdef, params, stats, copy=True)
        model.set_attributes(**dict(self.forms), raise_if_not_found=False)

        def forward(x: Array, key: Array | None) -> NetworkOutput:
            factor = self.downscale
            if factor == 1:
                return model(x, train=train, key=key)  # type: ignore[no-any-return]
            # Sums of shifted maps, which every runtime has.
            parts = [x[:, i::factor, k::factor] for i in range(factor) for k in range(factor)]
            output: NetworkOutput = model(sum(parts[1:], parts[0]) / factor**2, train=train, key=key)
            logits, *side_logits = (upsample(z, factor) for z in (output.logits, *output.side_logits))
            return NetworkOutput(logits, tuple(side_logits), output.class_logits)

        return forward, lambda: nnx.state(model, nnx.BatchStat)


def make_network(
    build: Callable[[nnx.Rngs], nnx.Module],
    *,
    seed: int,
    in_channels: int,
    mean: float,
    std: float,
    drawn: bool = True,
) -> tuple[Network, Any, Any]:
    """(network, parameters, norm statistics) initialised from ``seed``; not ``drawn``: their shapes and types instead.

    Drawing compiles a program for each shape, which is lost on weights that are about to be read from a file.
    """
    module = build(nnx.Rngs(seed)) if drawn else nnx.eval_shape(lambda: build(nnx.Rngs(seed)))
    graphdef, params, stats = nnx.split(module, nnx.Param, nnx.BatchStat)  # type: ignore[misc]
    # A training split of one grey level has no spread; 1 leaves it finite.
    return Network(graphdef, in_channels, mean, std if std > 0 else 1.0), params, stats


def pool_windows(x: Map, factor: int = 2) -> Map:
    """`models.blocks.max_pool` by flax's pooling."""
    pooled: Map = nnx.max_pool(x, window_shape=(factor, factor), strides=(factor, factor))  # type: ignore[no-untyped-call]
    return pooled


def expand(x: Map, kernel: Float[Array, "c 2 2 d"], bias: Float[Array, " d"]) -> Map:
    """`models.blocks.expand` by JAX's transposed convolution, which places the taps of a kernel the other way round."""
    turned = kernel[:, ::-1, ::-1].transpose(1, 2, 0, 3)
    y = jax.lax.conv_transpose(x, turned, (2, 2), "VALID", dimension_numbers=DIMENSIONS)
    return add_bias(y, bias)


# `Network.forms` that are operations of formats such as ONNX: a sequence of others in their place hinders runtimes,
# which keep maps in an order of their own between operations that they know. XLA is faster on CPUs with the others.
STANDARD = (("max_pool", pool_windows), ("expand", expand))

"""The one file that knows devices: the mesh over this machine's devices, shardings, compilation."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dagm_jax.types import UserError, check_choices

BATCH_AXIS = "batch"
# Batches on their way to the devices while a step runs; two hide the transfer behind the computation.
NUM_PREFETCHED = 2
# Sends convolutions to XLA's Eigen kernels instead of jaxlib's default fusions: 1.2-1.8x faster training on CPUs.
EIGEN_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@dataclass(frozen=True)
class ParallelConfig:
    """How the training step is laid over the local devices.

    mode: jit over a mesh, one global program that XLA splits; or pmap, one program per device with its part of the
    batch, which sums over the devices by name. Both take the same steps. cpu_convolutions: read on CPUs only.
    """

    mode: Literal["jit", "pmap"] = "jit"
    cpu_convolutions: Literal["eigen", "default"] = "eigen"

    def __post_init__(self) -> None:
        check_choices("parallel", self)


@dataclass(frozen=True)
class Devices:
    """All local devices as a mesh of one axis; batches are split along it, everything else is replicated."""

    mesh: Mesh
    compiler_options: dict[str, str] | None
    mode: Literal["jit", "pmap"] = "jit"

    @property
    def axis_name(self) -> str | None:
        """The mapped axis of the training step, over which it has to sum itself; None under jit."""
        return BATCH_AXIS if self.mode == "pmap" else None

    @property
    def num_devices(self) -> int:
        return int(self.mesh.devices.size)

    @property
    def platform(self) -> str:
        return str(self.mesh.devices.flat[0].platform)

    @property
    def kind(self) -> str:
        return f"{self.num_devices} x {self.mesh.devices.flat[0].device_kind} ({self.platform})"

    @property
    def num_shards(self) -> int:
        """Over how many devices the batch of one program is split: all under jit, one under pmap."""
        return self.num_devices if self.mode == "jit" else 1

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def split(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXIS))

    def check_batch_size(self, name: str, value: int, num_parts: int = 1) -> None:
        """Raises UserError where a global batch cannot be divided evenly, on each device into ``num_parts``."""
        multiple = self.num_devices * num_parts
        if value < 1 or value % multiple:
            times = f" times the {num_parts} parts of `train.accumulate`" if num_parts > 1 else ""
            raise UserError(
                f"`{name}` (={value}) must be a positive multiple of the {self.num_devices} devices{times}; "
                f"the next one is {-(-max(value, 1) // multiple) * multiple}"
            )

    def shard_batch(self, batch: Any) -> Any:
        """Host arrays whose first dimension is the global batch → device arrays split over the mesh."""
        return jax.device_put(batch, self.split)

    def shard_training_batch(self, batch: Any) -> Any:
        """A host batch as the compiled step takes it: as `shard_batch`, under pmap with an axis of devices first."""
        if self.mode == "jit":
            return self.shard_batch(batch)
        num = self.num_devices
        return self.shard_batch(jax.tree.map(lambda x: np.reshape(x, (num, -1, *np.shape(x)[1:])), batch))

    def prefetch(self, batches: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """(host batch, the same on the devices as the compiled step takes it), the next ones already on their way."""
        waiting: deque[tuple[Any, Any]] = deque()
        for batch in batches:
            waiting.append((batch, self.shard_training_batch(batch)))
            if len(waiting) > NUM_PREFETCHED:
                yield waiting.popleft()
        yield from waiting

    def replicate(self, tree: Any) -> Any:
        """Any pytree of arrays → the same on every device."""
        return jax.device_put(tree, self.replicated)

    def compile_step(self, step: Callable[..., Any], *example: Any) -> jax.stages.Compiled:
        """``step(state, batch)`` compiled for the example's shapes; the state's memory is reused (donated).

        The batch is one of `shard_training_batch`; under pmap the step must sum over `axis_name`.
        """
        # pmap takes no options before it compiles.
        options = self.compiler_options if self.mode == "pmap" else None
        compiled: jax.stages.Compiled = self.lay_out(step).lower(*example).compile(options)
        return compiled

    def lay_out(self, step: Callable[..., Any]) -> Any:
        """``step(state, batch)`` laid over the devices by jit or pmap, not yet compiled."""
        if self.mode == "pmap":
            return jax.pmap(
                step,
                axis_name=BATCH_AXIS,
                in_axes=(None, 0),
                out_axes=None,
                donate_argnums=0,
                devices=list(self.mesh.devices.flat),
            )
        return jax.jit(
            step,
            in_shardings=(self.replicated, self.split),
            out_shardings=self.replicated,
            donate_argnums=0,
            compiler_options=self.compiler_options,
        )

    def compile_judge(self, judge: Callable[..., Any], *example: Any) -> jax.stages.Compiled:
        """``judge(params, stats, *images)`` compiled for the example's shapes, images split over the mesh."""
        jitted = jax.jit(
            judge,
            in_shardings=(self.replicated, self.replicated, *[self.split] * (len(example) - 2)),
            out_shardings=self.split,
            compiler_options=self.compiler_options,
        )
        return jitted.lower(*example).compile()


def make_devices(config: ParallelConfig, xla_flags: str = "") -> Devices:
    """The mesh over all local devices. ``xla_flags`` (the user's XLA_FLAGS) wins over the options set here.

    Raises UserError where this jaxlib refuses the option that ``parallel.cpu_convolutions`` asks for.
    """
    mesh = Mesh(np.array(jax.local_devices()), (BATCH_AXIS,), axis_types=(AxisType.Auto,))
    options = None
    if jax.default_backend() == "cpu" and config.cpu_convolutions == "eigen":
        flag = next(iter(EIGEN_CONVOLUTIONS))
        options = None if flag in xla_flags else EIGEN_CONVOLUTIONS
    if options:
        try:
            jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
        except Exception as error:
            raise UserError(
                "`parallel.cpu_convolutions` (=eigen) needs a jaxlib that knows "
                f"{next(iter(options))}; set it to default"
            ) from error
    return Devices(mesh, options, config.mode)

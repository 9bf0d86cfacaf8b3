"""Devices: the mesh over those of all processes, shardings, compilation."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dagm_jax.errors import UserError, check_choices

BATCH_AXIS = "batch"
# Batches that are sent to the devices while a step runs; two hide the transfer behind the computation.
NUM_PREFETCHED = 2
# Compiler option that sends convolutions to Eigen's kernels, not jaxlib's default fusions: 1.2-1.8x faster on CPUs.
EIGEN_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}


@dataclass(frozen=True)
class ParallelConfig:
    """How the training step is laid over the devices, which are those of all processes.

    mode: jit over a mesh, one global program that XLA splits; or pmap, one program per device with its part of the
    batch, which sums over the devices by name. Both take the same steps. cpu_convolutions: read on CPUs only.
    """

    mode: Literal["jit", "pmap"] = "jit"
    cpu_convolutions: Literal["eigen", "default"] = "eigen"

    def __post_init__(self) -> None:
        check_choices("parallel", self)


@dataclass(frozen=True)
class Devices:
    """Devices as a mesh of one axis; batches are split along it, everything else is replicated.

    The devices of a process are neighbours and processes follow in their order, so that each holds a block of a batch.
    """

    mesh: Mesh
    compiler_options: dict[str, str] | None
    mode: Literal["jit", "pmap"] = "jit"

    @property
    def axis_name(self) -> str | None:
        """Name of the mapped axis that the training step has to sum over; None under jit."""
        return BATCH_AXIS if self.mode == "pmap" else None

    @property
    def num_devices(self) -> int:
        return int(self.mesh.devices.size)

    @property
    def num_processes(self) -> int:
        return len({device.process_index for device in self.mesh.devices.flat})

    @property
    def platform(self) -> str:
        return str(self.mesh.devices.flat[0].platform)

    @property
    def kind(self) -> str:
        processes = f" of {self.num_processes} processes" if self.num_processes > 1 else ""
        return f"{self.num_devices} x {self.mesh.devices.flat[0].device_kind} ({self.platform}){processes}"

    @property
    def num_shards(self) -> int:
        """Number of devices that share the batch of one program: all under jit, one under pmap."""
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
        """Device arrays of the global batch, split over the mesh, from host arrays of this process's block of it."""
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(self.split, x), batch)

    def shard_training_batch(self, batch: Any) -> Any:
        """A host batch as the compiled step takes it: `shard_batch`, under pmap with a first axis of devices."""
        if self.mode == "jit":
            return self.shard_batch(batch)
        num = self.num_devices // self.num_processes
        return self.shard_batch(jax.tree.map(lambda x: np.reshape(x, (num, -1, *np.shape(x)[1:])), batch))

    def prefetch(self, batches: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """(host batch, the same on the devices as the compiled step takes it); the next ones are sent ahead."""
        waiting: deque[tuple[Any, Any]] = deque()
        for batch in batches:
            waiting.append((batch, self.shard_training_batch(batch)))
            if len(waiting) > NUM_PREFETCHED:
                yield waiting.popleft()
        yield from waiting

    def replicate(self, tree: Any) -> Any:
        """The pytree's arrays on every device; all processes give equal ones."""
        if self.replicated.is_fully_addressable:
            return jax.device_put(tree, self.replicated)
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(self.replicated, np.asarray(x)), tree
        )

    def local(self) -> Devices:
        """The devices of this process, on which it works without the others."""
        if self.num_processes == 1:
            return self
        own = [device for device in self.mesh.devices.flat if device.process_index == jax.process_index()]
        return replace(self, mesh=_mesh_of(own))

    def localize(self, tree: Any) -> Any:
        """Replicated arrays of this mesh on the mesh of `local`."""
        if self.replicated.is_fully_addressable:
            return tree
        return self.local().replicate(jax.tree.map(lambda x: x.addressable_data(0), tree))

    def compile_step(self, step: Callable[..., Any], *example: Any) -> jax.stages.Compiled:
        """``step(state, batch)`` compiled for the example's shapes; the state's memory is reused (donated).

        The batch is one of `shard_training_batch`; under pmap the step must sum over `axis_name`.
        """
        # pmap takes its options here, where it is compiled.
        options = self.compiler_options if self.mode == "pmap" else None
        compiled: jax.stages.Compiled = self.lay_out(step).lower(*example).compile(options)
        return compiled

    def lay_out(self, step: Callable[..., Any]) -> Any:
        """``step(state, batch)`` laid over the devices by jit or pmap, not yet compiled."""
        if self.mode == "pmap":
            devices = list(self.mesh.devices.flat)
            axes: Any = dict(axis_name=BATCH_AXIS, in_axes=(None, 0), out_axes=None)
            return jax.pmap(step, **axes, donate_argnums=0, devices=devices)
        return jax.jit(
            step,
            in_shardings=(self.replicated, self.split),
            out_shardings=self.replicated,
            donate_argnums=0,
            compiler_options=self.compiler_options,
        )

    def compile_eval_step(self, eval_step: Callable[..., Any], *example: Any) -> jax.stages.Compiled:
        """``eval_step(params, stats, *images)`` compiled for the example's shapes, images split over the mesh."""
        jitted = jax.jit(
            eval_step,
            in_shardings=(self.replicated, self.replicated, *[self.split] * (len(example) - 2)),
            out_shardings=self.split,
            compiler_options=self.compiler_options,
        )
        return jitted.lower(*example).compile()


def _mesh_of(devices: Sequence[Any]) -> Mesh:
    return Mesh(np.array(devices), (BATCH_AXIS,), axis_types=(AxisType.Auto,))


def make_devices(config: ParallelConfig, xla_flags: str = "") -> Devices:
    """The mesh over the devices of all processes. ``xla_flags`` (the user's XLA_FLAGS) wins over the options set here.

    Raises UserError where this jaxlib refuses the option that ``parallel.cpu_convolutions`` asks for, and where
    processes have unequal numbers of devices.
    """
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    counts = Counter(device.process_index for device in devices)
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the processes have {', '.join(map(str, counts.values()))} devices; each must have as many as the others"
        )
    (flag,) = EIGEN_CONVOLUTIONS
    is_eigen = jax.default_backend() == "cpu" and config.cpu_convolutions == "eigen" and flag not in xla_flags
    if is_eigen:
        try:
            jax.jit(lambda x: x + 1, compiler_options=EIGEN_CONVOLUTIONS).lower(0.0).compile()
        except Exception as error:
            raise UserError(
                f"`parallel.cpu_convolutions` (=eigen) needs a jaxlib that knows {flag}; set it to default"
            ) from error
    return Devices(_mesh_of(devices), EIGEN_CONVOLUTIONS if is_eigen else None, config.mode)


def count_flop(function: Callable[..., Any], *example: Any) -> float | None:
    """FLOPs of ``function`` at the example's shapes and types before optimisation, 2 per multiply-add; None if unknown.

    Counted on the host, whatever the devices: compilers of GPUs count nothing before they compile.
    """
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), example)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        cost: Any = jax.jit(function).lower(*shapes).cost_analysis()
    return (cost or {}).get("flops")  # type: ignore[no-any-return]

"""The programs of ``dagm_jax.experiment`` that the benchmark times, as a run compiles and feeds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from dagm_jax.command_line import read_config
from dagm_jax.config import RunConfig
from dagm_jax.data.cache import build_cache
from dagm_jax.data.pipeline import iterate
from dagm_jax.data.split import Split
from dagm_jax.distributed.devices import Devices, count_flop, make_devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.step import in_parts, most_slices
from dagm_jax.experiment.data import Data, prepare_data
from dagm_jax.experiment.setup import Setup
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.models.network import Network
from dagm_jax.types import Batch, Sample
from launch import tiny_unet
from launch.bench.plan import TINY_UNET, Cell
from launch.bench.timing import Run, repeat, seconds_of

# Length of the stream: more steps than a benchmark takes.
NUM_STEPS = 1_000_000
NUM_BATCHES = 4


def read_configs(configs: tuple[str, ...], overrides: tuple[str, ...]) -> dict[str, RunConfig]:
    """Name on the command line → configuration; TinyUNet's takes no overrides of ``config.model``. Raises UserError."""
    found = {name: read_config(name, overrides) for name in configs if name != TINY_UNET}
    if TINY_UNET in configs:
        own = [text for text in overrides if not text.startswith(("--config.model.", "--config.slicing."))]
        found[TINY_UNET] = tiny_unet.on_whole_images(read_config("configs/custom_unet.py", own))
    return found


def take_devices(config: RunConfig, number: int, xla_flags: str) -> Devices:
    """The first ``number`` local devices, set up as a run sets up all of them. Raises UserError if there are fewer."""
    devices = make_devices(config.parallel, xla_flags)
    if number > devices.num_devices:
        raise UserError(
            f"`--devices` (={number}) must be at most the {devices.num_devices} devices of this machine"
        )
    mesh = devices.mesh
    some = mesh.devices.flat[:number]
    return replace(devices, mesh=Mesh(np.array(some), mesh.axis_names, axis_types=mesh.axis_types))


@dataclass(frozen=True)
class CountingDevices(Devices):
    """Devices whose `compile_step` gives the FLOPs of a step."""

    @property
    def platform(self) -> str:
        """A name that no network has a form for, so that convolutions are counted as written."""
        return "any"

    def compile_step(self, step: Callable[..., Any], *example: Any) -> Any:
        """FLOPs of the step of the whole batch."""
        return count_flop(step, *example)


@dataclass
class Subject:
    """A measured run: its setup with the cell's options, its programs, and the first batches of its stream."""

    setup: Setup

    @cached_property
    def batches(self) -> list[Batch]:
        """The first batches of the run, on the host."""
        stream = self.setup.stream()
        return [stream[step] for step in range(NUM_BATCHES)]

    @cached_property
    def step(self) -> jax.stages.Compiled:
        """The compiled training step."""
        return self.compile_step()

    def compile_step(self) -> jax.stages.Compiled:
        """The training step traced, lowered and compiled anew."""
        return self.setup.compile_step(self.setup.initial_state(), self.batches[0])

    def time_compilation(self) -> float:
        """Seconds to trace, lower and compile the step anew; JAX's persistent cache serves where it is set."""
        jax.clear_caches()
        # The programs that make the first state are not the step's.
        self.setup.initial_state()
        return seconds_of(lambda: setattr(self, "step", self.compile_step()))

    def step_flop(self) -> float | None:
        """FLOPs of one step over the whole batch, 2 per multiply-add, as XLA counts them before optimisation.

        Accumulation in parts is left out, since XLA counts the body of a loop once.
        """
        config, devices = self.setup.config, self.setup.devices
        counting = CountingDevices(devices.mesh, devices.compiler_options)
        in_one = replace(config, train=replace(config.train, accumulate=1))
        return Subject(replace(self.setup, config=in_one, devices=counting)).compile_step()  # type: ignore[return-value]

    def run_steps(self) -> Run:
        """Steps on batches that are on the devices already."""
        return self._run(cycle([self.setup.devices.shard_training_batch(batch) for batch in self.batches]))

    def run_training(self, batches: Iterator[Any]) -> Run:
        """Steps on batches as they come, each put on the devices before its step, as the training loop does."""
        return self._run(map(self.setup.devices.shard_training_batch, batches))

    def _run(self, placed: Iterator[Any]) -> Run:
        carry = self.setup.first_carry(self.setup.initial_state())

        def call() -> Any:
            nonlocal carry
            carry, metrics = self.step(carry, next(placed))
            return carry, metrics

        return repeat(call, jax.block_until_ready)

    def iterate(self) -> grain.DatasetIterator:
        """The run's batches from the first on, prefetched as in training."""
        return iterate(self.setup.stream(), 0, self.setup.config.data.num_workers)

    def maps_of(self, network: Network, params: Any, stats: Any, image: Any) -> Any:
        """Maps float32 ``[b h w 1]`` of slices uint8 ``[b h w 1]``; traceable."""
        forward, _ = network.apply(params, stats, train=False)
        b = image.shape[0]
        # Masks and labels enter losses alone, which the compiler leaves out.
        unused: Any = np.zeros(image.shape, np.uint8), np.zeros(b, np.int32), np.arange(b)
        return self.setup.config.task.predict(forward, network.preprocess(image, *unused)).map

    def predict_maps(self, params: Any, stats: Any, image: Any) -> Any:
        """`maps_of` as with eval.tiling=slices: on CPUs in a form for them, one image's slices at a time."""
        devices = self.setup.devices
        maps = partial(self.maps_of, self.setup.network.for_platform(devices.platform), params, stats)
        is_cpu = devices.platform == "cpu"
        most = most_slices("cpu", self.setup.data.slicer, 1) if is_cpu else len(image)
        return in_parts(maps, image, devices.num_devices, most)

    def predict_flop(self) -> float | None:
        """FLOPs of `maps_of` before optimisation, without losses."""
        _, params, stats, image = self.predictor
        return count_flop(partial(self.maps_of, self.setup.network), params, stats, image)

    @cached_property
    def predictor(self) -> tuple[jax.stages.Compiled, Any, Any, np.ndarray]:
        """(compiled `predict_maps`, parameters, statistics, images uint8 ``[b h w 1]``)."""
        state, image = self.setup.initial_state(), self.batches[0]["image"]
        example = self.setup.devices.shard_batch(image)
        compiled = self.setup.devices.compile_eval_step(self.predict_maps, state.params, state.stats, example)
        return compiled, state.params, state.stats, image

    def run_predictions(self) -> Run:
        """Maps of one batch that is on the devices."""
        compiled, params, stats, image = self.predictor
        placed = self.setup.devices.shard_batch(image)
        return repeat(lambda: compiled(params, stats, placed), jax.block_until_ready)

    def run_answers(self) -> Run:
        """Maps of one batch from host memory to host memory, each waited for."""
        compiled, params, stats, image = self.predictor
        shard = self.setup.devices.shard_batch
        return repeat(lambda: np.asarray(compiled(params, stats, shard(image))))

    @property
    def training_samples(self) -> list[Sample]:
        """The samples of the training split."""
        return [self.setup.data.manifest.samples[i] for i in self.setup.data.split.train]

    def decode(self, folder: Path) -> Subject:
        """The same run on its training split alone, whose files are decoded into a cache in ``folder`` now."""
        data = self.setup.data
        manifest = replace(data.manifest, samples=tuple(self.training_samples))
        manifest, cache = build_cache(manifest, folder, data.cache.shape)
        split = Split(train=tuple(range(len(cache))), validation=(), test=())
        return Subject(replace(self.setup, data=replace(data, manifest=manifest, cache=cache, split=split)))


class Subjects:
    """Makes subjects of cells: decodes images once, and keeps the last subject with its compiled programs."""

    def __init__(self, configs: dict[str, RunConfig], folder: Path, xla_flags: str) -> None:
        self.configs, self.folder, self.xla_flags = configs, folder, xla_flags
        self._data: dict[Any, Data] = {}
        self._last: tuple[Any, Subject] | None = None

    def of(self, cell: Cell) -> Subject:
        """The cell's subject. Raises UserError where its options do not go together."""
        # PyTorch's side has AdamW; other kinds of cells share programs.
        has_peer = cell.kind.startswith("peer_")
        key = replace(cell, kind="peer_" if has_peer else "")
        if self._last is None or self._last[0] != key:
            # Compiled programs hold memory.
            self._last = None
            config = self.configs[cell.config]
            config = replace(
                config,
                model=replace(config.model, compute_dtype=cell.precision),  # type: ignore[arg-type]
                parallel=replace(config.parallel, mode=cell.mode),  # type: ignore[arg-type]
                train=replace(config.train, batch_size=cell.batch_size, num_steps=NUM_STEPS),
                optim=replace(config.optim, optimizer="adamw") if has_peer else config.optim,
            )
            images = (config.data, config.slicing, config.task, config.augment, config.seed)
            if images not in self._data:
                self._data[images] = prepare_data(config, Workdir(self.folder))
            data, devices = self._data[images], take_devices(config, cell.num_devices, self.xla_flags)
            self._last = key, Subject(Setup(replace(config, slicing=data.slicing), data, devices))
        return self._last[1]

"""Our side of the benchmark: the programs of ``dagm_jax.experiment``, as a run compiles and feeds them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

from dagm_jax.config import RunConfig
from dagm_jax.data.cache import build_cache
from dagm_jax.data.pipeline import iterate
from dagm_jax.data.split import Split
from dagm_jax.evaluation.step import in_parts, most_slices
from dagm_jax.experiment import Data, Setup, prepare_data
from dagm_jax.main import read_config
from dagm_jax.train.parallel import Devices, count_flop, make_devices
from dagm_jax.train.step import Network
from dagm_jax.types import Batch, UserError
from launch import tiny_unet
from launch.bench.plan import Cell
from launch.bench.timing import Run, seconds_of

# More steps than a benchmark takes, so that no stream ends.
NUM_STEPS = 1_000_000
NUM_BATCHES = 4


def read_configs(configs: tuple[str, ...], overrides: tuple[str, ...]) -> dict[str, RunConfig]:
    """Name on the command line → configuration. Overrides of ``config.model`` do not reach TinyUNet's.

    Raises UserError for every mistake in them.
    """
    found = {}
    for name in configs:
        if name == tiny_unet.NAME:
            own = [
                text for text in overrides if not text.startswith(("--config.model.", "--config.slicing."))
            ]
            found[name] = tiny_unet.on_whole_images(read_config("configs/custom_unet.py", own))
        else:
            found[name] = read_config(name, overrides)
    return found


def configure(config: RunConfig, cell: Cell) -> RunConfig:
    """``config`` in the cell's mode, precision and batch size."""
    return replace(
        config,
        model=replace(config.model, compute_dtype=cell.precision),  # type: ignore[arg-type]
        parallel=replace(config.parallel, mode=cell.mode),  # type: ignore[arg-type]
        train=replace(config.train, batch_size=cell.batch_size, num_steps=NUM_STEPS),
    )


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
class Counting(Devices):
    """Devices that count the FLOPs of the step instead of compiling it."""

    @property
    def platform(self) -> str:
        """None that a network has a form of its own for: what is counted is what is written."""
        return "any"

    def compile_step(self, step: Callable[..., Any], *example: Any) -> Any:
        """FLOPs of the step of the whole batch."""
        return count_flop(step, *example)


@dataclass(frozen=True)
class Subject:
    """What a cell is measured on: the run's setup with the cell's options, and real batches of its stream."""

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
        """Traced, lowered and compiled anew."""
        return self.setup.compile_step(self.setup.initial_state(), self.batches[0])

    def step_flop(self) -> float | None:
        """FLOPs of one step over the whole batch, 2 per multiply-add, as XLA counts them before optimisation.

        Of a batch that is worked off in parts those of the batch in one, as XLA counts what a loop repeats once.
        """
        config, devices = self.setup.config, self.setup.devices
        counting = Counting(devices.mesh, devices.compiler_options)
        in_one = replace(config, train=replace(config.train, accumulate=1))
        setup = replace(self.setup, config=in_one, devices=counting)
        found: Any = setup.compile_step(setup.initial_state(), self.batches[0])
        return found  # type: ignore[no-any-return]

    def step_bytes(self) -> float | None:
        """Bytes that the compiled step of one device reads and writes, by XLA's count; None where it has a loop."""
        if self.setup.config.train.accumulate > 1:
            return None
        return bytes_of(self.step)

    def run_steps(self) -> Run:
        """Steps on batches that lie on the devices already."""
        carry = self.setup.first_carry(self.setup.initial_state())
        batches = [self.setup.devices.shard_training_batch(batch) for batch in self.batches]
        place = 0

        def run(number: int) -> None:
            nonlocal carry, place
            for _ in range(number):
                carry, metrics = self.step(carry, batches[place % len(batches)])
                place += 1
            jax.block_until_ready((carry, metrics))

        return run

    def run_training(self, batches: Iterator[Any]) -> Run:
        """Steps on batches as they come, put on the devices one after the other, as the training loop does."""
        carry = self.setup.first_carry(self.setup.initial_state())

        def run(number: int) -> None:
            nonlocal carry
            for _ in range(number):
                batch = self.setup.devices.shard_training_batch(next(batches))
                carry, metrics = self.step(carry, batch)
            jax.block_until_ready((carry, metrics))

        return run

    def with_threads(self) -> Subject:
        """The same with a pipeline of threads alone, whose processor seconds are this process's."""
        config = self.setup.config
        return Subject(replace(self.setup, config=replace(config, data=replace(config.data, num_workers=0))))

    def iterate(self) -> grain.DatasetIterator:
        """The run's batches from the first on, prefetched as in training."""
        return iterate(self.setup.stream(), 0, self.setup.config.data.num_workers)

    @property
    def num_parameters(self) -> int:
        return sum(int(p.size) for p in jax.tree.leaves(self.setup.initial_state().params))

    def maps_of(self, network: Network, params: Any, stats: Any, image: Any) -> Any:
        """Slices uint8 ``[b h w 1]`` → their maps float32 ``[b h w 1]``; to be traced."""
        forward, _ = network.bind(params, stats, train=False)
        b = image.shape[0]
        # Masks and labels go into losses alone, which nobody asks for and the compiler leaves out.
        unused: Any = np.zeros(image.shape, np.uint8), np.zeros(b, np.int32), np.arange(b)
        return self.setup.config.task.judge(forward, network.show(image, *unused)).map

    def most_at_once(self) -> int:
        """The slices that a device judges at a time: on CPUs as many as of one image, on accelerators all."""
        if self.setup.devices.platform != "cpu":
            return self.setup.config.train.batch_size
        return most_slices("cpu", self.setup.data.slicer, 1)

    def predict(self, params: Any, stats: Any, image: Any) -> Any:
        """`maps_of` as the main job judges: on CPUs in a form for them, and in parts."""
        devices = self.setup.devices
        maps = partial(self.maps_of, self.setup.network.on(devices.platform), params, stats)
        return in_parts(maps, image, devices.num_devices, self.most_at_once())

    def predict_flop(self) -> float | None:
        """FLOPs of `maps_of` as it was written, without what is left out."""
        _, params, stats, image = self.predictor
        return count_flop(partial(self.maps_of, self.setup.network), params, stats, image)

    def predict_bytes(self) -> float | None:
        """Bytes that the compiled `predict` of one device reads and writes by XLA's count; None where it has a loop."""
        compiled, _, _, image = self.predictor
        in_one = len(image) <= self.most_at_once() * self.setup.devices.num_devices
        return bytes_of(compiled) if in_one else None

    @cached_property
    def predictor(self) -> tuple[jax.stages.Compiled, Any, Any, np.ndarray]:
        """(compiled `predict`, parameters, statistics, images uint8 ``[b h w 1]``)."""
        state, image = self.setup.initial_state(), self.batches[0]["image"]
        example = self.setup.devices.shard_batch(image)
        compiled = self.setup.devices.compile_judge(self.predict, state.params, state.stats, example)
        return compiled, state.params, state.stats, image

    def run_predictions(self) -> Run:
        """Maps of one batch that lies on the devices."""
        compiled, params, stats, image = self.predictor
        placed = self.setup.devices.shard_batch(image)

        def run(number: int) -> None:
            for _ in range(number):
                maps = compiled(params, stats, placed)
            jax.block_until_ready(maps)

        return run

    def run_answers(self) -> Run:
        """Maps of one batch from host memory to host memory, each waited for."""
        compiled, params, stats, image = self.predictor

        def run(number: int) -> None:
            for _ in range(number):
                np.asarray(compiled(params, stats, self.setup.devices.shard_batch(image)))

        return run

    def on_files(self, directory: Path) -> Subject:
        """The same with the training side alone, decoded from its files into a cache in ``directory``."""
        data = self.setup.data
        records = tuple(data.manifest.records[i] for i in data.split.train)
        manifest, cache = build_cache(replace(data.manifest, records=records), directory, data.cache.shape)
        split = Split(train=tuple(range(len(cache))), validation=(), test=())
        alone = replace(data, manifest=manifest, cache=cache, split=split)
        return Subject(replace(self.setup, data=alone))


@dataclass
class Subjects:
    """Makes the subjects of cells; images are decoded once, and the last subject is kept with its compiled programs."""

    configs: dict[str, RunConfig]
    folder: Path
    xla_flags: str
    _data: dict[Any, Data] = field(default_factory=dict)
    _last: tuple[Any, Subject] | None = None

    def of(self, cell: Cell) -> Subject:
        """The cell's subject. Raises UserError where its options do not go together."""
        key = replace(cell, kind="")
        if self._last is None or self._last[0] != key:
            self._last = None
            config = configure(self.configs[cell.config], cell)
            devices = take_devices(config, cell.num_devices, self.xla_flags)
            self._last = key, Subject(Setup(config, self._images(config), devices))
        return self._last[1]

    def _images(self, config: RunConfig) -> Data:
        key = (config.data, config.slicing, config.task, config.augment, config.seed)
        if key not in self._data:
            self._data[key] = prepare_data(config, self.folder)
        return self._data[key]

    def forget(self) -> None:
        """Lets go of the last subject, whose compiled programs hold memory."""
        self._last = None


def bytes_of(compiled: jax.stages.Compiled) -> float | None:
    """Bytes that the program of one device reads and writes, by XLA's count."""
    cost: Any = compiled.cost_analysis() or {}
    found: float | None = cost.get("bytes accessed")
    return found


# --- compilation --------------------------------------------------------------------------------------------


@contextmanager
def persistent_cache(directory: Path) -> Iterator[None]:
    """Compiled programs are kept in the empty folder ``directory`` and found there, whatever their size, within."""
    shutil.rmtree(directory, ignore_errors=True)
    options = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        shutil.rmtree(directory, ignore_errors=True)


def compile_times(subject: Subject) -> tuple[float | None, float | None]:
    """Seconds to trace, lower and compile the step: cold, and with the compiled program in the `persistent_cache`.

    None where the program was there before, or where the backend does not keep it.
    """
    hits: list[str] = []

    def listen(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            hits.append(event)

    def compile_anew() -> tuple[float, bool]:
        jax.clear_caches()
        # What making the first state compiles is not the step's.
        subject.setup.initial_state()
        hits.clear()
        seconds = seconds_of(subject.compile_step)
        return seconds, bool(hits)

    jax.monitoring.register_event_listener(listen)
    try:
        cold_s, was_there = compile_anew()
        cached_s, is_there = compile_anew()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return None if was_there else cold_s, cached_s if is_there else None

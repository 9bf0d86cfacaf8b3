"""Compiled parts of a run: network, optimiser, stream, training step, evaluation step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from dagm_jax.config import RunConfig
from dagm_jax.data.pipeline import make_training_stream
from dagm_jax.distributed.devices import Devices, count_flop
from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.evaluation import evaluate
from dagm_jax.evaluation.predictor import Predictor
from dagm_jax.evaluation.programs import Programs
from dagm_jax.experiment.data import Data, synthetic_share
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.timings import Timings
from dagm_jax.experiment.trained_model import build_network, weights_to_begin_with
from dagm_jax.models.network import Network
from dagm_jax.train.optim import make_optimizer
from dagm_jax.train.schedule import learning_rate
from dagm_jax.train.step import Carry, TrainState, make_state, make_train_step, skip_non_finite
from dagm_jax.train.stopping import UNKNOWN


@dataclass(frozen=True)
class Setup:
    """Network, optimiser and stream of a configuration and its data; compiled functions are made here."""

    config: RunConfig
    data: Data
    devices: Devices
    processes: Processes = ALONE
    timings: Timings = field(default_factory=Timings)
    # Results of the latest validation in training, if it was that of the whole validation split.
    last_results: list[evaluate.ValidationResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        train = self.config.train
        self.devices.check_batch_size("train.batch_size", train.batch_size, train.accumulate)

    @cached_property
    def _network_and_arrays(self) -> tuple[Network, Any, Any]:
        network, *arrays = build_network(self.config, self.data.mean, self.data.std, self.devices.axis_name)
        if given := self.config.train.init_from:
            arrays = [*weights_to_begin_with(Path(given).expanduser(), self.config, *arrays)]
        return network, *arrays

    @property
    def network(self) -> Network:
        return self._network_and_arrays[0]

    @cached_property
    def _make_state(self) -> Callable[[Any, Any], TrainState]:
        """Compiled (parameters, statistics) -> fresh state: one program for all arrays, not one for each."""
        averaged = self.config.optim.average_decay > 0
        make = partial(make_state, optimizer=make_optimizer(self.config.optim), averaged=averaged)
        # Copies: the step donates its state, and the initial arrays are needed again.
        return jax.jit(lambda params, stats: jax.tree.map(jnp.copy, make(params, stats)))

    def initial_state(self) -> TrainState:
        """A fresh state, replicated over the devices."""
        _, params, stats = self._network_and_arrays
        return self.devices.replicate(self._make_state(params, stats))  # type: ignore[no-any-return]

    def stream(self) -> grain.MapDataset:
        """This process's part of each training batch of the whole run."""
        train, config = self.data.split.train, self.config
        task = config.task
        choose = self.data.masked if task.learns_from_masks else partial(self.data.of_label, label=1)
        defective = choose(train) if task.learns_from_defects else []
        # Without a mask every slice is of a good image.
        balance = config.train.balance and (bool(defective) or not task.learns_from_masks)
        return make_training_stream(
            self.data.cache,
            defective,
            self.data.of_label(train, 0),
            self.data.slicing,
            config.augment,
            batch_size=config.train.batch_size,
            num_batches=config.train.num_steps or UNKNOWN,
            balance=balance and task.learns_from_defects,
            seed=config.seed,
            part=(self.processes.index, self.processes.count),
            synthetic_share=synthetic_share(self.data, config),
        )

    def compile_step(self, state: TrainState, batch: Any) -> jax.stages.Compiled:
        """The step from `step.Carry` to `step.Carry`, compiled for the shapes of the state and the host batch."""
        optim = self.config.optim
        step = make_train_step(
            self.network.for_platform(self.devices.platform),
            self.config.task,
            make_optimizer(optim),
            partial(learning_rate, optim),
            self.config.seed,
            self.devices.axis_name,
            accumulate=self.config.train.accumulate,
            num_shards=self.devices.num_shards,
            average_decay=optim.average_decay,
        )
        guarded = skip_non_finite(step, self.config.train.skip_non_finite, self.devices.axis_name)
        example = self.first_carry(state), self.devices.shard_training_batch(batch)
        return self.devices.compile_step(guarded, *example)

    def first_carry(self, state: TrainState) -> Carry:
        """Input of the first step: the state, and no step skipped."""
        return Carry(state, self.devices.replicate(np.int32(0)))

    @cached_property
    def _programs(self) -> dict[bool, Programs]:
        """Evaluation steps of this process's devices; by whether they are the quick ones, see `make_tiling`."""
        config, devices = self.config, self.devices.local()
        _, params, stats = self._network_and_arrays
        # Shapes only: the step donates its state, whose arrays may be gone before the thread reads them.
        like: tuple[Any, Any] = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=devices.replicated), (params, stats)
        )
        batch_size = config.train.judge_batch_size * devices.num_devices

        def make(quick: bool) -> Programs:
            tiling = make_tiling(config, self.data.cache.largest, self.data.padded, quick)
            return Programs(self.network, config.task, tiling, config.verdict, devices, like, batch_size)

        thorough = make(False)
        return {False: thorough, True: thorough if config.eval.tiling == "whole" else make(True)}

    def begin_to_compile_predictors(self) -> None:
        """Compiles in other threads for `make_predictor`, the size that most images have first."""
        sizes = Counter(self.data.cache.shapes)
        for programs in self._programs.values():
            for size, _ in sizes.most_common():
                programs.begin(programs.tiling.shape_for(size))

    def close(self) -> None:
        """Gives up compilations that have not begun."""
        for programs in vars(self).get("_programs", {}).values():
            programs.cancel()

    def make_predictor(self, state: TrainState, quick: bool = False) -> Predictor:
        """The predictor for this process's devices with the state's weights; ``quick``: for validation in training."""
        params, stats = self.devices.localize(state.eval_weights)
        return Predictor(self._programs[quick], params, stats, self.processes)

    def compile_seconds(self) -> float:
        """Seconds in which the programs of the final predictor were compiled."""
        return self._programs[False].seconds()

    def validate(self, state: TrainState) -> dict[str, float]:
        """Figures of the state's weights on the sample, the same on all processes; for validation in training."""
        with self.timings.stage("validation while training"):
            predictor = self.make_predictor(state, quick=True)
            results = evaluate.predict_validation(predictor, self.data.images, self.validation_sample)
            is_thorough = self._programs[True] is self._programs[False]
            if is_thorough and self.validation_sample == self.validation_images:
                self.last_results[:] = results
            return self.processes.broadcast(evaluate.summarise(results, self.config.task.score_kind))

    @property
    def steps_a_validation(self) -> float:
        """The time of a validation in training steps, which take three times as long for as many pixels."""
        shapes = self.data.cache.shapes
        pixels = sum(math.prod(shapes[i % len(shapes)]) for i in self.validation_sample)
        return pixels / (3 * self.config.train.batch_size * math.prod(self.data.slicer.slice_shape))

    @property
    def uses_synthetic(self) -> bool:
        """Whether the model is also evaluated by synthetic defects: where it learns from masks and lacks real ones."""
        return self.config.task.learns_from_masks and self.data.lacks_masks

    @cached_property
    def validation_images(self) -> list[int]:
        """Numbers of `Data.images` that the model is validated on: synthetic defects, where any, come last."""
        return sorted(i for part in self._validation_parts for i in part)

    @cached_property
    def validation_sample(self) -> list[int]:
        """Those of `validation_images` that training sees: evenly, at most ``max_validation_images`` of each part."""
        chosen: list[int] = []
        for members in self._validation_parts:
            number = min(len(members), self.config.train.max_validation_images)
            chosen += [members[k * len(members) // number] for k in range(number)]
        return sorted(chosen)

    @property
    def _validation_parts(self) -> list[list[int]]:
        """Good, masked, tagged and, where it is `uses_synthetic`, synthetically defective images."""
        validation = self.data.split.validation
        good, masked = self.data.of_label(validation, 0), self.data.masked(validation)
        tagged = [i for i in self.data.of_label(validation, 1) if i not in masked]
        return [good, masked, tagged, self.data.images.synthetic(good) if self.uses_synthetic else []]


def forward_gflop(setup: Setup, state: TrainState) -> float:
    """GFLOP of one slice's forward pass, as XLA counts them before optimisation (2 FLOP per multiply-add)."""
    shape = (1, *setup.data.slicer.slice_shape, setup.config.in_channels)
    x = jax.ShapeDtypeStruct(shape, np.float32)
    apply = partial(setup.network.apply, train=False)
    flop = count_flop(lambda p, s, x: apply(p, s)[0](x, None).logits, state.params, state.stats, x)
    return math.nan if flop is None else flop / 1e9

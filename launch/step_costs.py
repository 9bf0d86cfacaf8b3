"""What other ways to run a training step cost: time and memory beside the plain step, on this machine's devices.

``python -m launch.step_costs [--config=configs/custom_unet.py] [--batch_size=8] [--repetitions=5]``

Accumulated in two parts (``train.accumulate=2``); all that lies between convolutions computed again in the backward
pass (rematerialisation); four steps in one call (``lax.scan``); the sums of batch normalisation one by one, as a
compiler finds them in the formula, instead of `dagm_jax.models.moments`; the copies that kernels' gradients read, free
to be fused with what precedes them (`dagm_jax.models.convolution.apart`). The last two differ from the plain step on
CPUs alone. All but the first are no options of the main job: this table says what they would bring. Times are of one
step, medians over alternating repetitions; memory is what XLA reserves for a program beside its arguments.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from types import ModuleType
from typing import Any, cast
from unittest.mock import patch

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from dagm_jax import command_line
from dagm_jax.config import RunConfig
from dagm_jax.main import guarded, read_config
from dagm_jax.models import convolution, moments
from dagm_jax.tasks.base import Forward
from dagm_jax.train.optim import learning_rate, make_optimizer
from dagm_jax.train.parallel import make_devices
from dagm_jax.train.progress import show
from dagm_jax.train.step import Network, make_state, make_train_step
from dagm_jax.trained_model import build_network
from dagm_jax.types import NetworkOutput

SLICE_PX = (512, 64)
STEPS_IN_A_CALL = 4
Step = Callable[[Any, Any], tuple[Any, Any]]


def make_step(config: RunConfig, *, accumulate: int = 1, rematerialise: bool = False) -> tuple[Step, Any]:
    """(the step of the configuration, its first state)."""
    network, params, stats = build_network(config, mean=128.0, std=40.0)
    network = network.on(jax.default_backend())
    optimizer = make_optimizer(config.optim)
    if rematerialise:
        network = RematerialisedNetwork(**vars(network))
    schedule = partial(learning_rate, config.optim)
    step = make_train_step(network, config.task, optimizer, schedule, config.seed, accumulate=accumulate)
    return step, make_state(params, stats, optimizer)


class RematerialisedNetwork(Network):
    """Keeps the results of convolutions and products for the backward pass, and nothing else."""

    def bind(self, params: Any, stats: Any, *, train: bool) -> tuple[Forward, Callable[[], Any]]:
        left: list[Any] = []

        def run(x: Any, key: Any) -> tuple[NetworkOutput, Any]:
            forward, statistics = super(RematerialisedNetwork, self).bind(params, stats, train=train)
            return forward(x, key), statistics()

        def forward(x: Any, key: Any) -> NetworkOutput:
            output, statistics = jax.checkpoint(run, policy=_is_product)(x, key)
            left.append(statistics)
            return cast(NetworkOutput, output)

        return forward, lambda: left[-1]


def _is_product(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("conv_general_dilated", "dot_general")


def several(step: Step, number: int) -> Step:
    """``number`` steps on the same batch in one call; the metrics of the last."""

    def call(state: Any, batch: Any) -> tuple[Any, Any]:
        state, metrics = jax.lax.scan(lambda s, _: step(s, batch), state, length=number)
        return state, jax.tree.map(lambda x: x[-1], metrics)

    return call


def with_plain_sums(step: Step) -> Step:
    """``step``, whose batch normalisation sums each map by itself."""
    return _traced_with(step, moments, "channel_sums", moments.plain_channel_sums)


def with_fused_copies(step: Step) -> Step:
    """``step``, in which XLA may fuse the copies that kernels' gradients read on CPUs with what precedes them."""
    return _traced_with(step, convolution, "set_xla_metadata", lambda y, **_: y)


def _traced_with(step: Step, module: ModuleType, name: str, value: Any) -> Step:
    def call(state: Any, batch: Any) -> tuple[Any, Any]:
        with patch.object(module, name, value):
            return step(state, batch)

    return call


def forms(config: RunConfig) -> dict[str, tuple[Step, Any, int]]:
    """Name → (function, first state, steps that a call takes)."""
    plain, state = make_step(config)
    remade, _ = make_step(config, rematerialise=True)
    halves, _ = make_step(config, accumulate=2)
    return {
        "plain": (plain, state, 1),
        "accumulated in 2 parts": (halves, state, 1),
        "rematerialised": (remade, state, 1),
        f"{STEPS_IN_A_CALL} steps in a call": (several(plain, STEPS_IN_A_CALL), state, STEPS_IN_A_CALL),
        "sums one by one": (with_plain_sums(make_step(config)[0]), state, 1),
        "copies fused": (with_fused_copies(make_step(config)[0]), state, 1),
    }


def random_batch(size: int) -> dict[str, np.ndarray]:
    """A batch of noise with a square of defect in every second slice."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, *SLICE_PX, 1)).astype(np.uint8)
    mask = np.zeros(image.shape, np.uint8)
    mask[::2, :16, :16] = 1
    batch: dict[str, Any] = {
        "image": image,
        "mask": mask,
        "label": mask.any((1, 2, 3)).astype(np.int32),
        "valid": np.ones(size, bool),
        "image_index": np.arange(size, dtype=np.int32),
    }
    return batch


def measure(config: RunConfig, batch_size: int, repetitions: int) -> list[tuple[str, float, int]]:
    """(form, median seconds a step, bytes of temporary memory) of each form, called in turn."""
    devices = make_devices(config.parallel)
    batch = devices.shard_training_batch(random_batch(batch_size))
    compiled, states, steps = {}, {}, {}
    every = forms(config)
    with show("compiling", len(every)) as bar:
        for name, (function, state, number) in every.items():
            # Copies, because a step takes its state's memory.
            states[name] = devices.replicate(jax.tree.map(np.array, state))
            compiled[name] = devices.compile_step(function, states[name], batch)
            steps[name] = number
            bar.advance(figures=name)
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    with show("timing", (repetitions + 1) * len(compiled)) as bar:
        for _ in range(repetitions + 1):
            for name, function in compiled.items():
                start = time.perf_counter()
                states[name], metrics = function(states[name], batch)
                jax.block_until_ready(metrics)
                seconds[name].append((time.perf_counter() - start) / steps[name])
                bar.advance(figures=f"{name}: {seconds[name][-1]:.2f} s a step")
    # The first round warms up.
    analyses: dict[str, Any] = {name: function.memory_analysis() for name, function in compiled.items()}
    return [(name, median(times[1:]), analyses[name].temp_size_in_bytes) for name, times in seconds.items()]


def make_flags() -> flags.FlagValues:
    """The flags of this program."""
    values = command_line.make_flags()
    flags.DEFINE_string(
        "config", "configs/custom_unet.py:segmentation,equal_width", "Whose step.", flag_values=values
    )
    for name, default, meaning in (
        ("batch_size", 8, "Slices in a batch."),
        ("repetitions", 5, "Timed calls of each form."),
    ):
        flags.DEFINE_integer(name, default, meaning, lower_bound=1, flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    values = command_line.parse(make_flags(), argv, __doc__)
    config = read_config(values.config)
    rows = measure(config, values.batch_size, values.repetitions)
    title = f"{jax.devices()[0].device_kind}, {config.model.name}, batch {values.batch_size}"
    table = Table("form", "s/step", "times plain", "temporary memory", title=title)
    _, plain_s, plain_bytes = rows[0]
    for name, step_s, temporary in rows:
        table.add_row(
            name,
            f"{step_s:.3f}",
            f"{step_s / plain_s:.2f}x",
            f"{temporary / 1e6:.0f} MB, {temporary / plain_bytes:.2f}x",
        )
    Console().print(table)


if __name__ == "__main__":
    guarded(main, sys.argv)

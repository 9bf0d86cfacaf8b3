"""What the convolutions of a network cost in each of their three passes, beside the same ones in PyTorch eager.

``python -m launch.conv_costs [--config=configs/custom_unet.py:segmentation,equal_width] [--batch_size=8]
[--repetitions=5]``

A convolution is computed three times in a training step: forward, towards its input, and towards its kernel. Each kind
of convolution of the network (size of map, channels) is timed alone in each pass: as the main job compiles it, as one
convolution whose gradients are left to JAX (on a CPU another form), and by PyTorch (the extra ``peer``) with channels
last; medians over alternating repetitions. GFLOP/s are 2 per multiply-add of the convolution itself, whatever a form
computes, taps in the padding counted. The last row adds up all convolutions of the network: what they leave of a step's
time is norms, pooling, resampling, the loss and the optimiser.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from dagm_jax import command_line
from dagm_jax.config import RunConfig
from dagm_jax.main import guarded, read_config
from dagm_jax.models.convolution import convolve, convolve_on_cpu
from dagm_jax.train.parallel import make_devices
from dagm_jax.train.progress import show
from dagm_jax.trained_model import build_network
from dagm_jax.types import UserError
from launch.bench.timing import SETTLE_S

SLICE_PX = (512, 64)
SIDES = ("ours", "as one convolution", "PyTorch eager")
PASSES = ("forward", "towards the input", "towards the kernel")
Pass = Callable[[], Any]


@dataclass(frozen=True, order=True)
class Convolution:
    """A convolution of stride 1 that keeps the size of its map. size: edges of its kernel."""

    height: int
    width: int
    in_channels: int
    out_channels: int
    size: int

    def gflop(self, batch_size: int) -> float:
        """Of one pass; the three cost the same."""
        taps = self.size**2 * self.in_channels * self.out_channels
        return 2 * batch_size * self.height * self.width * taps / 1e9

    def __str__(self) -> str:
        return (
            f"{self.height}x{self.width}, {self.in_channels} → {self.out_channels}, {self.size}x{self.size}"
        )


def convolutions(config: RunConfig) -> Counter[Convolution]:
    """The convolutions of one forward pass of a slice, and how often each kind is there."""
    network, params, stats = build_network(config, mean=128.0, std=40.0)

    def forward(x: Array) -> Array:
        logits: Array = network.bind(params, stats, train=False)[0](x, None).logits
        return logits

    jaxpr = jax.make_jaxpr(forward)(jax.ShapeDtypeStruct((1, *SLICE_PX, config.in_channels), jnp.float32))
    found: Counter[Convolution] = Counter()
    _collect(jaxpr.jaxpr, found)
    return found


def _collect(jaxpr: Any, found: Counter[Convolution]) -> None:
    """Adds the convolutions of a program, and of those that it calls."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            _, height, width, _ = equation.outvars[0].aval.shape
            size, _, in_channels, out_channels = equation.invars[1].aval.shape
            found[Convolution(height, width, in_channels, out_channels, size)] += 1
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns")
        ):
            called = getattr(inner, "jaxpr", inner)
            if hasattr(called, "eqns"):
                _collect(called, found)


def arrays_of(one: Convolution, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(map [b h w c], kernel [k k c d], cotangent [b h w d]) of random numbers."""
    rng = np.random.default_rng(0)
    shape = (batch_size, one.height, one.width)
    return (
        rng.standard_normal((*shape, one.in_channels), np.float32),
        rng.standard_normal((one.size, one.size, one.in_channels, one.out_channels), np.float32),
        rng.standard_normal((*shape, one.out_channels), np.float32),
    )


def our_passes(
    arrays: tuple[np.ndarray, ...], compiler_options: Any, convolve: Callable[[Any, Any], Array]
) -> list[Pass]:
    """The three passes of ``convolve``, compiled; each returns its result, NHWC or HWIO."""
    x, kernel, cotangent = map(jnp.asarray, arrays)

    def towards(place: int) -> Callable[..., Array]:
        return lambda x, kernel, cotangent: jax.vjp(convolve, x, kernel)[1](cotangent)[place]

    def compiled(function: Callable[..., Array]) -> Pass:
        lowered = jax.jit(function, keep_unused=True).lower(x, kernel, cotangent)
        program = lowered.compile(compiler_options)
        return lambda: jax.block_until_ready(program(x, kernel, cotangent))

    return [compiled(lambda x, kernel, cotangent: convolve(x, kernel)), *map(compiled, map(towards, (0, 1)))]


def their_passes(arrays: tuple[np.ndarray, ...]) -> list[Pass]:
    """The three passes by PyTorch; each returns its result, NCHW or OIHW, in channels-last memory."""
    import torch

    x, cotangent = (
        torch.from_numpy(a.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        for a in (arrays[0], arrays[2])
    )
    kernel = torch.from_numpy(arrays[1].transpose(3, 2, 0, 1).copy()).contiguous(
        memory_format=torch.channels_last
    )
    padding = [kernel.shape[-1] // 2] * 2

    def backward(place: int) -> Any:
        wanted = [place == 0, place == 1, False]
        gradients = torch.ops.aten.convolution_backward(
            cotangent, x, kernel, None, [1, 1], padding, [1, 1], False, [0, 0], 1, wanted
        )
        return gradients[place]

    return [
        lambda: torch.nn.functional.conv2d(x, kernel, padding=padding),
        lambda: backward(0),
        lambda: backward(1),
    ]


def measure(passes: Sequence[Pass], repetitions: int) -> list[float]:
    """Median seconds of each pass, called in turn so that a slow moment hits all alike. Before each timed call come a
    pause, in which the threads of the one before come to rest, and a call that is not timed.
    """
    seconds: list[list[float]] = [[] for _ in passes]
    for _ in range(repetitions):
        for times, one in zip(seconds, passes, strict=True):
            time.sleep(SETTLE_S)
            one()
            start = time.perf_counter()
            one()
            times.append(time.perf_counter() - start)
    return [median(times) for times in seconds]


def make_flags() -> flags.FlagValues:
    """The flags of this program."""
    values = command_line.make_flags()
    default = "configs/custom_unet.py:segmentation,equal_width"
    flags.DEFINE_string("config", default, "The configuration, FILE[:OPTIONS].", flag_values=values)
    for name, number, meaning in (
        ("batch_size", 8, "Slices in a batch."),
        ("repetitions", 5, "Timed calls of each pass."),
    ):
        flags.DEFINE_integer(name, number, meaning, lower_bound=1, flag_values=values)
    return values


def print_table(found: Counter[Convolution], rows: dict[Convolution, list[float]], batch_size: int) -> None:
    """A row for each kind of convolution, with the seconds of all passes of each side; and their sums."""
    title = f"{jax.devices()[0].device_kind}, batch of {batch_size}; {', '.join(SIDES)}"
    table = Table("map, channels, kernel", "times", *PASSES, title=title)
    sums = np.zeros((len(SIDES), len(PASSES)))
    for one in sorted(found, reverse=True):
        seconds = np.reshape(rows[one], sums.shape)
        sums += found[one] * seconds
        rates = (one.gflop(batch_size) / seconds).T
        cells = (f"{', '.join(f'{rate:.0f}' for rate in each)} GFLOP/s" for each in rates)
        table.add_row(str(one), str(found[one]), *cells)
    table.add_section()
    cells = (
        f"{', '.join(f'{1000 * each:.0f}' for each in (ours, plain, theirs))} ms, {theirs / ours:.2f}x"
        for ours, plain, theirs in sums.T
    )
    table.add_row("all", str(found.total()), *cells)
    Console().print(table)


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    values = command_line.parse(make_flags(), argv, __doc__)
    try:
        import torch
    except ImportError:
        raise UserError("PyTorch is not here; `pip install -e '.[peer]'`") from None
    config = read_config(values.config, [])
    devices = make_devices(config.parallel)
    used = convolve_on_cpu if devices.platform == "cpu" else convolve
    found = convolutions(config)
    rows = {}
    with torch.inference_mode(), show("timing convolutions", len(found)) as bar:
        for one in found:
            arrays = arrays_of(one, values.batch_size)
            ours, plain = (our_passes(arrays, devices.compiler_options, form) for form in (used, convolve))
            passes = [*ours, *plain, *their_passes(arrays)]
            rows[one] = measure(passes, values.repetitions)
            bar.advance(figures=str(one))
    print_table(found, rows, values.batch_size)


if __name__ == "__main__":
    guarded(main, sys.argv)

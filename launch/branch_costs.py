"""What each up-sampled branch of U-Net 3+'s decoder costs, beside the same branch written another way.

``python -m launch.branch_costs [--base_channels=16] [--batch_size=2] [--repetitions=7]``

A branch up-samples a coarse map by 2, 4, 8 or 16 and convolves it. Three forms, which give the same map: ours, which
multiplies on the small map (``upsampled_conv3x3``); our up-sampling, then a convolution; ``jax.image.resize``, then a
convolution. Times are of one forward and backward pass of a 512x64 slice's branch, medians over alternating
repetitions; FLOPs are XLA's count of it. A branch that costs what its FLOPs say has the rate of the others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jaxtyping import Array
from rich.console import Console
from rich.table import Table

from dagm_jax import command_line
from dagm_jax.main import guarded
from dagm_jax.models.blocks import upsample
from dagm_jax.models.unet3plus import NUM_LEVELS, upsampled_conv3x3

SLICE_PX = (512, 64)
Branch = Callable[[Array, Array, int], Array]


def convolve(x: Array, kernel: Array) -> Array:
    """Conv3x3 padded with zeros."""
    y: Array = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y


def resize(x: Array, factor: int) -> Array:
    """``x`` up-sampled by jax's general resize."""
    b, h, w, c = x.shape
    y: Array = jax.image.resize(x, (b, factor * h, factor * w, c), "bilinear")
    return y


FORMS: dict[str, Branch] = {
    "on the small map": upsampled_conv3x3,
    "up-sample, convolve": lambda x, kernel, factor: convolve(upsample(x, factor), kernel),
    "jax.image.resize, convolve": lambda x, kernel, factor: convolve(resize(x, factor), kernel),
}


def branches(base_channels: int) -> list[tuple[int, int, int]]:
    """(stage D_i, source D_j, channels of the source) of all up-sampled branches, finest stage first."""
    widths = {j: NUM_LEVELS * base_channels for j in range(1, NUM_LEVELS)}
    widths[NUM_LEVELS] = base_channels * 2 ** (NUM_LEVELS - 1)
    return [(i, j, widths[j]) for i in range(1, NUM_LEVELS) for j in range(i + 1, NUM_LEVELS + 1)]


def compile_branch(branch: Branch, x: Array, kernel: Array, factor: int) -> jax.stages.Compiled:
    """Forward and backward pass of a branch, towards its input and its kernel."""

    def loss(x: Array, kernel: Array) -> Array:
        return jnp.square(branch(x, kernel, factor)).mean()

    return jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()


def measure(compiled: list[jax.stages.Compiled], x: Array, kernel: Array, repetitions: int) -> list[float]:
    """Median seconds of each function, called in turn so that a slow moment hits all alike."""
    seconds: list[list[float]] = [[] for _ in compiled]
    for _ in range(repetitions + 1):
        for times, function in zip(seconds, compiled, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(function(x, kernel))
            times.append(time.perf_counter() - start)
    # The first round warms up.
    return [median(times[1:]) for times in seconds]


def row(level: int, source: int, channels: int, values: Any) -> list[str]:
    """The table's row of one branch."""
    factor = 2 ** (source - level)
    height, width = (side // 2 ** (source - 1) for side in SLICE_PX)
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (values.batch_size, height, width, channels))
    kernel = jax.random.normal(keys[1], (3, 3, channels, values.base_channels))
    compiled = [compile_branch(form, x, kernel, factor) for form in FORMS.values()]
    times = measure(compiled, x, kernel, values.repetitions)
    cells = [f"D{source} → D{level}", f"{factor}"]
    for seconds, function in zip(times, compiled, strict=True):
        cost: Any = function.cost_analysis()
        gflop = cost["flops"] / 1e9
        cells.append(f"{1000 * seconds:.1f} ms, {gflop:.2f} GFLOP, {seconds / times[0]:.1f}x")
    return cells


def make_flags() -> flags.FlagValues:
    """The flags of this program."""
    values = command_line.make_flags()
    for name, default, meaning in (
        ("base_channels", 16, "Width of the network at the finest level."),
        ("batch_size", 2, "Slices in a batch."),
        ("repetitions", 7, "Timed calls of each form."),
    ):
        flags.DEFINE_integer(name, default, meaning, lower_bound=1, flag_values=values)
    return values


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    values = command_line.parse(make_flags(), argv, __doc__)
    device = jax.devices()[0].device_kind
    table = Table("branch", "factor", *FORMS, title=f"{device}, {values.base_channels} channels")
    for level, source, channels in branches(values.base_channels):
        table.add_row(*row(level, source, channels, values))
    Console().print(table)


if __name__ == "__main__":
    guarded(main, sys.argv)

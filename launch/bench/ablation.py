"""Time and memory of the training step, as it is and with one thing changed.

``python -m launch.bench.ablation [--config=configs/custom_unet.py] [--batch_size=8] [--repetitions=5]``

Rows: the batch in two parts (``train.accumulate=2``); batch normalisation's sums one by one, as the formula has them,
instead of `dagm_jax.models.moments`; the copies that kernels' gradients read fused with the layers before them, against
`dagm_jax.models.convolution.apart`. The last two differ from the step as it is on CPUs alone.
Times are medians over alternating blocks; memory is XLA's scratch for the program beside its arguments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import jax
from rich.table import Table

from dagm_jax.command_line import flag, guarded, parse_request, read_config
from dagm_jax.config import RunConfig
from dagm_jax.console import console
from dagm_jax.models import convolution, moments
from launch.bench.plan import Cell
from launch.bench.subject import Subject, Subjects
from launch.bench.timing import time_alternately

# Images drawn for the batches of all rows.
FEW_IMAGES = ("--config.data.procedural_defective=8", "--config.data.procedural_good=8")
AS_IT_IS = "as it is"
# Row → what is replaced while its step is compiled: module, name, substitute.
PATCHES: dict[str, tuple[Any, str, Any]] = {
    "sums one by one": (moments, "channel_sums", moments.plain_channel_sums),
    "copies fused": (convolution, "set_xla_metadata", lambda y, **_: y),
}


@dataclass(frozen=True)
class Request:
    """The flags of this program."""

    config: str = flag(
        "The configuration, FILE[:OPTIONS].", "configs/custom_unet.py:segmentation,equal_width"
    )
    batch_size: int = flag("Slices in a batch.", 8, least=1)
    repetitions: int = flag("Timed blocks of each row.", 5, least=1)


def make_rows(config: RunConfig, batch_size: int, folder: Path) -> dict[str, Subject]:
    """Name of the row → subject with its compiled step, the step as it is first."""
    in_parts = replace(config, train=replace(config.train, accumulate=2))
    configs = {AS_IT_IS: config, "in 2 parts": in_parts, **dict.fromkeys(PATCHES, config)}
    subjects = Subjects(configs, folder, os.environ.get("XLA_FLAGS", ""))
    rows = {}
    for name in configs:
        rows[name] = subjects.of(Cell("step", name, batch_size=batch_size))
        # jax would reuse the trace of another row.
        jax.clear_caches()
        with patch.object(*PATCHES[name]) if name in PATCHES else nullcontext():
            rows[name].step = rows[name].compile_step()
    return rows


def make_table(config: RunConfig, batch_size: int, repetitions: int) -> Table:
    """A row for each step."""
    with TemporaryDirectory() as folder:
        rows = make_rows(config, batch_size, Path(folder))
        blocks = time_alternately({name: row.run_steps() for name, row in rows.items()}, repetitions)
    analyses: dict[str, Any] = {name: row.step.memory_analysis() for name, row in rows.items()}
    memory = {name: analysis.temp_size_in_bytes for name, analysis in analyses.items()}
    title = f"{jax.devices()[0].device_kind}, {config.model.name}, batch {batch_size}"
    table = Table("step", "s", "times as it is", "scratch memory", title=title)
    for name, each in blocks.items():
        ratio, share = each.median_s / blocks[AS_IT_IS].median_s, memory[name] / memory[AS_IT_IS]
        scratch = f"{memory[name] / 1e6:.0f} MB, {share:.2f}x"
        table.add_row(name, f"{each.median_s:.3f}", f"{ratio:.2f}x", scratch)
    return table


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    request = parse_request(Request, argv, __doc__)
    config = read_config(request.config, FEW_IMAGES)
    console.print(make_table(config, request.batch_size, request.repetitions))


if __name__ == "__main__":
    guarded(main, sys.argv)

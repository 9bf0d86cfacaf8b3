"""Figures of each kind of cell without PyTorch; `launch.bench.compare` has those beside it."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dagm_jax.data.pipeline import iterate
from dagm_jax.errors import UserError
from dagm_jax.experiment.workdir import Workdir
from launch.bench import hardware
from launch.bench.plan import OF_MODEL, PEER, Cell, Request
from launch.bench.subject import Subject, Subjects
from launch.bench.timing import Blocks, Run, calls_per_block, repeat, time_alternately, time_blocks

# Type of figures by name; parts of the name say the unit, see `launch.bench.report`.
Values = dict[str, Any]
# Name of the reason in place of a row's figures.
ERROR = "not_measured"
# Batches before a pipeline is timed: prefetched ones would be free.
WARM_UP_BATCHES = 16
# All-reduces in HLO text, ``%name = (f32[3,4]{1,0}, f32[]) all-reduce(…)``; on GPUs a start and a done, counted once.
_ALL_REDUCE = re.compile(r" = (?P<shape>.*?) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d+)?\w*\[(?P<shape>[\d,]*)\]")


@dataclass(frozen=True)
class Options:
    """The options of all cells: the request, ``--config.x.y=value`` overrides, `hardware.measure_peaks`."""

    request: Request
    overrides: tuple[str, ...]
    peaks: dict[str, float]


def over(part: float | None, whole: float | None) -> float | None:
    """part / whole; None where either is unknown or ``whole`` is 0."""
    return None if part is None or not whole else part / whole


def all_reduce_bytes(hlo: str) -> int:
    """Bytes that a device gives to all-reduces in one run of a compiled program, from its HLO text.

    The traffic depends on the algorithm: a ring moves 2 (n - 1) / n times that per device.
    """
    total = 0
    for match in _ALL_REDUCE.finditer(hlo):
        for array in _ARRAY.finditer(match["shape"]):
            shape = [int(size) for size in array["shape"].split(",") if size]
            # pred is the one kind without a number of bits.
            total += math.prod(shape) * int(array["bits"] or 8) // 8
    return total


def throughput(subject: Subject, seconds_per_batch: float) -> Values:
    """Slices and whole images per second."""
    slices_per_s = subject.setup.config.train.batch_size / seconds_per_batch
    per_image = subject.setup.data.slicer.num_slices
    return {"slices_per_s": slices_per_s, "images_per_s": slices_per_s / per_image}


def times(blocks: Blocks, name: str) -> Values:
    """Median and 90th percentile of a call's seconds."""
    return {f"{name}_median_s": blocks.median_s, f"{name}_p90_s": blocks.percentile(90)}


def costs(
    compiled: jax.stages.Compiled, flop: float | None, seconds: float, cell: Cell, options: Options
) -> Values:
    """FLOP/s of a program with their shares of the devices' measured and printed peaks; its memory.

    FLOPs are summed over devices. Memory is that of one device: arguments, results and scratch of the program, and the
    allocator's peak in this process, None on CPUs.
    """
    flop_per_s = over(flop, seconds)
    per_device = over(flop_per_s, cell.num_devices)
    vendor_peaks = hardware.VENDOR_PEAKS.get(jax.local_devices()[0].device_kind, {})
    memory: Any = compiled.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    allocator = jax.local_devices()[0].memory_stats() or {}
    return {
        "flop": flop,
        "flop_per_s": flop_per_s,
        "share_of_measured_peak": over(per_device, options.peaks[cell.precision]),
        "share_of_vendor_peak": over(per_device, vendor_peaks.get(cell.precision)),
        "program_bytes": kept + memory.temp_size_in_bytes,
        "device_peak_bytes": allocator.get("peak_bytes_in_use"),
    }


def measure_step(cell: Cell, subject: Subject, options: Options) -> Values:
    """Compilation, then steady steps on batches that are on the devices."""
    compile_s = subject.time_compilation()
    run = subject.run_steps()
    blocks = time_blocks(run, options.request.repetitions)
    rates = throughput(subject, blocks.median_s)
    return {
        "compile_s": compile_s,
        **times(blocks, "step"),
        **rates,
        "slices_per_s_per_device": rates["slices_per_s"] / cell.num_devices,
        **costs(subject.step, subject.step_flop(), blocks.median_s, cell, options),
        # pmap sums over one device too, which sends nothing.
        "all_reduce_bytes": all_reduce_bytes(subject.step.as_text() or "") if cell.num_devices > 1 else 0,
        "num_parameters": sum(p.size for p in jax.tree.leaves(subject.setup.initial_state().params)),
        **profile(cell, run, blocks.num_calls, options),
    }


def measure_whole(cell: Cell, subject: Subject, options: Options) -> Values:
    """Steps on batches as the pipeline makes them, in turn with steps on batches that are on the devices."""
    with closing(subject.iterate()) as batches:
        runs = {"whole": subject.run_training(batches), "step": subject.run_steps()}
        blocks = time_alternately(runs, options.request.repetitions)
        return {
            **times(blocks["whole"], "whole"),
            **throughput(subject, blocks["whole"].median_s),
            "step_over_whole": over(blocks["step"].median_s, blocks["whole"].median_s),
            **profile(cell, runs["whole"], blocks["whole"].num_calls, options),
        }


def profile(cell: Cell, run: Run, number: int, options: Options) -> Values:
    """Folder of a trace of ``number`` calls, for TensorBoard or Perfetto; nothing without ``--profile``."""
    if not options.request.profile:
        return {}
    folder = Path("traces") / cell.name
    # Python's own calls are left out: recording them takes longer than a short step does.
    profiler = jax.profiler.ProfileOptions()
    profiler.python_tracer_level = 0
    with jax.profiler.trace(str(options.request.output / folder), profiler_options=profiler):
        run(number)
    return {"trace": str(folder)}


def measure_inference(cell: Cell, subject: Subject, options: Options) -> Values:
    """Slices to maps: latency from host memory to host memory, throughput of batches that are on the devices."""
    answers = time_blocks(subject.run_answers(), options.request.repetitions, singly=True)
    blocks = time_blocks(subject.run_predictions(), options.request.repetitions)
    return {
        **{f"latency_p{p}_s": answers.percentile(p) for p in (50, 95, 99)},
        **times(blocks, "batch"),
        **throughput(subject, blocks.median_s),
        **costs(subject.predictor[0], subject.predict_flop(), blocks.median_s, cell, options),
    }


def pipeline_rates(subject: Subject, runs: Mapping[str, Run | None], options: Options) -> Values:
    """NAME + ``slices_per_s`` and NAME + ``slices_per_core_s`` of each run, timed in turn; None: our pipeline.

    Core seconds are those of all threads of this process: no pipeline has worker processes here.
    """
    spent: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with closing(iterate(subject.setup.stream(), 0, num_workers=0)) as batches:
        timed = {name: run or repeat(lambda: next(batches)) for name, run in runs.items()}
        calls = {name: calls_per_block(run) for name, run in timed.items()}
        for _ in range(options.request.repetitions):
            for name, run in timed.items():
                # Ours prefetches also while the other works; what is ready must not be free.
                run(WARM_UP_BATCHES)
                core_s, wall_s = time.process_time(), time.perf_counter()
                run(calls[name])
                spent[name].append((time.perf_counter() - wall_s, time.process_time() - core_s))
    values: Values = {}
    for name, seconds in spent.items():
        slices = len(seconds) * calls[name] * subject.setup.config.train.batch_size
        wall_s, core_s = map(sum, zip(*seconds, strict=True))
        values |= {f"{name}slices_per_s": slices / wall_s, f"{name}slices_per_core_s": slices / core_s}
    return values


def measure_command(cell: Cell, root: str, options: Options) -> Values:
    """The main job as a command on the images in ``root``: seconds until it ends, and figures of its report.

    Raises UserError where the command fails.
    """
    workdir = options.request.output / "runs" / cell.name
    command = [
        *(sys.executable, "-m", "dagm_jax.main", f"--config={cell.config}", f"--workdir={workdir}"),
        *options.overrides,
        f"--config.data.root={root}",
        f"--config.model.compute_dtype={cell.precision}",
    ]
    # A finished run would only be reported.
    shutil.rmtree(workdir, ignore_errors=True)
    start_s = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall_s = time.perf_counter() - start_s
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise UserError(f"the main job ended with status {done.returncode}: {' '.join(last)}")
    report = json.loads(Workdir(workdir).report.read_text())
    return {
        "command_s": wall_s,
        "accuracy": report["test"]["accuracy"],
        "num_images": report["test"]["num_images"],
        "executing_time_s": report["cost_of_running"]["executing_time_s"],
        "train_s": report["training"]["train_time_s"],
        "steps": report["training"]["last_step"],
    }


def measure(cell: Cell, subjects: Subjects, options: Options) -> Values:
    """Figures of any cell."""
    if cell.kind in OF_MODEL:
        from launch.bench import trained

        return trained.KINDS[cell.kind](Path(cell.config), options)
    if cell.kind == "command":
        return measure_command(cell, subjects.configs[cell.config].data.root, options)
    kinds: dict[str, Callable[[Cell, Subject, Options], Values]] = {
        "step": measure_step,
        "whole": measure_whole,
        "inference": measure_inference,
        "pipeline": lambda _, subject, options: pipeline_rates(subject, {"": None}, options),
    }
    if cell.kind.startswith(PEER):
        # PyTorch is an extra.
        from launch.bench import compare

        kinds = compare.KINDS
    return kinds[cell.kind](cell, subjects.of(cell), options)

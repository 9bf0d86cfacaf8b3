"""The figures of each kind of cell on our side; `launch.bench.compare` has those beside PyTorch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from dagm_jax.trained_model import REPORT
from dagm_jax.types import UserError
from launch.bench import hardware
from launch.bench.arithmetic import Number, all_reduce_bytes, over, percentile
from launch.bench.ours import Subject, Subjects, compile_times
from launch.bench.plan import Cell
from launch.bench.timing import Blocks, Run, calls_per_block, seconds_of, time_alternately, time_blocks
from launch.bench.trace import traced

Values = dict[str, Any]
WARM_UP_BATCHES = 4
LEAST_ANSWERS = 20


@dataclass(frozen=True)
class Options:
    """What holds for all cells of a run.

    repetitions: timed blocks; epoch_slices: slices of each training image in an epoch, 0 for as many as it is cut into;
    peer_compiles: whether torch.compile is tried; peer_workers: worker processes of PyTorch's loader; profile: whether
    traces are written; folder: where images, caches and traces lie; overrides: ``--config.x.y=value``; peaks: see
    `hardware.measure_peaks`.
    """

    repetitions: int
    epoch_slices: int
    peer_compiles: bool
    peer_workers: int
    profile: bool
    folder: Path
    overrides: tuple[str, ...]
    peaks: dict[str, Number]


def throughput(subject: Subject, seconds_per_batch: float) -> Values:
    """Slices and whole images a second; an image is as many slices as it is cut into."""
    slices_per_s = subject.setup.config.train.batch_size / seconds_per_batch
    per_image = subject.setup.data.slicer.num_slices
    return {"slices_per_s": slices_per_s, "images_per_s": slices_per_s / per_image}


def times(blocks: Blocks, name: str) -> Values:
    """Median and 90th percentile of a call's seconds, over how many blocks of how many calls."""
    return {
        f"{name}_median_s": blocks.median_s,
        f"{name}_p90_s": blocks.p90_s,
        "num_blocks": len(blocks.seconds),
        "calls_per_block": blocks.num_calls,
    }


def costs(
    compiled: jax.stages.Compiled,
    flop: Number,
    num_bytes: Number,
    seconds: float,
    cell: Cell,
    options: Options,
) -> Values:
    """FLOP/s and bytes/s of a program with their shares of the devices' measured and printed peaks; its memory.

    FLOPs are of all devices, bytes those that the compiled program of one reads and writes.
    """
    flop_per_s = over(flop, seconds)
    per_device, bytes_per_s = over(flop_per_s, cell.num_devices), over(num_bytes, seconds)
    vendor_flop, vendor_bytes = hardware.vendor_peaks(cell.precision)
    return {
        "flop": flop,
        "flop_per_s": flop_per_s,
        "share_of_measured_peak": over(per_device, options.peaks[cell.precision]),
        "share_of_vendor_peak": over(per_device, vendor_flop),
        "bytes_accessed": num_bytes,
        "bytes_per_s": bytes_per_s,
        "share_of_measured_bandwidth": over(bytes_per_s, options.peaks["bytes"]),
        "share_of_vendor_bandwidth": over(bytes_per_s, vendor_bytes),
        **memory(compiled),
    }


def memory(compiled: jax.stages.Compiled) -> Values:
    """Bytes of one device: of the program's arguments, results and scratch; what the allocator says of all so far."""
    analysis: Any = compiled.memory_analysis()
    parts = ("argument", "output", "temp")
    program = None
    if analysis is not None:
        program = sum(getattr(analysis, f"{part}_size_in_bytes") for part in parts)
        program -= analysis.alias_size_in_bytes
    allocator = jax.local_devices()[0].memory_stats() or {}
    return {
        "program_bytes": program,
        "device_peak_bytes": allocator.get("peak_bytes_in_use"),
        "device_limit_bytes": allocator.get("bytes_limit"),
    }


# --- kinds of cells -------------------------------------------------------------------------------------------


def measure_step(cell: Cell, subject: Subject, options: Options) -> Values:
    """Compilation, then steady steps on batches that lie on the devices."""
    cold_s, cached_s = compile_times(subject)
    run = subject.run_steps()
    blocks = time_blocks(run, options.repetitions)
    return {
        "compile_cold_s": cold_s,
        "compile_cached_s": cached_s,
        **times(blocks, "step"),
        **throughput(subject, blocks.median_s),
        **costs(subject.step, subject.step_flop(), subject.step_bytes(), blocks.median_s, cell, options),
        # pmap sums over one device too, which sends nothing.
        "all_reduce_bytes": all_reduce_bytes(subject.step.as_text() or "") if cell.num_devices > 1 else 0,
        "num_parameters": subject.num_parameters,
        **profile(cell, run, blocks.num_calls, options),
    }


def measure_whole(cell: Cell, subject: Subject, options: Options) -> Values:
    """Steps on batches as the pipeline makes them, in turn with steps that wait for nothing."""
    with closing(subject.iterate()) as batches:
        runs = {"whole": subject.run_training(batches), "step": subject.run_steps()}
        blocks = time_alternately(runs, options.repetitions)
        values = {
            **times(blocks["whole"], "whole"),
            **throughput(subject, blocks["whole"].median_s),
            # 1 where data never keep a step waiting.
            "step_over_whole": over(blocks["step"].median_s, blocks["whole"].median_s),
        }
        values |= profile(cell, runs["whole"], blocks["whole"].num_calls, options)
    return values


def profile(cell: Cell, run: Run, number: int, options: Options) -> Values:
    """What the devices did in ``number`` calls, and where their trace is; nothing unless that is asked for."""
    if not options.profile:
        return {}
    folder = options.folder / "traces" / cell.name
    found = traced(lambda: run(number), folder)
    return {**found, "traced_calls": number, "trace": str(folder.relative_to(options.folder))}


def answer_times(run: Run, number: int) -> list[float]:
    """Seconds of each of ``number`` calls that are waited for, after one that is not counted."""
    run(1)
    return [seconds_of(lambda: run(1)) for _ in range(number)]


def latencies(seconds: list[float], prefix: str = "") -> Values:
    """Percentiles of the seconds from host memory to host memory."""
    return {f"{prefix}latency_p{p}_s": percentile(seconds, p) for p in (50, 95, 99)}


def measure_inference(cell: Cell, subject: Subject, options: Options) -> Values:
    """Latency from host to host, and throughput of batches that lie on the device, of slices to maps."""
    compiled = subject.predictor[0]
    answers = subject.run_answers()
    number = max(LEAST_ANSWERS, options.repetitions * calls_per_block(answers))
    seconds = answer_times(answers, number)
    blocks = time_blocks(subject.run_predictions(), options.repetitions)
    return {
        **latencies(seconds),
        "num_answers": number,
        **times(blocks, "batch"),
        **throughput(subject, blocks.median_s),
        **costs(compiled, subject.predict_flop(), subject.predict_bytes(), blocks.median_s, cell, options),
    }


def run_pipeline(batches: Iterator[Any]) -> Run:
    """Batches that nobody uses."""

    def run(number: int) -> None:
        for _ in range(number):
            next(batches)

    return run


@dataclass
class CoreSeconds:
    """Wall and processor seconds and slices of a pipeline, over all of its blocks."""

    wall_s: float = 0.0
    core_s: float = 0.0
    slices: int = 0

    def add(self, run: Run, number: int, batch_size: int) -> None:
        """Runs a block and counts it. Processor seconds are those of all threads of this process."""
        wall_s, core_s = time.perf_counter(), time.process_time()
        run(number)
        self.wall_s += time.perf_counter() - wall_s
        self.core_s += time.process_time() - core_s
        self.slices += number * batch_size


def measure_pipeline(cell: Cell, subject: Subject, options: Options) -> Values:
    """The input pipeline alone: slices a second, and for each second of a core."""
    in_threads = subject.with_threads()
    spent = CoreSeconds()
    with closing(in_threads.iterate()) as batches:
        run = run_pipeline(batches)
        # What prefetching has ready would be free.
        run(2 * WARM_UP_BATCHES + 8)
        number = calls_per_block(run)
        for _ in range(options.repetitions):
            spent.add(run, number, cell.batch_size)
    return {
        "slices_per_s": spent.slices / spent.wall_s,
        "slices_per_core_s": spent.slices / spent.core_s,
        "num_slices": spent.slices,
    }


def measure_command(cell: Cell, root: str, options: Options) -> Values:
    """The main job as a command on the images in ``root``: seconds until it ends, and its report's accuracy.

    Raises UserError where the command fails.
    """
    workdir = options.folder / "runs" / cell.name
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
    report = json.loads((workdir / REPORT).read_text())
    return {
        "command_s": wall_s,
        "accuracy": report["test"]["accuracy"],
        "num_images": report["test"]["num_images"],
        "executing_time_s": report["cost_of_running"]["executing_time_s"],
        "compile_judge_s": report["cost_of_running"]["compile_time_s"],
        "train_s": report["training"]["train_time_s"],
        "steps": report["training"]["last_step"],
        "device": report["device"],
    }


def measure(cell: Cell, subjects: Subjects, options: Options) -> Values:
    """The cell's figures, of a kind without PyTorch that needs the program's own devices."""
    subject = subjects.of(cell)
    match cell.kind:
        case "step":
            return measure_step(cell, subject, options)
        case "whole":
            return measure_whole(cell, subject, options)
        case "inference":
            return measure_inference(cell, subject, options)
        case "pipeline":
            return measure_pipeline(cell, subject, options)
    raise ValueError(f"`cell.kind` (={cell.kind}) is none that is measured here")

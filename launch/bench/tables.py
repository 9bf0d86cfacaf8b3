"""The benchmark's results as JSON and as Markdown, each with hardware, versions and flags."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagm_jax.train.progress import write_atomically
from launch import tiny_unet
from launch.bench.hardware import VENDOR_SOURCE
from launch.bench.plan import AXES, FIELDS
from launch.bench.runner import Outcome, State
from launch.tables import NOTHING, Table

Format = Callable[[float], str]


@dataclass(frozen=True)
class Origin:
    """Where the figures come from: command, machine, versions, flags, measured peaks; all in JSON values."""

    command: str
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    flags: Mapping[str, Any]
    peaks: Mapping[str, float | None]

    def lines(self) -> list[str]:
        """The same in words."""
        machine = self.hardware
        units = {"bytes": "GB/s of memory"}
        peaks = [
            f"{value / 1e9:.1f} {units.get(name, f'GFLOP/s in {name}')}"
            for name, value in self.peaks.items()
            if value
        ]
        return [
            f"Command: `{self.command}`",
            f"Device: {machine['num_local_devices']} x {machine['device']} ({machine['platform']}); processor "
            f"{machine['processor']}, cores {machine['num_cores']}, {machine['memory_bytes'] / 2**30:.0f} GiB, "
            f"{machine['system']}",
            f"Measured peak of one device in this run: {', '.join(peaks) or 'not needed'}",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in self.versions.items()),
            "Flags: " + ", ".join(f"{name}={value}" for name, value in self.flags.items()),
        ]


# --- text -----------------------------------------------------------------------------------------------------


def scaled(factor: float, decimals: int, unit: str = "") -> Format:
    """Text of a value times ``factor``."""
    return lambda value: f"{value * factor:.{decimals}f}{unit}"


SECONDS, MILLISECONDS, RATE = scaled(1, 2), scaled(1e3, 2), scaled(1, 1)
# Of the name of a kernel.
MOST_LETTERS = 80
GIGA, PERCENT, MEGABYTES, RATIO = scaled(1e-9, 2), scaled(100, 1, " %"), scaled(2**-20, 1), scaled(1, 2, "x")
WHOLE = scaled(1, 0)
Column = tuple[str, str, Format]
AXIS_HEADINGS = {"config": "configuration", "batch_size": "batch", "num_devices": "devices"}

_COSTS: tuple[Column, ...] = (
    ("GFLOP", "flop", GIGA),
    ("GFLOP/s", "flop_per_s", GIGA),
    ("of measured peak", "share_of_measured_peak", PERCENT),
    ("of printed peak", "share_of_vendor_peak", PERCENT),
    ("GB/s", "bytes_per_s", GIGA),
    ("of measured bandwidth", "share_of_measured_bandwidth", PERCENT),
    ("of printed bandwidth", "share_of_vendor_bandwidth", PERCENT),
    ("program, MiB", "program_bytes", MEGABYTES),
    ("device peak, MiB", "device_peak_bytes", MEGABYTES),
)


def _beside(what: str, name: str, unit: str = "ms") -> tuple[Column, ...]:
    """The columns of `compare.beside`."""
    show = MILLISECONDS if unit == "ms" else SECONDS
    return (
        (f"{what} ours, {unit}", f"{name}_ours_s", show),
        (f"eager, {unit}", f"{name}_eager_s", show),
        (f"compiled, {unit}", f"{name}_compiled_s", show),
        ("ours/eager", f"{name}_ratio_eager", RATIO),
        ("ours/compiled", f"{name}_ratio_compiled", RATIO),
        ("ours/best", f"{name}_ratio", RATIO),
    )


SECTIONS: dict[str, tuple[str, tuple[Column, ...]]] = {
    "step": (
        "Training step",
        (
            ("compile cold, s", "compile_cold_s", SECONDS),
            ("compile cached, s", "compile_cached_s", SECONDS),
            ("step median, ms", "step_median_s", MILLISECONDS),
            ("step p90, ms", "step_p90_s", MILLISECONDS),
            ("slices/s", "slices_per_s", RATE),
            ("images/s", "images_per_s", RATE),
            *_COSTS,
            ("all-reduce, MiB", "all_reduce_bytes", MEGABYTES),
            ("device busy", "device_busy", PERCENT),
            ("strong scaling", "strong_scaling", PERCENT),
            ("weak scaling", "weak_scaling", PERCENT),
        ),
    ),
    "whole": (
        "Data and step",
        (
            ("whole median, ms", "whole_median_s", MILLISECONDS),
            ("whole p90, ms", "whole_p90_s", MILLISECONDS),
            ("slices/s", "slices_per_s", RATE),
            ("images/s", "images_per_s", RATE),
            ("step alone / whole", "step_over_whole", PERCENT),
            ("device busy", "device_busy", PERCENT),
        ),
    ),
    "inference": (
        "Inference",
        (
            ("latency p50, ms", "latency_p50_s", MILLISECONDS),
            ("p95, ms", "latency_p95_s", MILLISECONDS),
            ("p99, ms", "latency_p99_s", MILLISECONDS),
            ("slices/s", "slices_per_s", RATE),
            ("images/s", "images_per_s", RATE),
            *_COSTS,
        ),
    ),
    "pipeline": (
        "Input pipeline alone",
        (("slices/s", "slices_per_s", RATE), ("slices/s per core", "slices_per_core_s", RATE)),
    ),
    "peer_step": ("Training step beside PyTorch", _beside("step", "step")),
    "peer_inference": (
        "Inference beside PyTorch",
        (*_beside("batch", "batch"), *_beside("latency", "latency")),
    ),
    "peer_pipeline": (
        "Input pipeline beside PyTorch's DataLoader",
        (
            ("ours, slices/s", "ours_slices_per_s", RATE),
            ("peer, slices/s", "peer_slices_per_s", RATE),
            ("ours/peer", "ratio", RATIO),
            ("ours, per core", "ours_slices_per_core_s", RATE),
            ("peer, per core", "peer_slices_per_core_s", RATE),
            ("ours/peer per core", "ratio_per_core", RATIO),
        ),
    ),
    "peer_epoch": (
        "Epoch from PNG files beside PyTorch with DataLoader",
        (
            ("images", "num_images", WHOLE),
            ("steps", "steps", WHOLE),
            *_beside("first epoch", "first", "s"),
            *_beside("later epoch", "later", "s"),
        ),
    ),
    "command": (
        "From the command to the judged test side",
        (
            ("command, s", "command_s", SECONDS),
            ("accuracy", "accuracy", scaled(1, 4)),
            ("test images", "num_images", WHOLE),
            ("training, s", "train_s", SECONDS),
            ("steps", "steps", WHOLE),
            ("executing time, s", "executing_time_s", SECONDS),
        ),
    ),
}


# --- tables ---------------------------------------------------------------------------------------------------


def section(kind: str, outcomes: Sequence[Outcome]) -> Table:
    """The table of one kind of cells; columns that none of them has a figure for are left out."""
    title, columns = SECTIONS[kind]
    filled = [c for c in columns if any(o.values.get(c[1]) is not None for o in outcomes)]
    axes = ["config", *(FIELDS[axis] for axis in AXES[kind])]
    lines = [
        [
            *(str(o.cell.values()[axis]) for axis in axes),
            *(_text(o.values.get(name), show) for _, name, show in filled),
        ]
        for o in outcomes
    ]
    errors = {
        f"{o.cell.title}: torch.compile: {o.values['compiled_error']}"
        for o in outcomes
        if o.values.get("compiled_error")
    }
    notes = sorted(errors)
    if any(o.cell.config == tiny_unet.NAME for o in outcomes):
        notes.append(tiny_unet.PRINTED)
    headings = [*(AXIS_HEADINGS.get(axis, axis) for axis in axes), *(heading for heading, _, _ in filled)]
    return Table(title, (), notes, headings, lines)


def _text(value: float | None, show: Format) -> str:
    return NOTHING if value is None else show(value)


def kernel_tables(state: State) -> list[Table]:
    """Of each trace of devices that tell their kernels: those that took most of the time."""
    return [
        Table(
            f"Kernels of {outcome.cell.title}",
            (),
            (),
            ["kernel", "calls per step", "ms per step"],
            [
                [
                    kernel["name"][:MOST_LETTERS].replace("|", "\\|"),
                    RATE(kernel["calls"] / outcome.values["traced_calls"]),
                    MILLISECONDS(kernel["seconds"] / outcome.values["traced_calls"]),
                ]
                for kernel in outcome.values["kernels"]
            ],
        )
        for outcome in state.of("step", "whole")
        if outcome.values.get("kernels")
    ]


def failure_table(state: State) -> Table:
    """What has no figures and why."""
    lines = [[outcome.cell.title, outcome.error.replace("|", "\\|")] for outcome in state.failures]
    return Table("Not measured", (), (), ["cell", "reason"], lines)


def markdown(state: State, origin: Origin) -> str:
    """The whole report."""
    tables = [section(kind, state.of(kind)) for kind in SECTIONS if state.of(kind)]
    tables += kernel_tables(state)
    if state.failures:
        tables.append(failure_table(state))
    done = f"{len(state.outcomes)} of {len(state.cells)} cells tried, {len(state.failures)} without figures"
    facts = [*origin.lines(), f"Started: {state.started}", done, f"Printed peaks: {VENDOR_SOURCE}"]
    head = "# Benchmark\n\n" + "\n".join(f"* {fact}" for fact in facts) + "\n"
    return "\n".join([head, *(table.markdown(2) for table in tables)])


def as_json(state: State, origin: Origin) -> str:
    """Everything that was measured, unrounded; what nobody could tell is null."""
    scaled_steps = {outcome.cell: outcome for outcome in state.of("step")}
    content = {
        "command": origin.command,
        "hardware": dict(origin.hardware),
        "versions": dict(origin.versions),
        "flags": dict(origin.flags),
        "measured_peaks": dict(origin.peaks),
        "started": state.started,
        "cells": [scaled_steps.get(outcome.cell, outcome).json() for outcome in state.outcomes],
        "waiting": [cell.values() for cell in state.waiting],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_texts(state: State, origin: Origin, folder: Path) -> None:
    """``benchmark.json`` and ``benchmark.md`` in ``folder``."""
    write_atomically(folder / "benchmark.json", as_json(state, origin))
    write_atomically(folder / "benchmark.md", markdown(state, origin))

"""The results of a benchmark as JSON and as Markdown, each with hardware, versions and flags."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dagm_jax.storage import write_atomically
from launch import tiny_unet
from launch.bench.hardware import VENDOR_SOURCE
from launch.bench.measure import ERROR, Values
from launch.bench.plan import AXES, FIELDS, OF_MODEL, TINY_UNET, Cell

TITLES = {
    "command": "From the command to the report",
    "step": "Training step",
    "whole": "Data and step",
    "peer_step": "Training step beside PyTorch",
    "inference": "Inference",
    "peer_inference": "Inference beside PyTorch",
    "pipeline": "Input pipeline alone",
    "peer_pipeline": "Input pipeline beside PyTorch's DataLoader",
    "peer_epoch": "Epoch from PNG files beside PyTorch with DataLoader",
    "latency": "One image, pixels to verdict",
    "tiling": "Whole images and slices",
}
# Units in Markdown: (part of a figure's name, factor, unit); the first part that fits counts.
UNITS: tuple[tuple[str, float, str], ...] = (
    ("flop_per_s", 1e-9, "GFLOP/s"),
    ("per_s", 1, ""),
    ("per_core_s", 1, ""),
    ("flop", 1e-9, "GFLOP"),
    ("bytes", 2**-20, "MiB"),
    ("share", 100, "%"),
    ("accuracy", 100, "%"),
    ("step_over_whole", 100, "%"),
    ("ratio", 1, "x"),
    ("_s", 1, "s"),
)


@dataclass(frozen=True)
class Outcome:
    """A cell's figures, or why there are none."""

    cell: Cell
    values: Values = field(default_factory=dict)
    error: str = ""


@dataclass
class State:
    """The cells of a run, and results so far in their order."""

    cells: Sequence[Cell]
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.error]


def column(name: str, values: Sequence[Any]) -> list[str]:
    """Heading and cells of a column of figures; the unit by the name, milliseconds where all are below 1 s."""
    factor, unit = next(((factor, unit) for part, factor, unit in UNITS if part in name), (1, ""))
    numbers = [value for value in values if isinstance(value, int | float)]
    if unit == "s" and max(numbers) < 1:
        factor, unit = 1000, "ms"
    heading = (name.removesuffix("_s") if unit in ("s", "ms") else name).replace("_", " ")
    return [
        f"{heading}, {unit}" if unit else heading,
        *(
            "-"
            if value is None
            else f"{value}"
            if isinstance(value, int | str)
            # Scores lie in [0, 1].
            else f"{value * factor:,.{2 if unit or value > 1 else 4}f}"
            for value in values
        ),
    ]


def section(title: str, columns: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    """Title, Markdown table of columns that begin with their headings, and notes."""
    heading, *lines = zip(*([cell.replace("|", "\\|") for cell in each] for each in columns), strict=True)
    grid = "\n".join(f"| {' | '.join(line)} |" for line in (heading, ["---"] * len(heading), *lines))
    return "\n".join([f"## {title}\n\n{grid}\n", *(f"* {note}\n" for note in notes)])


def kind_section(kind: str, outcomes: Sequence[Outcome]) -> str:
    """The table of one kind of cells; columns without any figure are left out."""
    if kind in OF_MODEL:
        return "\n".join(model_section(outcome) for outcome in outcomes)
    axes = ["config", *(FIELDS[axis] for axis in AXES[kind])]
    columns = [[axis, *(str(getattr(outcome.cell, axis)) for outcome in outcomes)] for axis in axes]
    for name in dict.fromkeys(name for outcome in outcomes for name in outcome.values):
        values = [outcome.values.get(name) for outcome in outcomes]
        if any(isinstance(value, int | float) for value in values):
            columns.append(column(name, values))
    notes = [
        f"{outcome.cell.title}: torch.compile: {outcome.values['compiled_error']}"
        for outcome in outcomes
        if outcome.values.get("compiled_error")
    ]
    if any(outcome.cell.config == TINY_UNET for outcome in outcomes):
        notes.append(tiny_unet.PRINTED)
    return section(TITLES[kind], columns, notes)


def model_section(outcome: Outcome) -> str:
    """The table of a finished run: a row for each way, and why there is none for others."""
    facts, rows = dict(outcome.values), dict(outcome.values["rows"])
    notes = [f"{name}: {facts[name]}" for name in facts if name != "rows"]
    notes += [f"{name}: {rows.pop(name)[ERROR]}" for name in tuple(rows) if ERROR in rows[name]]
    figures = dict.fromkeys(name for row in rows.values() for name in row)
    columns = [column(name, [row.get(name) for row in rows.values()]) for name in figures]
    title = f"{TITLES[outcome.cell.kind]}: {outcome.cell.config}"
    return section(title, [["", *rows], *columns], notes)


def markdown(state: State, origin: Mapping[str, Any]) -> str:
    """The whole report."""
    done = f"{len(state.outcomes)} of {len(state.cells)}, {len(state.failures)} without figures"
    parts = ["# Benchmark\n"]
    for name, fact in {**origin, "vendor's peaks": VENDOR_SOURCE, "cells tried": done}.items():
        text = ", ".join(f"{k} {v}" for k, v in fact.items()) if isinstance(fact, Mapping) else fact
        parts.append(f"* {name.replace('_', ' ')}: {text}")
    parts[-1] += "\n"
    measured = [outcome for outcome in state.outcomes if not outcome.error]
    for kind in TITLES:
        if found := [outcome for outcome in measured if outcome.cell.kind == kind]:
            parts.append(kind_section(kind, found))
    if failures := state.failures:
        columns = [["cell", *(o.cell.title for o in failures)], ["reason", *(o.error for o in failures)]]
        parts.append(section("Not measured", columns))
    return "\n".join(parts)


def as_json(state: State, origin: Mapping[str, Any]) -> str:
    """All figures, unrounded; unknown ones are null."""
    content = {
        **origin,
        "cells": [
            {
                **asdict(outcome.cell),
                "status": "failed" if outcome.error else "measured",
                "error": outcome.error or None,
                "values": outcome.values,
            }
            for outcome in state.outcomes
        ],
        "waiting": [asdict(cell) for cell in state.cells[len(state.outcomes) :]],
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write(state: State, origin: Mapping[str, Any], folder: Path) -> None:
    """``benchmark.json`` and ``benchmark.md`` in ``folder``."""
    write_atomically(folder / "benchmark.json", as_json(state, origin))
    write_atomically(folder / "benchmark.md", markdown(state, origin))

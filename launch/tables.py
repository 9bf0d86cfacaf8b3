"""The tables of the grid, each once as Markdown for readers and once as flat rows for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from dagm_jax.config import from_config_dict
from dagm_jax.train.progress import write_atomically
from dagm_jax.trained_model import make_slicers
from launch import paper
from launch.cells import ABLATED_MODEL, BASE, Plan, Variant, ablations
from launch.grid import Result, State
from launch.rows import (
    EXTRA,
    MEAN,
    PRINTED,
    Figures,
    Row,
    Statistic,
    class_rows,
    counts_of,
    differences,
    figures_of,
    local_energy_of,
    majority_of,
    pooled_interval,
    printed_values,
)

BYTES_PER_PARAMETER = 4
HEADINGS = {
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "executing_time_s": "executing time, s",
    "auroc": "AUROC",
    "average_precision": "AP",
    "balanced_accuracy": "balanced accuracy",
    "cost_1_20": "cost 1:20",
    "dice_defective": "Dice on defective",
    "accuracy_difference": "Δ accuracy",
    "auroc_difference": "Δ AUROC",
    "dice_defective_difference": "Δ Dice",
}
# Decimals of a figure in Markdown, where they are not those of a rate.
DECIMALS = {"executing_time_s": 1, "cost_1_20": 1}
RATE_DECIMALS = 4
# What a finished cell may differ in from the grid's configuration, and its times with it.
PACE_FIELDS = ("data.num_workers", "parallel.cpu_convolutions", "parallel.mode")
NOTHING = "-"
PRINTED_TOO = " (printed)"


@dataclass(frozen=True)
class Table:
    """A table: its title, what stands above and below it, its lines as text, and the same numbers as flat rows.

    header and notes are lists of Markdown.
    """

    title: str
    header: Sequence[str]
    notes: Sequence[str]
    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    rows: Sequence[Mapping[str, Any]] = ()

    def markdown(self, level: int = 1) -> str:
        """The table under a heading of this level."""
        cells = [self.headings, ["---"] * len(self.headings), *self.lines]
        grid = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        above, below = ("\n".join(f"* {note}" for note in notes) for notes in (self.header, self.notes))
        parts = (f"{'#' * level} {self.title}", above, grid, below)
        return "\n\n".join(part for part in parts if part) + "\n"

    def csv(self) -> str:
        """The flat rows; an undefined value is empty."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return stream.getvalue()

    def json(self) -> str:
        """Title, notes and the flat rows; an undefined value is null."""
        notes = [*self.header, *self.notes]
        content = {"title": self.title, "notes": notes, "rows": list(self.rows)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path, stem: str, *kinds: str) -> None:
        """Writes ``stem.md``, ``stem.csv`` or ``stem.json``, whichever kinds are named."""
        texts = {"md": self.markdown, "csv": self.csv, "json": self.json}
        for kind in kinds:
            write_atomically(folder / f"{stem}.{kind}", texts[kind]())


# --- text -----------------------------------------------------------------------------------------------------


def number(value: float | None, decimals: int, sign: str = "") -> str:
    """The value with so many decimals, or NOTHING."""
    return NOTHING if value is None else f"{value:{sign}.{decimals}f}"


def shown(statistic: Statistic | None, name: str) -> str:
    """``mean ± sd`` of a figure; the sd only where there is one, and how many values were undefined."""
    if statistic is None:
        return NOTHING
    decimals = DECIMALS.get(name, RATE_DECIMALS)
    sign = "+" if name.endswith("_difference") else ""
    text = "undefined" if statistic.mean is None else number(statistic.mean, decimals, sign)
    if statistic.sd is not None:
        text += f" ± {number(statistic.sd, decimals)}"
    if statistic.num_undefined and statistic.mean is not None:
        text += f", {statistic.num_undefined} undefined"
    return text


def class_text(row: Row, num_classes: int) -> str:
    """The class, or ``mean of 2``, ``mean of 1 of 2`` while classes are missing."""
    if row.class_name != MEAN:
        return row.class_name
    of = "" if row.num_classes == num_classes else f" of {num_classes}"
    return f"mean of {row.num_classes}{of}"


def provenance(results: Sequence[Result], command: str) -> list[str]:
    """Notes on where the numbers come from, out of the reports: command, images, devices, versions, mixed settings."""
    notes = [f"Command: `{command}`"]
    for what, read in (
        ("Images", lambda r: r["data"]["source"]),
        ("Device", lambda r: r["device"]),
        ("Versions", lambda r: ", ".join(f"{k} {v}" for k, v in r["versions"].items())),
    ):
        found = sorted({read(result.report) for result in results})
        notes += [f"{what}: {text}" for text in found] or [f"{what}: no cell is finished"]
    return notes + mixed_notes(results)


def mixed_notes(results: Sequence[Result]) -> list[str]:
    """A note for each of PACE_FIELDS in which these cells differ: their times are means of unlike things."""
    notes = []
    for name in PACE_FIELDS:
        group, field = name.split(".")
        values = sorted({str(result.report["config"][group][field]) for result in results})
        if len(values) > 1:
            notes.append(
                f"Cells ran with different `{name}`: {', '.join(values)}; times are averaged over them"
            )
    return notes


# --- Table I --------------------------------------------------------------------------------------------------


def by_class(
    results: Sequence[Result], read: Callable[[Mapping[str, Any]], Figures]
) -> dict[int, dict[int, Figures]]:
    """class → seed → figures of these cells; of several with one class and seed, those of the last."""
    found: dict[int, dict[int, Figures]] = {}
    for result in results:
        found.setdefault(result.cell.class_id, {})[result.cell.seed] = read(result.report)
    return found


def model_rows(plan: Plan, state: State, task: str, model: str) -> list[Row]:
    """The lines of one model in Table I, with the printed values and the interval of the accuracy."""
    results = state.of(task=task, model=model, variant=BASE)
    rows = class_rows(model, plan.classes, by_class(results, figures_of))
    completed = []
    for row in rows:
        is_mean = row.class_name == MEAN
        classes = plan.classes if is_mean else (int(row.class_name),)
        counts = [counts_of(r.report) for r in results if r.cell.class_id in classes]
        # Beside a mean over some classes stands the paper's over the same.
        printed = {
            name: printed_values(model, averaged_classes(rows, name) if is_mean else classes)[name]
            for name in PRINTED
        }
        completed.append(replace(row, printed=printed, interval=pooled_interval(counts)))
    return completed


def averaged_classes(rows: Sequence[Row], name: str) -> list[int]:
    """The classes that are in the mean of a figure: those that are finished and have it."""
    own = [row for row in rows if row.class_name != MEAN and name in row.statistics]
    return [int(row.class_name) for row in own if row.statistics[name].mean is not None]


def baseline_rows(plan: Plan, state: State, task: str) -> list[Row]:
    """The lines of what needs no training; every model's report of a class and seed has the same."""
    results = state.of(task=task, variant=BASE)
    return [
        row
        for label, read in (("majority", majority_of), ("local energy", local_energy_of))
        for row in class_rows(label, plan.classes, by_class(results, read))
    ]


def table_1(plan: Plan, state: State, task: str, command: str) -> Table:
    """The paper's Table I for a task: every model on every class, averages, and the baselines."""
    rows = [row for model in plan.models for row in model_rows(plan, state, task, model)]
    rows += baseline_rows(plan, state, task)
    names = (*PRINTED, *EXTRA)
    headings = ["model", "class", "seeds"]
    headings += [f"{HEADINGS[name]}{PRINTED_TOO}" for name in PRINTED] + ["accuracy, 95 % interval"]
    headings += [HEADINGS[name] for name in EXTRA]
    return Table(
        title=f"Table I: {task}",
        header=provenance(state.of(task=task, variant=BASE), command),
        notes=table_1_notes(plan),
        headings=headings,
        lines=[table_1_line(row, len(plan.classes)) for row in rows],
        rows=[{"task": task, "model": row.label} | row.flat(names, PRINTED) for row in rows],
    )


def table_1_line(row: Row, num_classes: int) -> list[str]:
    """The cells of a line in Markdown."""
    line = [row.label, class_text(row, num_classes), str(row.num_seeds)]
    for name in PRINTED:
        printed = number(row.printed.get(name), DECIMALS.get(name, RATE_DECIMALS))
        ours = shown(row.statistics.get(name), name)
        line.append(f"{ours} ({printed})" if row.printed else ours)
    low, high = row.interval or (None, None)
    line.append(f"{number(low, 3)} to {number(high, 3)}" if row.interval else NOTHING)
    return line + [shown(row.statistics.get(name), name) for name in EXTRA]


def table_1_notes(plan: Plan) -> list[str]:
    """What a reader of Table I must know."""
    means = "; ".join(f"{model} {row.accuracy}" for model, row in paper.TABLE_1_MEANS.items())
    return [
        f"Positive is defective. Mean ± sample standard deviation over seeds {', '.join(map(str, plan.seeds))}; "
        "one seed has none. A rate whose denominator is 0 is left out of the mean and counted as undefined.",
        "Executing time: seconds from the files of a class's test side to its verdicts, without compilation.",
        "The interval is Wilson's, of the verdicts of all seeds together; seeds may test on the same images, which "
        "are then not independent.",
        "Cost: a false alarm 1, a missed defect 20, summed over the test side.",
        "Means: of the classes' means; their standard deviation is that of the seeds' averages.",
        "In brackets: the paper's number, for information only. Its test images differ from these and are not "
        f"known; in a mean, over those of its classes 1 to 6 that are in ours. Its own mean accuracies: {means}.",
        *(f"The paper's table: {remark}" for remark in paper.remarks()),
    ]


# --- ablation -------------------------------------------------------------------------------------------------

ABLATION_FIGURES = (
    "accuracy",
    "f1",
    "auroc",
    "average_precision",
    "balanced_accuracy",
    "dice_defective",
    "executing_time_s",
    "accuracy_difference",
    "auroc_difference",
    "dice_defective_difference",
)


def variant_rows(plan: Plan, state: State, task: str, variant: Variant) -> list[Row]:
    """The lines of one variant, with its differences from the configured run of the same class and seed."""
    wanted = {"task": task, "model": ABLATED_MODEL}
    base = by_class(state.of(**wanted, variant=BASE), figures_of)
    found = by_class(state.of(**wanted, variant=variant), figures_of)
    nothing: Figures = dict.fromkeys(("accuracy", "auroc", "dice_defective"))
    for class_id, seeds in found.items():
        for seed, figures in seeds.items():
            if variant != BASE:
                pair = base.get(class_id, {}).get(seed, nothing)
                seeds[seed] = {**figures, **differences(figures, pair)}
    return class_rows(variant.name or ABLATED_MODEL, plan.classes, found)


def ablation_table(plan: Plan, state: State, task: str, command: str) -> Table:
    """What each of the paper's claims is worth: the customised U-Net with one thing taken away at a time."""
    variants = (BASE, *ablations(task))
    rows = [row for variant in variants for row in variant_rows(plan, state, task, variant)]
    lines = [
        [row.label, class_text(row, len(plan.classes)), str(row.num_seeds)]
        + [shown(row.statistics.get(name), name) for name in ABLATION_FIGURES]
        for row in rows
    ]
    results = [result for variant in variants for result in state.of(task=task, variant=variant)]
    return Table(
        title=f"Ablation: {task}",
        header=provenance([r for r in results if r.cell.model == ABLATED_MODEL], command),
        notes=[
            *(f"{variant.name or ABLATED_MODEL}: {variant.what}." for variant in variants),
            "Δ: the variant less the configured run, in pairs of one class and one seed; below 0, what was taken "
            "away had helped. Mean ± sample standard deviation over seeds.",
        ],
        headings=["variant", "class", "seeds", *(HEADINGS[name] for name in ABLATION_FIGURES)],
        lines=lines,
        rows=[{"task": task, "variant": row.label} | row.flat(ABLATION_FIGURES, ()) for row in rows],
    )


# --- models ---------------------------------------------------------------------------------------------------


def model_row(results: Sequence[Result]) -> dict[str, Any]:
    """Size and speed of one model in one task: structure from the first cell, speeds as means over the cells."""
    report, cell = results[0].report, results[0].cell
    running = report["cost_of_running"]
    return {
        "task": cell.task,
        "model": cell.model,
        "num_cells": len(results),
        "base_channels": report["config"]["model"]["base_channels"],
        "num_parameters": running["num_parameters"],
        "weights_mb": running["num_parameters"] * BYTES_PER_PARAMETER / 1e6,
        "gflop_per_slice": running["gflop_per_slice"],
        "training_slices_per_s": fmean(training_speed(r.report) for r in results),
        "executing_slices_per_s": fmean(executing_speed(r.report) for r in results),
        "device": ", ".join(sorted({r.report["device"] for r in results})),
    }


def training_speed(report: Mapping[str, Any]) -> float:
    """Slices per second in training steps."""
    return 1000 / float(report["training"]["seconds_per_1000_slices"])


def executing_speed(report: Mapping[str, Any]) -> float:
    """Slices per second from files to verdicts."""
    # The number asked for is not always the one that covers an image, and tiles have none.
    _, slicer = make_slicers(from_config_dict(report["config"]), *report["data"]["largest_px"])
    return float(report["cost_of_running"]["images_per_s"]) * slicer.num_slices


def models_table(plan: Plan, state: State) -> Table:
    """Parameters, GFLOP, slices per second and size of each model, task by task."""
    groups = [state.of(task=t, model=m, variant=BASE) for t in plan.tasks for m in plan.models]
    rows = [model_row(results) for results in groups if results]
    lines = [
        [
            row["task"],
            row["model"],
            str(row["base_channels"]),
            f"{row['num_parameters']:,}",
            number(row["weights_mb"], 1),
            number(row["gflop_per_slice"], 2),
            number(row["training_slices_per_s"], 1),
            number(row["executing_slices_per_s"], 1),
            row["device"],
        ]
        for row in rows
    ]
    return Table(
        title="Models",
        header=[],
        notes=[
            "Parameters: the trainable ones. Weights: these at 4 bytes each (float32), as an export holds them; a "
            "checkpoint is larger by the optimiser's state.",
            "GFLOP: forward pass of one slice, 2 per multiply-add, as XLA counts before it optimises.",
            "Training slices/s: steps alone. Executing slices/s: from files to verdicts. Means over the cells.",
            *mixed_notes([result for results in groups for result in results]),
        ],
        headings=[
            "task",
            "model",
            "base channels",
            "parameters",
            "weights on disk, MB",
            "GFLOP per slice",
            "training slices/s",
            "executing slices/s",
            "device",
        ],
        lines=lines,
        rows=rows,
    )


# --- Table II -------------------------------------------------------------------------------------------------


def table_2(plan: Plan, state: State) -> Table:
    """The paper's Table II, what its numbers are, and the mean accuracies of this grid below them."""
    lines = [
        [study.authors, study.network, f"{study.printed_percent:.1f} %", study.meaning]
        for study in paper.TABLE_2
    ]
    for model, printed in paper.TABLE_1_MEANS.items():
        meaning = "mean accuracy of image verdicts over DAGM classes 1 to 6, as printed"
        lines.append(["the paper", model, f"{100 * printed.accuracy:.1f} %", meaning])
    for task in plan.tasks:
        for model in plan.models:
            for row in model_rows(plan, state, task, model):
                accuracy = row.statistics["accuracy"].mean if row.class_name == MEAN else None
                if accuracy is not None:
                    meaning = (
                        f"accuracy of image verdicts, {task}, {class_text(row, len(plan.classes))} classes"
                    )
                    lines.append(["this grid", model, f"{100 * accuracy:.1f} %", meaning])
    return Table(
        title="Table II: earlier studies",
        header=[
            "The table compares unlike things: other data, other tasks, other figures. No order follows from it."
        ],
        notes=[],
        headings=["authors", "network", "printed", "what the number really is"],
        lines=lines,
    )

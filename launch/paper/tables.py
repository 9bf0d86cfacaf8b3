"""Tables of a grid: Markdown for readers, and the same rows as CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean

from dagm_jax.evaluation.metrics import wilson_interval
from launch.paper.cells import ABLATED_MODEL, BASE, Cell, Grid, Plan, Report, ablations, supervision
from launch.paper.printed import MEAN_ACCURACIES, REMARKS, SUPERVISION_MARKS, TABLE_1, TABLE_2
from launch.paper.rows import (
    EXTRA,
    MEAN,
    PRINTED,
    Row,
    baselines_of,
    class_rows,
    counts_of,
    differences,
    figures_of,
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
ABLATION_FIGURES = ("accuracy", "f1", *EXTRA[:-1], "dice_defective", "executing_time_s", *list(HEADINGS)[-3:])
SUPERVISION_FIGURES = ("auroc", "average_precision", "dice_defective", "accuracy")
# Decimals in Markdown: figures that are no rates, and rates.
DECIMALS = {"executing_time_s": 1, "cost_1_20": 1}
RATE_DECIMALS = 4
NOTHING = "-"

# Type: heading → function of a row that gives the cell's text.
Columns = Mapping[str, Callable[[Row], str]]


@dataclass(frozen=True)
class Table:
    """A table: title, notes above (header) and below it as Markdown, columns for readers, rows for programs."""

    title: str
    header: Sequence[str]
    columns: Columns
    rows: Sequence[Row]
    notes: Sequence[str] = ()

    def md(self, level: int = 1) -> str:
        """The table in Markdown under a heading of this level."""
        lines = [[text(row) for text in self.columns.values()] for row in self.rows]
        cells = [list(self.columns), ["---"] * len(self.columns), *lines]
        grid = "\n".join(f"| {' | '.join(line)} |" for line in cells)
        above, below = ("\n".join(f"* {note}" for note in notes) for notes in (self.header, self.notes))
        parts = (f"{'#' * level} {self.title}", above, grid, below)
        return "\n\n".join(part for part in parts if part) + "\n"

    def csv(self) -> str:
        """The rows; an undefined value is empty."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(self.rows[0]) if self.rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return stream.getvalue()

    def json(self) -> str:
        """Title, notes and rows; an undefined value is null."""
        content = {"title": self.title, "notes": [*self.header, *self.notes], "rows": list(self.rows)}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def number(value: float | None, decimals: int = RATE_DECIMALS, sign: str = "") -> str:
    """The value with so many decimals, or NOTHING."""
    return NOTHING if value is None else f"{value:{sign}.{decimals}f}"


def statistic_text(row: Row, name: str) -> str:
    """``mean ± sd, 1 undefined (printed)`` of a figure, without the parts that are missing."""
    mean, sd, undefined = (row[f"{name}_{part}"] for part in ("mean", "sd", "undefined"))
    decimals = DECIMALS.get(name, RATE_DECIMALS)
    text = number(mean, decimals, "+" if name.endswith("_difference") else "")
    if sd is not None:
        text += f" ± {number(sd, decimals)}"
    if undefined:
        text = "undefined" if mean is None else f"{text}, {undefined} undefined"
    if f"{name}_printed" in row and row["model"] in TABLE_1:
        text += f" ({number(row[f'{name}_printed'], decimals)})"
    return text


def interval_text(row: Row) -> str:
    """The ends of the accuracy's interval."""
    low, high = row["accuracy_low_95"], row["accuracy_high_95"]
    return NOTHING if low is None else f"{number(low, 3)} to {number(high, 3)}"


def class_text(row: Row, plan: Plan) -> str:
    """The class, or ``mean of 2``, ``mean of 1 of 2`` while classes are missing."""
    if row["class"] != MEAN:
        return str(row["class"])
    total = "" if row["num_classes"] == len(plan.classes) else f" of {len(plan.classes)}"
    return f"mean of {row['num_classes']}{total}"


def plain_columns(*names: str) -> Columns:
    """Columns of the rows' values as they are."""
    return {name.replace("_", " "): lambda row, name=name: str(row[name]) for name in names}  # type: ignore[misc]


def first_columns(plan: Plan, label: str) -> Columns:
    """Columns of the label (model or variant), the class, and the number of seeds."""
    class_of = partial(class_text, plan=plan)
    return {**plain_columns(label), "class": class_of, "seeds": lambda row: str(row["num_seeds"])}


def figure_columns(names: Sequence[str], suffix: str = "") -> Columns:
    """A column for each figure."""
    return {HEADINGS[name] + suffix: partial(statistic_text, name=name) for name in names}


def provenance(reports: Collection[Report], command: str) -> list[str]:
    """Notes on the origin of the numbers: command, images, devices, versions."""
    found = {
        "Images": {report["data"]["source"] for report in reports},
        "Device": {report["device"] for report in reports},
        "Versions": {", ".join(f"{k} {v}" for k, v in report["versions"].items()) for report in reports},
    }
    nothing = ["no cell is finished"]
    notes = [f"{title}: {text}" for title, texts in found.items() for text in sorted(texts) or nothing]
    return [f"Command: `{command}`", *notes]


def table_1(grid: Grid, task: str) -> Table:
    """The paper's Table I for a task: every model on every class, averages, and the baselines."""
    reports, plan = grid.select(task=task, variant=BASE), grid.plan
    found = {
        model: {c: figures_of(r) for c, r in reports.items() if c.model == model} for model in plan.models
    }
    for name in ("majority", "local energy"):
        # Baselines of a class and seed are the same in every model's report.
        found[name] = {cell: baselines_of(report)[name] for cell, report in reports.items()}
    rows: list[Row] = []
    for model, figures in found.items():
        rows += class_rows({"task": task, "model": model}, plan.classes, figures, (*PRINTED, *EXTRA))
    for row in rows:
        own = [c for c in reports if c.model == row["model"] and row["class"] in (MEAN, str(c.class_id))]
        total = counts_of(reports[cell] for cell in own)
        ends = wilson_interval(total.tp + total.tn, total.num_images) or (None, None)
        row["accuracy_low_95"], row["accuracy_high_95"] = ends
    columns = {
        **first_columns(plan, "model"),
        **figure_columns(PRINTED, " (printed)"),
        "accuracy, 95 % interval": interval_text,
        **figure_columns(EXTRA),
    }
    means = "; ".join(f"{model} {accuracy}" for model, accuracy in MEAN_ACCURACIES.items())
    notes = [
        f"Positive is defective. Mean ± sample standard deviation over seeds {', '.join(map(str, plan.seeds))}; "
        "one seed has none. A rate whose denominator is 0 is left out of the mean and counted as undefined.",
        "Executing time: seconds from the files of a class's test split to its decisions, without compilation.",
        "The interval is Wilson's, over the decisions of all seeds together; seeds may test on the same images, "
        "which are then not independent.",
        "Cost: a false alarm 1, a missed defect 20, summed over the test split.",
        "Means are those of the classes' means; their standard deviation is that of the seeds' averages.",
        "In brackets: the paper's number, for information only. Its test images differ from these and are not "
        f"known; in a mean, over those of its classes 1 to 6 that are in ours. Its own mean accuracies: {means}.",
        *(f"The paper's table: {remark}" for remark in REMARKS),
    ]
    return Table(f"Table I: {task}", provenance(reports.values(), grid.command), columns, rows, notes)


def ablation_table(grid: Grid, task: str) -> Table:
    """The ablation: the customised U-Net with one thing taken away at a time."""
    variants, plan = (BASE, *ablations(task)), grid.plan
    reports = grid.select(task=task, model=ABLATED_MODEL)
    figures = {cell: figures_of(report) for cell, report in reports.items()}
    for cell, ours in figures.items():
        if cell.variant != BASE:
            figures[cell] = {**ours, **differences(ours, figures.get(replace(cell, variant=BASE), {}))}
    rows = []
    for variant in variants:
        found = {cell: ours for cell, ours in figures.items() if cell.variant == variant}
        label = {"task": task, "variant": variant.name or ABLATED_MODEL}
        rows += class_rows(label, plan.classes, found, ABLATION_FIGURES)
    notes = [
        *(f"{variant.name or ABLATED_MODEL}: {variant.effect}." for variant in variants),
        "Δ: the variant less the configured run, in pairs of one class and one seed; below 0, what was taken "
        "away had helped. Mean ± sample standard deviation over seeds.",
    ]
    header = provenance(reports.values(), grid.command)
    columns = {**first_columns(plan, "variant"), **figure_columns(ABLATION_FIGURES)}
    return Table(f"Ablation: {task}", header, columns, rows, notes)


def supervision_table(grid: Grid) -> Table:
    """Figures of real test images by the labels that training and validation may see."""
    reports, plan = grid.select(task="segmentation", model=ABLATED_MODEL), grid.plan
    rows = []
    for labels in plan.supervision:
        variant = supervision(labels)
        found = {cell: figures_of(one) for cell, one in reports.items() if cell.variant == variant}
        rows += class_rows({"labels": labels}, plan.classes, found, SUPERVISION_FIGURES)
    columns = {**first_columns(plan, "labels"), **figure_columns(SUPERVISION_FIGURES)}
    effects = (supervision(labels) for labels in plan.supervision)
    notes = [
        *(f"{one.name}: {one.effect}." for one in effects if one != BASE),
        *(f"Published, mean of DAGM's ten classes: {mark}." for mark in SUPERVISION_MARKS),
    ]
    return Table("Labels", provenance(reports.values(), grid.command), columns, rows, notes)


def model_row(reports: Mapping[Cell, Report]) -> Row:
    """Size and speed of one model in one task: size of the first cell, mean speeds of all cells."""
    cell, first = next(iter(reports.items()))
    running, each = first["cost_of_running"], reports.values()
    return {
        "task": cell.task,
        "model": cell.model,
        "num_cells": len(reports),
        "base_channels": first["config"]["model"]["base_channels"],
        "num_parameters": running["num_parameters"],
        "weights_mb": running["num_parameters"] * BYTES_PER_PARAMETER / 1e6,
        "gflop_per_slice": running["gflop_per_slice"],
        "training_slices_per_s": fmean(1000 / one["training"]["seconds_per_1000_slices"] for one in each),
        "executing_images_per_s": fmean(one["cost_of_running"]["images_per_s"] for one in each),
        "device": ", ".join(sorted({one["device"] for one in each})),
    }


def models_table(grid: Grid) -> Table:
    """Parameters, GFLOP, slices per second and size of each model, task by task."""
    plan = grid.plan
    selected = [grid.select(task=task, model=m, variant=BASE) for task in plan.tasks for m in plan.models]
    header = provenance([report for reports in selected for report in reports.values()], grid.command)
    columns: Columns = {
        **plain_columns("task", "model", "base_channels"),
        "parameters": lambda row: f"{row['num_parameters']:,}",
        "weights on disk, MB": lambda row: number(row["weights_mb"], 1),
        "GFLOP per slice": lambda row: number(row["gflop_per_slice"], 2),
        "training slices/s": lambda row: number(row["training_slices_per_s"], 1),
        "executing images/s": lambda row: number(row["executing_images_per_s"], 1),
        **plain_columns("device"),
    }
    notes = [
        "Parameters: the trainable ones. Weights: these at 4 bytes each (float32), as an export holds them; a "
        "checkpoint is larger by the optimiser's state.",
        "GFLOP: forward pass of one slice, 2 per multiply-add, as XLA counts before it optimises.",
        "Training slices/s: steps alone. Executing images/s: from files to decisions. Means over the cells.",
    ]
    return Table("Models", header, columns, [model_row(reports) for reports in selected if reports], notes)


def table_2(grid: Grid) -> Table:
    """The paper's Table II with the quantity that each number is, and the mean accuracies of this grid."""
    names = ("authors", "network", "percent", "meaning")
    lines = list(TABLE_2)
    meaning = "mean accuracy of image decisions over DAGM classes 1 to 6, as printed"
    lines += [("the paper", model, 100 * mean, meaning) for model, mean in MEAN_ACCURACIES.items()]
    for task in grid.plan.tasks:
        for row in table_1(grid, task).rows:
            if row["class"] == MEAN and row["model"] in TABLE_1 and row["accuracy_mean"] is not None:
                meaning = f"accuracy of image decisions, {task}, {class_text(row, grid.plan)} classes"
                lines.append(("this grid", row["model"], 100 * row["accuracy_mean"], meaning))
    columns: Columns = {
        **plain_columns("authors", "network"),
        "printed": lambda row: f"{row['percent']:.1f} %",
        "what the number really is": lambda row: row["meaning"],
    }
    header = (
        "The table compares unlike things: other data, other tasks, other figures. No order follows from it."
    )
    rows = [dict(zip(names, line, strict=True)) for line in lines]
    return Table("Table II: earlier studies", [header], columns, rows)

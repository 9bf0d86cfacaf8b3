"""Files of a grid: tables, figures, and an index page that shows them all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.table import Table

from dagm_jax.config import TASKS
from dagm_jax.console import console
from dagm_jax.storage import write_atomically
from dagm_jax.train.history import read_history
from dagm_jax.visualization.figures import (
    BLUE,
    GREY,
    ORANGE,
    draw_confusion,
    series,
    style_axes,
    write_figure,
)
from launch.paper import tables
from launch.paper.cells import BASE, Cell, Grid, Plan, Report
from launch.paper.rows import MEAN, counts_of

INDEX = "index.md"
# Files of each task: name → endings.
TASK_FILES = {
    "table_1": ("md", "csv", "json"),
    "ablation": ("md", "csv", "json"),
    "fig_3": ("png",),
    "fig_4": ("png",),
}
SUPERVISION_FILES = ("supervision.md", "supervision.csv", "supervision.png")
# Columns of the summary on the terminal.
SUMMARY = ("accuracy", "f1", "auroc")
# Class of the paper's Figs. 3 and 4.
SHOWN_CLASS = 4
# Size of a panel in inches.
PANEL_WIDTH, PANEL_HEIGHT = 4.4, 2.6


def remove_pages(root: Path) -> None:
    """Removes tables and figures of an earlier grid, which may show other cells."""
    for name in SUPERVISION_FILES:
        (root / name).unlink(missing_ok=True)
    for name, kinds in TASK_FILES.items():
        for ending in ("", *(f"_{task}" for task in TASKS)):
            for kind in kinds:
                (root / f"{name}{ending}.{kind}").unlink(missing_ok=True)


def write_pages(grid: Grid) -> None:
    """Writes tables, figures and index of the finished cells, each file atomically."""
    root = grid.plan.workdir
    sections = [f"# {title(grid)}\n"]
    for task in grid.plan.tasks:
        sections += write_task(grid, task)
    if grid.plan.supervision:
        table = tables.supervision_table(grid)
        sections.append(write_table(root, "supervision", table, ("md", "csv")))
        write_figure(plot_supervision(table), root / "supervision.png")
        sections.append("![Figures by labels](supervision.png)\n")
    sections.append(write_table(root, "models", tables.models_table(grid), ("md", "csv")))
    sections.append(write_table(root, "table_2", tables.table_2(grid), ("md",)))
    sections.append(cells_section(grid))
    write_atomically(root / INDEX, "\n".join(sections))


def title(grid: Grid) -> str:
    """The progress of the grid in one line."""
    failed = f", {len(grid.failures)} failed" if grid.failures else ""
    return f"The paper's tables: {len(grid.reports)} of {len(grid.plan.cells())} cells finished{failed}"


def write_task(grid: Grid, task: str) -> list[str]:
    """Writes the tables and figures of one task; returns their sections of the index."""
    root, ending = grid.plan.workdir, f"_{task}" if len(grid.plan.tasks) > 1 else ""
    made = {"table_1": tables.table_1(grid, task)}
    if grid.plan.ablation:
        made["ablation"] = tables.ablation_table(grid, task)
    sections = [write_table(root, f"{name}{ending}", made[name], TASK_FILES[name]) for name in made]
    groups = group_by_model(grid, task)
    for name, heading, plot in (
        ("fig_3", "Confusion matrices (Fig. 3)", plot_confusions),
        ("fig_4", "Loss and accuracy (Fig. 4)", plot_curves),
    ):
        path, shown = root / f"{name}{ending}.png", "Not drawn yet."
        text = f"{heading}: class {shown_class(grid.plan)}, {task}"
        if groups:
            write_figure(plot(grid, groups), path)
            shown = f"![{text}]({path.name})"
        sections.append(f"## {text}\n\n{shown}\n")
    return sections


def shown_class(plan: Plan) -> int:
    """The class of Figs. 3 and 4."""
    return SHOWN_CLASS if SHOWN_CLASS in plan.classes else plan.classes[0]


def group_by_model(grid: Grid, task: str) -> dict[str, dict[Cell, Report]]:
    """model → its finished cells of the shown class, for models that have any."""
    fields = {"task": task, "class_id": shown_class(grid.plan), "variant": BASE}
    groups = {model: grid.select(model=model, **fields) for model in grid.plan.models}
    return {model: reports for model, reports in groups.items() if reports}


def plot_confusions(grid: Grid, groups: dict[str, dict[Cell, Report]]) -> Figure:
    """Confusion matrices of the models, all seeds together, in one row."""
    figure = Figure(figsize=(PANEL_WIDTH * len(groups), 4.2), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (model, reports) in zip(panels, groups.items(), strict=True):
        total = counts_of(reports.values())
        seeds = ", ".join(str(cell.seed) for cell in reports)
        title = f"{model}, class {shown_class(grid.plan)}\n{total.num_images} decisions, seeds {seeds}"
        draw_confusion(axes, total, title)
    return figure


def plot_curves(grid: Grid, groups: dict[str, dict[Cell, Report]]) -> Figure:
    """Loss and accuracy over steps, a row for each model, a line for each seed."""
    figure = Figure(figsize=(2 * PANEL_WIDTH, PANEL_HEIGHT * len(groups) + 0.4), layout="constrained")
    panels = figure.subplots(len(groups), 2, squeeze=False)
    colours = {"train": BLUE, "validation": ORANGE}
    for row, (model, reports) in zip(panels, groups.items(), strict=True):
        histories = [read_history(cell.workdir(grid.plan.workdir) / "metrics.jsonl") for cell in reports]
        for panel, name in zip(row, ("loss", "accuracy"), strict=True):
            style_axes(panel)
            for history, (kind, colour) in product(histories, colours.items()):
                steps, values = series(history, kind, name)
                marker = "." if kind == "validation" or len(steps) == 1 else ""
                panel.plot(steps, values, color=colour, marker=marker, linewidth=1.1)
            panel.set(xlabel="step", ylabel=name)
            panel.set_ylim(**({"bottom": 0} if name == "loss" else {"top": 1.01}))
            panel.set_title(f"{model}, class {shown_class(grid.plan)}", fontsize=9)
    handles = [Line2D([], [], color=colour, label=kind) for kind, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_supervision(table: tables.Table) -> Figure:
    """Means over classes of each figure of the table, over its labels from few to many as they are given."""
    figure = Figure(figsize=(2 * PANEL_WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    rows = [row for row in table.rows if row["class"] == MEAN]
    colours = {"auroc": BLUE, "average_precision": GREY, "dice_defective": ORANGE}
    for name, colour in colours.items():
        values = [math.nan if row[f"{name}_mean"] is None else row[f"{name}_mean"] for row in rows]
        axes.plot(
            [row["labels"] for row in rows], values, color=colour, marker="o", label=tables.HEADINGS[name]
        )
    axes.set(ylim=(0, 1.02), xlabel="labels of defects for training and validation")
    axes.legend(frameon=False, loc="lower right")
    return figure


def write_table(root: Path, name: str, table: tables.Table, kinds: Sequence[str]) -> str:
    """Writes the table's files; returns its section of the index."""
    for kind in kinds:
        write_atomically(root / f"{name}.{kind}", getattr(table, kind)())
    links = ", ".join(f"[{name}.{kind}]({name}.{kind})" for kind in kinds)
    return f"{table.md(2)}\nFiles: {links}\n"


def cells_section(grid: Grid) -> str:
    """The section with the state of every cell."""
    states = {cell: "not finished yet" for cell in grid.plan.cells()}
    states |= {cell: f"**failed**: {message}" for cell, message in grid.failures.items()}
    for cell in grid.reports:
        states[cell] = f"finished, [report]({cell.workdir(Path()).as_posix()}/report.json)"
    return "## Cells\n\n" + "".join(f"* {cell.title}: {state}\n" for cell, state in states.items())


def print_summary(grid: Grid) -> None:
    """Prints the main columns of every Table I, and every failure."""
    for task in grid.plan.tasks:
        table = tables.table_1(grid, task)
        headings = (tables.HEADINGS[name] for name in SUMMARY)
        shown = Table("model", "class", "seeds", *headings, title=table.title, title_justify="left")
        for row in table.rows:
            means = (tables.number(row[f"{name}_mean"]) for name in SUMMARY)
            shown.add_row(row["model"], row["class"], str(row["num_seeds"]), *means)
        console.print(shown)
    for cell, message in grid.failures.items():
        console.print(f"failed: {cell.title}: {message}")
    console.print(f"{title(grid)}; {grid.plan.workdir / INDEX} shows everything")

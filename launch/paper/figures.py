"""Figures of a grid's finished cells: confusion matrices and curves."""

from __future__ import annotations

from itertools import product

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dagm_jax.train.history import read_history
from dagm_jax.visualization.figures import BLUE, ORANGE, draw_confusion, series, style_axes
from launch.paper.cells import BASE, Cell, Grid, Plan, Report
from launch.paper.rows import counts_of

# Class of the paper's Figs. 3 and 4.
SHOWN_CLASS = 4
# Size of a panel in inches.
PANEL_WIDTH, PANEL_HEIGHT = 4.4, 2.6


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

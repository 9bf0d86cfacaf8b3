"""Files of a grid: tables, figures, and an index page that shows them all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from dagm_jax.config import TASKS
from dagm_jax.console import console
from dagm_jax.storage import write_atomically
from dagm_jax.visualization.figures import write_figure
from launch.paper import tables
from launch.paper.cells import Grid
from launch.paper.figures import group_by_model, plot_confusions, plot_curves, shown_class

INDEX = "index.md"
# Files of each task: name → endings.
TASK_FILES = {
    "table_1": ("md", "csv", "json"),
    "ablation": ("md", "csv", "json"),
    "fig_3": ("png",),
    "fig_4": ("png",),
}
# Columns of the summary on the terminal.
SUMMARY = ("accuracy", "f1", "auroc")


def remove_pages(root: Path) -> None:
    """Removes tables and figures of an earlier grid, which may show other cells."""
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

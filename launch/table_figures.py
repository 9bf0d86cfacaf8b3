"""The figures of the grid that are made from finished cells: pipeline, confusion matrices, curves."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dagm_jax.data.replacing import replacing
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.figures import BLUE, GREY, ORANGE, draw_confusion, series, style_axes, write_figure
from dagm_jax.train.progress import read_history
from launch.cells import BASE, Plan
from launch.grid import Result, State
from launch.rows import counts_of

# What the paper shows: a custom U-Net in Fig. 1, class 4 in Figs. 3 and 4.
PIPELINE_TASK, PIPELINE_MODEL, PIPELINE_CLASS = "segmentation", "custom_unet", 1
SHOWN_CLASS = 4
# Where a run leaves its own picture of the pipeline.
PIPELINE = Path("figures") / "pipeline.png"
PANEL_WIDTH, PANEL_HEIGHT = 4.4, 2.6


def shown_class(plan: Plan) -> int:
    """The class of Figs. 3 and 4."""
    return SHOWN_CLASS if SHOWN_CLASS in plan.classes else plan.classes[0]


def copy_pipeline(state: State, path: Path) -> None:
    """The pipeline's picture of the cell that is nearest to the paper's; nothing unless a finished cell left one."""

    def distance(result: Result) -> tuple[bool, bool, bool]:
        cell = result.cell
        return (
            cell.task != PIPELINE_TASK,
            cell.model != PIPELINE_MODEL,
            cell.class_id != PIPELINE_CLASS,
        )

    found = [result for result in state.of(variant=BASE) if (result.workdir / PIPELINE).exists()]
    if not found:
        # What another grid has left here shows another cell.
        path.unlink(missing_ok=True)
        return
    nearest = min(found, key=distance)
    with replacing(path, "xb") as stream:
        stream.write((nearest.workdir / PIPELINE).read_bytes())


def finished_of(plan: Plan, state: State, task: str) -> list[tuple[str, list[Result]]]:
    """(model, its finished cells of the shown class) of the models that have any."""
    class_id = shown_class(plan)
    groups = [
        (model, state.of(task=task, model=model, class_id=class_id, variant=BASE)) for model in plan.models
    ]
    return [(model, results) for model, results in groups if results]


def plot_confusions(plan: Plan, state: State, task: str, path: Path) -> None:
    """Write the models' confusion matrices side by side, the verdicts of all seeds together; nothing without any."""
    groups = finished_of(plan, state, task)
    if not groups:
        # What another grid has left here shows other cells.
        path.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(PANEL_WIDTH * len(groups), 4.2), layout="constrained")
    for axes, (model, results) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups, strict=True):
        total = sum((counts_of(result.report) for result in results), ImageCounts())
        seeds = ", ".join(str(result.cell.seed) for result in results)
        title = f"{model}, class {shown_class(plan)}\n{total.num_images} verdicts, seeds {seeds}"
        draw_confusion(axes, total, title)
    write_figure(figure, path)


def plot_all_curves(plan: Plan, state: State, task: str, path: Path) -> None:
    """Write loss and accuracy over steps, a row a model, a line a seed; nothing without finished cells."""
    groups = finished_of(plan, state, task)
    if not groups:
        # What another grid has left here shows other cells.
        path.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(2 * PANEL_WIDTH, PANEL_HEIGHT * len(groups) + 0.4), layout="constrained")
    panels = figure.subplots(len(groups), 2, squeeze=False)
    for row, (model, results) in zip(panels, groups, strict=True):
        histories = [read_history(result.workdir / "metrics.jsonl") for result in results]
        for panel, name in zip(row, ("loss", "accuracy"), strict=True):
            style_axes(panel)
            for history in histories:
                for kind, colour in (("train", BLUE), ("validation", ORANGE)):
                    steps, values = series(history, kind, name)
                    if steps:
                        marker = "." if kind == "validation" or len(steps) == 1 else ""
                        panel.plot(steps, values, color=colour, marker=marker, linewidth=1.1)
            if not panel.lines:
                place = {"ha": "center", "color": GREY, "transform": panel.transAxes}
                panel.text(0.5, 0.5, f"no {name} recorded", **place)
            panel.set(xlabel="step", ylabel=name)
            panel.set_ylim(**({"bottom": 0} if name == "loss" else {"top": 1.01}))
            panel.set_title(f"{model}, class {shown_class(plan)}", fontsize=9)
    handles = [Line2D([], [], color=c, label=k) for k, c in (("train", BLUE), ("validation", ORANGE))]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    write_figure(figure, path)

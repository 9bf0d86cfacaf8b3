"""Everything that a grid leaves for its readers: tables, figures, and one page that shows them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from dagm_jax.config import RunConfig
from dagm_jax.data.layouts import DAGM_SHAPE
from dagm_jax.data.slicing import make_slicer, padded_shape
from dagm_jax.recipes import TASKS
from dagm_jax.train.progress import console, write_atomically
from launch import tables
from launch.architecture_figure import plot_architecture, read_architecture
from launch.cells import BASE, MODELS, Cell, Plan
from launch.grid import State
from launch.table_figures import copy_pipeline, plot_all_curves, plot_confusions, shown_class

INDEX = "index.md"
# What a task has, and the kinds of files that each is.
OF_TASK = {
    "table_1": ("md", "csv", "json"),
    "ablation": ("md", "csv", "json"),
    "fig_3": ("png",),
    "fig_4": ("png",),
}
# The figures of Table I that the terminal shows at the end.
SUMMARY = ("accuracy", "f1", "auroc")


@dataclass(frozen=True)
class Pages:
    """Writes the files of a grid into ``root``; ``command`` is the line that made it."""

    plan: Plan
    root: Path
    command: str

    def stem(self, name: str, task: str) -> str:
        """``table_1``, or ``table_1_segmentation`` where there are several tasks."""
        return name if len(self.plan.tasks) == 1 else f"{name}_{task}"

    def draw_architectures(self, configs: dict[Cell, RunConfig]) -> None:
        """Writes ``fig_2_MODEL.png`` of every model, from the first of its configurations."""
        for model in self.plan.models:
            config = next(c for cell, c in configs.items() if cell.model == model and cell.variant == BASE)
            draw_architecture(config, self.root / f"fig_2_{model}.png")

    def write(self, state: State, changed: Cell | None = None) -> None:
        """Writes all that can be made of the finished cells; what there is stays whole if this is cut short.

        With ``changed``, the one cell that is new, only the figures that show it are drawn.
        """
        sections = [f"# {state.title()}\n"]
        copy_pipeline(state, self.root / "fig_1.png")
        for task in self.plan.tasks:
            sections += self.write_task(state, task, is_drawn=changed is None or self.shows(changed, task))
        models, second = tables.models_table(self.plan, state), tables.table_2(self.plan, state)
        models.write(self.root, "models", "md", "csv")
        second.write(self.root, "table_2", "md")
        sections += [models.markdown(2), links(["models.md", "models.csv"])]
        sections += [second.markdown(2), links(["table_2.md"])]
        sections += self.show("The pipeline (Fig. 1)", "fig_1.png")
        for model in self.plan.models:
            sections += self.show(f"The architecture of {model} (Fig. 2)", f"fig_2_{model}.png")
        sections += [cell_list(state, self.root)]
        write_atomically(self.root / INDEX, "\n".join(sections))
        # What another grid has left here shows other cells; the index before this one may still lead to it.
        for name in sorted(self.all_names() - self.own_names()):
            (self.root / name).unlink(missing_ok=True)

    def own_names(self) -> set[str]:
        """The files of tasks and models that this plan writes, some of them only once cells are finished."""
        tables_and_figures = {
            f"{self.stem(name, task)}.{kind}"
            for name, kinds in OF_TASK.items()
            if name != "ablation" or self.plan.ablation
            for kind in kinds
            for task in self.plan.tasks
        }
        return tables_and_figures | {f"fig_2_{model}.png" for model in self.plan.models}

    @staticmethod
    def all_names() -> set[str]:
        """Those that any plan writes."""
        stems = {name: (name, *(f"{name}_{task}" for task in TASKS)) for name in OF_TASK}
        tables_and_figures = {
            f"{stem}.{kind}" for name, kinds in OF_TASK.items() for stem in stems[name] for kind in kinds
        }
        return tables_and_figures | {f"fig_2_{model}.png" for model in MODELS}

    def shows(self, cell: Cell, task: str) -> bool:
        """Whether the figures of a task show the cell."""
        return cell.task == task and cell.variant == BASE and cell.class_id == shown_class(self.plan)

    def write_task(self, state: State, task: str, is_drawn: bool) -> list[str]:
        """Writes the tables of one task, and its figures if ``is_drawn``; their sections of the index."""
        first = tables.table_1(self.plan, state, task, self.command)
        made = [("table_1", first)]
        if self.plan.ablation:
            made.append(("ablation", tables.ablation_table(self.plan, state, task, self.command)))
        sections = []
        for name, table in made:
            stem = self.stem(name, task)
            table.write(self.root, stem, *OF_TASK[name])
            sections += [table.markdown(2), links([f"{stem}.{kind}" for kind in OF_TASK[name]])]
        matrices, curves = f"{self.stem('fig_3', task)}.png", f"{self.stem('fig_4', task)}.png"
        if is_drawn:
            plot_confusions(self.plan, state, task, self.root / matrices)
            plot_all_curves(self.plan, state, task, self.root / curves)
        which = f"class {shown_class(self.plan)}, {task}"
        sections += self.show(f"Confusion matrices (Fig. 3): {which}", matrices)
        return sections + self.show(f"Loss and accuracy (Fig. 4): {which}", curves)

    def print_summary(self, state: State) -> None:
        """The main columns of every Table I on the terminal, and every failure."""
        for task in self.plan.tasks:
            table = tables.table_1(self.plan, state, task, self.command)
            shown = Table(title=table.title, title_justify="left")
            for name in ("model", "class", "seeds", *SUMMARY):
                shown.add_column(tables.HEADINGS.get(name, name))
            for row in table.rows:
                means = (tables.number(row[f"{name}_mean"], tables.RATE_DECIMALS) for name in SUMMARY)
                shown.add_row(row["model"], row["class"], str(row["num_seeds"]), *means)
            console.print(shown)
        for cell, message in state.failures.items():
            console.print(f"failed: {cell.title}: {message}")
        console.print(f"{state.title()}; {self.root / INDEX} shows everything")

    def show(self, title: str, name: str) -> list[str]:
        """A section with a figure, if it is there."""
        if not (self.root / name).exists():
            return [f"## {title}\n\nNot drawn yet.\n"]
        return [f"## {title}\n\n![{title}]({name})\n"]


def draw_architecture(config: RunConfig, path: Path) -> None:
    """Writes the picture of the network that ``config`` describes, for its slices of DAGM's images, padded."""
    shape = padded_shape(config.slicing, *DAGM_SHAPE)
    out_channels = config.task.out_channels(config.in_channels)
    architecture = read_architecture(
        lambda rngs: config.model.build(in_channels=config.in_channels, out_channels=out_channels, rngs=rngs),
        in_channels=config.in_channels,
        slice_shape=make_slicer(config.slicing, *shape).slice_shape,
    )
    title = f"{config.model.name}, {config.model.base_channels} channels at the finest level"
    plot_architecture(architecture, path, f"{title} (height×width×channels)")


def links(names: Sequence[str]) -> str:
    """The files as a line of links."""
    return f"Files: {', '.join(f'[{name}]({name})' for name in names)}\n"


def cell_list(state: State, root: Path) -> str:
    """What became of every cell."""
    lines = []
    for cell in state.cells:
        if cell in state.results:
            place = cell.workdir(root).relative_to(root).as_posix()
            lines.append(f"* {cell.title}: finished, [report]({place}/report.json)")
        elif cell in state.failures:
            lines.append(f"* {cell.title}: **failed**: {state.failures[cell]}")
        else:
            lines.append(f"* {cell.title}: not finished yet")
    return "## Cells\n\n" + "\n".join(lines) + "\n"

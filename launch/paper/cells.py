"""The cells of a grid: runs, their names and configurations, and the reports of the finished ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagm_jax.command_line import flag, read_config
from dagm_jax.errors import UserError
from launch.flag_lists import check_list
from launch.paper.printed import TABLE_1

if TYPE_CHECKING:
    from dagm_jax.config import RunConfig

# Type of a cell's ``report.json``.
Report = dict[str, Any]
MODELS = tuple(TABLE_1)


@dataclass(frozen=True)
class Variant:
    """A change of the configured run: name in file names, overrides, and their effect in words.

    needs_defects: meaningless in a task that trains on good images alone.
    """

    name: str
    overrides: tuple[str, ...]
    effect: str
    needs_defects: bool = False


BASE = Variant("", (), "as configured")
ABLATED_MODEL = "custom_unet"
ABLATIONS = (
    Variant(
        "plain",
        ("--config.model.extra_skips=none",),
        "a plain U-Net: no skips from the previous encoder stage",
    ),
    Variant(
        "squeeze",
        ("--config.slicing.mode=squeeze", "--config.eval.tiling=slices"),
        "trained on images squeezed to one slice, not cut in strips, and tested on them",
    ),
    Variant(
        "no_rotation",
        ("--config.augment.rotate90=False",),
        "trained without rotations by k·90°; tested on whole images, or on upright strips alone",
    ),
    Variant(
        "no_upsampling",
        ("--config.train.balance=False",),
        "trained without up-sampling of the defective slices",
        needs_defects=True,
    ),
)


def supervision(labels: str) -> Variant:
    """The variant that learns from good, tags[:N] or masks[:N], the others hidden. Raises UserError for another word.

    ``masks`` is `BASE`.
    """
    kind, colon, number = labels.partition(":")
    if kind not in ("good", "tags", "masks") or (colon and (kind == "good" or not number.isdecimal())):
        raise UserError(
            f"`--supervision` (={labels}) must be of good, tags, tags:N, masks, masks:N, such as masks:5"
        )
    if labels == "masks":
        return BASE
    limit = int(number) if number else -1
    masks, tags = {"good": (0, 0), "tags": (0, limit), "masks": (limit, -1)}[kind]
    overrides = (f"--config.data.max_masks={masks}", f"--config.data.max_tags={tags}")
    shown = f"{number or 'all'} {kind} of defective images"
    effect = {"good": "good images alone", "tags": shown, "masks": f"{shown}, and tags of the others"}[kind]
    return Variant(labels.replace(":", ""), overrides, f"labels for training and validation: {effect}")


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    task: str
    model: str
    class_id: int
    seed: int
    variant: Variant = BASE

    @property
    def name(self) -> str:
        """``custom_unet-class1-seed0-plain``, unique within a task."""
        parts = (self.model, f"class{self.class_id}", f"seed{self.seed}", self.variant.name)
        return "-".join(filter(None, parts))

    @property
    def title(self) -> str:
        """The cell in words: task, model, class, seed and variant."""
        parts = (self.task, self.model, f"class {self.class_id}", f"seed {self.seed}", self.variant.name)
        return ", ".join(filter(None, parts))

    def workdir(self, root: Path) -> Path:
        """The workdir of the cell's run."""
        return root / "cells" / self.task / self.name

    def read_config(self, small: bool, given: Sequence[str]) -> RunConfig:
        """The cell's configuration under the ``given`` overrides of the command line. Raises UserError."""
        # Equally long for all networks, whatever the time that a step takes.
        length = f"--config.train.num_steps={300 if small else 720}"
        own = (f"--config.data.classes=({self.class_id},)", f"--config.seed={self.seed}")
        path = f"configs/{self.model}.py:{self.task}{',small' if small else ''}"
        return read_config(path, [length, *given, *self.variant.overrides, *own])


@dataclass(frozen=True)
class Plan:
    """The flags. Raises UserError for lists that `check_list` refuses and an ablation without its model."""

    models: tuple[str, ...] = flag("Networks, by the names of configs/.", MODELS)
    classes: tuple[int, ...] = flag("Classes; a network is trained on each alone.", (1, 8))
    tasks: tuple[str, ...] = flag("Tasks; each has its own Table I.", ("segmentation",))
    seeds: tuple[int, ...] = flag("Seeds of split, initialisation and sampling.", (0, 1, 2))
    workdir: Path = flag("The folder for runs, tables and figures.", Path("runs/tables"))
    small: bool = flag("The configurations' short forms, for two CPU cores.", False)
    ablation: bool = flag("Also custom_unet with one thing taken away at a time.", False)
    supervision: tuple[str, ...] = flag(
        "Also segmentation by custom_unet from fewer labels, such as good,tags,masks:5,masks.", ()
    )

    def __post_init__(self) -> None:
        from dagm_jax.config import TASKS

        check_list("models", self.models, MODELS)
        check_list("classes", self.classes)
        check_list("tasks", self.tasks, tuple(TASKS))
        check_list("seeds", self.seeds, least=0)
        for labels in self.supervision:
            supervision(labels)
        if self.supervision and "segmentation" not in self.tasks:
            raise UserError(
                f"`--supervision` is of segmentation, which `--tasks` (={','.join(self.tasks)}) leaves out"
            )
        if (self.ablation or self.supervision) and ABLATED_MODEL not in self.models:
            name = "ablation" if self.ablation else "supervision"
            raise UserError(
                f"`--{name}` varies {ABLATED_MODEL}, which `--models` (={','.join(self.models)}) leaves out; "
                "add it"
            )

    def cells(self) -> list[Cell]:
        """All cells in running order: seed by seed, so that a grid cut short has whole tables; variants last."""
        order = product(self.seeds, self.tasks, self.classes, self.models)
        base = [Cell(task, model, class_id, seed) for seed, task, class_id, model in order]
        varied = [cell for cell in base if cell.model == ABLATED_MODEL]
        return base + [
            replace(cell, variant=variant) for cell in varied for variant in self.variants(cell.task)
        ]

    def variants(self, task: str) -> list[Variant]:
        """The variants of a task's cells, without `BASE`."""
        labels = [supervision(one) for one in self.supervision if task == "segmentation"]
        return [*(ablations(task) if self.ablation else ()), *(one for one in labels if one != BASE)]


@dataclass
class Grid:
    """A command line, the ``report.json`` of each finished cell, and the message of each failed one."""

    plan: Plan
    overrides: Sequence[str] = ()
    command: str = ""
    reports: dict[Cell, Report] = field(default_factory=dict)
    failures: dict[Cell, str] = field(default_factory=dict)

    def select(self, **values: Any) -> dict[Cell, Report]:
        """The finished cells whose fields have these values, in running order, with their reports."""
        return {
            cell: self.reports[cell]
            for cell in self.plan.cells()
            if cell in self.reports and all(getattr(cell, name) == value for name, value in values.items())
        }


def ablations(task: str) -> tuple[Variant, ...]:
    """Variants that are meaningful in a task."""
    from dagm_jax.config import TASKS

    return tuple(v for v in ABLATIONS if TASKS[task].learns_from_defects or not v.needs_defects)

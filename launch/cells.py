"""The cells of a grid: which runs there are, what each is called, and the command line that each stands for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dagm_jax.recipes import TASKS
from dagm_jax.types import UserError, nearest
from launch import paper

MODELS = tuple(paper.TABLE_1)
# The fields that tell the cells apart, and the flag that sets each for the whole grid.
AXES = {"--config.data.classes": "--classes", "--config.seed": "--seeds"}


@dataclass(frozen=True)
class Variant:
    """One way to differ from the configured run: name in file names, overrides, and what they do, in words.

    needs_defects: means nothing for a task that is shown no defect in training.
    """

    name: str
    overrides: tuple[str, ...]
    what: str
    needs_defects: bool = False


BASE = Variant("", (), "as configured")
ABLATED_MODEL = "custom_unet"
ABLATIONS = (
    Variant(
        "plain",
        ("--config.model.extra_skips=none",),
        "a plain U-Net: no skips from the previous encoder stage",
    ),
    Variant("squeeze", ("--config.slicing.mode=squeeze",), "images squeezed to one slice, not cut in strips"),
    Variant(
        "no_rotation",
        ("--config.augment.rotate90=False",),
        "trained without rotations by k·90°, judged by upright strips alone, without mirror images",
    ),
    Variant(
        "no_upsampling",
        ("--config.train.balance=False",),
        "trained without up-sampling of the defective slices",
        needs_defects=True,
    ),
)


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
        return "-".join(part for part in parts if part)

    @property
    def title(self) -> str:
        """The same for a reader's eyes, with the task."""
        variant = f", {self.variant.name}" if self.variant.name else ""
        return f"{self.task}, {self.model}, class {self.class_id}, seed {self.seed}{variant}"

    def workdir(self, root: Path) -> Path:
        """Where the cell's run keeps everything."""
        return root / "cells" / self.task / self.name

    def config_path(self, small: bool) -> str:
        """What ``--config=`` would name: the model's configuration for the task."""
        return f"configs/{self.model}.py:{self.task}{',small' if small else ''}"

    def overrides(self, given: Sequence[str]) -> list[str]:
        """The overrides of the command line with the cell's own after them."""
        own = (f"--config.data.classes=({self.class_id},)", f"--config.seed={self.seed}")
        return [*given, *self.variant.overrides, *own]


@dataclass(frozen=True)
class Plan:
    """What a grid runs over; raises UserError for an unknown name and for one that is given twice."""

    models: tuple[str, ...]
    classes: tuple[int, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    ablation: bool = False

    def __post_init__(self) -> None:
        for name in ("models", "classes", "tasks", "seeds"):
            values = getattr(self, name)
            if not values:
                raise UserError(f"`--{name}` is empty; name at least one")
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise UserError(f"`--{name}` names {twice[0]} twice; name each once")
        check_names("models", self.models, MODELS)
        check_names("tasks", self.tasks, TASKS)
        if self.ablation and ABLATED_MODEL not in self.models:
            raise UserError(
                f"`--ablation` varies {ABLATED_MODEL}, which `--models` (={','.join(self.models)}) leaves out; "
                "add it"
            )

    def cells(self) -> list[Cell]:
        """Every cell, in the order in which they run: all of one seed before the next, variants last.

        So a grid that is cut short has whole tables of its first seeds.
        """
        base = [
            Cell(task, model, class_id, seed)
            for seed in self.seeds
            for task in self.tasks
            for class_id in self.classes
            for model in self.models
        ]
        if not self.ablation:
            return base
        varied = [cell for cell in base if cell.model == ABLATED_MODEL]
        return base + [
            Cell(cell.task, cell.model, cell.class_id, cell.seed, variant)
            for cell in varied
            for variant in ablations(cell.task)
        ]


def ablations(task: str) -> tuple[Variant, ...]:
    """The variants that mean something in a task."""
    return tuple(v for v in ABLATIONS if TASKS[task].learns_from_defects or not v.needs_defects)


def check_names(flag: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError for a name that is not known, with the nearest that is."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise UserError(f"`--{flag}` (={name}) must be of {', '.join(known)}{nearest(name, known)}")


def whole_numbers(flag: str, texts: Iterable[str], least: int) -> tuple[int, ...]:
    """The numbers that a flag's texts say. Raises UserError for anything but whole numbers from ``least`` on."""
    numbers = []
    for text in texts:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise UserError(f"`--{flag}` (={text}) must be whole numbers from {least} on, such as 1,8")
        numbers.append(int(text))
    return tuple(numbers)


def check_overrides(overrides: Iterable[str]) -> None:
    """Raises UserError for an override of a field that tells the cells apart."""
    for override in overrides:
        field, _, _ = override.partition("=")
        if field in AXES:
            raise UserError(f"`{field}` differs from cell to cell; set it with `{AXES[field]}`")

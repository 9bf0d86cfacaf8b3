"""What a benchmark consists of: its cells, one figure or comparison each, in the order of their measurement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dagm_jax.types import UserError
from launch import tiny_unet
from launch.cells import check_names

# Kind of cell → the fields of Plan that it is measured over.
AXES: dict[str, tuple[str, ...]] = {
    "command": ("precisions",),
    "step": ("modes", "precisions", "batch_sizes", "devices"),
    "whole": ("modes", "precisions", "batch_sizes", "devices"),
    "peer_step": ("precisions", "batch_sizes"),
    "inference": ("precisions", "inference_batches"),
    "peer_inference": ("precisions", "inference_batches"),
    "pipeline": ("batch_sizes",),
    "peer_pipeline": ("batch_sizes",),
    "peer_epoch": ("precisions", "batch_sizes"),
}
# Measured network by network; a plan that runs out of time has whole groups.
GROUPS = (
    ("command",),
    ("step", "whole", "peer_step"),
    ("inference", "peer_inference"),
    ("pipeline", "peer_pipeline"),
    ("peer_epoch",),
)
# Those that read images from files.
ON_FILES = ("command", "peer_pipeline", "peer_epoch")
KINDS = tuple(AXES)
MODES = ("jit", "pmap")
PRECISIONS = ("float32", "bfloat16")
PEER = "peer_"
# Field of Plan → field of Cell.
FIELDS = {
    "modes": "mode",
    "precisions": "precision",
    "batch_sizes": "batch_size",
    "inference_batches": "batch_size",
    "devices": "num_devices",
}


@dataclass(frozen=True)
class Cell:
    """One measurement. kind: of KINDS; config: as on the command line; batch_size: slices, over all devices."""

    kind: str
    config: str
    mode: str = "jit"
    precision: str = "float32"
    batch_size: int = 1
    num_devices: int = 1

    @property
    def title(self) -> str:
        """``step, configs/custom_unet.py, jit, float32, batch 16, 1 device``, for messages."""
        many = "" if self.num_devices == 1 else "s"
        words = (self.kind, self.config, self.mode, self.precision, f"batch {self.batch_size}")
        return ", ".join((*words, f"{self.num_devices} device{many}"))

    @property
    def name(self) -> str:
        """The same for a file name."""
        config = self.config.rpartition("/")[2].replace(".py", "")
        values = (self.kind, config, self.mode, self.precision, self.batch_size, self.num_devices)
        return "-".join("".join(c if c.isalnum() else "_" for c in str(value)) for value in values)

    def values(self) -> dict[str, str | int]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Plan:
    """The grid of a benchmark. devices: numbers of local devices."""

    kinds: tuple[str, ...]
    configs: tuple[str, ...]
    modes: tuple[str, ...]
    precisions: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    inference_batches: tuple[int, ...]
    devices: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises UserError for a word that is none of those known, and for a list that is empty or repeats itself."""
        known = {"kinds": KINDS, "modes": MODES, "precisions": PRECISIONS}
        for field in fields(self):
            values = getattr(self, field.name)
            flag = "what" if field.name == "kinds" else field.name
            if not values or len(set(values)) < len(values):
                shown = ",".join(map(str, values))
                raise UserError(f"`--{flag}` (={shown}) must name at least one value, and each once")
            check_names(flag, values, known.get(field.name, values))

    @property
    def has_peer(self) -> bool:
        """Whether PyTorch is needed."""
        return any(cell.kind.startswith(PEER) for cell in self.cells())

    def cells(self) -> list[Cell]:
        """All cells in the order of their measurement; commands are of the first configuration alone.

        TinyUNet is a network of the benchmark alone: it has no twin and the main job cannot train it.
        """
        return [
            Cell(kind, config, **values)
            for group in GROUPS
            for config in self.configs
            for kind in group
            if kind in self.kinds and self._has(config, kind)
            for values in self._combinations(AXES[kind])
        ]

    def _has(self, config: str, kind: str) -> bool:
        if kind == "command":
            return config == self.configs[0] != tiny_unet.NAME
        return config != tiny_unet.NAME or not kind.startswith(PEER)

    def _combinations(self, axes: Sequence[str]) -> Iterator[dict[str, Any]]:
        if not axes:
            yield {}
            return
        for rest in self._combinations(axes[1:]):
            for value in getattr(self, axes[0]):
                yield {FIELDS[axes[0]]: value, **rest}


@dataclass(frozen=True)
class Request:
    """A command line: the plan, where results go, and what holds for all cells. flags: as they are written down."""

    plan: Plan
    output: Path
    repetitions: int
    epoch_slices: int
    peer_workers: int
    peer_compiles: bool
    time_limit_s: float | None
    profile: bool
    overrides: tuple[str, ...]
    command: str
    flags: dict[str, Any]


def split_configs(words: Sequence[str]) -> tuple[str, ...]:
    """FILE[:OPTIONS] and names of a comma list, whose OPTIONS may have held commas themselves."""
    configs: list[str] = []
    for word in words:
        is_option = bool(configs) and ":" in configs[-1] and ".py" not in word and word != tiny_unet.NAME
        configs[-1:] = [f"{configs[-1]},{word}"] if is_option else [*configs[-1:], word]
    return tuple(configs)

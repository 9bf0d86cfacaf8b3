"""The configuration of a run: frozen dataclasses with every default and its check, and their form as a ConfigDict.

The code reads `RunConfig` alone. ``configs/*.py`` return an ml_collections ConfigDict of the same fields, which
``--config.x.y=value`` changes; `from_config_dict` makes a RunConfig of it and rejects unknown fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args, get_origin, get_type_hints

import jax
from ml_collections import ConfigDict

from dagm_jax.data.config import AugmentConfig, DataConfig, SlicingConfig
from dagm_jax.distributed.devices import ParallelConfig
from dagm_jax.errors import UserError, nearest
from dagm_jax.evaluation.config import EvalConfig, VerdictConfig
from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from dagm_jax.tasks.classification import ClassificationConfig
from dagm_jax.tasks.reconstruction import ReconstructionConfig
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train.optim import OptimConfig
from dagm_jax.train.stopping import TrainConfig

ModelConfig = CustomUNetConfig | ConvAutoencoderConfig | UNet3PlusConfig
TaskConfig = SegmentationConfig | ReconstructionConfig | ClassificationConfig
# Key that selects the member of a union, such as ``model.name``.
NAME = "name"
# Fields of earlier releases, which stored configurations may hold, with the one value that this release implements.
RETIRED = {"task.ssim_scales": 1}


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. ``seed`` feeds initialisation, split, sampling and procedural images."""

    seed: int = 0
    in_channels: int = 3
    data: DataConfig = field(default_factory=DataConfig)
    slicing: SlicingConfig = field(default_factory=lambda: SlicingConfig("auto"))
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=CustomUNetConfig)
    task: TaskConfig = field(default_factory=SegmentationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)

    @property
    def is_guided(self) -> bool:
        """Whether the network tells slices with a defect from those without, and gates its maps by that."""
        return isinstance(self.model, UNet3PlusConfig) and self.model.classification_guided

    @property
    def pools(self) -> bool:
        """Whether a norm of the network takes its statistics over each image."""
        return not isinstance(self.model, UNet3PlusConfig) and self.model.norm == "group"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"`seed` (={self.seed}) must lie in [0, 2^31), the range of every generator")
        if self.in_channels < 1:
            raise UserError(f"`in_channels` (={self.in_channels}) must be at least 1; the paper has 3")
        if self.is_guided and not self.task.learns_from_defects:
            raise UserError(
                f"`model.classification_guided` (=True) needs labels of slices, and {self.task.name} has none; "
                "set it to False"
            )
        width_px = self.slicing.narrowest_px
        if isinstance(self.task, ReconstructionConfig) and 2 * self.task.cell_px > width_px:
            raise UserError(
                f"`task.cell_px` (={self.task.cell_px}) must be at most half of a slice's edge (={width_px}), "
                "or a slice is hidden whole or not at all"
            )
        if self.eval.tiling == "whole" and self.task.score_kind == "slices" and self.verdict.score != "max":
            raise UserError(
                f"`verdict.score` (={self.verdict.score}) is of slices in {self.task.name}, and a whole image has one "
                "score; use max, or set `eval.tiling` to slices"
            )
        if self.slicing.mode == "squeeze" and self.eval.tiling == "whole":
            raise UserError(
                "`slicing.mode` (=squeeze) averages columns, which a whole image keeps; set `eval.tiling` to slices"
            )


def to_dict(config: Any) -> dict[str, Any]:
    """The values of a configuration as a nested dict; a group of several kinds says its ``name`` first."""
    named = {NAME: config.name} if hasattr(config, NAME) else {}
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    nested = {key: to_dict(v) if dataclasses.is_dataclass(v) else v for key, v in values.items()}
    return named | nested


def to_config_dict(config: RunConfig) -> ConfigDict:
    """A locked ConfigDict with the values of ``config``."""
    return ConfigDict(to_dict(config)).lock()


def from_config_dict(values: ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The configuration with these values; fields that are not given keep their defaults.

    Raises UserError for an unknown key (with its path and the nearest known one) or a value of another type.
    """
    if not isinstance(values, ConfigDict | Mapping):
        raise UserError(f"`config` (={str(values)[:40]!r}) must be a group of fields; restore it from a copy")
    config: RunConfig = _build(RunConfig, values.to_dict() if isinstance(values, ConfigDict) else values, "")
    return config


def to_json(config: RunConfig) -> str:
    """The configuration as JSON text."""
    return json.dumps(to_dict(config), indent=2)


def differences(a: RunConfig, b: RunConfig) -> dict[str, tuple[Any, Any]]:
    """path → (value in a, value in b) of the fields in which two configurations differ."""
    flat_a, flat_b = _flatten(a), _flatten(b)
    return {
        path: (flat_a.get(path), flat_b.get(path))
        for path in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(path) != flat_b.get(path)
    }


def describe_unknown(path: str) -> str | None:
    """The fault of a dotted path of fields and the nearest name, on one line; None if the path is a field.

    In a union (`ModelConfig`, `TaskConfig`) the fields of all its members count.
    """
    kinds: tuple[Any, ...] = (RunConfig,)
    names = path.split(".")
    for depth, name in enumerate(names):
        hints = {f: hint for kind in kinds for f, hint in _fields(kind).items()}
        if name not in hints:
            return _unknown(".".join(names[:depth]), name, list(hints))
        kinds = get_args(hints[name]) or (hints[name],)
    return None


def _fields(kind: Any) -> dict[str, Any]:
    """Field → type of a configuration; nothing for a plain value."""
    if not dataclasses.is_dataclass(kind):
        return {}
    hints = get_type_hints(kind)
    own = {NAME: str} if hasattr(kind, NAME) else {}
    return own | {f.name: hints[f.name] for f in dataclasses.fields(kind)}


def _unknown(group: str, name: str, known: list[str]) -> str:
    where = f"config.{group}" if group else "config"
    listed = ", ".join(known) or "no fields"
    return f"`{where}.{name}` is not a field; `{where}` has {listed}{nearest(name, known)}"


def _flatten(config: RunConfig) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(to_dict(config), is_leaf=lambda value: not isinstance(value, dict))
    return {jax.tree_util.keystr(path, simple=True, separator="."): value for path, value in leaves}


def _build(kind: type[Any], values: Mapping[str, Any], path: str) -> Any:
    hints = _fields(kind)
    arguments = {}
    for key, value in values.items():
        if RETIRED.get(f"{path}{key}") == value and value is not None:
            continue
        if key not in hints:
            raise UserError(_unknown(path.rstrip("."), key, list(hints)))
        if key != NAME:
            arguments[key] = _convert(value, hints[key], f"{path}{key}")
    return kind(**arguments)


def _convert(value: Any, hint: Any, path: str) -> Any:
    kinds = get_args(hint) or (hint,)
    if dataclasses.is_dataclass(kinds[0]):
        if not isinstance(value, Mapping):
            raise UserError(f"`config.{path}` (={value!r}) must be a group of fields")
        by_name = {kind.name: kind for kind in kinds if hasattr(kind, NAME)}
        # Without a name the first, the default.
        name = str(value.get(NAME, next(iter(by_name), None)))
        if by_name and name not in by_name:
            close = nearest(name, by_name)
            raise UserError(f"`config.{path}.{NAME}` (={name}) must be one of {', '.join(by_name)}{close}")
        return _build(by_name.get(name, kinds[0]), value, f"{path}.")
    if get_origin(hint) is tuple:
        items = value if isinstance(value, tuple | list) else (value,)
        return tuple(_convert(item, get_args(hint)[0], path) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # Choices (Literal) are checked by the dataclass that owns them.
    if hint in (bool, int, float, str) and type(value) is not hint:
        raise UserError(f"`config.{path}` (={value!r}) must be of type {hint.__name__}")
    return value


TASKS: dict[str, TaskConfig] = {
    task.name: task for task in (SegmentationConfig(), ReconstructionConfig(), ClassificationConfig())
}
# Options of ``--config=FILE:TASK,OPTION``, and the model.base_channels that each sets.
OPTIONS = {"equal_width": 16, "small": 8}


def compose(options: str, model: ModelConfig, segmentation: SegmentationConfig | None = None) -> RunConfig:
    """The configuration of ``model`` for the task and the options of ``TASK[,OPTION…]``.

    ``segmentation``: the settings of that task for this network, if not the defaults. Raises UserError for an unknown
    word.
    """
    name, *chosen = options.split(",")
    for place, word in enumerate([name, *chosen]):
        what, known = ("options", [*OPTIONS]) if place else ("the task", [*TASKS])
        if word not in known:
            rule = f"{what} must be of {', '.join(known)}, not {word!r}{nearest(word, known)}"
            raise UserError(f"`--config=FILE:{options}`: {rule}")
    if len(chosen) > 1:
        raise UserError(
            f"`--config=FILE:{options}`: {' and '.join(chosen)} set one width each; choose one of them"
        )
    task = segmentation if segmentation and name == segmentation.name else TASKS[name]
    for option in chosen:
        model = replace(model, base_channels=OPTIONS[option])
    config = for_task(RunConfig(model=model, task=task))
    if "small" not in chosen:
        return config
    # Minutes on two CPU cores: few images, fewer slices.
    return replace(
        config,
        data=DataConfig(procedural_defective=50, procedural_good=70),
        slicing=SlicingConfig("auto", num_slices=12),
        train=replace(config.train, max_minutes=5.0, max_validation_images=10),
    )


def for_task(config: RunConfig) -> RunConfig:
    """``config`` with the settings of its task that are not the package's defaults."""
    if isinstance(config.task, SegmentationConfig):
        return config
    if isinstance(config.task, ClassificationConfig):
        # Quality is made of AUROC and accuracy here, which end higher than Dice against loose ellipses.
        return replace(config, train=replace(config.train, target_quality=0.995))
    # Quality is 1/(1 + loss) here: no value of it shows that the network is good enough. The threshold may not be
    # fitted to defects either. Residuals are noisier than probabilities and need to be smoothed.
    return replace(
        config,
        train=replace(config.train, target_quality=1.0),
        verdict=VerdictConfig(calibration="normals", smoothing_px=4.0),
    )

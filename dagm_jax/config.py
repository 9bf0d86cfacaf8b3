"""The configuration of a run: frozen dataclasses that own and check every default, and their ConfigDict skin.

The code reads :class:`RunConfig` alone. An ml_collections ConfigDict of the same fields is what ``configs/*.py``
return and what ``--config.x.y=value`` changes; :func:`from_config_dict` turns it back and rejects what it does not
know.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

from ml_collections import ConfigDict

from dagm_jax.data.augment import AugmentConfig
from dagm_jax.data.slicing import SlicingConfig
from dagm_jax.data.sources import DataConfig
from dagm_jax.models.custom_unet import CustomUNetConfig
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train.loop import TrainConfig
from dagm_jax.train.optim import OptimConfig
from dagm_jax.train.parallel import ParallelConfig
from dagm_jax.types import UserError, nearest
from dagm_jax.verdict import VerdictConfig

TASKS = {SegmentationConfig.name: SegmentationConfig}


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on. ``seed`` feeds initialisation, split, sampling and procedural images."""

    seed: int = 0
    in_channels: int = 3
    data: DataConfig = field(default_factory=DataConfig)
    slicing: SlicingConfig = field(default_factory=SlicingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: CustomUNetConfig = field(default_factory=CustomUNetConfig)
    task: SegmentationConfig = field(default_factory=SegmentationConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    verdict: VerdictConfig = field(default_factory=VerdictConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise UserError(f"`seed` (={self.seed}) must lie in [0, 2^31), what every generator takes")
        if self.in_channels < 1:
            raise UserError(
                f"`in_channels` (={self.in_channels}) must be at least 1; the paper's networks see 3"
            )


def make_task(name: str) -> SegmentationConfig:
    """The default configuration of the task of that name, the part of ``--config=FILE:NAME`` after the colon."""
    if name not in TASKS:
        raise UserError(
            f"`--config=FILE:{name}`: the task must be one of {', '.join(TASKS)}{nearest(name, TASKS)}"
        )
    return TASKS[name]()


def to_config_dict(config: RunConfig) -> ConfigDict:
    """A locked ConfigDict with the values of ``config``."""
    return ConfigDict(dataclasses.asdict(config)).lock()


def from_config_dict(values: ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The configuration with these values; fields that are not given keep their defaults.

    Raises UserError for an unknown key (with its path and the nearest known one) or a value of another type.
    """
    mapping = values.to_dict() if isinstance(values, ConfigDict) else dict(values)
    config: RunConfig = _build(RunConfig, mapping, "")
    return config


def to_json(config: RunConfig) -> str:
    """The configuration as JSON text."""
    return json.dumps(dataclasses.asdict(config), indent=2)


def differences(a: RunConfig, b: RunConfig) -> dict[str, tuple[Any, Any]]:
    """path → (value in a, value in b) of the fields in which two configurations differ."""
    flat_a, flat_b = _flatten(dataclasses.asdict(a)), _flatten(dataclasses.asdict(b))
    return {
        path: (flat_a.get(path), flat_b.get(path))
        for path in sorted(flat_a.keys() | flat_b.keys())
        if flat_a.get(path) != flat_b.get(path)
    }


def describe_unknown(path: str) -> str | None:
    """What is wrong with a dotted path of fields and the nearest name, on one line; None if it is a field."""
    kind: Any = RunConfig
    names = path.split(".")
    for depth, name in enumerate(names):
        known = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        if name not in known:
            return _unknown(".".join(names[:depth]), name, known)
        kind = get_type_hints(kind)[name]
    return None


def _unknown(group: str, name: str, known: list[str]) -> str:
    where = f"config.{group}" if group else "config"
    listed = ", ".join(known) or "no fields"
    return f"`{where}.{name}` is not a field; `{where}` has {listed}{nearest(name, known)}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _build(kind: type[Any], values: Mapping[str, Any], path: str) -> Any:
    hints = get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    arguments = {}
    for key, value in values.items():
        if key not in known:
            raise UserError(_unknown(path.rstrip("."), key, known))
        arguments[key] = _convert(value, hints[key], f"{path}{key}")
    return kind(**arguments)


def _convert(value: Any, hint: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise UserError(f"`config.{path}` (={value!r}) must be a group of fields")
        return _build(hint, value, f"{path}.")  # type: ignore[arg-type]
    if get_origin(hint) is tuple:
        items = value if isinstance(value, tuple | list) else (value,)
        return tuple(_convert(item, get_args(hint)[0], path) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    # Choices (Literal) are checked by the dataclass that owns them.
    if hint in (bool, int, float, str) and type(value) is not hint:
        raise UserError(f"`config.{path}` (={value!r}) must be of type {hint.__name__}")
    return value

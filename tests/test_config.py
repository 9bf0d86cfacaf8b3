"""Tests of the configuration: what it holds, what it refuses, and that every field of it is read somewhere."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

import dagm_jax
from dagm_jax.config import (
    OPTIONS,
    TASKS,
    RunConfig,
    compose,
    describe_unknown,
    differences,
    from_config_dict,
    to_config_dict,
    to_dict,
    to_json,
)
from dagm_jax.data.config import DataConfig
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from dagm_jax.tasks.classification import ClassificationConfig
from dagm_jax.tasks.reconstruction import ReconstructionConfig
from dagm_jax.tasks.segmentation import SegmentationConfig

PACKAGE = Path(dagm_jax.__file__).parent
CONFIGS = ("custom_unet", "conv_autoencoder", "unet3plus", "smoke")

# The whole option surface: path → (default, another value that is allowed). A changed default is a changed result
# for everybody, so it is written down twice: in its dataclass and here.
SURFACE: dict[str, tuple[Any, Any]] = {
    "augment.flip": (True, False),
    "augment.max_angle_deg": (0.0, 7.5),
    "augment.max_shift_px": (0.0, 12.0),
    "augment.rotate90": (True, False),
    "data.boxes": ("", "boxes.csv"),
    "data.cache_dir": ("", "/somewhere"),
    "data.classes": ((1,), (8, 1)),
    "data.defect": ("", "ng"),
    "data.flat": ("", "good"),
    "data.good": ("", "ok"),
    "data.max_masks": (-1, 5),
    "data.max_tags": (-1, 0),
    "data.num_workers": (0, 2),
    "data.procedural_defective": (75, 10),
    "data.procedural_good": (125, 11),
    "data.root": ("", "/images"),
    "data.split": ("auto", "official"),
    "data.synthetic_share": (0.5, 0.0),
    "data.validation_share": (0.15, 0.25),
    "eval.flips": (False, True),
    "eval.max_px": (2**21, 2**20),
    "eval.tile_px": (1024, 512),
    "eval.tiling": ("whole", "slices"),
    "in_channels": (3, 1),
    "model.base_channels": (16, 8),
    "model.compute_dtype": ("float32", "bfloat16"),
    "model.extra_skips": ("previous_encoder", "none"),
    "model.norm": ("batch", "group"),
    "model.up": ("conv_transpose", "bilinear"),
    "optim.average_decay": (0.0, 0.9),
    "optim.clip_norm": (1.0, 0.5),
    "optim.learning_rate": (6e-3, 3e-4),
    "optim.optimizer": ("muon", "adamw"),
    "optim.warmup_steps": (20, 0),
    "optim.weight_decay": (1e-4, 0.0),
    "parallel.cpu_convolutions": ("eigen", "default"),
    "parallel.mode": ("jit", "pmap"),
    "seed": (0, 17),
    "slicing.downscale": (1, 2),
    "slicing.mode": ("auto", "two_orientations"),
    "slicing.num_slices": (30, 12),
    "slicing.overlap_px": (0, 8),
    "slicing.slice_height_px": (64, 128),
    "slicing.slice_px": (64, 128),
    "task.bce_weight": (1.0, 0.0),
    "task.class_weight": (1.0, 0.5),
    "task.dice_weight": (2.0, 2.5),
    "task.focal_weight": (0.0, 1.0),
    "task.iou_weight": (0.0, 1.0),
    "task.ssim_weight": (0.0, 1.0),
    "train.accumulate": (1, 2),
    "train.balance": (True, False),
    "train.batch_size": (16, 8),
    "train.cooldown_share": (1.0, 0.25),
    "train.cooldown_share_at_target": (0.25, 0.5),
    "train.init_from": ("", "runs/before"),
    "train.judge_batch_size": (2, 1),
    "train.log_every": (5, 1),
    "train.max_minutes": (0.0, 2.5),
    "train.max_validation_images": (20, 4),
    "train.min_rise": (0.001, 0.0),
    "train.num_steps": (0, 5),
    "train.patience": (10, 3),
    "train.skip_non_finite": (0, 3),
    "train.target_margin": (2.0, 0.5),
    "train.target_quality": (0.935, 1.0),
    "train.validate_every": (40, 7),
    "verdict.calibration": ("f1", "expected_cost"),
    "verdict.fn_cost": (20.0, 5.0),
    "verdict.fp_cost": (1.0, 2.0),
    "verdict.max_false_alarm_rate": (0.01, 0.1),
    "verdict.score": ("max", "top_mean"),
    "verdict.smoothing_px": (0.0, 1.5),
    "verdict.top_fraction": (0.001, 0.01),
    "verdict.top_slices": (3, 2),
}
# The fields of the other networks and tasks, which take the place of those above.
OTHER_KINDS: dict[Any, dict[str, tuple[Any, Any]]] = {
    ConvAutoencoderConfig: {
        "model.base_channels": (32, 8),
        "model.bottleneck_channels": (32, 4),
        "model.compute_dtype": ("float32", "bfloat16"),
        "model.norm": ("batch", "none"),
    },
    UNet3PlusConfig: {
        "model.base_channels": (64, 8),
        "model.classification_guided": (True, False),
        "model.compute_dtype": ("float32", "bfloat16"),
        "model.deep_supervision": (True, False),
    },
    ReconstructionConfig: {
        "task.cell_px": (16, 8),
        "task.corruption": ("mask", "none"),
        "task.dssim_weight": (1.0, 0.0),
        "task.noise_std": (0.3, 0.1),
        "task.pixel_loss": ("l1", "mse"),
        "task.pixel_weight": (1.0, 2.0),
        "task.visible_weight": (0.1, 0.0),
    },
    ClassificationConfig: {"task.pooling_sharpness": (5.0, 1.0)},
}
FRACTIONS = [path for path, (default, _) in SURFACE.items() if isinstance(default, float)]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def nested(path: str, value: Any) -> dict[str, Any]:
    """The field at ``path`` as a nested dict."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return dict(value)


def groups() -> dict[type, str]:
    """Dataclass → name of the group that it may be, and "" for the run itself."""
    found: dict[type, str] = {RunConfig: ""}
    for f in dataclasses.fields(RunConfig):
        kind = type(getattr(RunConfig(), f.name))
        if dataclasses.is_dataclass(kind):
            found[kind] = f.name
    return found | {kind: next(iter(fields)).partition(".")[0] for kind, fields in OTHER_KINDS.items()}


def fields_of(config: RunConfig) -> dict[str, Any]:
    """Dotted path → value of every field; the names of kinds, which are none, left out."""
    return {path: value for path, value in leaves(to_dict(config)) if not path.endswith(".name")}


def config_of(kind: Any) -> RunConfig:
    """The configuration with the defaults of another kind of network or task; RunConfig: with all defaults."""
    if kind is RunConfig:
        return RunConfig()
    return dataclasses.replace(RunConfig(), **{groups()[kind]: kind()})


# --- the surface ---


def test_the_option_surface_is_frozen() -> None:
    """Would catch: an option that appears, disappears or changes its default without anybody deciding so."""
    assert fields_of(RunConfig()) == {path: value for path, (value, _) in SURFACE.items()}
    assert list(SURFACE) == sorted(SURFACE)
    for kind, surface in OTHER_KINDS.items():
        group = groups()[kind]
        own = {p: v for p, v in fields_of(config_of(kind)).items() if p.startswith(f"{group}.")}
        assert own == {path: value for path, (value, _) in surface.items()}
        assert list(surface) == sorted(surface)


def test_the_name_selects_the_kind() -> None:
    """Would catch: a name that is ignored, a misspelt one taken for the default, and fields of another kind let in."""
    for kind in OTHER_KINDS:
        group = groups()[kind]
        assert from_config_dict({group: {"name": kind.name}}) == config_of(kind)
        assert to_dict(config_of(kind))[group]["name"] == kind.name
        assert differences(RunConfig(), config_of(kind))[f"{group}.name"][1] == kind.name
    with pytest.raises(
        UserError, match=r"`config\.model\.name` \(=unet3\) must be one of .*mean unet3plus\?"
    ):
        from_config_dict({"model": {"name": "unet3"}})
    with pytest.raises(
        UserError, match=r"`config\.model\.extra_skips` is not a field; .* bottleneck_channels"
    ):
        from_config_dict({"model": {"name": "conv_autoencoder", "extra_skips": "none"}})


def test_groups_that_do_not_fit_together_are_refused() -> None:
    """Would catch: a classification module that was never trained; a division by no pixel, deep inside a loss."""
    with pytest.raises(UserError, match=r"`model\.classification_guided` \(=True\) needs labels of slices"):
        RunConfig(model=UNet3PlusConfig(), task=ReconstructionConfig())
    with pytest.raises(UserError, match=r"`verdict\.score` \(=top_mean\) is of slices in classification"):
        RunConfig(task=ClassificationConfig(), verdict=VerdictConfig(score="top_mean"))
    with pytest.raises(
        UserError, match=r"`task\.cell_px` \(=64\) must be at most half of a slice's edge \(=64\)"
    ):
        RunConfig(task=ReconstructionConfig(cell_px=64))


def test_fields_of_earlier_releases_are_read_where_they_mean_what_this_one_does() -> None:
    """Would catch: a released workdir that cannot be loaded, and a setting of it that is dropped in silence."""
    assert from_config_dict({"task": {"name": "segmentation", "ssim_scales": 1}}) == RunConfig()
    with pytest.raises(UserError, match=r"`config\.task\.ssim_scales` is not a field"):
        from_config_dict({"task": {"name": "segmentation", "ssim_scales": 3}})


KINDS: dict[Any, dict[str, tuple[Any, Any]]] = {RunConfig: SURFACE, **OTHER_KINDS}


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, known in KINDS.items() for path in known])
def test_every_field_survives_the_command_line_and_json(kind: Any, path: str) -> None:
    """Would catch: a field lost or changed on the way to ConfigDict and back, or in a checkpoint's JSON."""
    base, (default, other) = config_of(kind), KINDS[kind][path]
    assert describe_unknown(path) is None
    values = to_config_dict(base)
    *where, name = path.split(".")
    group = values[where[0]] if where else values
    setattr(group, name, other)  # as config_flags does it
    config = from_config_dict(values)
    assert differences(base, config) == {path: (default, other)}
    assert from_config_dict(json.loads(to_json(config))) == from_config_dict(to_dict(config)) == config
    # Types too: 1.0 == 1 == True.
    assert {p: type(v) for p, v in fields_of(config).items()} == {
        p: type(v) for p, v in fields_of(base).items()
    }
    hash(config)


def test_nothing_given_is_every_default() -> None:
    """Would catch: a default that lives in two places, and one that one part of the code changes under another."""
    assert from_config_dict({}) == from_config_dict(ConfigDict()) == RunConfig()
    assert from_config_dict({"data": {}, "train": {}}) == RunConfig()
    assert differences(RunConfig(), RunConfig()) == {}
    for kind in groups():
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind(), dataclasses.fields(kind)[0].name, 1)


# --- reading: is every field used? ---


def reads(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name before the last dot, attribute) of every attribute that is read: ``a.b.c`` gives ("b", "c")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            match node.value:
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    yield name, node.attr


def without_checks(tree: ast.Module, owners: set[str]) -> tuple[ast.Module, set[tuple[str, str]]]:
    """The module less the config dataclasses, and (class, field) of what their own methods read of themselves.

    ``__post_init__`` does not count: a value that is checked and then not used is an unread one.
    """
    own, rest = set(), []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in owners:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and method.name != "__post_init__":
                    own |= {(node.name, attribute) for name, attribute in reads(method) if name == "self"}
        else:
            rest.append(node)
    return ast.Module(rest, []), own


def fields_read() -> set[str]:
    """Dotted paths of the fields that the package reads: as ``config.x``, ``….config.x``, ``….group.x``, or by the
    group's own methods. A group's dataclass is handed around under the names ``config`` and the group's own, and
    nothing else of the package is called so with these attributes; where two groups share a field name and a module
    says ``config.name``, the module must import the group's dataclass."""
    by_class = {kind.__name__: group for kind, group in groups().items()}
    fields = {kind.__name__: {f.name for f in dataclasses.fields(kind)} for kind in groups()}
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        tree, own = without_checks(ast.parse(text), set(by_class))
        found |= {f"{by_class[kind]}.{name}".lstrip(".") for kind, name in own}
        for owner, name in reads(tree):
            for kind, group in by_class.items():
                names_group = owner == group or (owner == "config" and re.search(rf"\b{kind}\b", text))
                if names_group and name in fields[kind]:
                    found.add(f"{group}.{name}".lstrip("."))
    return found


def test_every_field_is_read() -> None:
    """Would catch: an option that is declared, documented and checked, and changes nothing."""
    declared = set(SURFACE).union(*OTHER_KINDS.values())
    assert sorted(declared - fields_read()) == []


# --- what is refused: keys and types ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, "`config.sed` is not a field; `config` has seed, in_channels, data, "),
        (
            {"train": {"num_step": 1}},
            "`config.train.num_step` is not a field; `config.train` has batch_size, ",
        ),
        ({"verdict": {"calibraton": "f1"}}, "did you mean calibration?"),
        ({"data": {"classes": (1,), "rot": ""}}, "`config.data.rot` is not a field"),
        ({"xyzzy": 1}, "verdict"),
    ],
)
def test_unknown_keys_are_named_with_their_path(values: dict[str, Any], message: str) -> None:
    """Would catch: a misspelt key that is ignored, or named without its place; a suggestion for a word like nothing."""
    for given in (values, ConfigDict(values)):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            from_config_dict(given)
        assert "\n" not in str(error.value)
        assert ("did you mean" in str(error.value)) == ("xyzzy" not in values)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("sed", "`config.sed` is not a field; `config` has seed"),
        ("train.num_step", "`config.train` has batch_size, .*did you mean num_steps?"),
        ("tran.num_steps", "`config.tran` is not a field; .*did you mean train?"),
        ("seed.x", "`config.seed.x` is not a field; `config.seed` has no fields"),
        ("data.split.x", "`config.data.split.x` is not a field; `config.data.split` has no fields"),
    ],
)
def test_describe_unknown(path: str, message: str) -> None:
    """Would catch: an override's path that is named at the wrong depth."""
    assert re.search(message.replace("?", r"\?"), describe_unknown(path) or "")


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        ("seed", 1.5, "int"),
        ("seed", True, "int"),
        ("seed", None, "int"),
        ("train.balance", 1, "bool"),
        ("train.balance", "false", "bool"),
        ("data.root", 3, "str"),
        ("optim.learning_rate", "1e-3", "float"),
        ("data.classes", ("1",), "int"),
        ("data.classes", (1, 2.0), "int"),
        ("data.classes", "18", "int"),
    ],
)
def test_a_value_of_another_type_is_refused(path: str, value: Any, kind: str) -> None:
    """Would catch: "false" as True, 1.5 steps, a seed of True."""
    with pytest.raises(UserError, match=rf"`config\.{re.escape(path)}` \(=.*\) must be of type {kind}"):
        from_config_dict(nested(path, value))


def test_a_value_in_place_of_a_group_is_refused() -> None:
    """Would catch: --config.data=/images, taken for the root or failing with a trace."""
    for group in set(groups().values()) - {""}:
        with pytest.raises(UserError, match=rf"`config\.{group}` \(='/images'\) must be a group of fields"):
            from_config_dict({group: "/images"})


def test_a_whole_number_will_do_for_a_fraction() -> None:
    """Would catch: --config.augment.max_angle_deg=10 refused, or kept as an int that JSON then writes otherwise."""
    value = from_config_dict({"augment": {"max_angle_deg": 10}}).augment.max_angle_deg
    assert (value, type(value)) == (10.0, float)


def test_classes_become_a_tuple() -> None:
    """Would catch: a list from JSON that makes a resumed run differ from the one it resumes."""
    for given, expected in ((8, 1), (8, 1)), ([8, 1], (8, 1)), (8, (8,)), ([3], (3,)):
        assert from_config_dict({"data": {"classes": given}}).data.classes == expected


# --- what is refused: values ---

# (path, value, the rule in the message)
REFUSED: list[tuple[str, Any, str]] = [
    ("seed", -1, "must lie in [0, 2^31)"),
    ("in_channels", 0, "must be at least 1"),
    ("data.split", "official80", "must be one of auto, random80_20, official; did you"),
    ("data.classes", (), "must be a tuple of class numbers, at least one and each once"),
    ("data.classes", (0,), "must be a tuple of class numbers"),
    ("data.classes", (1, 8, 1), "must be a tuple of class numbers, at least one and each once"),
    ("data.validation_share", 0.0, "must lie between 0 and 1"),
    ("data.validation_share", 1.0, "must lie between 0 and 1"),
    ("data.procedural_defective", 3, "must be at least"),
    ("data.procedural_good", 3, "must be at least"),
    ("data.num_workers", -1, "must be at least 0"),
    ("augment.max_angle_deg", 45.5, "must lie in [0, 45]"),
    ("augment.max_angle_deg", -1.0, "must lie in [0, 45]"),
    ("augment.max_shift_px", -1.0, "must be at least 0"),
    ("model.base_channels", 0, "must be at least 1"),
    ("model.extra_skips", "prev_encoder", "must be one of previous_encoder, none, next_encoder, both"),
    ("model.compute_dtype", "float16", "must be one of float32, bfl"),
    ("optim.learning_rate", 0.0, "must be greater than 0"),
    ("optim.clip_norm", -1.0, "must be greater than 0"),
    ("optim.warmup_steps", -1, "must be at least 0"),
    ("optim.weight_decay", -0.1, "must be at least 0"),
    *((f"train.{name}", 0, "must be at least 1") for name in ("batch_size", "validate_every")),
    *((f"train.{name}", 0, "must be at least 1") for name in ("max_validation_images", "judge_batch_size")),
    *((f"train.{name}", 0, "must be at least 1") for name in ("patience", "log_every")),
    ("train.skip_non_finite", -1, "must be at least 0"),
    *(
        (f"train.{name}", value, "must lie in [0, 1]")
        for name in ("target_quality", "min_rise", "cooldown_share", "cooldown_share_at_target")
        for value in (-0.1, 1.1)
    ),
    ("parallel.cpu_convolutions", "eigne", "must be one of eigen, d"),
    ("verdict.calibration", "f2", "must be one of f1, false_alarm_rate, exp"),
    ("verdict.max_false_alarm_rate", 1.5, "must lie in [0, 1]"),
    ("verdict.fp_cost", 0.0, "must be positive and finite"),
    ("verdict.fn_cost", float("inf"), "must be positive and finite"),
    ("verdict.top_fraction", 0.0, "must lie in (0, 1]"),
    ("verdict.smoothing_px", -1.0, "must be 0 (off) or a positive"),
    ("verdict.top_slices", 0, "must be at least 1"),
]


@pytest.mark.parametrize(("path", "value", "rule"), REFUSED)
def test_a_value_out_of_range_is_refused(path: str, value: Any, rule: str) -> None:
    """Would catch: a value that fails late, with a trace, or trains to nothing."""
    with pytest.raises(UserError, match=rf"^`{re.escape(path)}` \(=.*\) {re.escape(rule)}") as error:
        from_config_dict(nested(path, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", FRACTIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fraction_is_a_finite_number(path: str, value: float) -> None:
    """Would catch: a check written as `x < 0`, which NaN passes; the loss is then NaN from the first step on."""
    if path == "optim.clip_norm" and value == float("inf"):
        return  # means what it says: never clip
    with pytest.raises(UserError, match=re.escape(path)):
        from_config_dict(nested(path, value))


def test_every_class_of_the_data_set_has_built_in_images_and_no_other() -> None:
    """Would catch: a class that cannot be trained on without a download, and a bare KeyError for one that is none."""
    from dagm_jax.data.dataset import draw_manifest

    manifest = draw_manifest(DataConfig(classes=tuple(range(1, 11))), 0)
    assert {sample.class_id for sample in manifest.samples} == set(range(1, 11))
    with pytest.raises(
        UserError, match=r"the built-in images show classes 1, 2, .*, 10 only; set data\.root to a"
    ):
        draw_manifest(DataConfig(classes=(1, 11)), 0)


def test_the_fewest_procedural_images_can_be_split() -> None:
    """Would catch: a lower bound that promises an image for each split, and a split that then refuses."""
    from dagm_jax.data.dataset import draw_manifest
    from dagm_jax.data.split import split_samples

    config = DataConfig(procedural_defective=5, procedural_good=5)
    split_samples(draw_manifest(config, 0).samples, config.split, config.validation_share, 0)


# --- tasks and shipped configurations ---


def test_options_are_read_by_name() -> None:
    """Would catch: a misspelt task or option that trains the default one, and options that do nothing."""
    assert compose("segmentation", CustomUNetConfig()) == RunConfig()
    assert set(TASKS) == {"segmentation", "reconstruction", "classification"}
    for name, task in TASKS.items():
        assert compose(name, CustomUNetConfig()).task == task
    for option in OPTIONS:
        both = [compose(f"segmentation{end}", ConvAutoencoderConfig()) for end in ("", f",{option}")]
        assert differences(*both)
    equal = [
        compose("segmentation,equal_width", model) for model in (ConvAutoencoderConfig(), UNet3PlusConfig())
    ]
    assert [config.model.base_channels for config in equal] == [16, 16]
    given = SegmentationConfig(iou_weight=1.0)
    assert compose("segmentation", CustomUNetConfig(), given).task == given
    assert compose("classification", CustomUNetConfig(), given).task == ClassificationConfig()
    # A threshold may not be fitted to defects in the task that knows of none.
    assert compose("reconstruction", CustomUNetConfig()).verdict.calibration == "normals"
    for options, message in (
        ("segmentaton", r"`--config=FILE:segmentaton`: the task must be of .*mean segmentation\?"),
        ("segmentation,equal_width,small", "equal_width and small set one width each; choose one"),
        ("segmentation,smal", r"options must be of equal_width, small, not 'smal'; did you mean small\?"),
    ):
        with pytest.raises(UserError, match=message):
            compose(options, CustomUNetConfig())


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_configurations_build(name: str) -> None:
    """Would catch: a shipped configuration that no run accepts, or that is not locked against misspelt overrides."""
    module = importlib.import_module(f"configs.{name}")
    options = [f"{task}{option}" for task in TASKS for option in ("", ",equal_width", ",small")]
    for values in (module.get_config(), *map(module.get_config, options)):
        assert values.is_locked
        config = from_config_dict(values)
        assert from_config_dict(json.loads(to_json(config))) == config
    assert from_config_dict(module.get_config()).task.name == "segmentation"
    with pytest.raises(UserError, match="the task must be of"):
        module.get_config("segmentatoin")


def test_shipped_configurations_are_short_and_say_their_command() -> None:
    """Would catch: logic in a configuration file, one without its command, one that no error message names."""
    files = [path for path in (PACKAGE.parent / "configs").glob("*.py") if path.name != "__init__.py"]
    assert {path.stem for path in files} == set(CONFIGS)
    for path in files:
        assert len(path.read_text().splitlines()) <= 60
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert f"python -m dagm_jax.main --config=configs/{path.name}" in docstring


def test_the_main_configuration_is_the_defaults() -> None:
    """Would catch: a default that the shipped configuration overrides, so that it lives in two places."""
    assert from_config_dict(importlib.import_module("configs.custom_unet").get_config()) == RunConfig()


def test_fields_that_may_change_on_resuming_exist() -> None:
    """Would catch: a field renamed without its entry in the list of those that do not make another run."""
    from dagm_jax.experiment.resume import FREE_FIELDS

    assert set(SURFACE) >= FREE_FIELDS

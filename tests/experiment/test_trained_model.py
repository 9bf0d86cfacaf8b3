"""A model read back from a run's workdir: the same weights, the same cuts, the same decisions."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from reading_devices import ReadingDevices

from dagm_jax.command_line import read_config
from dagm_jax.config import RunConfig
from dagm_jax.distributed.devices import ParallelConfig, make_devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import EvalConfig
from dagm_jax.experiment.setup import Setup
from dagm_jax.experiment.trained_model import TrainedModel, build_network, load_trained_model
from dagm_jax.exporting.inference_fn import make_inference_fn


def test_the_predictor_takes_the_form_of_its_devices(built_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: all slices at once where caches are small, the forms of CPUs on accelerators or exported."""
    monkeypatch.setattr("dagm_jax.evaluation.step.CPU_PART_PX", 1)
    detector, mesh = load_trained_model(built_in), make_devices(ParallelConfig()).mesh
    sliced = replace(detector, config=replace(detector.config, eval=EvalConfig("slices")))

    def text(model: TrainedModel, platform: str) -> str:
        programs = model.make_predictor(ReadingDevices(mesh, None, asked=platform), 2).programs
        return str(programs.begin(programs.tiling.shape_for(model.shape)).result().step)

    cpu, gpu, sliced_cpu, sliced_gpu = (text(m, p) for m in (detector, sliced) for p in ("cpu", "gpu"))
    image = jax.ShapeDtypeStruct((2, *detector.shape), "uint8")
    exported = str(jax.make_jaxpr(make_inference_fn(detector))(image))
    counts = [text.count("custom_vjp_call[") for text in (cpu, gpu, exported)]
    assert counts[0] > counts[1] == counts[2]
    assert "scan[" in sliced_cpu
    assert not any("scan[" in text for text in (cpu, gpu, sliced_gpu))


def test_any_other_rule_gives_another_id(built_in: Path, tmp_path: Path) -> None:
    """Would catch: decisions that cannot be traced to the threshold that they were made with."""
    copy = Path(shutil.copytree(built_in, tmp_path / "copy"))
    before = load_trained_model(copy).model_id
    assert before == load_trained_model(built_in).model_id
    rule = json.loads((copy / "decision_rule.json").read_text())
    (copy / "decision_rule.json").write_text(json.dumps(rule | {"threshold": rule["threshold"] + 0.01}))
    assert load_trained_model(copy).model_id != before


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: (folder / "report.json").unlink(), "report.json"),
        (lambda folder: (folder / "decision_rule.json").unlink(), "decision_rule.json"),
        (lambda folder: shutil.rmtree(folder / "checkpoints"), "checkpoint of step"),
    ],
    ids=["unfinished", "no rule", "no checkpoints"],
)
def test_what_is_missing_is_named(built_in: Path, tmp_path: Path, damage, named: str) -> None:  # type: ignore[no-untyped-def]
    """Would catch: a traceback, or a detector put together from what is left."""
    copy = Path(shutil.copytree(built_in, tmp_path / "copy"))
    damage(copy)
    with pytest.raises(UserError, match=named):
        load_trained_model(copy)


@pytest.mark.parametrize("name", ["custom_unet", "conv_autoencoder", "unet3plus"])
def test_a_network_has_its_shapes_without_being_drawn(name: str, compilations: list[str]) -> None:
    """Would catch: dozens of compilations for weights that are read from a file; a network that needs them."""
    _, params, stats = build_network(read_config(f"configs/{name}.py"), mean=1.0, std=2.0, drawn=False)
    assert not compilations
    leaves = jax.tree.leaves((params, stats))
    assert len(leaves) > 20 and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


def test_a_run_begins_with_the_weights_of_another(built_in: Path) -> None:
    """Would catch: new weights in place of those that are asked for, or of the last step in place of the tested one;
    the weights of another network, or of a run that is not finished, taken without a word."""
    model = load_trained_model(built_in)
    data: Any = SimpleNamespace(mean=100.0, std=30.0)

    def begin(config: RunConfig, init_from: str) -> list[Any]:
        given = replace(config, train=replace(config.train, init_from=init_from))
        state = Setup(given, data, make_devices(config.parallel)).initial_state()
        return jax.tree.leaves((state.params, state.stats))

    begun, fresh = (begin(model.config, given) for given in (str(built_in), ""))
    for found, expected in zip(begun, jax.tree.leaves((model.params, model.stats)), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert any((a != b).any() for a, b in zip(begun, fresh, strict=True))
    channels = model.config.model.base_channels
    message = rf"another network; use its network \(.*--config.model.base_channels={channels}"
    with pytest.raises(UserError, match=message):
        begin(
            read_config("configs/smoke.py", [f"--config.model.base_channels={channels + 1}"]), str(built_in)
        )
    with pytest.raises(UserError, match="nowhere"):
        begin(model.config, "nowhere")

"""The ablation of the training step: each row is another program of the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from reading_devices import ReadingDevices

from dagm_jax.command_line import read_config
from launch.bench import ablation, subject, timing

NARROW = ["--config.model.base_channels=1", "--config.slicing.slice_px=16", *ablation.FEW_IMAGES]


@pytest.mark.long
def test_each_row_is_another_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a row that runs the program of another, for example because jax has traced it before."""
    take = subject.take_devices
    monkeypatch.setattr(subject, "take_devices", lambda *given: ReadingDevices(take(*given).mesh, None))
    rows = ablation.make_rows(read_config("configs/custom_unet.py", NARROW), 4, tmp_path)
    texts: dict[str, Any] = {name: row.step for name, row in rows.items()}
    without = {
        mark: [name for name, text in texts.items() if mark not in text]
        for mark in ("platform_index[", "inlineable", "length=2")
    }
    assert without == {
        "platform_index[": ["sums one by one"],
        "inlineable": ["copies fused"],
        "length=2": ["as it is", "sums one by one", "copies fused"],
    }


@pytest.mark.long
def test_the_rows_take_the_same_step(tmp_path: Path) -> None:
    """Would catch: a ratio between steps that do different work. Without batch statistics, which parts have each."""
    config = read_config("configs/custom_unet.py", [*NARROW, "--config.model.norm=none"])
    found = {}
    for name, row in ablation.make_rows(config, 4, tmp_path).items():
        carry = row.setup.first_carry(row.setup.initial_state())
        carry, metrics = row.step(carry, row.setup.devices.shard_training_batch(row.batches[0]))
        found[name] = metrics["loss"], *jax.tree.leaves(carry.state.params)
    for name in found:
        for a, b in zip(found["as it is"], found[name], strict=True):
            # Adam turns rounding of a gradient near zero into a step.
            np.testing.assert_allclose(b, a, rtol=1e-2, atol=1e-4)


@pytest.mark.long
def test_the_command_prints_a_row_for_each_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a command that fails, and a row without its figures."""
    monkeypatch.setattr(timing, "LEAST_BLOCK_S", 1e-3)
    monkeypatch.setattr(ablation, "FEW_IMAGES", NARROW)
    monkeypatch.setattr(ablation.console, "width", 200)
    ablation.main(["ablation", "--config=configs/custom_unet.py", "--batch_size=2", "--repetitions=1"])
    printed = capsys.readouterr().out
    assert printed.count(" MB, ") == 4 and printed.count("1.00x") >= 2

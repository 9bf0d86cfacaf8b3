"""Tests of the cost of U-Net 3+'s branches: what is compared is the same branch, and all of them are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dagm_jax.models.config import UNet3PlusConfig
from launch import branch_costs

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_forms_are_the_same_branch() -> None:
    """Catches a ratio between branches that compute different maps."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, 4, 3, 5))
    kernel = jax.random.normal(keys[1], (3, 3, 5, 6))
    ours, *others = (form(x, kernel, 4) for form in branch_costs.FORMS.values())
    assert ours.shape == (2, 16, 12, 6)
    for other in others:
        np.testing.assert_allclose(ours, other, rtol=1e-4, atol=1e-4)


def test_the_branches_are_those_of_the_network() -> None:
    """Catches a branch left out, and channels that the network does not have."""
    network = UNet3PlusConfig(base_channels=2).build(in_channels=1, out_channels=1, rngs=nnx.Rngs(0))
    built = [
        (level, source, branch.kernel[...].shape[2])
        for level, stage in enumerate(network.decoder, start=1)
        for source, branch in enumerate(stage.branches, start=1)
        if branch.factor > 1
    ]
    assert branch_costs.branches(2) == built


def test_the_command_starts_and_says_what_it_takes() -> None:
    """Catches a program that runs when called from Python and fails from the shell."""
    command = [sys.executable, "-m", "launch.branch_costs"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--base_channels" in done.stdout
    done = subprocess.run(
        [*command, "--batch_size=0"], capture_output=True, text=True, cwd=REPOSITORY, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: command line: ") and done.stderr.count("\n") == 1


def test_the_table_has_a_row_for_each_branch(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a command that fails, and a form without its figures. Two branches will do: each takes a while."""
    monkeypatch.setattr(branch_costs, "SLICE_PX", (32, 16))
    monkeypatch.setattr(branch_costs, "branches", lambda base: [(1, 2, 5 * base), (2, 4, 5 * base)])
    monkeypatch.setenv("COLUMNS", "200")
    branch_costs.main(["branch_costs", "--base_channels=1", "--batch_size=1", "--repetitions=1"])
    printed = capsys.readouterr().out
    assert "D2 → D1" in printed and "D4 → D2" in printed
    assert printed.count("GFLOP") == 6

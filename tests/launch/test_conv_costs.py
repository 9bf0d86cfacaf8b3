"""Tests of what convolutions cost: all of the network's are there, and both sides compute the same three passes."""

from __future__ import annotations

import numpy as np
import pytest

from dagm_jax.main import read_config
from dagm_jax.models.convolution import convolve_on_cpu
from launch import conv_costs
from launch.conv_costs import Convolution


def test_the_convolutions_are_those_of_the_network() -> None:
    """Would catch: a stage left out or counted twice, height and width or channels exchanged."""
    config = read_config("configs/custom_unet.py:segmentation,equal_width", [])
    found = conv_costs.convolutions(config)
    # Two to each of the nine blocks, and the head; what doubles a map is a product.
    assert found.total() == 19
    assert found[Convolution(512, 64, 16, 16, 3)] == 2
    # Bottleneck, and the decoder stage that sees two encoder stages.
    assert found[Convolution(32, 4, 256, 256, 3)] == 1
    assert found[Convolution(256, 32, 32 + 32 + 16, 32, 3)] == 1
    assert found[Convolution(512, 64, 16, 1, 1)] == 1


def test_flop_by_hand() -> None:
    """Would catch: a rate of another convolution, multiply-adds counted once."""
    assert Convolution(4, 5, 3, 7, 3).gflop(2) == pytest.approx(2 * 2 * 4 * 5 * 3 * 7 * 9 / 1e9)


@pytest.mark.peer
def test_both_sides_compute_the_same_passes() -> None:
    """Would catch: a ratio between passes that compute different arrays."""
    pytest.importorskip("torch", reason="the peer extra (pip install -e '.[peer]') is not installed")
    for size in (1, 3):
        arrays = conv_costs.arrays_of(Convolution(6, 4, 3, 5, size), 2)
        ours, theirs = conv_costs.our_passes(arrays, None, convolve_on_cpu), conv_costs.their_passes(arrays)
        axes = [(0, 2, 3, 1), (0, 2, 3, 1), (2, 3, 1, 0)]
        for mine, other, order in zip(ours, theirs, axes, strict=True):
            np.testing.assert_allclose(mine(), other().numpy().transpose(order), rtol=1e-4, atol=1e-4)


@pytest.mark.peer
def test_the_table_adds_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a command that fails, and sums that forget how often a convolution is there."""
    pytest.importorskip("torch", reason="the peer extra (pip install -e '.[peer]') is not installed")
    monkeypatch.setattr(conv_costs, "SLICE_PX", (32, 16))
    monkeypatch.setattr(
        conv_costs, "measure", lambda passes, repetitions: [0.001 * (i + 1) for i in range(9)]
    )
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(conv_costs.__file__.rpartition("/launch/")[0])
    conv_costs.main(["conv_costs", "--batch_size=1", "--repetitions=1"])
    printed = capsys.readouterr().out
    assert "19, 76, 133 ms, 7.00x" in printed and "57, 114, 171 ms, 3.00x" in printed

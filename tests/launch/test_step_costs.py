"""Tests of the cost of other ways to run a step: they are the same step, and each is in the table."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from dagm_jax.main import read_config
from launch import step_costs

SMALL = "configs/custom_unet.py:segmentation"


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_costs, "SLICE_PX", (32, 32))


@pytest.mark.long
def test_the_forms_take_the_same_step() -> None:
    """Would catch: a ratio between steps that do different work; parts see their own batch statistics, so not them."""
    config = read_config(SMALL, ["--config.model.base_channels=1", "--config.model.norm=none"])
    batch = step_costs.random_batch(4)
    found = {}
    for name, (function, state, number) in step_costs.forms(config).items():
        for _ in range(step_costs.STEPS_IN_A_CALL // number):
            state, metrics = jax.jit(function)(state, batch)
        assert int(state.step) == step_costs.STEPS_IN_A_CALL
        found[name] = metrics["loss"], *jax.tree.leaves(state.params)
    plain, *others = found.values()
    assert len(others) == 5
    for other in others:
        for a, b in zip(plain, other, strict=True):
            # Adam turns rounding of a gradient near zero into a step.
            np.testing.assert_allclose(b, a, rtol=1e-2, atol=1e-4)


def test_what_is_made_again_is_made_again() -> None:
    """Would catch: a form that is called rematerialised and keeps everything."""
    config = read_config(SMALL, ["--config.model.base_channels=1"])
    texts = []
    for rematerialise in (False, True):
        step, state = step_costs.make_step(config, rematerialise=rematerialise)
        texts.append(str(jax.make_jaxpr(step)(state, step_costs.random_batch(2))))
    assert ["remat" in text for text in texts] == [False, True]


def test_plain_sums_are_plain_and_the_same_step() -> None:
    """Would catch: a form that is called so and runs the same program, for example because jax has traced it before;
    sums that are others.
    """
    config = read_config(SMALL, ["--config.model.base_channels=1"])
    step, state = step_costs.make_step(config)
    batch = step_costs.random_batch(2)
    forms = step, step_costs.with_plain_sums(step)
    texts = [str(jax.make_jaxpr(form)(state, batch)) for form in forms]
    num_layers = len(jax.tree.leaves(state.stats)) // 2
    # Forward and backward of every layer.
    assert [text.count("platform_index[") for text in texts] == [2 * num_layers, 0]
    ours, plain = (jax.jit(form)(state, batch) for form in forms)
    for a, b in zip(jax.tree.leaves(ours[0].stats), jax.tree.leaves(plain[0].stats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours[1]["loss"], plain[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(ours[1]["grad_norm"], plain[1]["grad_norm"], rtol=1e-3)


def test_fused_copies_are_free_to_be_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a form that is called so and runs the same program."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    step, state = step_costs.make_step(read_config(SMALL, ["--config.model.base_channels=1"]))
    forms = step, step_costs.with_fused_copies(step)
    texts = [str(jax.make_jaxpr(form)(state, step_costs.random_batch(2))) for form in forms]
    assert ["inlineable" in text for text in texts] == [True, False]


@pytest.mark.long
def test_the_table_has_a_row_for_each_form(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a command that fails, and a form without its figures."""
    monkeypatch.setenv("COLUMNS", "200")
    narrow = read_config(SMALL, ["--config.model.base_channels=1"])
    monkeypatch.setattr(step_costs, "read_config", lambda *_: narrow)
    step_costs.main(["step_costs", "--config=configs/custom_unet.py", "--batch_size=2", "--repetitions=1"])
    printed = capsys.readouterr().out
    assert printed.count(" MB, ") == 6
    assert "1.00x" in printed and "rematerialised" in printed

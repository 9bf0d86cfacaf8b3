"""Checkpoints: round trips, and which ones are kept; damage is in ``faults/test_checkpoints.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.optim import OptimConfig, make_optimizer
from dagm_jax.train.step import TrainState, make_state

META = {"position": {"step": 3, "end_step": None, "quality": 0.1 + 0.2}, "names": ["é", ""], "big": 2**40}


def make_arrays(seed: int = 0) -> TrainState:
    """A small state with every kind of part that a run's has."""
    rng = np.random.default_rng(seed)
    params = {
        "kernel": jnp.asarray(rng.normal(0, 1, (3, 3, 2, 4)), jnp.float32),
        "list": [jnp.asarray(rng.normal(0, 1e-30, 4), jnp.float32), jnp.float32(seed)],
    }
    stats = {"mean": jnp.asarray(rng.normal(0, 1, 4), jnp.float32)}
    return make_state(params, stats, make_optimizer(OptimConfig()))


def assert_same(a: Any, b: Any) -> None:
    """Equal structure, types and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def steps_in(directory: Path) -> list[int]:
    """Steps whose folders are visible, as a user sees them."""
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def fill(directory: Path, qualities: dict[int, float | None]) -> None:
    """Saves a state made from the step under each step."""
    with Checkpoints(directory) as checkpoints:
        for step, quality in qualities.items():
            checkpoints.save(step, make_arrays(step), {"step": step}, quality)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    """Would catch: arrays that lose bits or types, optimiser state left out, JSON values that change, a restored state
    that the compiled step refuses because of its sharding, and a first run without anything to resume from."""
    state, like = make_arrays(), make_arrays(9)
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_latest(make_arrays) is None
        assert checkpoints.best_step() is None
        checkpoints.save(3, state, META, 0.5)
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.best_step() == 3
        restored, meta = checkpoints.restore(3, like)
        step, newest, latest_meta = checkpoints.restore_latest(lambda: like) or pytest.fail("none")
    assert step == 3 and meta == latest_meta == META
    assert_same(restored, state)
    assert_same(newest, state)
    for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert got.sharding == wanted.sharding


def test_arrays_are_copied_before_save_returns(tmp_path: Path) -> None:
    """Would catch: a writer that still reads memory which the next step, that donates its state, has overwritten."""
    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    values = np.random.default_rng(0).normal(0, 1, (512, 1024)).astype(np.float32)
    x = jnp.array(values)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"x": x}, {}, 0.5)
        for _ in range(3):
            x = overwrite(x)
        x.block_until_ready()
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(1, {"x": jnp.zeros_like(values)})
    np.testing.assert_array_equal(restored["x"], values)


def test_the_two_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    """Would catch: a disk that fills up, a best one that later ones push out, and a latest one that is deleted."""
    fill(tmp_path, {1: 0.3, 2: 0.9, 3: 0.4, 4: 0.5, 5: 0.6, 6: 0.7, 7: 0.2})
    # Nor moved aside, where orbax would keep every one that it no longer names.
    assert sorted({int(path.name) for path in tmp_path.rglob("*") if path.name.isdigit()}) == [2, 6, 7]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 2
        restored, meta = checkpoints.restore(2, make_arrays())
    assert meta == {"step": 2}
    assert_same(restored, make_arrays(2))


@pytest.mark.parametrize(
    ("processes", "kept", "best"),
    [
        ([{1: 0.9, 2: 0.4}, {3: 0.5, 4: 0.6, 5: 0.7}], [1, 4, 5], 1),
        ([{1: 0.2, 2: None}, {3: None, 4: None, 5: None}], [1, 4, 5], 1),
        ([{1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}], [1, 3, 4], 1),
        ([{1: None}], [1], None),
    ],
    ids=["new process", "without quality", "equal", "none"],
)
def test_the_best_outlives_its_process(
    processes: list[dict[int, float | None]], kept: list[int], best: int | None, tmp_path: Path
) -> None:
    """Would catch: qualities in memory only, for want of which a restart deletes the best; a model tested with a state
    that no validation has seen; a best one among equals that was deleted; an error where no state is validated."""
    for qualities in processes:
        fill(tmp_path, qualities)
    assert steps_in(tmp_path) == kept
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == best
        if best is not None:
            assert checkpoints.restore(best, make_arrays())[1] == {"step": best}

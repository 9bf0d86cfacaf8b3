"""Checkpoints: what comes back is what was saved, the right ones are kept, and damage costs one step back."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dagm_jax.distributed.processes import Processes
from dagm_jax.errors import Interrupted, UserError
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
    """The steps whose folders are visible, as a user sees them."""
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def fill(directory: Path, qualities: dict[int, float | None]) -> None:
    """Saves a state made from the step under each step."""
    with Checkpoints(directory) as checkpoints:
        for step, quality in qualities.items():
            checkpoints.save(step, make_arrays(step), {"step": step}, quality)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    """Catches arrays that lose bits or types, optimiser state left out, and JSON values that change."""
    state = make_arrays()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, META, 0.5)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 3
        restored, meta = checkpoints.restore(3, make_arrays(9))
        assert meta == META
        assert_same(restored, state)
        step, newest, meta = checkpoints.restore_latest(partial(make_arrays, 9)) or pytest.fail("none")
        assert (step, meta) == (3, META)
        assert_same(newest, state)


def test_restored_arrays_lie_where_the_example_lies(tmp_path: Path) -> None:
    """Catches a restored state that the compiled step refuses because of its sharding."""
    fill(tmp_path, {1: 0.5})
    with Checkpoints(tmp_path) as checkpoints:
        like = make_arrays(9)
        restored, _ = checkpoints.restore(1, like)
    for got, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True):
        assert got.sharding == wanted.sharding


def test_arrays_are_copied_before_save_returns(tmp_path: Path) -> None:
    """Catches a writer that still reads memory which the next step, that donates its state, has overwritten."""
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


def test_empty_folder(tmp_path: Path) -> None:
    """Catches a first run that fails because there is nothing to resume from."""
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore_latest(make_arrays) is None
        assert checkpoints.best_step() is None


def test_the_two_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    """Catches a disk that fills up, a best one that later ones push out, and a latest one that is deleted."""
    fill(tmp_path, {1: 0.3, 2: 0.9, 3: 0.4, 4: 0.5, 5: 0.6, 6: 0.7, 7: 0.2})
    assert steps_in(tmp_path) == [2, 6, 7]
    # Not put aside either, where orbax would keep every one that it no longer names.
    assert sorted({int(path.name) for path in tmp_path.rglob("*") if path.name.isdigit()}) == [2, 6, 7]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 2
        restored, meta = checkpoints.restore(2, make_arrays())
        assert meta == {"step": 2}
        assert_same(restored, make_arrays(2))


def test_the_best_survives_a_new_process(tmp_path: Path) -> None:
    """Catches qualities that are known in memory only: after a restart the best would be deleted."""
    fill(tmp_path, {1: 0.9, 2: 0.4})
    fill(tmp_path, {3: 0.5, 4: 0.6, 5: 0.7})
    assert steps_in(tmp_path) == [1, 4, 5]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 1


def test_a_checkpoint_without_quality_is_not_the_best(tmp_path: Path) -> None:
    """Catches a run that is judged by a state that no validation has seen, such as an interrupted one."""
    fill(tmp_path, {1: 0.2, 2: None})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 1
    fill(tmp_path, {3: None, 4: None, 5: None})
    assert steps_in(tmp_path) == [1, 4, 5]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 1


def test_no_best_without_any_quality(tmp_path: Path) -> None:
    """Catches an error where only an interrupted state is there."""
    fill(tmp_path, {1: None})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() is None


def test_one_of_equally_good_ones_can_be_restored(tmp_path: Path) -> None:
    """Catches a best step that is named but was deleted, and one that depends on which others are left."""
    fill(tmp_path, {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5})
    with Checkpoints(tmp_path) as checkpoints:
        best = checkpoints.best_step()
        assert best in steps_in(tmp_path)
        _, meta = checkpoints.restore(best, make_arrays())
        assert meta == {"step": best}


def cut_arrays(folder: Path) -> None:
    for path in (folder / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_meta(folder: Path) -> None:
    (folder / "meta" / "metadata").write_text("{")


def drop_state(folder: Path) -> None:
    shutil.rmtree(folder / "state")


def drop_everything(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGES = [cut_arrays, cut_meta, drop_state, drop_everything]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_the_newest_costs_one_step_back(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches a run that a damaged disk stops for good, and one that steps back without a word."""
    fill(tmp_path, {1: 0.3, 2: 0.4})
    damage(tmp_path / "2")
    with caplog.at_level(logging.WARNING, "absl"), Checkpoints(tmp_path) as checkpoints:
        step, state, meta = checkpoints.restore_latest(make_arrays) or pytest.fail("none")
    assert (step, meta) == (1, {"step": 1})
    assert_same(state, make_arrays(1))
    messages = [sample.getMessage() for sample in caplog.samples]
    assert any("checkpoint of step 2 cannot be read" in message for message in messages)


def test_what_another_process_cannot_read_is_not_taken(tmp_path: Path) -> None:
    """Would catch: processes that go on from different steps, because the disk was damaged for one of them only."""

    class OtherCannotReadTheNewest(Processes):
        def any(self, flag: bool) -> bool:
            asked.append(flag)
            return flag or len(asked) == 1

    asked: list[bool] = []
    fill(tmp_path, {1: 0.3, 2: 0.4})
    with Checkpoints(tmp_path, OtherCannotReadTheNewest()) as checkpoints:
        step, state, _ = checkpoints.restore_latest(make_arrays) or pytest.fail("none")
    assert asked == [False, False]
    assert step == 1
    assert_same(state, make_arrays(1))
    assert steps_in(tmp_path) == [1]


@pytest.mark.parametrize("damage", [cut_arrays, drop_state])
def test_the_damaged_step_can_be_saved_again(damage: Callable[[Path], None], tmp_path: Path) -> None:
    """Catches a run that goes on from the step before and fails when it comes to the damaged step again."""
    fill(tmp_path, {1: 0.3, 2: 0.4})
    damage(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(make_arrays) is not None
        checkpoints.save(2, make_arrays(2), {"again": True}, 0.4)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_latest(make_arrays)
        assert restored is not None
        assert (restored[0], restored[2]) == (2, {"again": True})
        assert_same(restored[1], make_arrays(2))


def test_a_signal_while_reading_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a whole checkpoint thrown away because the user stopped the command while it was being read."""
    fill(tmp_path, {1: 0.3, 2: 0.4})

    def interrupted(*_: Any) -> Any:
        raise Interrupted("terminated")

    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "restore", interrupted)
            with pytest.raises(Interrupted):
                checkpoints.restore_latest(make_arrays)
        restored = checkpoints.restore_latest(make_arrays)
        assert restored is not None
        assert restored[0] == 2


def test_arrays_that_may_not_be_read_are_no_damage(tmp_path: Path) -> None:
    """Would catch: a whole checkpoint deleted because a file of its arrays could not be opened for the moment."""

    def make(step: int = 0) -> dict[str, jax.Array]:
        # Large enough for files of their own: small ones lie in the files of the index.
        return {"x": jnp.asarray(np.random.default_rng(step).normal(0, 1, (64, 64)), jnp.float32)}

    home = Path(tempfile.mkdtemp()) if os.geteuid() == 0 else tmp_path
    try:
        with Checkpoints(home / "run") as checkpoints:
            for step in (1, 2):
                checkpoints.save(step, make(step), {}, None)
            assert checkpoints.restore_latest(make) is not None  # what it imports may be read by root alone
            with without_rights(home):
                assert checkpoints.restore_latest(make) is not None, (
                    "more than the files of arrays is out of reach"
                )
            refused = set()
            # One by one: which files a save leaves, and which of these a restore reads, differs from save to save.
            for path in list((home / "run" / "2" / "state").rglob("d/*")):
                path.chmod(0)
                try:
                    with without_rights(home):
                        restored = checkpoints.restore_latest(make)
                    assert restored is not None and restored[0] == 2
                except PermissionError:
                    refused.add(path.stat().st_size > 64 * 64 * 2)
                path.chmod(0o644)
                step, state, _ = checkpoints.restore_latest(make) or pytest.fail("none")
                assert (step, steps_in(home / "run")) == (2, [1, 2])
                assert_same(state, make(2))
        assert True in refused, "no file of the arrays was needed"
    finally:
        if home != tmp_path:
            shutil.rmtree(home)


@contextmanager
def without_rights(home: Path) -> Iterator[None]:
    """Within the block root may not read what others may not; the folder and all in it are of the user it becomes."""
    user = os.geteuid()
    if user == 0:
        for path in (home, *home.rglob("*")):
            os.chown(path, 65534, -1)
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EMFILE, "RESOURCE_EXHAUSTED"),
        (errno.ENOMEM, "RESOURCE_EXHAUSTED"),
        (errno.ESTALE, "UNAVAILABLE"),
        (errno.ETIMEDOUT, "DEADLINE_EXCEEDED"),
        (errno.EACCES, "PERMISSION_DENIED"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_tensorstores_words_for_passing_errors_are_no_damage(
    number: int, kind: str, wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a whole checkpoint deleted for want of file handles or memory, or because a server was away."""
    text = (
        f"{kind}: Error reading local file: Failed to open: {os.strerror(number)} [os_error_code='{number}']"
    )

    def refuse(*_: Any) -> Any:
        if wrapped:
            raise Exception("Encountered error while reading array index") from ValueError(text)
        raise ValueError(text)

    fill(tmp_path, {1: 0.3, 2: 0.4})
    with Checkpoints(tmp_path) as checkpoints:
        monkeypatch.setattr(checkpoints, "restore", refuse)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            checkpoints.restore_latest(make_arrays)
    assert caught.value.errno == number
    assert steps_in(tmp_path) == [1, 2]


def test_damage_to_all_is_a_users_error(tmp_path: Path) -> None:
    """Catches a silent start from the beginning in a workdir that holds hours of work."""
    fill(tmp_path, {1: 0.3, 2: 0.4})
    for step in (1, 2):
        drop_state(tmp_path / str(step))
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"none of the checkpoints of steps \[2, 1\] can be read"),
    ):
        checkpoints.restore_latest(make_arrays)

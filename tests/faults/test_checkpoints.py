"""Checkpoints that a disk has changed, workdirs of another run, and restores onto other devices."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import quick
from shell import run_python

from dagm_jax.command_line import read_config
from dagm_jax.config import RunConfig, to_json
from dagm_jax.data.config import SlicingConfig
from dagm_jax.distributed.processes import Processes
from dagm_jax.errors import Interrupted, UserError
from dagm_jax.experiment.resume import (
    check_length,
    check_same_run,
    read_progress,
)
from dagm_jax.experiment.run import train
from dagm_jax.experiment.timings import Timings
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.stopping import TrainConfig, TrainProgress

pytestmark = pytest.mark.filterwarnings("ignore")
QUALITIES = {1: 0.9, 2: 0.3, 3: 0.4}


def make_state(step: int) -> dict[str, np.ndarray]:
    """Arrays that the checkpoint's format holds in files of their own, and small ones, which it holds in its index."""
    rng = np.random.default_rng(step)
    return {
        "noise": rng.normal(size=(40, 50)).astype(np.float32),
        "zeros": np.zeros((64, 64), np.float32),
        "small": rng.normal(size=3),
        "step": np.array(step, np.int32),
    }


def make_meta(step: int) -> dict[str, Any]:
    return {"position": {"step": step, "end_step": None}, "mean": 107.25 + step}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints; the first is the best."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(folder) as checkpoints:
        for step, quality in QUALITIES.items():
            checkpoints.save(step, make_state(step), make_meta(step), quality)
    return folder


def assert_is(found: tuple[Any, dict[str, Any]], step: int) -> None:
    state, meta = found
    assert meta == make_meta(step)
    for name, wanted in make_state(step).items():
        assert np.asarray(state[name]).tobytes() == wanted.tobytes(), (step, name)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, place: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(bytes(data))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the three checkpoints, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "folder"))


def assert_restores(folder: Path, step: int) -> None:
    """The newest checkpoint that is whole is that of ``step``, and the first one is still the best."""
    with Checkpoints(folder) as checkpoints:
        found, *rest = checkpoints.restore_latest(lambda: make_state(0)) or pytest.fail("none")
        assert checkpoints.best_step() == 1
    assert found == step
    assert_is((rest[0], rest[1]), step)


@pytest.mark.parametrize("num_flips", [1, pytest.param(40, marks=pytest.mark.long)])
def test_no_flipped_bit_is_believed(num_flips: int, saved: Path, tmp_path: Path) -> None:
    """Would catch: arrays, a position or a mean that the disk has changed, taken for those of the run; and a traceback.

    Any bit of any file of the newest is flipped: what is restored is exactly it or exactly the one before it.
    """
    rng = random.Random(num_flips)
    stepped_back = set()
    names = [path.relative_to(saved / "3") for path in files_of(saved / "3")]
    assert len(names) > 10
    for name in names:
        size = (saved / "3" / name).stat().st_size
        for place in rng.sample(range(size), min(num_flips, size)):
            folder = Path(shutil.copytree(saved, tmp_path / "folder"))
            flip(folder / "3" / name, place, rng.randrange(8))
            with Checkpoints(folder) as checkpoints:
                step, *found = checkpoints.restore_latest(lambda: make_state(0)) or pytest.fail("none")
                assert step in (2, 3)
                assert_is((found[0], found[1]), step)
                assert checkpoints.best_step() == 1
            if step == 2:
                stepped_back.add(name.parts[0])
            shutil.rmtree(folder)
    assert {"state", "meta"} <= stepped_back


def cut_arrays(folder: Path) -> None:
    for path in (folder / "state").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def drop_everything(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def exchange_arrays(folder: Path) -> None:
    """Puts another step's arrays in, as a repair of a disk may; the format's own checksums are right."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent / "2" / "state", folder / "state")


def edit(text: str, changed: str) -> Callable[[Path], None]:
    """Changes a JSON value; another digit is as good JSON as the right one."""

    def damage(folder: Path) -> None:
        path = folder / "meta" / "metadata"
        before = path.read_text()
        assert text in before
        path.write_text(before.replace(text, changed))

    return damage


DAMAGES = {
    "cut arrays": cut_arrays,
    "cut meta": lambda folder: (folder / "meta" / "metadata").write_text("{"),
    "no state": lambda folder: shutil.rmtree(folder / "state"),
    "nothing": drop_everything,
    "other arrays": exchange_arrays,
    "other step": edit('"step": 3', '"step": 1'),
    "other mean": edit("110.25", "110.75"),
    "other quality": edit('"quality": 0.4', '"quality": 0.99'),
    "other key": edit('"sha256"', '"sha255"'),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_to_the_newest_costs_one_step_back(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch: a run that a damaged disk stops for good, that steps back without a word, or that fails when it
    comes to the damaged step again; a digest of the arrays alone."""
    DAMAGES[name](folder / "3")
    with caplog.at_level(logging.WARNING, "absl"):
        assert_restores(folder, 2)
    assert any("checkpoint of step 3 cannot be read" in record.getMessage() for record in caplog.records)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(3, make_state(3), make_meta(3), QUALITIES[3])
    assert_restores(folder, 3)


@pytest.mark.parametrize("text", ["8.5", '"abc"', "NaN", "[1]"])
def test_a_quality_that_changed_costs_no_other_checkpoint(text: str, folder: Path) -> None:
    """Would catch: a quality that is believed unchecked, for which the true best is removed at the next save."""
    edit('"quality": 0.3', f'"quality": {text}')(folder / "2")
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.best_step() == 1
        checkpoints.save(4, make_state(4), make_meta(4), 0.2)
    with Checkpoints(folder) as checkpoints:
        assert checkpoints.best_step() == 1
        assert_is(checkpoints.restore(1, make_state(0)), 1)


def quoting(number: int, kind: str) -> ValueError:
    """The error that tensorstore makes of one of the system's."""
    words = f"Error reading local file: Failed to open: {os.strerror(number)} [os_error_code='{number}']"
    return ValueError(f"{kind}: {words}")


PASSING: list[BaseException] = [
    OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
    quoting(errno.EMFILE, "RESOURCE_EXHAUSTED"),
    quoting(errno.ENOMEM, "RESOURCE_EXHAUSTED"),
    quoting(errno.ESTALE, "UNAVAILABLE"),
    quoting(errno.ETIMEDOUT, "DEADLINE_EXCEEDED"),
    quoting(errno.EACCES, "PERMISSION_DENIED"),
    Interrupted("terminated"),
]


@pytest.mark.parametrize("is_wrapped", [False, True])
@pytest.mark.parametrize("error", PASSING, ids=lambda error: str(error)[:20])
def test_an_error_that_passes_costs_no_checkpoint(
    error: BaseException, is_wrapped: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: the newest checkpoint, which is whole, removed because of a signal while it was read, for want of
    file handles or memory, or because a server was away."""

    def refuse(*_: Any) -> Any:
        if is_wrapped and isinstance(error, Exception):
            raise Exception("Encountered error while reading array index") from error
        raise error

    with Checkpoints(folder) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(checkpoints, "restore", refuse)
        with pytest.raises(Interrupted if isinstance(error, Interrupted) else OSError) as caught:
            checkpoints.restore_latest(lambda: make_state(0))
    if isinstance(caught.value, OSError):
        assert os.strerror(caught.value.errno or 0) in str(error)
    assert_restores(folder, 3)


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


def test_arrays_that_may_not_be_read_are_no_damage(saved: Path, tmp_path: Path) -> None:
    """Would catch: a whole checkpoint deleted because a file of its arrays could not be opened for the moment."""
    home = Path(tempfile.mkdtemp()) if os.geteuid() == 0 else tmp_path
    folder = Path(shutil.copytree(saved, home / "folder"))
    try:
        with without_rights(home):
            assert_restores(folder, 3)
        refused = 0
        # One by one: which of its files a restore reads differs from save to save.
        for path in list((folder / "3" / "state").rglob("d/*")):
            path.chmod(0)
            try:
                with without_rights(home):
                    assert_restores(folder, 3)
            except PermissionError:
                refused += 1
            path.chmod(0o644)
            assert_restores(folder, 3)
        assert refused, "no file of the arrays was needed"
    finally:
        if home != tmp_path:
            shutil.rmtree(home)


def test_what_another_process_cannot_read_is_not_taken(folder: Path) -> None:
    """Would catch: processes that go on from different steps, because the disk was damaged for one of them only."""
    asked: list[bool] = []

    class OtherCannotReadTheNewest(Processes):
        def any(self, flag: bool) -> bool:
            asked.append(flag)
            return flag or len(asked) == 1

    with Checkpoints(folder, OtherCannotReadTheNewest()) as checkpoints:
        step, *found = checkpoints.restore_latest(lambda: make_state(0)) or pytest.fail("none")
    assert (asked, step) == ([False, False], 2)
    assert_is((found[0], found[1]), 2)
    assert not (folder / "3").exists()


def test_where_all_are_damaged_nothing_is_touched(folder: Path) -> None:
    """Would catch: damaged checkpoints that are removed although nothing better is there to go on from; a silent start
    from the beginning in a workdir that holds hours of work."""
    for step in QUALITIES:
        for path in files_of(folder / str(step)):
            path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in files_of(folder)}
    message = r"`workdir` .*none of the checkpoints of steps \[3, 2, 1\] can be read"
    with Checkpoints(folder) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_latest(lambda: make_state(0))
    assert {path: path.read_bytes() for path in files_of(folder)} == before


# --- the workdir of another run -----------------------------------------------------------------------------

OTHERS = {
    "network": ("configs/unet3plus.py", (), "model.name=custom_unet, not unet3plus"),
    "task": ("configs/custom_unet.py:classification", (), "task.name=segmentation, not classification"),
    "width": (
        "configs/custom_unet.py",
        ("--config.model.base_channels=8",),
        "model.base_channels=16, not 8 (1 fields differ)",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_and_both_values_are_named(name: str, tmp_path: Path) -> None:
    """Would catch: two runs in one workdir; a message that names one of thirty fields that follow from the network."""
    path, overrides, message = OTHERS[name]
    (tmp_path / "config.json").write_text(to_json(RunConfig()))
    with pytest.raises(UserError, match=re.escape(message)):
        check_same_run(read_config(path, overrides), Workdir(tmp_path))


def test_what_may_change_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch: another rhythm of the log refused, or taken without a word."""
    (tmp_path / "config.json").write_text(to_json(RunConfig()))
    config = RunConfig(train=TrainConfig(log_every=7, num_steps=1000))
    check_same_run(config, Workdir(tmp_path))
    out = capsys.readouterr().out
    assert f"{tmp_path} holds a run with train.log_every=5; it goes on with 7\n" in out
    assert f"{tmp_path} holds a run with train.num_steps=0; it goes on with 1000\n" in out
    check_same_run(RunConfig(), Workdir(tmp_path))
    assert capsys.readouterr().out == ""
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"train.num_steps=0, not 1000 \(1 fields differ\)"):
        check_same_run(config, Workdir(tmp_path))


@pytest.mark.parametrize("asked", [TrainConfig(), TrainConfig(max_minutes=5.0)])
@pytest.mark.parametrize("is_finished", [False, True])
def test_runs_of_releases_without_minutes_keep_their_bound(
    asked: TrainConfig, is_finished: bool, tmp_path: Path
) -> None:
    """Would catch: a run that this command began with an earlier release, which it finds no more."""
    values = json.loads(to_json(RunConfig(train=TrainConfig(num_steps=720))))
    for name in ("max_minutes", "target_margin"):
        del values["train"][name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    if is_finished:
        (tmp_path / "report.json").write_text("{}")
    train = check_same_run(RunConfig(train=asked), Workdir(tmp_path)).train
    assert (train.num_steps, train.max_minutes) == (720, 0.0)


def test_a_run_keeps_the_slices_that_it_has_found(tmp_path: Path) -> None:
    """Would catch: a run that goes on with tiles after strips, since an image was added, and one that no command with
    the mode that it began with continues."""
    found = SlicingConfig("tiles", slice_px=96, slice_height_px=96, downscale=2)
    (tmp_path / "config.json").write_text(to_json(RunConfig(slicing=found)))
    assert check_same_run(RunConfig(), Workdir(tmp_path)).slicing == found
    strips = RunConfig(slicing=SlicingConfig("auto", slice_px=32))
    (tmp_path / "config.json").write_text(to_json(RunConfig(slicing=SlicingConfig())))
    with pytest.raises(UserError, match=r"slicing\.slice_px=64, not 32"):
        check_same_run(strips, Workdir(tmp_path))
    (tmp_path / "config.json").write_text(to_json(RunConfig(slicing=SlicingConfig("whole"))))
    with pytest.raises(UserError, match=r"slicing\.mode=whole, not auto"):
        check_same_run(RunConfig(), Workdir(tmp_path))
    (tmp_path / "config.json").write_text(to_json(RunConfig(slicing=found)))
    with pytest.raises(UserError, match=r"--config\.slicing\.mode=tiles"):
        check_same_run(RunConfig(slicing=SlicingConfig("strips")), Workdir(tmp_path))
    with pytest.raises(UserError, match=r"slicing\.num_slices=30, not 12"):
        check_same_run(RunConfig(slicing=SlicingConfig("auto", num_slices=12)), Workdir(tmp_path))


@pytest.mark.parametrize(
    ("progress", "num_steps", "match"),
    [
        (TrainProgress(step=360), 2000, None),
        (TrainProgress(step=299), 600, None),
        (TrainProgress(step=300), 600, r"`train.num_steps` \(=600\).* step 300, at or past the 300 at which"),
        (TrainProgress(step=301), 600, "at step 301, at or past the 300 at which"),
        (
            TrainProgress(step=360, end_step=720),
            2000,
            r"\(=2000\).*train.num_steps=720 .* its end at step 720",
        ),
        (TrainProgress(step=360, end_step=720), 720, None),
    ],
)
def test_a_run_may_become_longer_until_it_cools_down(
    progress: TrainProgress, num_steps: int, match: str | None, tmp_path: Path
) -> None:
    """Would catch: a length that changes when the learning rate already falls towards an end that moves away."""
    config = TrainConfig(num_steps=num_steps)
    if match is None:
        check_length(config, progress, 720, Workdir(tmp_path))
    else:
        with pytest.raises(UserError, match=match):
            check_length(config, progress, 720, Workdir(tmp_path))


def test_a_bound_in_steps_takes_the_place_of_one_in_minutes_until_the_cool_down(tmp_path: Path) -> None:
    """Would catch: a bound that the first steps have shown taken for none, so that any other one fits it."""
    timed = TrainProgress(step=300, num_steps=720)
    check_length(TrainConfig(), timed, 0, Workdir(tmp_path))
    check_length(TrainConfig(num_steps=2000), timed, 0, Workdir(tmp_path))
    with pytest.raises(UserError, match=r"`train.num_steps` \(=600\).* step 300, at or past the 300"):
        check_length(TrainConfig(num_steps=600), timed, 0, Workdir(tmp_path))
    for stored, progress in ((0, timed), (720, TrainProgress(step=400, end_step=720))):
        check_length(TrainConfig(), progress, stored, Workdir(tmp_path))
        check_length(TrainConfig(num_steps=720), progress, stored, Workdir(tmp_path))
    cooling = replace(timed, step=400, end_step=720)
    with pytest.raises(UserError, match=r"which can no longer move; use 0, or another workdir"):
        check_length(TrainConfig(num_steps=800), cooling, 0, Workdir(tmp_path))


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    """Would catch: images exchanged while a run stood still, and a network standardised by one set's greys and trained
    on the other's."""
    data = SimpleNamespace(mean=100.25, std=30.0)
    setup = cast(
        Any, SimpleNamespace(config=RunConfig(), data=data, timings=Timings(), initial_state=lambda: None)
    )
    kept = {"position": asdict(TrainProgress(step=3)), "config": {"train": {"num_steps": 720}}}
    for greys in ({"mean": 100.26, "std": 30.0}, {"mean": 100.25, "std": 30.01}):
        found = (3, None, kept | greys)
        checkpoints = cast(Any, SimpleNamespace(restore_latest=lambda like, found=found: found))
        with pytest.raises(UserError, match=r"on other images: the (mean|std) of its training split is"):
            train(setup, checkpoints, Workdir(tmp_path))
    assert not list(tmp_path.iterdir())
    same = kept | {"mean": 100.25, "std": 30.0}
    assert read_progress(same, cast(Any, data), TrainConfig(), Workdir(tmp_path)).step == 3


def test_no_fewer_steps_may_be_skipped_than_have_been(tmp_path: Path) -> None:
    """Would catch: a run whose every step is over the bound: it moves nothing and reports good figures."""
    progress, data = TrainProgress(step=9, num_skipped=3), cast(Any, SimpleNamespace(mean=1.0, std=1.0))
    meta = {"position": asdict(progress), "mean": 1.0, "std": 1.0}
    for allowed in (3, 4):
        assert read_progress(meta, data, TrainConfig(skip_non_finite=allowed), Workdir(tmp_path)) == progress
    with pytest.raises(UserError, match=r"`train.skip_non_finite` \(=2\).* skipped 3 steps .*at least 3"):
        read_progress(meta, data, TrainConfig(skip_non_finite=2), Workdir(tmp_path))


def test_what_another_release_wrote_is_named(tmp_path: Path) -> None:
    """Would catch: a traceback, or a message that sends people to look at their own command line."""
    (tmp_path / "config.json").write_text(json.dumps(json.loads(to_json(RunConfig())) | {"sharpness": 1}))
    with pytest.raises(
        UserError, match=r"`workdir` \(=.*does not read, written by dagm-jax unknown.*sharpness"
    ):
        check_same_run(RunConfig(), Workdir(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"`workdir` \(=.*config.json is not JSON"):
        check_same_run(RunConfig(), Workdir(tmp_path))
    meta = {"position": {"step": 3, "mood": 1}, "versions": {"dagm-jax": "9.8.7", "jax": "1.2.3"}}
    with pytest.raises(UserError, match=r"written by dagm-jax 9\.8\.7 and jax 1\.2\.3.*mood"):
        read_progress(meta, cast(Any, None), TrainConfig(), Workdir(tmp_path))


# --- other devices ------------------------------------------------------------------------------------------

# Two steps on one device, a checkpoint, and the third on 1, 2, 4 and 8 after a restore onto them.
DEVICES = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from dagm_jax.distributed import devices as d
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.optim import OptimConfig, make_optimizer
from dagm_jax.train.step import TrainState, make_state

assert jax.device_count() == 8
optimizer = make_optimizer(OptimConfig())
rng = np.random.default_rng(0)
params, stats = {"w": rng.normal(size=(1024, 2)).astype(np.float32)}, {"seen": np.zeros(3, np.float32)}

def fit(state, batch):
    # Weights and labels of the whole batch: the sum goes over all devices.
    def loss(params):
        return jnp.mean((batch["image"].reshape(8, -1) / 255 @ params["w"] - batch["label"][:, None]) ** 2)
    updates, opt_state = optimizer.update(jax.grad(loss)(state.params), state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: p - 1e-2 * u, state.params, updates)
    stats = {"seen": state.stats["seen"] + batch["image"].mean()}
    return TrainState(state.step + 1, state.cooldown, params, stats, opt_state), {}

def prepare(num):
    devices = d.Devices(d._mesh_of(jax.devices()[:num]), None)
    laid_out = devices.lay_out(fit)

    def fresh():
        return devices.replicate(make_state(*jax.tree.map(np.array, (params, stats)), optimizer))

    def take(state, batch):
        return jax.block_until_ready(laid_out(state, devices.shard_training_batch(batch))[0])

    return fresh, take

def draw():
    return {"image": rng.integers(0, 256, (8, 32, 32, 1), np.uint8), "label": np.array([1, 0] * 4, np.int32)}

batches = [draw() for _ in range(3)]
fresh, take = prepare(1)
state = take(take(fresh(), batches[0]), batches[1])
before = jax.tree.map(np.array, state)
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(2, state, {}, 0.5)
expected = jax.tree.map(np.array, take(state, batches[2]))
assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before.params, expected.params)))) > 1e-4
for num in (1, 2, 4, 8):
    fresh, take = prepare(num)
    with Checkpoints(Path(sys.argv[1])) as checkpoints:
        restored = checkpoints.restore_latest(fresh)[1]
    assert all(len(leaf.devices()) == num for leaf in jax.tree.leaves(restored))
    got = take(restored, batches[2])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a), b, rtol=1e-6, atol=1e-6)
    print(num)
"""


def test_a_checkpoint_restored_onto_other_devices_takes_the_same_step(tmp_path: Path) -> None:
    """Would catch: a state that fits only the devices that it was saved on, or is split where it was whole."""
    # NPROC: fewer threads than devices could deadlock in a sum over them.
    more = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick.xla_flags(8), "NPROC": "64"}
    done = run_python("-c", DEVICES, tmp_path / "checkpoints", **more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "1\n2\n4\n8\n"

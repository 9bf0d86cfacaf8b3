"""Checkpoints that a disk has changed, workdirs of another run, and restores onto other devices."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import quick
from shell import REPOSITORY

from dagm_jax.command_line import read_config
from dagm_jax.config import RunConfig, to_json
from dagm_jax.data.cache import ImageCache
from dagm_jax.data.config import SlicingConfig
from dagm_jax.data.pipeline import make_training_stream
from dagm_jax.data.slicing import Slicer, make_slicer
from dagm_jax.errors import UserError
from dagm_jax.experiment.resume import (
    check_images,
    check_length,
    check_same_run,
    check_skips,
    read_progress,
)
from dagm_jax.experiment.run import choose_state, train
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.schedule import TrainConfig, TrainProgress

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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("num_flips", [1, pytest.param(40, marks=pytest.mark.long)])
def test_no_flipped_bit_is_believed(num_flips: int, saved: Path, tmp_path: Path) -> None:
    """Would catch: arrays, a position or a mean that the disk has changed, taken for those of the run; and a traceback.

    Whatever bit of whatever file of the newest is flipped: what is restored is exactly it or exactly the one before it.
    """
    rng = random.Random(num_flips)
    stepped_back = set()
    names = [path.relative_to(saved / "3") for path in files_of(saved / "3")]
    assert len(names) > 10
    for name in names:
        size = (saved / "3" / name).stat().st_size
        for place in rng.sample(range(size), min(num_flips, size)):
            folder = tmp_path / "folder"
            shutil.copytree(saved, folder)
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ('"step": 3', '"step": 1'),
        ("110.25", "110.75"),
        ('"quality": 0.4', '"quality": 0.99'),
        ('"sha256"', '"sha255"'),
    ],
)
def test_a_json_value_that_changed_costs_one_step_back(
    pattern: str, text: str, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Would catch: a digest of the arrays alone; another digit is as good JSON as the right one."""
    shutil.copytree(saved, tmp_path / "folder")
    path = tmp_path / "folder" / "3" / "meta" / "metadata"
    before = path.read_text()
    assert pattern in before
    path.write_text(before.replace(pattern, text))
    with caplog.at_level(logging.WARNING, "absl"), Checkpoints(tmp_path / "folder") as checkpoints:
        step, *found = checkpoints.restore_latest(lambda: make_state(0)) or pytest.fail("none")
        assert checkpoints.best_step() == 1
    assert step == 2
    assert_is((found[0], found[1]), 2)
    assert any("checkpoint of step 3 cannot be read (Damaged" in r.getMessage() for r in caplog.samples)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", ['"quality": 8.5', '"quality": "abc"', '"quality": NaN', '"quality": [1]'])
def test_a_quality_that_changed_costs_no_other_checkpoint(text: str, saved: Path, tmp_path: Path) -> None:
    """Would catch: a quality that is believed unread, for which the true best is removed at the next save."""
    shutil.copytree(saved, tmp_path / "folder")
    path = tmp_path / "folder" / "2" / "meta" / "metadata"
    before = path.read_text()
    assert '"quality": 0.3' in before
    path.write_text(before.replace('"quality": 0.3', text))
    with Checkpoints(tmp_path / "folder") as checkpoints:
        assert checkpoints.best_step() == 1
        checkpoints.save(4, make_state(4), make_meta(4), 0.2)
    with Checkpoints(tmp_path / "folder") as checkpoints:
        assert checkpoints.best_step() == 1
        assert_is(checkpoints.restore(1, make_state(0)), 1)


@pytest.mark.filterwarnings("ignore")
def test_an_error_that_passes_costs_no_checkpoint(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: the newest checkpoint, which is whole, removed because too many files were open for a moment."""
    shutil.copytree(saved, tmp_path / "folder")
    with Checkpoints(tmp_path / "folder") as checkpoints:

        def restore(step: int, like: Any) -> Any:
            raise OSError(errno.EMFILE, "Too many open files")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "restore", restore)
            with pytest.raises(OSError, match="Too many open files"):
                checkpoints.restore_latest(lambda: make_state(0))
        step, *_ = checkpoints.restore_latest(lambda: make_state(0)) or pytest.fail("none")
    assert step == 3


@pytest.mark.filterwarnings("ignore")
def test_arrays_of_another_checkpoint_are_not_taken(saved: Path, tmp_path: Path) -> None:
    """Would catch: files that are whole in themselves and belong to another step, as a repair of a disk may leave them.

    No checksum of the format's own can see that; the digest must.
    """
    shutil.copytree(saved, tmp_path / "folder")
    shutil.rmtree(tmp_path / "folder" / "3" / "state")
    shutil.copytree(saved / "2" / "state", tmp_path / "folder" / "3" / "state")
    with Checkpoints(tmp_path / "folder") as checkpoints:
        step, *found = checkpoints.restore_latest(lambda: make_state(0)) or pytest.fail("none")
    assert step == 2
    assert_is((found[0], found[1]), 2)


@pytest.mark.filterwarnings("ignore")
def test_where_all_are_damaged_nothing_is_touched(saved: Path, tmp_path: Path) -> None:
    """Would catch: damaged checkpoints that are removed although nothing better is there to go on from."""
    folder = tmp_path / "folder"
    shutil.copytree(saved, folder)
    for step in QUALITIES:
        for path in files_of(folder / str(step)):
            path.write_bytes(path.read_bytes()[:-1])
    before = {path: path.read_bytes() for path in files_of(folder)}
    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(
            UserError, match=r"`workdir` .*none of the checkpoints of steps \[3, 2, 1\] can be read"
        ),
    ):
        checkpoints.restore_latest(lambda: make_state(0))
    assert {path: path.read_bytes() for path in files_of(folder)} == before


class Whole(SimpleNamespace):
    """Checkpoints of which some can be restored."""

    def restore_or_warn(self, step: int, like: Callable[[], Any]) -> tuple[str, dict[str, Any]] | None:
        return (f"state {step}", {}) if step in self.whole else None


@pytest.mark.parametrize(("whole", "chosen"), [({4}, 4), ({12}, 12)])
def test_of_the_best_and_the_last_the_whole_one_is_judged(whole: set[int], chosen: int) -> None:
    """Would catch: hours of training without a report because one of two checkpoints is damaged."""
    checkpoints = Whole(best_step=lambda: 4, whole=whole)
    setup = cast(Any, SimpleNamespace(initial_state=lambda: None))
    choose = choose_state(setup, cast(Any, checkpoints), 12, Workdir(Path("here")))
    assert choose == (chosen, f"state {chosen}")


def test_without_a_whole_checkpoint_nothing_is_judged() -> None:
    """Would catch: a report on a state that was never trained."""
    checkpoints = Whole(best_step=lambda: 4, whole=set())
    setup = cast(Any, SimpleNamespace(initial_state=lambda: None))
    with pytest.raises(
        UserError, match=r"`workdir` \(=here\): none of the checkpoints of steps \[4, 12\] can be read"
    ):
        choose_state(setup, cast(Any, checkpoints), 12, Workdir(Path("here")))


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
    assert f"{tmp_path} holds a run with train.num_steps=720; it goes on with 1000\n" in out
    check_same_run(RunConfig(), Workdir(tmp_path))
    assert capsys.readouterr().out == ""
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(UserError, match=r"train.num_steps=720, not 1000 \(1 fields differ\)"):
        check_same_run(config, Workdir(tmp_path))


@pytest.mark.parametrize(
    ("position", "num_steps", "match"),
    [
        (TrainProgress(step=300), 2000, None),
        (TrainProgress(step=299), 600, None),
        (
            TrainProgress(step=300),
            600,
            r"`train.num_steps` \(=600\).* at step 300, at or past the 300 at which",
        ),
        (TrainProgress(step=360, validated=False), 2000, None),
        (TrainProgress(step=301), 600, r"at step 301, at or past the 300 at which"),
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


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path) -> None:
    """Would catch: images exchanged while a run stood still, and a network standardised by one set's greys and trained
    on the other's."""
    data = SimpleNamespace(mean=100.25, std=30.0)
    setup = cast(Any, SimpleNamespace(config=RunConfig(), data=data, initial_state=lambda: None))
    kept = {"position": asdict(TrainProgress(step=3)), "config": {"train": {"num_steps": 720}}}
    for greys in ({"mean": 100.26, "std": 30.0}, {"mean": 100.25, "std": 30.01}):
        found = (3, None, kept | greys)
        checkpoints = cast(Any, SimpleNamespace(restore_latest=lambda like, found=found: found))
        with pytest.raises(
            UserError, match=r"holds a run on other images: the (mean|std) of its training side is"
        ):
            train(setup, checkpoints, Workdir(tmp_path))
    assert not list(tmp_path.iterdir())
    check_images(cast(Any, data), {"mean": 100.25, "std": 30.0}, Workdir(tmp_path))


def test_no_fewer_steps_may_be_skipped_than_have_been(tmp_path: Path) -> None:
    """Would catch: a run whose every step is over the bound: it moves nothing and reports good figures."""
    for allowed in (3, 4):
        check_skips(
            TrainConfig(skip_non_finite=allowed), TrainProgress(step=9, num_skipped=3), Workdir(tmp_path)
        )
    with pytest.raises(UserError, match=r"`train.skip_non_finite` \(=2\).* skipped 3 steps .*at least 3"):
        check_skips(TrainConfig(skip_non_finite=2), TrainProgress(step=9, num_skipped=3), Workdir(tmp_path))


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
        read_progress(meta, Workdir(tmp_path))


class Drawn(ImageCache):
    """Twelve small images of noise, the first four with a square of defect, in no file."""

    def __init__(self) -> None:
        super().__init__(Path("nowhere"), ((32, 32),) * 12, (0,) * 12)

    def image(self, index: int) -> np.ndarray:
        return np.random.default_rng(index).integers(0, 256, (32, 32), np.uint8)

    def mask(self, index: int) -> np.ndarray:
        mask = np.zeros((32, 32), bool)
        if index < 4:
            mask[8:20, 8:20] = True
        return mask


@pytest.mark.parametrize("balance", [True, False])
def test_a_longer_run_begins_with_the_batches_of_a_shorter_one(balance: bool) -> None:
    """Would catch: an order of images that depends on how many steps are planned: no run could become longer."""
    slicer: Slicer = make_slicer(SlicingConfig(num_slices=4, slice_px=16), 32, 32)
    augment = RunConfig().augment

    def stream(num_batches: int) -> Any:
        return make_training_stream(
            Drawn(), range(4), range(4, 12), slicer, augment,
            batch_size=4, num_batches=num_batches, balance=balance, seed=3,
        )  # fmt: skip

    short, long = stream(9), stream(40)
    for step in range(9):
        a, b = short[step], long[step]
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# --- other devices ------------------------------------------------------------------------------------------

# Two steps on one device, a checkpoint, and the third on 1, 2, 4 and 8 after a restore onto them.
DEVICES = """
import sys
from functools import partial
from dataclasses import asdict
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from dagm_jax.experiment.trained_model import build_network
from dagm_jax.main import read_config
from dagm_jax.train import parallel
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.optim import learning_rate, make_optimizer
from dagm_jax.train.step import TrainState, make_state, make_train_step

assert jax.device_count() == 8
sys.path.insert(0, "tests")
import tiny
# In double precision, where Adam cannot make much of the order of sums.
precise = ["--config.model.compute_dtype=float64"] * jax.config.jax_enable_x64
config = read_config("configs/conv_autoencoder.py", [*tiny.ARGUMENTS[1:], *precise])
optimizer = make_optimizer(config.optim)
rng = np.random.default_rng(0)
if sys.argv[2] == "network":
    network, params, stats = build_network(config, 100.0, 30.0)
else:
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
    devices = parallel.Devices(parallel._mesh_of(jax.devices()[:num]), None)
    step = fit
    if sys.argv[2] == "network":
        schedule = partial(learning_rate, config.optim)
        step = make_train_step(network, config.task, optimizer, schedule, 0, None, num_shards=num)
    laid_out = devices.lay_out(step)

    def fresh():
        copies = jax.tree.map(np.array, (params, stats))
        return devices.replicate(make_state(*copies, optimizer))

    def take(state, batch):
        return jax.block_until_ready(laid_out(state, devices.shard_training_batch(batch))[0])

    return fresh, take

def draw():
    return {
        "image": rng.integers(0, 256, (8, 32, 32, 1), np.uint8),
        "mask": (rng.random((8, 32, 32, 1)) < 0.1).astype(np.uint8),
        "label": np.array([1, 0] * 4, np.int32),
        "valid": np.ones(8, bool),
        "image_index": np.arange(8, dtype=np.int32),
    }

batches = [draw() for _ in range(3)]
fresh, take = prepare(1)
state = fresh()
for batch in batches[:2]:
    state = take(state, batch)
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


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("step", ["linear", pytest.param("network", marks=pytest.mark.long)])
def test_a_checkpoint_restored_onto_other_devices_takes_the_same_step(step: str, tmp_path: Path) -> None:
    """Would catch: a state that fits only the devices that it was saved on, or is split where it was whole."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(step == "network")),
        "XLA_FLAGS": quick.xla_flags(8),
        # Fewer threads than devices could deadlock in a sum over them.
        "NPROC": "64",
    }
    command = [sys.executable, "-c", DEVICES, str(tmp_path / "checkpoints"), step]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=1100
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "1\n2\n4\n8\n"

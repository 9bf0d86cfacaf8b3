"""Numbers that are not finite stop a run, with a batch to repeat it by, or are skipped; and what precision costs."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small_run import own_run, write_own
from tiny_network import replace_unet

from dagm_jax import experiment, replay
from dagm_jax.config import RunConfig, to_json
from dagm_jax.data.cache import build_cache
from dagm_jax.data.sources import find_images
from dagm_jax.evaluation.metrics import auroc
from dagm_jax.evaluation.predictor import NonFiniteOutput, Predictor
from dagm_jax.evaluation.threshold import VerdictConfig
from dagm_jax.main import read_config
from dagm_jax.models.blocks import BatchNorm
from dagm_jax.models.custom_unet import CustomUNetConfig
from dagm_jax.tasks import losses
from dagm_jax.tasks.base import Lesson
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train import kept_batch, step
from dagm_jax.train.loop import NonFinite
from dagm_jax.train.optim import make_optimizer
from dagm_jax.train.parallel import ParallelConfig, make_devices
from dagm_jax.train.progress import read_history
from dagm_jax.trained_model import TrainedModel, build_network, load_trained_model
from dagm_jax.types import NetworkOutput, UserError

real_learn = SegmentationConfig.learn


def poisoned_learn(task: Any, forward: Any, slices: Any, key: jax.Array) -> Lesson:
    """The real lesson, but that the loss of the third slice is NaN in the second step of a run of seed 0."""
    lesson = real_learn(task, forward, slices, key)
    second = jax.random.key_data(jax.random.fold_in(jax.random.key(0), 1))
    is_bad = (slices["place"] == 2) & (jax.random.key_data(key) == second).all()
    return lesson._replace(loss=lesson.loss * jnp.where(is_bad, jnp.nan, 1.0))


def test_a_run_stops_repeats_its_batch_and_goes_on_by_skipping_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a batch that is not the step's, weights of another moment beside it, a NaN of one slice that is told
    of all (NaN · 0 is NaN), and a count that is not told.

    The log is looked at after four steps, when NaN would be in every weight.
    """
    monkeypatch.setattr(SegmentationConfig, "learn", poisoned_learn)
    replace_unet(monkeypatch)
    root = write_own(tmp_path / "own", num_good=16, num_defective=12)
    train = {"num_steps": 4, "validate_every": 3, "log_every": 4, "cooldown_share": 0.0}
    overrides = [f"--config.train.{name}={value}" for name, value in train.items()]
    config = read_config(
        "configs/smoke.py", (f"--config.data.root={root}", "--config.slicing.slice_px=16", *overrides)
    )
    workdir = tmp_path / "run"
    with pytest.raises(
        NonFinite, match=r"stopped at step 2: .*loss nan; learning rate .* of the batch: .*png"
    ):
        experiment.run(config, workdir)
    assert replay.main(["replay", f"--batch={workdir}/non_finite_step_2.npz"]) == 0
    lines = capsys.readouterr().out.partition("step 2, slice by slice")[2].splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    kept = kept_batch.load(workdir / "non_finite_step_2.npz")
    assert [row[0] for row in rows] == [*kept.image_ids, "whole batch"]
    assert [[cell == "nan" for cell in row[2:]] for row in rows] == [
        [name == "bad", name == "bad"] for name in ("", "", "bad", "", "bad")
    ]

    report = experiment.run(replace(config, train=replace(config.train, skip_non_finite=1)), workdir)
    assert report["training"]["skipped_steps"] == 1 and report["training"]["last_step"] == 4
    first, second = (row for row in read_history(workdir / "metrics.jsonl") if row["kind"] == "train")
    assert (first["step"], first["skipped_steps"]) == (3, 1) and np.isfinite(first["loss"])
    assert second["skipped_steps"] == 1
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").glob("events*"))
    assert b"train/skipped_steps" in events


@pytest.mark.parametrize(("evidence", "name"), [("probability", "map"), ("slices", "slice_scores")])
def test_weights_beyond_float32_end_in_one_line(evidence: Any, name: str) -> None:
    """Would catch: a validation whose scores are NaN shown as a traceback, or ranked as if they were scores.

    The last step's loss may be finite, and move the weights so far that what they give no longer is.
    """
    out = {
        "map": np.zeros((1, 8, 8), np.float32),
        "slice_scores": np.zeros((1, 2), np.float32),
        "loss": np.zeros(1),
        "num_right": np.zeros(1),
        "num_counted": np.zeros(1),
    }
    out[name][0, 0] = np.nan
    devices, fake = (
        make_devices(ParallelConfig(cpu_convolutions="default")),
        cast(Any, lambda *arguments: out),
    )
    judge = Predictor(fake, {}, {}, devices, 1, (8, 8), VerdictConfig(), evidence)
    good = {key: np.zeros_like(value) for key, value in out.items()}
    answers = iter([good, good, out])
    judge = replace(judge, compiled=cast(Any, lambda *arguments: next(answers)))
    pixels = [(np.zeros((h, 8), np.uint8), np.zeros((h, 8), bool)) for h in (8, 8, 5)]
    with pytest.raises(
        NonFiniteOutput,
        match=r"output for image 3 of those given, 5x8 px .* is not finite.*lower `optim.learn",
    ) as caught:
        list(judge(pixels))
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.place, str(again)) == (2, str(caught.value))


class Sum(nnx.Module):
    """A weighted sum of the channels; with ``norm`` normalised over the batch."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        self.kernel = nnx.Param(jnp.full((in_channels, out_channels), 0.5))
        self.norm = BatchNorm(out_channels) if norm == "batch" else None

    def __call__(self, x: jax.Array, *, train: bool, key: Any) -> NetworkOutput:
        del key
        x = x @ self.kernel[...]
        return NetworkOutput(x if self.norm is None else self.norm(x, train=train))


def kept_of(config: RunConfig, grey: np.ndarray, std: float) -> kept_batch.KeptBatch:
    """A batch of good slices of 8 px, each of one grey, before the first step of a run whose mean grey is 100."""
    _, params, stats = build_network(config, 100.0, std)
    state = step.make_state(params, stats, make_optimizer(config.optim))
    b = len(grey)
    image = np.broadcast_to(grey.astype(np.uint8)[:, None, None, None], (b, 8, 8, 1))
    leaves = jax.tree_util.tree_leaves_with_path((params, stats))
    names = (kept_batch.PARAMS, kept_batch.STATS)
    return kept_batch.KeptBatch(
        step=0,
        cooldown=np.asarray(state.cooldown),
        batch={
            "image": image,
            "mask": np.zeros_like(image),
            "label": np.zeros(b, np.int32),
            "valid": np.ones(b, bool),
            "image_index": np.arange(b, dtype=np.int32),
        },
        image_ids=tuple(map(str, range(b))),
        config=json.loads(to_json(config)),
        mean=100.0,
        std=std,
        arrays={
            names[path[0].idx] + jax.tree_util.keystr(path[1:]): np.asarray(leaf) for path, leaf in leaves
        },
    )


def with_sum(patch: pytest.MonkeyPatch, norm: str, accumulate: int) -> RunConfig:
    """A configuration whose network is a `Sum`."""
    patch.setattr(
        CustomUNetConfig, "build", lambda self, rngs, axis_name, **channels: Sum(**channels, norm=norm)
    )
    return read_config("configs/smoke.py", [f"--config.train.accumulate={accumulate}"])


@pytest.mark.parametrize(("norm", "accumulate", "mixed"), [("none", 1, [3]), ("batch", 2, [2, 3])])
def test_the_slice_with_activations_beyond_float32_is_found(
    norm: str, accumulate: int, mixed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a NaN told of slices that it is not of, because leaving them out multiplies it by 0.

    Grey 255 is (255 - 100) / 3e-37 = 5e38, which float32 does not have; grey 100 is 0. Batch norm mixes the slices of
    the second of two parts of the batch.
    """
    config = with_sum(monkeypatch, norm, accumulate)
    found = replay.repeat(kept_of(config, np.array([100, 100, 100, 255]), 3e-37))
    assert not np.isfinite(found.loss) and not np.isfinite(found.grad_norm)
    losses, norms = np.array(found.of_slices).T
    assert np.flatnonzero(~np.isfinite(losses)).tolist() == mixed
    assert np.flatnonzero(~np.isfinite(norms)).tolist() == [3]


def test_figures_of_slices_are_those_of_their_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: losses of slices in another order than theirs where the batch is worked off in parts, gradients of
    another loss or of the whole batch.

    Of good slices brighter than the mean all gradients have one direction, so that their norms have a mean too.
    """
    found = replay.repeat(kept_of(with_sum(monkeypatch, "none", 2), np.array([110, 120, 150, 200]), 50.0))
    losses, norms = np.array(found.of_slices).T
    assert (np.diff(losses) > 0).all()
    assert losses.mean() == pytest.approx(found.loss, rel=1e-5)
    assert norms.mean() == pytest.approx(found.grad_norm, rel=1e-5)
    assert len(set(norms.tolist())) == 4


# --- the kept batch -----------------------------------------------------------------------------------------


def kept_file(tmp_path: Path) -> Path:
    state = step.TrainState(jnp.int32(3), jnp.zeros(2, jnp.int32), {"w": jnp.ones(2)}, {}, ())
    batch = {
        name: np.zeros((2, 4, 4, 1) if name in ("image", "mask") else 2, np.uint8)
        for name in kept_batch.BATCH
    }
    path = tmp_path / "non_finite_step_4.npz"
    kept_batch.save(path, state, batch, ["a", "b"], {"config": {"seed": 7}, "mean": 1.0, "std": 2.0})
    return path


def test_a_kept_batch_comes_back(tmp_path: Path) -> None:
    """Would catch: a step's number off by one, ids that need pickle, arrays under other names than they are read by."""
    kept = kept_batch.load(kept_file(tmp_path))
    assert (kept.step, kept.image_ids, kept.mean, kept.std, kept.config) == (
        3,
        ("a", "b"),
        1.0,
        2.0,
        {"seed": 7},
    )
    np.testing.assert_array_equal(kept.fill("params", {"w": np.zeros(2, np.float32)})["w"], [1, 1])
    with pytest.raises(
        UserError, match=r"params\['w'\] is float32 \(2,\), and its configuration has float32 \(3,\)"
    ):
        kept.fill("params", {"w": np.zeros(3, np.float32)})
    with pytest.raises(UserError, match=r"params\['v'\] is not there"):
        kept.fill("params", {"v": np.zeros(2, np.float32)})


class Trap:
    """What unpickling calls; it must never be."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("unpickled",)


@pytest.mark.parametrize("damage", ["pickle", "packed", "cut", "text", "missing", "folder",
                                    "no config", "nested", "no array", "endless"])  # fmt: skip
def test_a_file_that_is_no_kept_batch_is_one_line(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: code in a stranger's file executed, a small file that unpacks to gigabytes, a traceback."""
    path = kept_file(tmp_path)
    with np.load(path) as file:
        arrays: dict[str, Any] = {name: file[name] for name in file.files}
    match damage:
        case "pickle":
            np.savez(path, **(arrays | {"image": np.array([Trap()], object)}))
        case "packed":
            np.savez_compressed(path, **(arrays | {"image": np.zeros((1, 4096, 4096, 1), np.uint8)}))
            assert path.stat().st_size < 100_000
        case "cut":
            path.write_bytes(path.read_bytes()[:-40])
        case "text":
            path.write_text("loss nan")
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "nested":
            np.savez(path, **(arrays | {"config": np.array("[" * 200_000)}))
        case "no array":
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr("params['w']", b"text")
        case "endless":
            np.savez(path, **(arrays | {"step": np.array(np.inf)}))
        case _:
            np.savez(path, **(arrays | {"config": np.array("[1]")}))
    with pytest.raises(UserError, match=r"`batch` \(=.*npz\) (is no batch|cannot be read)") as caught:
        kept_batch.load(path)
    assert "\n" not in str(caught.value) and "unpickled" not in capsys.readouterr().out


# --- precision ----------------------------------------------------------------------------------------------


def of_ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    return losses.ssim(jax.nn.sigmoid(x), y, 1.0)


def of_scales(x: jax.Array, y: jax.Array) -> jax.Array:
    return losses.multiscale_ssim(jax.nn.sigmoid(x), y, 1.0)


# What no rounding of float32 may move by more than this share of 1 + the value; the largest found was 2e-6.
LOSS_DISTANCE = 1e-5


@pytest.mark.parametrize(
    "loss",
    [losses.binary_cross_entropy, losses.soft_dice, losses.focal, losses.soft_iou, of_ssim, of_scales],
    ids=["cross entropy", "dice", "focal", "iou", "ssim", "ssim of scales"],
)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_float32_losses_are_those_of_float64(loss: Callable[..., jax.Array], scale: float) -> None:
    """Would catch: sums that cancel, such as E[x²] - E[x]² of bright images, or a logarithm of a rounded 1."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, scale, (2, 48, 48, 1)).astype(np.float32)
    targets = (rng.random(logits.shape) < 0.1).astype(np.float32)

    def both(dtype: Any) -> tuple[np.ndarray, np.ndarray]:
        x, y = jnp.asarray(logits, dtype), jnp.asarray(targets, dtype)
        sum_and_gradient = jax.jit(
            jax.value_and_grad(lambda x, y: (loss(x, y).sum(), loss(x, y)), has_aux=True),
            compiler_options={"xla_backend_optimization_level": 0},
        )
        (_, value), gradient = sum_and_gradient(x, y)
        assert value.dtype == gradient.dtype == dtype
        return np.asarray(value, np.float64), np.asarray(gradient, np.float64)

    single = both(jnp.float32)
    with jax.enable_x64(True):
        double = both(jnp.float64)
    np.testing.assert_allclose(single[0], double[0], rtol=LOSS_DISTANCE, atol=LOSS_DISTANCE)
    np.testing.assert_allclose(single[1], double[1], rtol=1e-3, atol=1e-5 * np.abs(double[1]).max())


# How far the AUROC of bfloat16 may lie from float32's: docs/reliability.md.
BFLOAT16_DISTANCE = 0.02


def in_bfloat16(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, compute_dtype="bfloat16"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_bfloat16_judges_as_float32_does(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Would catch: a sum, a norm or a score taken in bfloat16, whose three digits tie what float32 tells apart."""
    detector = load_trained_model(own_run(tmp_path_factory))
    found, shape = find_images(detector.config.data, 0)
    manifest, cache = build_cache(found, tmp_path / "cache", shape)
    labels = [record.label for record in manifest.records]
    config = in_bfloat16(detector.config)
    network, _, _ = build_network(config, detector.network.mean, detector.network.std, drawn=False)

    def scores(detector: TrainedModel) -> list[float]:
        judge: Predictor = detector.compile_predictor(make_devices(detector.config.parallel), 4)
        return [judged.score for judged in judge(cache[i] for i in range(len(cache)))]

    single, half = scores(detector), scores(replace(detector, config=config, network=network))
    assert single != half
    np.testing.assert_allclose(half, single, atol=0.02)
    areas = [auroc(labels, one) for one in (single, half)]
    assert areas[0] is not None and areas[1] is not None
    assert abs(areas[0] - areas[1]) <= BFLOAT16_DISTANCE


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_run_in_bfloat16_is_as_good_as_one_in_float32(tmp_path: Path) -> None:
    """Would catch: a network that learns less, or not at all, from gradients through bfloat16 convolutions.

    Both take all of the steps, more than either needs: where training stops as soon as the maps are good enough, the
    two stop at steps of their own, and unsettled maps differ by more than what is asked here.
    """
    overrides = ("--config.train.target_quality=1.0", "--config.train.num_steps=160")
    config = read_config("configs/custom_unet.py:segmentation,small", overrides)
    reports = [
        experiment.run(one, tmp_path / name)
        for name, one in (("single", config), ("half", in_bfloat16(config)))
    ]
    single, half = (report["test"] for report in reports)
    print(json.dumps([{name: test[name] for name in ("auroc", "pixel_auroc")} for test in (single, half)]))
    assert single["auroc"] > 0.9 and single["pixel_auroc"] > 0.9
    for name in ("auroc", "pixel_auroc"):
        assert abs(single[name] - half[name]) <= BFLOAT16_DISTANCE, name

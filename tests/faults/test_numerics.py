"""Numbers that are not finite stop a run or are skipped; and what precision costs."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import own_config, own_run, write_own
from tiny_network import replace_unet

from dagm_jax.command_line import read_config
from dagm_jax.config import RunConfig
from dagm_jax.data.cache import build_cache
from dagm_jax.data.dataset import find_images
from dagm_jax.distributed.devices import ParallelConfig, make_devices
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.metrics import auroc
from dagm_jax.evaluation.predictor import NonFiniteOutput, Predictor
from dagm_jax.evaluation.programs import Program
from dagm_jax.experiment.run import run
from dagm_jax.experiment.trained_model import TrainedModel, build_network, load_trained_model
from dagm_jax.tasks import losses
from dagm_jax.tasks.base import LossOutput
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train.history import read_history
from dagm_jax.train.loop import NonFinite

real_learn = SegmentationConfig.loss


def poisoned_learn(task: Any, forward: Any, slices: Any, key: jax.Array) -> LossOutput:
    """The real lesson, but that the loss of the third slice is NaN in the second step of a run of seed 0."""
    loss_output = real_learn(task, forward, slices, key)
    second = jax.random.key_data(jax.random.fold_in(jax.random.key(0), 1))
    is_bad = (slices["place"] == 2) & (jax.random.key_data(key) == second).all()
    return loss_output._replace(loss=loss_output.loss * jnp.where(is_bad, jnp.nan, 1.0))


def test_a_run_stops_at_nan_and_goes_on_by_skipping_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a run that trains on NaN, names no step or image, cannot be continued, or does not report the count.

    The log is looked at after four steps, when NaN would be in every weight.
    """
    monkeypatch.setattr(SegmentationConfig, "loss", poisoned_learn)
    replace_unet(monkeypatch)
    root = write_own(tmp_path / "own", num_good=16, num_defective=12)
    train = {"num_steps": 4, "validate_every": 3, "log_every": 4, "cooldown_share": 0.0}
    config = own_config(root, *(f"--config.train.{name}={value}" for name, value in train.items()))
    workdir = tmp_path / "run"
    with pytest.raises(
        NonFinite, match=r"stopped at step 2: .*loss nan; learning rate .* of the batch: .*png"
    ):
        run(config, workdir)
    report = run(replace(config, train=replace(config.train, skip_non_finite=1)), workdir)
    assert report["training"]["skipped_steps"] == 1 and report["training"]["last_step"] == 4
    first, second = (row for row in read_history(workdir / "metrics.jsonl") if row["kind"] == "train")
    assert (first["step"], first["skipped_steps"]) == (3, 1) and np.isfinite(first["loss"])
    assert second["skipped_steps"] == 1
    events = b"".join(path.read_bytes() for path in (workdir / "tensorboard").glob("events*"))
    assert b"train/skipped_steps" in events


@pytest.mark.parametrize(("score_kind", "name"), [("probability", "map"), ("slices", "slice_scores")])
def test_weights_beyond_float32_end_in_one_line(score_kind: Any, name: str) -> None:
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
    good = {key: np.zeros_like(value) for key, value in out.items()}
    answers = iter([good, good, out])
    program: Future[Program] = Future()
    program.set_result(Program(cast(Any, lambda *arguments: next(answers)), 1, 0.0))
    programs: Any = SimpleNamespace(
        tiling=SimpleNamespace(mode="edge"),
        shape_for=lambda size: (8, 8),
        begin=lambda shape: program,
        devices=make_devices(ParallelConfig(cpu_convolutions="default")),
        verdict=VerdictConfig(),
        task=SimpleNamespace(score_kind=score_kind),
    )
    predictor = Predictor(programs, {}, {})
    pixels = [(np.zeros((h, 8), np.uint8), np.zeros((h, 8), bool)) for h in (8, 8, 5)]
    with pytest.raises(
        NonFiniteOutput,
        match=r"output for image 3 of those given, 5x8 px .* is not finite.*lower `optim.learn",
    ) as caught:
        list(predictor(pixels))
    assert caught.value.place == 2


def of_ssim(x: jax.Array, y: jax.Array) -> jax.Array:
    return losses.ssim(jax.nn.sigmoid(x), y, 1.0)


# Largest distance of float32 losses from float64's, as a share of 1 + the value; 2e-6 was found.
LOSS_DISTANCE = 1e-5


@pytest.mark.parametrize(
    "loss",
    [losses.binary_cross_entropy, losses.soft_dice, losses.focal, losses.soft_iou, of_ssim],
    ids=["cross entropy", "dice", "focal", "iou", "ssim"],
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


# Largest distance of bfloat16's AUROC from float32's: docs/reliability.md.
BFLOAT16_DISTANCE = 0.02


def in_bfloat16(config: RunConfig) -> RunConfig:
    return replace(config, model=replace(config.model, compute_dtype="bfloat16"))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_bfloat16_predicts_as_float32_does(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Would catch: a sum, a norm or a score taken in bfloat16, whose three digits tie what float32 tells apart."""
    detector = load_trained_model(own_run(tmp_path_factory))
    found, shape = find_images(detector.config.data, 0)
    manifest, cache = build_cache(found, tmp_path / "cache", shape)
    labels = [sample.label for sample in manifest.samples]
    config = in_bfloat16(detector.config)
    network, _, _ = build_network(config, detector.network.mean, detector.network.std, drawn=False)

    def scores(detector: TrainedModel) -> list[float]:
        predictor: Predictor = detector.make_predictor(make_devices(detector.config.parallel), 4)
        return [prediction.score for prediction in predictor(cache[i] for i in range(len(cache)))]

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
    reports = [run(one, tmp_path / name) for name, one in (("single", config), ("half", in_bfloat16(config)))]
    single, half = (report["test"] for report in reports)
    print(json.dumps([{name: test[name] for name in ("auroc", "pixel_auroc")} for test in (single, half)]))
    assert single["auroc"] > 0.9 and single["pixel_auroc"] > 0.9
    for name in ("auroc", "pixel_auroc"):
        assert abs(single[name] - half[name]) <= BFLOAT16_DISTANCE, name

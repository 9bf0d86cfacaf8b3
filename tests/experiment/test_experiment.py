"""The wiring of a run: which images, options and numbers each stage is given.

A whole run is only ever compared with itself, so that an error here would stand on both sides of the comparison.
"""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
import small_run

from dagm_jax.command_line import read_config
from dagm_jax.config import RunConfig
from dagm_jax.data.config import SlicingConfig
from dagm_jax.distributed.devices import Devices, make_devices
from dagm_jax.distributed.processes import ALONE
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import EvalConfig
from dagm_jax.evaluation.evaluate import ImageResult, TestResult
from dagm_jax.evaluation.programs import SlicedImages
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.experiment import data as run_data
from dagm_jax.experiment import report, run, setup
from dagm_jax.experiment.data import check_sizes
from dagm_jax.experiment.setup import Setup
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.timings import Timings
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.models.config import CustomUNetConfig
from dagm_jax.train.stopping import TrainConfig, TrainProgress

TestResult.__test__ = False  # type: ignore[attr-defined]  # a class of the package, no tests
TRAIN, VALIDATION, TEST = range(12), range(12, 32), range(32, 60)


def make_data(**more: Any) -> Any:
    """Sixty images of which every other one is defective, split in their order."""
    labels = [i % 2 for i in range(60)]

    def of_label(indices: Any, label: int) -> list[int]:
        return [i for i in indices if labels[i] == label]

    split = SimpleNamespace(train=TRAIN, validation=VALIDATION, test=TEST)
    samples = [SimpleNamespace(image_id=f"image{i}", label=labels[i]) for i in range(60)]
    manifest = SimpleNamespace(samples=samples, description="sixty", skipped=())
    fake = SimpleNamespace(
        split=split,
        labels=labels,
        of_label=of_label,
        manifest=manifest,
        cache=None,
        images=None,
        lacks_masks=False,
        masked=lambda indices: of_label(indices, 1),
    )
    return SimpleNamespace(**(vars(fake) | more))


def make_setup(**more: Any) -> Any:
    """A run on `make_data` as far as its last stages ask."""
    fake = SimpleNamespace(data=make_data(), config=RunConfig(), processes=ALONE, timings=Timings())
    images = dict(validation_images=VALIDATION, uses_synthetic=False)
    return SimpleNamespace(**(vars(fake) | images | more))


def test_the_threshold_is_fitted_on_the_validation_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a threshold fitted on the test images or on labels of others, or scores of others kept."""
    asked: list[tuple[Any, list[int]]] = []

    def calibrate(scored: Any, labels: Any, verdict: Any, score_kind: Any) -> Thresholds:
        asked.append((scored, list(labels)))
        return Thresholds(0.25, 0.5, "f1", {})

    tested: list[Thresholds] = []

    def evaluate_test_split(predictor: Any, data: Any, rule: Thresholds, *rest: Any) -> tuple[None, None]:
        tested.append(rule)
        return None, None

    monkeypatch.setattr(run.evaluate, "fit_thresholds", calibrate)
    monkeypatch.setattr(run, "evaluate_test_split", evaluate_test_split)
    monkeypatch.setattr(run, "write_report", lambda *_: {})
    fake, workdir = make_setup(make_predictor=lambda state: None), Workdir(tmp_path)
    scored: Any = [SimpleNamespace(score=0.5, is_synthetic=False) for _ in VALIDATION]
    run.evaluate_model(fake, run.Chosen(4, cast(Any, None), scored), TrainProgress(), workdir)
    assert asked == [(scored, [i % 2 for i in VALIDATION])]
    assert tested == [workdir.read_rule()] and tested[0].threshold == 0.25
    with workdir.validation_scores.open(newline="") as stream:
        rows = [(row["image"], int(row["label"])) for row in csv.DictReader(stream)]
    assert rows == [(f"image{i}", i % 2) for i in VALIDATION]


@pytest.mark.parametrize(
    ("whole", "chosen"),
    [({4: 0.8, 12: 0.9}, 12), ({4: 0.9, 12: 0.8}, 4), ({4: 0.9, 12: 0.9}, 4), ({4: 0.1}, 4), ({12: 0.1}, 12)],
)
def test_the_better_of_the_best_and_the_last_whole_checkpoint_is_tested(
    whole: dict[int, float], chosen: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a choice by the quick validation alone, by a part of the images, or of the worse of the two; hours
    of training without a report because one of two checkpoints is damaged; a choice that is not printed; thresholds
    from the results of the other."""

    def predict_validation(predictor: Any, cache: Any, indices: Any, on_image: Any) -> Any:
        assert indices == VALIDATION
        return f"results of {predictor.state}"

    def summarise(results: str, score_kind: Any) -> dict[str, float]:
        return {"quality": whole[int(results.removeprefix("results of "))]}

    monkeypatch.setattr(run.evaluate, "predict_validation", predict_validation)
    monkeypatch.setattr(run.evaluate, "summarise", summarise)

    def restore_or_warn(step: int, like: Any) -> tuple[int, dict[str, Any]] | None:
        return (step, {}) if step in whole else None

    checkpoints: Any = SimpleNamespace(best_step=lambda: 4, restore_or_warn=restore_or_warn)
    fake = make_setup(
        initial_state=lambda: None,
        last_results=[],
        make_predictor=lambda state: SimpleNamespace(state=state),
    )
    found = run.choose_state(fake, checkpoints, 12, Workdir(Path("here")))
    assert found == (chosen, chosen, f"results of {chosen}")
    assert f"tested checkpoint: step {chosen}; quality " in capsys.readouterr().out
    fake.last_results = ["results of 12"]
    if set(whole) == {4, 12}:
        monkeypatch.setattr(run.evaluate, "summarise", lambda results, kind: {"quality": len(results)})
        asked: list[Any] = []
        monkeypatch.setattr(
            run.evaluate, "predict_validation", lambda predictor, *_: asked.append(predictor.state) or []
        )
        # The last is not predicted again.
        assert run.choose_state(fake, checkpoints, 12, Workdir(Path("here"))).step == 12
        assert asked == [4]


@pytest.mark.parametrize(("tiling", "number"), [("whole", 1), ("slices", 2)])
def test_predictors_are_compiled_once_and_before_they_are_needed(
    tiling: Any, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: seconds of compiling spent twice, a predictor with the weights of another state, and arrays that the
    training step has taken over by the time that the thread reads them."""
    compiled: list[Any] = []

    def fake(self: Devices, step: Any, params: Any, *rest: Any) -> Any:
        assert isinstance(params["w"], jax.ShapeDtypeStruct)
        compiled.append(rest[1].shape)
        scores = np.zeros((rest[1].shape[0], 2))
        return SimpleNamespace(out_info={"map": rest[1], "slice_scores": scores})

    monkeypatch.setattr(Devices, "compile_eval_step", fake)
    config = RunConfig(slicing=SlicingConfig(), eval=EvalConfig(tiling))
    devices = make_devices(config.parallel)
    weights = [devices.replicate(({"w": np.full(3, value)}, {})) for value in (1.0, 2.0)]
    network: Any = SimpleNamespace(for_platform=lambda platform: None)
    data: Any = SimpleNamespace(
        cache=SimpleNamespace(shapes=[(64, 64), (60, 64)], largest=(64, 64)), padded=((128, 128),)
    )
    monkeypatch.setattr(Setup, "_network_and_arrays", (network, *weights[0]))
    made = Setup(config, data, devices)
    made.begin_to_compile_predictors()
    for eval_weights in weights:
        state: Any = SimpleNamespace(eval_weights=eval_weights)
        for quick in (True, False):
            predictor = made.make_predictor(state, quick)
            np.testing.assert_array_equal(predictor.params["w"], eval_weights[0]["w"])
    assert made.compile_seconds() > 0
    made._programs[True].seconds()
    assert len(compiled) == number


def test_without_a_whole_checkpoint_nothing_is_tested() -> None:
    """Would catch: a report on a state that was never trained."""
    checkpoints: Any = SimpleNamespace(best_step=lambda: 4, restore_or_warn=lambda step, like: None)
    fake: Any = SimpleNamespace(initial_state=lambda: None)
    message = r"`workdir` \(=here\): none of the checkpoints of steps \[4, 12\] can be read"
    with pytest.raises(UserError, match=message):
        run.choose_state(fake, checkpoints, 12, Workdir(Path("here")))


def test_training_is_steered_by_validation_images_alone() -> None:
    """Would catch: early stopping and the best checkpoint chosen by test images, or by those trained on."""
    config = read_config("configs/smoke.py", ["--config.train.max_validation_images=3"])
    sample = Setup(config, make_data(), make_devices(config.parallel)).validation_sample
    assert len(sample) == 6 and sum(i % 2 for i in sample) == 3
    assert set(sample) <= set(VALIDATION)
    # Few masks among many tags are all seen: Dice, which steers, is theirs alone.
    data = make_data(masked=lambda indices: [i for i in indices if i == 25])
    sample = Setup(config, data, make_devices(config.parallel)).validation_sample
    assert 25 in sample and len(sample) == 3 + 1 + 3


def test_the_step_is_given_the_decay_of_the_moving_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: averages that are kept, saved and tested, and never move from the initial weights."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setup, "make_train_step", lambda *_, **options: given.update(options))
    monkeypatch.setattr(setup, "skip_non_finite", lambda *_: None)
    monkeypatch.setattr(Setup, "network", SimpleNamespace(for_platform=lambda platform: None))
    monkeypatch.setattr(Setup, "first_carry", lambda *_: None)
    config = read_config(
        "configs/smoke.py", ["--config.optim.average_decay=0.75", "--config.train.accumulate=2"]
    )
    devices = SimpleNamespace(
        platform="cpu",
        axis_name=None,
        num_shards=1,
        check_batch_size=lambda *_: None,
        shard_training_batch=lambda batch: batch,
        compile_step=lambda *_: "compiled",
    )
    fake = Setup(config, make_data(), cast(Any, devices))
    assert fake.compile_step(cast(Any, None), None) == "compiled"
    assert (given["average_decay"], given["accumulate"]) == (0.75, 2)


@pytest.mark.parametrize("task", ["segmentation", "reconstruction"])
def test_mean_and_spread_are_those_of_the_images_trained_on(task: str, tmp_path: Path) -> None:
    """Would catch: greys of validation and test images, or of defects that the task may not know, in the network."""
    root = small_run.write_own(tmp_path / "own", num_good=24, num_defective=12)
    more = ["--config.task.cell_px=8"] if task == "reconstruction" else []
    config = small_run.own_config(root, *more, task=task)
    data = run_data.prepare_data(config, Workdir(tmp_path / "run"))
    seen = [i for i in data.split.train if task == "segmentation" or not data.labels[i]]
    assert 0 < len(seen) < len(data.labels)
    greys = np.concatenate([data.cache.image(i).ravel() for i in seen])
    assert (data.mean, data.std) == pytest.approx((greys.mean(), greys.std()), rel=1e-9)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("rotate90", [True, False])
def test_slices_show_the_views_that_training_has_shown(flip: bool, rotate90: bool) -> None:
    """Would catch: a slicer of evaluation never crossed, crossed without turns, or mirrored where flips are off."""
    options = [f"--config.augment.flip={flip}", f"--config.augment.rotate90={rotate90}"]
    options += ["--config.eval.tiling=slices", "--config.slicing.mode=strips"]
    config = read_config("configs/custom_unet.py", options)
    tiling = make_tiling(config, (512, 512), ())
    assert isinstance(tiling, SlicedImages)
    slicer = tiling.slicer_for((512, 512))
    assert bool(slicer.horizontal_edges) == rotate90
    assert slicer.mirrored == (flip and rotate90)


def test_the_report_counts_what_mistakes_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: ``verdict.fp_cost`` and ``fn_cost`` ignored by the report, or exchanged."""
    for name in ("draw_figures", "draw_page"):
        monkeypatch.setattr(report, name, lambda *_: None)
    for name, value in (("forward_gflop", 1.0), ("describe_data", {})):
        monkeypatch.setattr(report, name, lambda *_, value=value: value)
    costs: list[float] = []
    monkeypatch.setattr(
        report, "evaluate_baselines", lambda *arguments: costs.append(arguments[4].fn_cost) or {}
    )
    config = RunConfig()
    config = replace(config, verdict=replace(config.verdict, fp_cost=2.0, fn_cost=30.0))
    decisions = [(0, True), (0, True), (0, False), (1, False), (1, True)]
    images = [ImageResult(str(i), label, 0.5, called) for i, (label, called) in enumerate(decisions)]
    fake = make_setup(
        config=config,
        data=make_data(slicer=None),
        devices=SimpleNamespace(kind="none"),
        compile_seconds=lambda: 0.0,
    )
    state: Any = SimpleNamespace(params={})
    written = report.write_report(
        fake,
        state,
        1,
        TrainProgress(step=1),
        Thresholds(0.5, 0.5, "f1", {}),
        TestResult(images, executing_time_s=1.0),
        None,
        cast(Any, None),
        Workdir(tmp_path),
    )
    assert written["test"]["cost"] == 2 * 2.0 + 1 * 30.0
    assert written["test"]["cost_fp_fn"] == [2.0, 30.0]
    assert costs == [30.0]


@pytest.mark.parametrize(
    ("shapes", "config", "message"),
    [
        ([(8191, 8193), (8192, 8320)], RunConfig(), "8192x8320 .* more than the limit of 67108864"),
        (
            [(4096, 8192)],
            RunConfig(train=TrainConfig(judge_batch_size=16)),
            r"`train.judge_batch_size` \(=16\) .* use at most 8",
        ),
        (
            [(1536, 2048)],
            RunConfig(model=CustomUNetConfig(norm="group")),
            r"`model.norm` \(=group\) .* 1536x2048 .* raise `eval.max_px`",
        ),
    ],
    ids=["size", "batch", "group norm"],
)
def test_sizes_that_no_model_could_be_loaded_for_are_refused_before_training(
    shapes: list[tuple[int, int]], config: RunConfig, message: str
) -> None:
    """Would catch: hours of training that end with a model which is refused, or at the first validation."""
    with pytest.raises(UserError, match=message):
        check_sizes(shapes, config)
    check_sizes([(512, 512)], config)

"""Evaluation: every image once and in order whatever the batch size, and figures that scikit-learn agrees with."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from fake_processes import run_as_processes
from PIL import Image
from sklearn import metrics as sk

from dagm_jax.data.images import load as load_module
from dagm_jax.data.images.load import load
from dagm_jax.data.synthetic.draw import WithSynthetic
from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.errors import UserError
from dagm_jax.evaluation import evaluate
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.evaluate import (
    TestChunk,
    TestResult,
    ValidationResult,
    predict_validation,
    summarise,
)
from dagm_jax.evaluation.metrics import balanced_dice, dice_curve
from dagm_jax.evaluation.predictor import Prediction, Predictor
from dagm_jax.evaluation.programs import Program
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.experiment import run
from dagm_jax.experiment.pictures import Hardest, TestPictures
from dagm_jax.experiment.timings import Timings
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.storage import finite_or_none
from dagm_jax.tasks.base import ScoreKind
from dagm_jax.types import MAX_GALLERY_ITEMS, Box, Sample

# Classes of the package, no tests.
TestResult.__test__ = TestChunk.__test__ = TestPictures.__test__ = False  # type: ignore[attr-defined]
SHAPE = (32, 48)
PIXELS = SHAPE[0] * SHAPE[1]
PLAIN = VerdictConfig(smoothing_px=0.0)
RULE = Thresholds(threshold=0.5, pixel_threshold=0.25, calibration="f1")

Pixels = tuple[np.ndarray, np.ndarray]


def brightness_predictor(
    batch_size: int = 4, verdict: VerdictConfig = PLAIN, score_kind: ScoreKind = "probability"
) -> Predictor:
    """A predictor whose map is the image over 255, whose loss is its mean and whose counts are its first pixels."""

    def compiled(
        params: Any, stats: Any, image: np.ndarray, mask: np.ndarray, mask_px: np.ndarray, size: np.ndarray
    ) -> dict[str, np.ndarray]:
        assert image.shape == mask.shape == (batch_size, *SHAPE)
        assert (image.dtype, mask.dtype, size.shape) == (np.uint8, bool, (batch_size, 2))
        scaled = image.astype(np.float32) / 255
        return {
            "map": scaled,
            "slice_scores": scaled[:, :, 0],
            "loss": scaled.mean((1, 2)),
            "num_right": image[:, 0, 0].astype(np.int32),
            "num_counted": image[:, 0, 1].astype(np.int32),
        }

    program: Future[Program] = Future()
    program.set_result(Program(cast(Any, compiled), batch_size, 0.0))
    programs: Any = SimpleNamespace(
        tiling=SimpleNamespace(mode="edge"),
        shape_for=lambda size: SHAPE,
        begin=lambda shape: program,
        devices=SimpleNamespace(shard_batch=lambda arrays: arrays, platform="cpu"),
        batch_size=batch_size,
        verdict=verdict,
        task=SimpleNamespace(score_kind=score_kind),
    )
    return Predictor(programs, "params", "stats")


def images_of(cache: Any) -> WithSynthetic:
    return WithSynthetic(cache, (), 0)


def validate(predictor: Predictor, cache: Any, indices: Sequence[int]) -> dict[str, float]:
    return summarise(
        predict_validation(predictor, images_of(cache), indices), predictor.programs.task.score_kind
    )


def fit(predictor: Predictor, cache: Any, indices: Sequence[int], labels: Sequence[int]) -> Thresholds:
    scored = predict_validation(predictor, images_of(cache), indices)
    programs = predictor.programs
    return evaluate.fit_thresholds(scored, labels, programs.verdict, programs.task.score_kind)


def make_images(number: int, seed: int = 0) -> list[Pixels]:
    """Images of which every other one is defective, with masks of different sizes."""
    rng = np.random.default_rng(seed)
    images = []
    for i in range(number):
        image = rng.integers(0, 200, SHAPE).astype(np.uint8)
        mask = np.zeros(SHAPE, bool)
        if i % 2 == 0:
            mask[4 : 10 + i % 7, 8:20] = True
        image[0, 0], image[0, 1] = i % 4, 4
        image[20, 20] = rng.integers(200, 256)
        images.append((image, mask))
    return images


class Cache(Any):
    """The images of a list, and which of them were asked for."""

    def __new__(cls, images: Sequence[Pixels]) -> Cache:
        return object.__new__(cls)

    def __init__(self, images: Sequence[Pixels]) -> None:
        self.images, self.asked = images, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Pixels:
        self.asked.append(index)
        return self.images[index]


# --- the predictor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 4, 7])
def test_each_image_once_in_order_cut_to_its_size(number: int) -> None:
    """Would catch: padding that comes out as an image or reaches a score, a last batch that is dropped, an order by
    batch, and a map of another size than its image.
    """
    images = make_images(number)
    cuts = [np.s_[:29], np.s_[:10, :7], np.s_[:, :5]]
    images[1:4] = [(image[cut], mask[cut]) for (image, mask), cut in zip(images[1:4], cuts, strict=False)]
    predictions = list(brightness_predictor()(images))
    assert len(predictions) == number
    for one, (image, mask) in zip(predictions, images, strict=True):
        np.testing.assert_array_equal(one.image, image)
        np.testing.assert_array_equal(one.mask, mask)
        np.testing.assert_allclose(one.map, image / 255, rtol=1e-6)
        assert one.score == pytest.approx(image.max() / 255)
        assert (one.num_right, one.num_counted) == (image[0, 0], 4)
        if image.shape == SHAPE:
            assert one.loss == pytest.approx(image.mean() / 255, rel=1e-5)
    with pytest.raises(ValueError, match="negative"):
        list(brightness_predictor(1)([(np.zeros((SHAPE[0] + 1, SHAPE[1]), np.uint8),) * 2]))


def test_each_score_kind_scores_its_own_way() -> None:
    """Would catch: a map's maximum for slices that say their own score, and a one-sided score of residuals."""
    image = np.full(SHAPE, 100, np.uint8)
    image[5, 3], image[9, 9] = 10, 150
    scores = {}
    kinds: tuple[ScoreKind, ...] = ("probability", "deviation", "slices")
    for score_kind in kinds:
        predictor = brightness_predictor(1, score_kind=score_kind)
        (prediction,) = predictor([(image, image < 20)])
        scores[score_kind] = prediction.score
        assert prediction.map[9, 9] == pytest.approx(50 / 255 if score_kind == "deviation" else 150 / 255)
    expected = {"probability": 150 / 255, "deviation": 90 / 255, "slices": image[:, 0].max() / 255}
    assert scores == pytest.approx(expected)


# --- validation and calibration -----------------------------------------------------------------------------


def test_validation_by_hand() -> None:
    """Would catch: figures over all images instead of those given, means of batches' means, a quality of one part."""
    images, cache = make_images(11), Cache(make_images(11))
    indices = [7, 0, 3, 10, 4]
    chosen = [images[i] for i in indices]
    got = validate(brightness_predictor(2), cache, indices)
    assert cache.asked == indices
    labels = [bool(mask.any()) for _, mask in chosen]
    area = sk.roc_auc_score(labels, [image.max() for image, _ in chosen])
    curves = [
        np.array([dice_curve(image / 255, mask) for image, mask in chosen if mask.any() == k]) for k in (1, 0)
    ]
    balanced, best = balanced_dice(*curves).max(), balanced_dice(*curves).argmax()
    assert got["loss"] == pytest.approx(np.mean([image.mean() / 255 for image, _ in chosen]), rel=1e-5)
    assert got["accuracy"] == pytest.approx(sum(i % 4 for i in indices) / (4 * len(indices)))
    assert got["auroc"] == pytest.approx(area)
    assert got["dice_defective"] == pytest.approx(curves[0][:, best].mean())
    assert got["balanced_dice"] == pytest.approx(balanced)
    assert got["quality"] == pytest.approx((area + balanced) / 2)


def unmarked_images() -> list[Pixels]:
    """Eleven images of which no defective one has a mask: it stands on everything."""
    return [(image, np.full(SHAPE, mask.any())) for image, mask in make_images(11)]


def test_defects_without_masks_count_as_images_and_not_as_pixels() -> None:
    """Would catch: a Dice against a mask that stands for not knowing, and an AUROC that is lost with it."""
    images = unmarked_images()
    predictor = brightness_predictor(4, score_kind="slices")
    figures = validate(predictor, Cache(images), range(11))
    assert set(figures) == {"loss", "accuracy", "auroc", "margin", "learnt", "quality"}
    assert figures["quality"] == pytest.approx((figures["auroc"] + figures["accuracy"]) / 2)
    labels = [int(mask.any()) for _, mask in images]
    rule = fit(predictor, Cache(images), range(11), labels)
    assert rule.pixel_threshold == rule.threshold
    with pytest.raises(UserError, match="pixel threshold needs defective validation images with masks"):
        fit(brightness_predictor(4), Cache(images), range(11), labels)


def test_half_marked_images_are_measured_on_the_marked_ones() -> None:
    """Would catch: one image without a mask that spoils the Dice of all that have one."""
    marked = make_images(11)
    mixed = [*unmarked_images()[:2], *marked[2:]]
    all_marked, of_marked, of_mixed = (
        validate(brightness_predictor(), Cache(images), indices)
        for images, indices in ((marked, range(11)), (marked, range(1, 11)), (mixed, range(11)))
    )
    assert of_mixed["dice_defective"] == pytest.approx(of_marked["dice_defective"])
    assert of_mixed["auroc"] == all_marked["auroc"]


def test_a_task_that_may_not_know_of_defects_is_steered_by_good_images() -> None:
    """Would catch: a reconstruction that is steered by defects, or whose pixel threshold is fitted to them."""
    images, cache = make_images(11), Cache(make_images(11))
    verdict = VerdictConfig(smoothing_px=0, calibration="normals")
    predictor = brightness_predictor(2, verdict, "deviation")
    indices = [7, 0, 3, 10, 4]
    loss = np.mean([images[i][0].mean() / 255 for i in indices if not images[i][1].any()])
    assert validate(predictor, cache, indices)["quality"] == pytest.approx(1 / (1 + loss), rel=1e-5)
    assert not {"auroc", "balanced_dice"} & validate(predictor, cache, [1, 3]).keys()
    for chosen, labels in (([1, 3, 5], [0, 0, 0]), ([1, 3, 5, 0], [0, 0, 0, 1])):
        rule = fit(predictor, cache, chosen, labels)
        assert rule.pixel_threshold == rule.threshold


def test_validation_without_a_label_is_a_users_error() -> None:
    """Would catch: a quality of 0 or None that would stop training without saying why."""
    for indices in ([1, 3], [0, 2]):
        with pytest.raises(UserError, match="validation needs images of both labels"):
            validate(brightness_predictor(), Cache(make_images(4)), indices)


def test_calibration_sees_the_given_images_only() -> None:
    """Would catch: a threshold that has seen the test split: images outside the indices must not matter."""
    images = make_images(12)
    indices = [0, 1, 4, 5, 9]
    for i in indices:  # scores: good 0.2 and 0.4, defective 0.8
        images[i] = np.full(SHAPE, (204 if i % 2 == 0 else 51 + 51 * (i == 5)), np.uint8), images[i][1]
        images[i][0][0, :2] = 0
    labels = [int(images[i][1].any()) for i in indices]
    cache = Cache(images)
    rule = fit(brightness_predictor(2), cache, indices, labels)
    assert cache.asked == indices
    scores = [one.score for one in predict_validation(brightness_predictor(2), images_of(cache), indices)]
    assert scores == pytest.approx([0.8, 0.2, 0.8, 0.4, 0.2])
    assert rule.calibration == "f1" and 0.4 < rule.threshold < 0.8
    assert [rule.fit_stats[name] for name in ("tp", "tn", "fp", "fn")] == [2, 3, 0, 0]
    assert rule.pixel_threshold < 0.8  # whole defective images are at 0.8


# --- the test split ------------------------------------------------------------------------------------------


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    """19 images in files, more than are decoded ahead; every other one is defective, with a mask in a file."""
    made = []
    for i, (image, mask) in enumerate(make_images(19)):
        path, mask_path = tmp_path / f"{i}.png", tmp_path / f"{i}_label.png"
        Image.fromarray(image).save(path)
        if mask.any():
            Image.fromarray(mask.astype(np.uint8) * 255).save(mask_path)
        label = int(mask.any())
        made.append(Sample(f"image{i:02d}", 1, cast(Any, label), None, path, mask_path if label else None))
    return made


def result_of(predictor: Predictor, samples: list[Sample], rule: Thresholds = RULE) -> TestResult:
    """The result of all chunks."""
    result = TestResult()
    for chunk in evaluate.evaluate_test_split(predictor, samples, SHAPE, PIXELS, rule):
        result.add(chunk, rule)
    return result


def test_every_sample_once_in_order_decided_by_the_rule(samples: list[Sample]) -> None:
    """Would catch: an image that is counted twice or left out, a label beside another image, a fixed threshold in place
    of the fitted one, and ">" where the rule says ">=".
    """
    images = make_images(19)
    threshold = float(np.float32(images[3][0].max()) / np.float32(255))
    result = result_of(brightness_predictor(4), samples, replace(RULE, threshold=threshold))
    assert [image.image_id for image in result.images] == [sample.image_id for sample in samples]
    assert result.labels == [sample.label for sample in samples]
    assert result.scores == pytest.approx([image.max() / 255 for image, _ in images])
    decisions = [image.decision for image in result.images]
    assert decisions == [score >= threshold for score in result.scores]
    assert decisions[3] and all(type(decision) is bool for decision in decisions)


@pytest.mark.parametrize(("batch_size", "most"), [(3, 6), (4, 8), (10, 10)])
def test_no_image_is_read_while_the_clock_stands(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, batch_size: int, most: int
) -> None:
    """Would catch: threads that read ahead on unmeasured time, a test split held in memory, and scores that move."""
    expected = result_of(brightness_predictor(batch_size), samples)
    events: list[str] = []

    def tell_time() -> float:
        events.append("clock")
        return float(len(events))

    def slow_load(sample: Sample, shape: tuple[int, int] | None) -> Pixels:
        events.append("read")
        time.sleep(0.003)
        pixels = load(sample, shape)
        events.append("read")
        return pixels

    monkeypatch.setattr(evaluate, "time", SimpleNamespace(perf_counter=tell_time))
    monkeypatch.setattr(evaluate, "CHUNK_PX", 8 * PIXELS)
    monkeypatch.setattr(load_module, "load", slow_load)
    result = TestResult()
    for chunk in evaluate.evaluate_test_split(brightness_predictor(batch_size), samples, SHAPE, PIXELS, RULE):
        for _ in chunk.samples:
            # Long enough for a thread that has something left to read.
            time.sleep(0.003)
            events.append("draw")
        result.add(chunk, RULE)
    is_running, num_read, num_drawn = False, 0, 0
    for event in events:
        is_running ^= event == "clock"
        num_read += event == "read"
        num_drawn += event == "draw"
        # What the caller draws is not timed, and nothing is read while it draws.
        assert event == "clock" or is_running == (event == "read")
        assert num_read / 2 - num_drawn <= most
    assert (num_read / 2, num_drawn, is_running) == (19, 19, False)
    assert events.count("clock") == 2 * -(-19 // most)
    assert result.images == expected.images


def test_file_that_broke_meanwhile_is_a_users_error(samples: list[Sample]) -> None:
    """Would catch: a test image that is dropped without a word after the split was drawn."""
    path = cast(Path, samples[9].image)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"9\.png.*could be read when the run began; restore it"):
        result_of(brightness_predictor(4), samples)
    path.unlink()
    with pytest.raises(UserError, match=r"9\.png: file is missing .*run the command again"):
        result_of(brightness_predictor(4), samples)


# --- the report ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_report_against_scikit_learn(seed: int) -> None:
    """Would catch: precision and recall exchanged, good as the positive class, costs the wrong way round, Dice for IoU,
    and pixel figures over defective images that miss the good ones.
    """
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0, 1] * 20 + [0] * 10)
    scores = np.round(rng.normal(labels * 0.8, 1), 1)  # rounding makes ties
    decisions = rng.random(50) < 0.3 + 0.4 * labels
    masks = rng.random((50, 8, 8)) < 0.5 * labels[:, None, None]
    maps = (0.4 * masks + rng.random(masks.shape) * 0.6).astype(np.float32) * (rng.random((50, 1, 1)) < 0.9)
    result = TestResult()
    for i, (label, score, decision) in enumerate(zip(labels, scores, decisions, strict=True)):
        prediction = Prediction(masks[i], masks[i], maps[i], float(score), 0.0, 0, 0)
        sample = Sample(str(i), 1, cast(Any, int(label)), None, Path(), None)
        result.add(TestChunk([sample], [prediction], [bool(decision)], 1.0), RULE)
    report = result.to_report(VerdictConfig(fp_cost=2.0, fn_cost=30.0))
    (tn, fp), (fn, tp) = sk.confusion_matrix(labels, decisions)
    pairs = [(mask.ravel(), (map_ >= 0.25).ravel()) for mask, map_ in zip(masks, maps, strict=True)]
    defects = [pair for pair, label in zip(pairs, labels, strict=True) if label]
    dices = [sk.f1_score(*pair, zero_division=1.0) for pair in pairs]
    names = ("accuracy", "precision", "recall", "f1", "balanced_accuracy")
    for name, expected in {
        **{name: getattr(sk, f"{name}_score")(labels, decisions) for name in names},
        **dict(tp=tp, fp=fp, fn=fn, tn=tn, num_images=50, num_defective=labels.sum()),
        "specificity": sk.recall_score(labels, decisions, pos_label=0),
        "auroc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "cost": 2.0 * fp + 30.0 * fn,
        "dice_defective": np.mean([sk.f1_score(*pair) for pair in defects]),
        "iou_defective": np.mean([sk.jaccard_score(*pair) for pair in defects]),
        "nvidia_dice": np.mean(dices),
        "nvidia_dice_if_nothing_is_predicted": 0.6,
    }.items():
        assert report[name] == pytest.approx(expected), name
    assert report["pixel_auroc"] == pytest.approx(sk.roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-3)
    listed = report["dice_per_defective_image"]
    assert [entry["mask_px"] for entry in listed] == sorted(int(mask.sum()) for mask, _ in defects)
    assert {entry["image"] for entry in listed} == {str(i) for i in np.flatnonzero(labels)}
    for name in ("accuracy", "precision", "recall", "specificity"):
        low, high = report[f"{name}_interval_95"]
        assert 0 <= low <= report[name] <= high <= 1, name


def test_kinds_of_defects_have_figures_of_their_own() -> None:
    """Would catch: a kind's recall over all images, a Dice of images without masks, and good images as a kind."""
    mask = np.zeros((8, 8), bool)
    mask[:2, :2] = True
    result = TestResult()
    for kind, decision, found in [
        ("crack", True, mask),
        ("crack", False, ~mask),
        ("", True, mask),
        ("fray", True, mask),
    ]:
        marked = np.ones_like(mask) if kind == "fray" else mask
        prediction = Prediction(marked, marked, found.astype(np.float32), 0.5, 0.0, 0, 0)
        sample = Sample(f"{kind} {decision}", 1, 1, None, Path(), None, kind)
        result.add(TestChunk([sample], [prediction], [decision], 1.0), RULE)
    report = result.to_report(PLAIN)
    assert list(report["kinds"]) == ["crack", "fray"]
    crack, fray = report["kinds"].values()
    assert (crack["num_images"], crack["recall"], crack["dice"]) == (2, 0.5, 0.5)
    # The map of the second image is the mask's complement: one part of it, which touches nothing.
    assert crack["regions"] == {"num": 2, "touched": 1, "touched_share": 0.5, "false_an_image": 0.5}
    assert (fray["recall"], fray["dice"], fray["regions"]["touched_share"]) == (1.0, None, None)
    assert report["regions"]["num"] == 3 and json.loads(json.dumps(report, allow_nan=False)) == report


def test_boxes_have_figures_of_their_own() -> None:
    """Would catch: boxes of one kind counted as another's, and false parts of images that nobody has boxed."""
    found, result = np.zeros((8, 8), bool), TestResult()
    found[:2, :2] = True
    crack, fray = Box("crack", 0, 0, 4, 4), Box("fray", 4, 4, 8, 8)
    for label, boxes in ((1, (crack, fray)), (1, (fray,)), (1, ()), (0, ())):
        prediction = Prediction(found, found & bool(label), found.astype(np.float32), 0.5, 0.0, 0, 0)
        sample = Sample(f"{label}{len(boxes)}", 1, label, None, Path(), None, "", boxes)
        result.add(TestChunk([sample], [prediction], [True], 1.0), RULE)
        if len(result.images) == 3:
            assert result.to_report(PLAIN)["boxes"]["false_an_image"] == 0.5
    report = result.to_report(PLAIN)["boxes"]
    assert (report["num"], report["touched"], report["false_an_image"]) == (3, 1, 2 / 3)
    assert {kind: of["touched_share"] for kind, of in report["kinds"].items()} == {"crack": 1.0, "fray": 0.0}


def test_report_holds_json_values(samples: list[Sample]) -> None:
    """Would catch: numpy numbers, which JSON refuses after an hour of training, and NaN, which is no JSON."""
    report = result_of(brightness_predictor(4), samples).to_report(PLAIN)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    values = {"a": [float("nan"), 1.0], "b": (float("inf"), {"c": 2})}
    assert finite_or_none(values) == {"a": [None, 1.0], "b": [None, {"c": 2}]}


# --- the hardest --------------------------------------------------------------------------------------------


def test_the_hardest_are_kept_hardest_first() -> None:
    """Would catch: a gallery of the easiest images, one that mixes up the labels, and one that drops the worst."""
    rng = np.random.default_rng(0)
    rule = Thresholds(threshold=0.6, pixel_threshold=0.5, calibration="f1")
    hardest, few = Hardest(rule), Hardest(rule)
    image, zeros = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    scores = {(label, i): float(rng.random()) for label in (0, 1) for i in range(12)}
    for (label, i), score in rng.permutation(np.array(list(scores.items()), dtype=object)):
        sample = Sample(f"{label}-{i}", 1, label, None, Path(), None)
        prediction = Prediction(image, zeros > 0, zeros, score, 0.0, 0, 0)
        hardest.offer(sample, prediction, score >= rule.threshold)
        # Equal scores must not compare images, and fewer than fill the gallery are all in it.
        if i < 2:
            few.offer(sample, replace(prediction, score=0.5), True)
    assert len(few.gathered(ALONE)) == 4
    items = hardest.gathered(ALONE)
    half = MAX_GALLERY_ITEMS // 2
    defective, good = (
        sorted((s, f"{k}-{i}") for (k, i), s in scores.items() if k == label) for label in (1, 0)
    )
    worst = [*defective[:half], *good[: -half - 1 : -1]]
    assert [item.title.split()[0].rstrip(":") for item in items] == [name for _, name in worst]
    assert [item.correct for item in items] == [(s >= 0.6) == (name[0] == "1") for s, name in worst]


# --- several processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 25])
def test_several_processes_validate_and_calibrate_like_one(count: int) -> None:
    """Would catch: an image that two processes predict or none does, a mean of means, and an order by process.

    25 processes: more than there are images.
    """
    images, indices = make_images(11), [7, 0, 3, 10, 4, 1, 6]
    labels = [int(images[i][1].any()) for i in indices]
    cache = Cache(images)

    def work(processes: Processes) -> Any:
        predictor = replace(brightness_predictor(2), processes=processes)
        return validate(predictor, cache, indices), fit(predictor, cache, indices, labels)

    expected = work(ALONE)
    cache.asked.clear()
    assert run_as_processes(count, work) == [expected] * count
    assert sorted(cache.asked) == sorted(indices * 2)


@pytest.mark.parametrize("count", [2, 3, 25])
def test_several_processes_evaluate_the_test_split_like_one(
    samples: list[Sample], count: int, tmp_path: Path
) -> None:
    """Would catch: scores or pictures beside another image, pixels counted twice, a gallery of one process's."""
    rule = Thresholds(0.78, 0.25, "f1")
    data = SimpleNamespace(
        manifest=SimpleNamespace(samples=samples),
        split=SimpleNamespace(test=range(len(samples))),
        cache=SimpleNamespace(shape=SHAPE, largest=SHAPE),
    )

    def work(processes: Processes) -> tuple[TestResult, TestPictures]:
        predictor = replace(brightness_predictor(4), processes=processes)
        return run.evaluate_test_split(predictor, cast(Any, data), rule, Workdir(tmp_path), Timings())

    whole, expected = work(ALONE)
    assert [(entry.name, entry.score) for entry in expected.entries] == [
        (image.image_id, image.score) for image in whole.images
    ]
    for result, pictures in run_as_processes(count, work):
        assert result.to_report(PLAIN) == whole.to_report(PLAIN)
        assert result.images == whole.images
        assert [entry.thumbnail for entry in pictures.entries] == [e.thumbnail for e in expected.entries]
        assert [item.title for item in pictures.hardest] == [item.title for item in expected.hardest]
        for a, b in zip(pictures.hardest, expected.hardest, strict=True):
            np.testing.assert_array_equal(a.image, b.image)


def test_a_few_tags_do_not_outweigh_synthetic_defects() -> None:
    """Would catch: one real defect that the network misses, by which all images are called defective and nothing seems
    learnt; tags that raise the loss the better the map is; a pixel threshold that cuts defects off to keep good images
    empty.
    """

    def result(label: int, score: float, curve: bool, synthetic: bool = False) -> ValidationResult:
        dice = np.full(256, 0.9) if curve else None
        return ValidationResult(label, score, 0.1 if curve else 8.0, 0, 0, dice, synthetic)

    good = [result(0, 0.01 + 0.001 * i, True) for i in range(13)]
    synthetic = [result(1, 0.95 + 0.001 * i, True, True) for i in range(13)]
    missed = result(1, 0.001, False)
    scored, labels = [*good, missed, *synthetic], [0] * 13 + [1]
    figures = summarise(scored, "probability")
    assert figures["learnt"] == 1.0 and figures["loss"] == pytest.approx(0.1)
    rule = evaluate.fit_thresholds(scored, labels, VerdictConfig(), "probability")
    assert rule.calibration == "normals" and rule.fit_stats["fp"] == 0
    assert (rule.fit_stats["synthetic"], rule.fit_stats["synthetic_missed"]) == (13, 0)
    # Good images are empty above .8 alone, and synthetic masks are met best at .2.
    sure = np.where(np.arange(256) < 205, 0.0, 1.0)
    met = 0.9 - np.abs(np.arange(256) / 256 - 0.2)
    noisy = [*(one._replace(curve=sure) for one in good), *(one._replace(curve=met) for one in synthetic)]
    rule = evaluate.fit_thresholds(noisy, [0] * 13, VerdictConfig(), "probability")
    assert rule.pixel_threshold == pytest.approx(0.2, abs=0.01)
    three = [*good, *[result(1, 0.5, False)] * 3, *synthetic]
    assert (
        evaluate.fit_thresholds(three, [0] * 13 + [1] * 3, VerdictConfig(), "probability").calibration == "f1"
    )

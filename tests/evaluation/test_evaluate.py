"""Judging: every image once and in order whatever the batch size, and figures that scikit-learn agrees with."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import numpy as np
import pytest
from fake_processes import run_as_processes
from flax import nnx
from PIL import Image
from sklearn import metrics as sk

from dagm_jax import calibrate
from dagm_jax.data.config import SlicingConfig
from dagm_jax.data.images import decode
from dagm_jax.data.images.decode import load
from dagm_jax.data.slicing import make_slicer
from dagm_jax.distributed.devices import ParallelConfig, make_devices
from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.errors import UserError
from dagm_jax.evaluation import evaluate
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.evaluate import ImageResult, TestResult, validate
from dagm_jax.evaluation.predictor import Prediction, Predictor
from dagm_jax.evaluation.step import make_eval_step
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.experiment import run
from dagm_jax.experiment.pictures import Hardest, TestPictures
from dagm_jax.experiment.run import evaluate_test_split
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.models.config import CustomUNetConfig
from dagm_jax.models.custom_unet import CustomUNet
from dagm_jax.models.network import make_network
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.types import MAX_GALLERY_ITEMS, Sample

# Classes of the package, no tests.
TestResult.__test__ = TestPictures.__test__ = False  # type: ignore[attr-defined]
SHAPE = (32, 48)
PLAIN = VerdictConfig(smoothing_px=0.0)
RULE = Thresholds(threshold=0.5, pixel_threshold=0.25, calibration="f1")

Pixels = tuple[np.ndarray, np.ndarray]


def brightness_judge(batch_size: int = 4, verdict: VerdictConfig = PLAIN) -> Predictor:
    """A judge whose map is the image over 255, whose loss is its mean and whose counts are its first pixels."""

    def compiled(
        params: Any, stats: Any, image: np.ndarray, mask: np.ndarray, mask_px: np.ndarray
    ) -> dict[str, np.ndarray]:
        assert (params, stats) == ("params", "stats")
        assert image.shape == mask.shape == (batch_size, *SHAPE)
        assert image.dtype == np.uint8
        assert mask.dtype == bool
        scaled = image.astype(np.float32) / 255
        return {
            "map": scaled,
            "slice_scores": scaled[:, :, 0],
            "loss": scaled.mean((1, 2)),
            "num_right": image[:, 0, 0].astype(np.int32),
            "num_counted": image[:, 0, 1].astype(np.int32),
        }

    devices = SimpleNamespace(shard_batch=lambda arrays: arrays)
    return Predictor(cast(Any, compiled), "params", "stats", cast(Any, devices), batch_size, SHAPE, verdict)


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


class Cache:
    """The images of a list, and which of them were asked for."""

    def __init__(self, images: Sequence[Pixels]) -> None:
        self.images, self.asked = images, []

    def __getitem__(self, index: int) -> Pixels:
        self.asked.append(index)
        return self.images[index]


# --- the judge ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 4, 7, 8])
def test_each_image_once_in_order_without_the_padding(number: int) -> None:
    """Catches padding that comes out as an image, a last batch that is dropped, and an order by batch."""
    images = make_images(number)
    prediction = list(brightness_judge()(images))
    assert len(prediction) == number
    for one, (image, mask) in zip(prediction, images, strict=True):
        np.testing.assert_array_equal(one.image, image)
        np.testing.assert_array_equal(one.mask, mask)
        np.testing.assert_allclose(one.map, image / 255, rtol=1e-6)
        assert one.score == pytest.approx(image.max() / 255)
        assert one.loss == pytest.approx(image.mean() / 255, rel=1e-5)
        assert (one.num_right, one.num_counted) == (image[0, 0], 4)


def test_score_is_that_of_the_smoothed_map() -> None:
    """Catches a score of the raw map: one noisy pixel would make an image defective."""
    image = np.zeros(SHAPE, np.uint8)
    image[16, 24] = 255
    (prediction,) = brightness_judge(1, VerdictConfig(smoothing_px=2.0))([(image, image > 0)])
    assert prediction.score == prediction.map.max() < 0.1


def test_each_evidence_scores_its_own_way() -> None:
    """Catches a map's maximum for slices that say their own score, and a one-sided score of residuals."""
    image = np.full(SHAPE, 100, np.uint8)
    image[5, 3], image[9, 9] = 10, 150
    scores = {}
    for score_kind in ("probability", "deviation", "slices"):
        predictor = replace(brightness_judge(1), score_kind=score_kind)
        (prediction,) = predictor([(image, image < 20)])
        scores[score_kind] = prediction.score
        assert prediction.map[9, 9] == pytest.approx(50 / 255 if score_kind == "deviation" else 150 / 255)
    expected = {"probability": 150 / 255, "deviation": 90 / 255, "slices": image[:, 0].max() / 255}
    assert scores == pytest.approx(expected)


def test_images_are_taken_as_they_are_needed() -> None:
    """Catches a whole test side held in memory at once."""
    taken = 0

    def source() -> Iterator[Pixels]:
        nonlocal taken
        for pixels in make_images(12):
            taken += 1
            yield pixels

    prediction = brightness_judge(4)(source())
    next(prediction)
    assert taken == 4


def test_small_images_are_judged_padded_and_their_maps_cut_to_size() -> None:
    """Catches a score of what was added, a map of another size than its image, and black borders."""
    shapes = [(SHAPE[0], SHAPE[1]), (SHAPE[0] - 3, SHAPE[1]), (10, 7), (SHAPE[0], 5)]
    rng = np.random.default_rng(3)
    images = [(rng.integers(50, 200, shape).astype(np.uint8), np.zeros(shape, bool)) for shape in shapes]
    for one, (image, _) in zip(brightness_judge(3)(images), images, strict=True):
        assert one.image.shape == one.mask.shape == one.map.shape == image.shape
        np.testing.assert_array_equal(one.image, image)
        np.testing.assert_allclose(one.map, image / 255, rtol=1e-6)
        assert one.score == pytest.approx(image.max() / 255)
        assert one.loss * 255 > 50
    with pytest.raises(ValueError, match="negative"):
        list(brightness_judge(1)([(np.zeros((SHAPE[0] + 1, SHAPE[1]), np.uint8),) * 2]))


def test_a_real_network_judges_alike_in_every_batch_size() -> None:
    """Catches a result that depends on which images stand in a batch, and on the padding."""
    slicer = make_slicer(SlicingConfig(num_slices=4, slice_px=16), *SHAPE)
    config = CustomUNetConfig(base_channels=1)

    def build(rngs: nnx.Rngs) -> nnx.Module:
        return CustomUNet(config, in_channels=1, out_channels=1, rngs=rngs)

    # So narrow a network gives most images one score, with most seeds.
    network, params, stats = make_network(build, seed=10, in_channels=1, mean=100.0, std=50.0)
    function = make_eval_step(network, SegmentationConfig(), slicer)
    devices = make_devices(ParallelConfig(cpu_convolutions="default"))
    params, stats = devices.replicate((params, stats))
    images, results = make_images(5), []
    for per_device in (1, 3):
        size = per_device * devices.num_devices
        shape = (size, *SHAPE)
        empty = np.zeros(shape, np.uint8), np.zeros(shape, bool), np.zeros(size, np.int32)
        pixels = devices.shard_batch(empty)
        compiled = devices.compile_eval_step(function, params, stats, *pixels)
        results.append(list(Predictor(compiled, params, stats, devices, size, SHAPE, PLAIN)(images)))
    assert len({prediction.score for prediction in results[0]}) == 5
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.map, other.map, rtol=1e-5, atol=1e-6)
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert (one.num_right, one.num_counted) == (other.num_right, other.num_counted)


# --- validation and calibration -----------------------------------------------------------------------------


def dice_at_best_threshold(images: Sequence[Pixels]) -> tuple[float, float]:
    """(balanced Dice, Dice of the defective ones) at the best of the thresholds k/256, by brute force."""
    pairs = []
    for k in range(256):
        called = [(image.astype(np.float32) / 255 >= k / 256, mask) for image, mask in images]
        dice = np.mean([2 * (p & m).sum() / (p.sum() + m.sum()) for p, m in called if m.any()])
        empty = np.mean([not p.any() for p, m in called if not m.any()])
        pairs.append((float(dice + empty) / 2, float(dice)))
    return max(pairs, key=lambda pair: pair[0])


def test_validation_by_hand() -> None:
    """Catches figures over all images instead of those given, means of batches' means, and a quality of one part."""
    images, cache = make_images(11), Cache(make_images(11))
    indices = [7, 0, 3, 10, 4]
    chosen = [images[i] for i in indices]
    got = validate(brightness_judge(2), cast(Any, cache), indices)
    assert cache.asked == indices
    labels = [bool(mask.any()) for _, mask in chosen]
    area = sk.roc_auc_score(labels, [image.max() for image, _ in chosen])
    balanced, dice = dice_at_best_threshold(chosen)
    assert got["loss"] == pytest.approx(np.mean([image.mean() / 255 for image, _ in chosen]), rel=1e-5)
    assert got["accuracy"] == pytest.approx(sum(i % 4 for i in indices) / (4 * len(indices)))
    assert got["auroc"] == pytest.approx(area)
    assert got["dice_defective"] == pytest.approx(dice)
    assert got["balanced_dice"] == pytest.approx(balanced)
    assert got["quality"] == pytest.approx((area + balanced) / 2)


def unmarked_images() -> list[Pixels]:
    """Eleven images of which no defective one has a mask: it stands on everything."""
    return [(image, np.full(SHAPE, mask.any())) for image, mask in make_images(11)]


def test_defects_without_masks_count_as_images_and_not_as_pixels() -> None:
    """Catches a Dice against a mask that stands for not knowing, and an AUROC that is lost with it."""
    images = unmarked_images()
    predictor = replace(brightness_judge(4), score_kind="slices")
    figures = validate(predictor, cast(Any, Cache(images)), range(11))
    assert set(figures) == {"loss", "accuracy", "auroc", "quality"}
    assert figures["quality"] == pytest.approx((figures["auroc"] + figures["accuracy"]) / 2)
    labels = [int(mask.any()) for _, mask in images]
    rule, _ = calibrate(predictor, cast(Any, Cache(images)), range(11), labels)
    assert rule.pixel_threshold == rule.threshold
    with pytest.raises(UserError, match="pixel threshold needs defective validation images with masks"):
        calibrate(brightness_judge(4), cast(Any, Cache(images)), range(11), labels)


def test_half_marked_images_are_measured_on_the_marked_ones() -> None:
    """Catches one image without a mask that spoils the Dice of all that have one."""
    marked = make_images(11)
    mixed = [*unmarked_images()[:2], *marked[2:]]
    predictor = brightness_judge(4)
    of_mixed = validate(predictor, cast(Any, Cache(mixed)), range(11))
    of_marked = validate(predictor, cast(Any, Cache(marked)), [*range(1, 11)])
    assert of_mixed["dice_defective"] == pytest.approx(of_marked["dice_defective"])
    assert of_mixed["auroc"] == validate(predictor, cast(Any, Cache(marked)), range(11))["auroc"]


def test_quality_is_made_of_what_the_task_may_know() -> None:
    """Catches a reconstruction that is steered by defects, and slices that are judged by their maps' Dice."""
    images, cache = make_images(11), cast(Any, Cache(make_images(11)))
    indices = [7, 0, 3, 10, 4]
    slices = validate(replace(brightness_judge(2), score_kind="slices"), cache, indices)
    assert slices["quality"] == pytest.approx((slices["auroc"] + slices["accuracy"]) / 2)
    residuals = validate(replace(brightness_judge(2), score_kind="deviation"), cache, indices)
    loss = np.mean([images[i][0].mean() / 255 for i in indices if not images[i][1].any()])
    assert residuals["quality"] == pytest.approx(1 / (1 + loss), rel=1e-5)
    good = validate(replace(brightness_judge(2), score_kind="deviation"), cache, [1, 3])
    assert not {"auroc", "balanced_dice"} & good.keys()
    rule, _ = calibrate(
        replace(
            brightness_judge(2, VerdictConfig(smoothing_px=0, calibration="normals")), score_kind="deviation"
        ),
        cache,
        [1, 3, 5],
        [0, 0, 0],
    )
    assert rule.pixel_threshold == rule.threshold


def test_validation_without_a_label_is_a_users_error() -> None:
    """Catches a quality of 0 or None that would stop training without saying why."""
    for indices in ([1, 3], [0, 2]):
        with pytest.raises(UserError, match="validation needs images of both labels"):
            validate(brightness_judge(), cast(Any, Cache(make_images(4))), indices)


def test_calibration_sees_the_given_images_only() -> None:
    """Catches a threshold that has seen the test side: images outside the indices must not matter."""
    images = make_images(12)
    indices = [0, 1, 4, 5, 9]
    for i in indices:  # scores: good 0.2 and 0.4, defective 0.8
        images[i] = np.full(SHAPE, (204 if i % 2 == 0 else 51 + 51 * (i == 5)), np.uint8), images[i][1]
        images[i][0][0, :2] = 0
    labels = [int(images[i][1].any()) for i in indices]
    cache = Cache(images)
    rule, scores = calibrate(brightness_judge(2), cast(Any, cache), indices, labels)
    assert cache.asked == indices
    assert scores == pytest.approx([0.8, 0.2, 0.8, 0.4, 0.2])
    assert rule.calibration == "f1"
    assert 0.4 < rule.threshold < 0.8
    assert rule.fit_stats["highest_good_score"] == pytest.approx(0.4)
    assert rule.fit_stats["lowest_defective_score"] == pytest.approx(0.8)
    assert (rule.fit_stats["tp"], rule.fit_stats["tn"], rule.fit_stats["fp"], rule.fit_stats["fn"]) == (
        2,
        3,
        0,
        0,
    )
    # Whole defective images are at 0.8, so every pixel threshold up to there is equally good.
    assert rule.pixel_threshold < 0.8
    changed = [
        (255 - image, ~mask) if i not in indices else (image, mask) for i, (image, mask) in enumerate(images)
    ]
    again, _ = calibrate(brightness_judge(3), cast(Any, Cache(changed)), indices, labels)
    assert again == rule


# --- the test side ------------------------------------------------------------------------------------------


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
    """The result of all chunks and processes."""
    result = TestResult()

    def predict_share() -> None:
        for chunk in evaluate_test_split(predictor, samples, SHAPE, rule):
            result.add(chunk, rule)

    predictor.processes.all_or_raise(predict_share)
    return result.gathered(predictor.processes)


def test_every_record_once_in_order(samples: list[Sample]) -> None:
    """Catches an image that is counted twice or left out, a label beside another image, and a swapped decision."""
    result = result_of(brightness_judge(4), samples)
    images = make_images(19)
    assert [image.image_id for image in result.images] == [sample.image_id for sample in samples]
    assert result.labels == [sample.label for sample in samples]
    assert result.scores == pytest.approx([image.max() / 255 for image, _ in images])
    assert result.decisions == [score >= 0.5 for score in result.scores]
    assert all(type(decision) is bool for decision in result.decisions)


def test_what_the_caller_does_is_outside_the_executing_time(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: pictures and pixel figures measured at the detector's expense."""
    now_s = [0.0]
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: now_s[0])
    for chunk in evaluate_test_split(brightness_judge(4), samples, SHAPE, RULE):
        now_s[0] += 1000
        assert chunk.seconds == 0


@pytest.mark.parametrize(("batch_size", "most"), [(3, 6), (4, 8), (10, 10)])
def test_no_image_is_read_while_the_clock_stands(
    samples: list[Sample], monkeypatch: pytest.MonkeyPatch, batch_size: int, most: int
) -> None:
    """Would catch: threads that read ahead on unmeasured time, a test side held in memory, and scores that move."""
    expected = result_of(brightness_judge(batch_size), samples)
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
    monkeypatch.setattr(evaluate, "CHUNK_PX", 8 * SHAPE[0] * SHAPE[1])
    monkeypatch.setattr(decode, "load", slow_load)
    result = TestResult()
    for chunk in evaluate_test_split(brightness_judge(batch_size), samples, SHAPE, RULE):
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
        assert event == "clock" or is_running == (event == "read")
        assert num_read / 2 - num_drawn <= most
    assert (num_read / 2, num_drawn, is_running) == (19, 19, False)
    assert events.count("clock") == 2 * -(-19 // most)
    assert result.images == expected.images


def test_decision_is_that_of_the_rule(samples: list[Sample]) -> None:
    """Catches a fixed threshold in place of the calibrated one, and ">" where the rule says ">="."""
    score = float(np.float32(make_images(19)[3][0].max()) / np.float32(255))
    rule = Thresholds(threshold=score, pixel_threshold=0.5, calibration="f1")
    result = result_of(brightness_judge(4), samples, rule)
    assert result.decisions == [value >= score for value in result.scores]
    assert result.decisions[3]


def test_file_that_broke_meanwhile_is_a_users_error(samples: list[Sample]) -> None:
    """Catches a test image that is dropped without a word after the split was drawn."""
    path = cast(Path, samples[9].image)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"9\.png.*could be read when the run began; restore it"):
        result_of(brightness_judge(4), samples)
    path.unlink()
    with pytest.raises(UserError, match=r"9\.png: file is missing .*run the command again"):
        result_of(brightness_judge(4), samples)


# --- the report ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_report_against_scikit_learn(seed: int) -> None:
    """Catches precision and recall exchanged, good as the positive class, and costs the wrong way round."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation([0, 1] * 20 + [0] * 10)
    scores = np.round(rng.normal(labels * 0.8, 1), 1)  # rounding makes ties
    decisions = rng.random(50) < 0.3 + 0.4 * labels
    result = TestResult(
        [
            ImageResult(str(i), int(label), float(score), bool(decision))
            for i, (label, score, decision) in enumerate(zip(labels, scores, decisions, strict=True))
        ]
    )
    report = result.to_report(VerdictConfig(fp_cost=2.0, fn_cost=30.0))
    (tn, fp), (fn, tp) = sk.confusion_matrix(labels, decisions)
    assert {name: report[name] for name in ("tp", "fp", "fn", "tn")} == {
        "tp": tp,
        "fp": fp,
        "fn": fn,
        "tn": tn,
    }
    assert report["num_images"] == 50
    assert report["num_defective"] == labels.sum()
    for name, expected in {
        "accuracy": sk.accuracy_score(labels, decisions),
        "precision": sk.precision_score(labels, decisions),
        "recall": sk.recall_score(labels, decisions),
        "specificity": sk.recall_score(labels, decisions, pos_label=0),
        "f1": sk.f1_score(labels, decisions),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, decisions),
        "auroc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "cost": 2.0 * fp + 30.0 * fn,
        "nvidia_dice_if_nothing_is_predicted": 0.6,
    }.items():
        assert report[name] == pytest.approx(expected), name
    for name in ("accuracy", "precision", "recall", "specificity"):
        low, high = report[f"{name}_interval_95"]
        assert 0 <= low <= report[name] <= high <= 1, name


def test_report_holds_json_values(samples: list[Sample]) -> None:
    """Catches numpy numbers, which JSON refuses after an hour of training, and NaN, which is no JSON."""
    report = result_of(brightness_judge(4), samples).to_report(PLAIN)
    for leaf in jax.tree.leaves(report):
        assert type(leaf) in (int, float, str), report
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert evaluate.finite_or_none({"a": [float("nan"), 1.0], "b": (float("inf"), {"c": 2})}) == {
        "a": [None, 1.0],
        "b": [None, {"c": 2}],
    }


# --- the hardest --------------------------------------------------------------------------------------------


def test_the_hardest_are_kept_hardest_first() -> None:
    """Catches a gallery of the easiest images, one that mixes up the labels, and one that drops the worst."""
    rng = np.random.default_rng(0)
    rule = Thresholds(threshold=0.6, pixel_threshold=0.5, calibration="f1")
    hardest = Hardest(rule)
    image, zeros = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    scores = {(label, i): float(rng.random()) for label in (0, 1) for i in range(12)}
    for (label, i), score in rng.permutation(np.array(list(scores.items()), dtype=object)):
        sample = Sample(f"{label}-{i}", 1, label, None, Path(), None)
        prediction = Prediction(image, zeros > 0, zeros, score, 0.0, 0, 0)
        hardest.offer(sample, prediction, score >= rule.threshold)
    items = hardest.gathered(ALONE)
    half = MAX_GALLERY_ITEMS // 2
    worst_defective = sorted((score, i) for (label, i), score in scores.items() if label)[:half]
    worst_good = sorted(((score, i) for (label, i), score in scores.items() if not label), reverse=True)[
        :half
    ]
    expected = [f"1-{i}" for _, i in worst_defective] + [f"0-{i}" for _, i in worst_good]
    assert [item.title.split()[0].rstrip(":") for item in items] == expected
    correct = [score < 0.6 for score in [s for s, _ in worst_good]]
    assert [item.correct for item in items] == [s >= 0.6 for s, _ in worst_defective] + correct


def test_few_images_are_all_hardest(samples: list[Sample]) -> None:
    """Catches a gallery that needs a full heap; equal scores must not compare images."""
    hardest = Hardest(RULE)
    image, zeros = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.float32)
    for sample in samples[:3]:
        hardest.offer(sample, Prediction(image, zeros > 0, zeros, 0.5, 0.0, 0, 0), True)
    assert len(hardest.gathered(ALONE)) == 3


# --- several processes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 25])
def test_several_processes_validate_and_calibrate_like_one(count: int) -> None:
    """Would catch: an image that two processes judge or none does, a mean of means, and an order by process.

    25 processes: more than there are images.
    """
    images, indices = make_images(11), [7, 0, 3, 10, 4, 1, 6]
    labels = [int(images[i][1].any()) for i in indices]
    caches = [Cache(images) for _ in range(count)]

    def work(processes: Processes) -> Any:
        predictor = replace(brightness_judge(2), processes=processes)
        cache = cast(Any, caches[processes.index])
        return validate(predictor, cache, indices), calibrate(predictor, cache, indices, labels)

    alone = cast(Any, Cache(images))
    predictor = brightness_judge(2)
    expected = validate(predictor, alone, indices), calibrate(predictor, alone, indices, labels)
    assert run_as_processes(count, work) == [expected] * count
    # Once to validate, once to calibrate.
    assert sorted(i for cache in caches for i in cache.asked) == sorted(indices * 2)


@pytest.mark.parametrize("count", [2, 3, 25])
def test_several_processes_judge_the_test_side_like_one(
    samples: list[Sample], count: int, tmp_path: Path
) -> None:
    """Would catch: scores or pictures beside another image, pixels counted twice, a gallery of one process's."""

    rule = Thresholds(0.78, 0.25, "f1")
    data = SimpleNamespace(
        manifest=SimpleNamespace(samples=samples),
        split=SimpleNamespace(test=range(len(samples))),
        cache=SimpleNamespace(shape=SHAPE),
    )

    def work(processes: Processes) -> tuple[TestResult, TestPictures]:
        predictor = replace(brightness_judge(4), processes=processes)
        return run.evaluate_test_split(predictor, cast(Any, data), rule, Workdir(tmp_path))

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
        np.testing.assert_array_equal(pictures.example.image, expected.example.image)


def test_a_file_that_one_process_cannot_read_stops_all(samples: list[Sample]) -> None:
    """Would catch: processes that wait for ever for the one that met the broken file."""
    cast(Path, samples[9].image).write_bytes(b"")
    stopped: list[int] = []

    def work(processes: Processes) -> None:
        with pytest.raises(UserError, match=r"9\.png"):
            result_of(replace(brightness_judge(4), processes=processes), samples)
        stopped.append(processes.index)

    run_as_processes(3, work)
    assert sorted(stopped) == [0, 1, 2]

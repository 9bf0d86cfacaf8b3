"""Every image once, from pixels to verdict: validation while training, calibration, and the test side's figures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from dagm_jax.console import show
from dagm_jax.data.cache import ImageCache
from dagm_jax.data.images.decode import load_all
from dagm_jax.data.images.files import BadImage
from dagm_jax.distributed.processes import Processes, interleave
from dagm_jax.errors import UserError
from dagm_jax.evaluation import baselines
from dagm_jax.evaluation.metrics import ImageCounts, auroc, average_precision
from dagm_jax.evaluation.pixel_metrics import DiceCurve, OverlapCounts, PixelHistogram, dice
from dagm_jax.evaluation.predictor import Prediction, Predictor
from dagm_jax.evaluation.threshold import Thresholds, VerdictConfig, fit_threshold
from dagm_jax.types import Pixels, Sample

# Pixels of test images per timed chunk (64 DAGM images): chunked so that nothing decodes while the timer is stopped.
CHUNK_PX = 1 << 24
# Threads that draw pictures of test images and score baselines: most of that work holds no interpreter lock.
NUM_THREADS = 8


@dataclass(frozen=True)
class _ImageScore:
    """Prediction for a validation image without its pixels; the curve is empty where no defect is marked."""

    label: int
    score: float
    loss: float
    num_right: int
    num_counted: int
    curve: DiceCurve


def _predict_validation(
    predictor: Predictor,
    cache: ImageCache,
    indices: Sequence[int],
    on_image: Callable[[], None] = lambda: None,
) -> tuple[list[_ImageScore], DiceCurve]:
    """(one `_ImageScore` for each of these images in order, the Dice curve of them all).

    Each is judged once over all processes; ``on_image`` is called at those of this one.
    """
    scored = []
    for prediction in predictor(cache[i] for i in predictor.processes.share(indices)):
        marked = is_marked(prediction.mask)
        curve = DiceCurve.from_map(prediction.map, prediction.mask) if marked else DiceCurve()
        counts = prediction.num_right, prediction.num_counted
        scored.append(
            _ImageScore(int(prediction.mask.any()), prediction.score, prediction.loss, *counts, curve)
        )
        on_image()
    scored = interleave(predictor.processes.gather(scored))
    return scored, sum((one.curve for one in scored), DiceCurve())


def validate(predictor: Predictor, cache: ImageCache, indices: Sequence[int]) -> dict[str, float]:
    """Loss, slice accuracy, image AUROC, balanced Dice, and the quality in [0, 1] that training is steered by.

    Balanced Dice is the mean of Dice on defective images and of the share of good images left empty. It is taken at
    the pixel threshold that is best for these images: a network whose maps are sharp but spread too far is not worse
    than one that calibration need not correct.

    Quality is the mean of AUROC and balanced Dice where pixels are told apart, of AUROC and slice accuracy where slices
    are, and 1/(1 + loss on good images) where the task may not know of defects: there all else is for the reader alone.
    Figures that need a label which is not there, or decisions that the task does not make, are left out.
    """
    scored, curve = _predict_validation(predictor, cache, indices)
    labels, scores, losses = ([getattr(one, name) for one in scored] for name in ("label", "score", "loss"))
    figures = {"loss": float(np.mean(losses))}
    if counted := sum(one.num_counted for one in scored):
        figures["accuracy"] = sum(one.num_right for one in scored) / counted
    area, balanced, defective = auroc(labels, scores), curve.balanced_dice(), curve.mean_dice()
    if area is not None:
        figures["auroc"] = area
    if area is not None and balanced is not None and defective is not None:
        best = int(balanced.argmax())
        figures |= {
            "dice_defective": float(defective[best]),
            "balanced_dice": float(balanced[best]),
        }
    if predictor.score_kind == "deviation":
        loss_of_good = float(np.mean([loss for loss, label in zip(losses, labels, strict=True) if not label]))
        return figures | {"quality": 1 / (1 + loss_of_good)}
    second = "balanced_dice" if predictor.score_kind == "probability" else "accuracy"
    if "auroc" not in figures or second not in figures:
        raise UserError("`data`: validation needs images of both labels, the defective ones with masks")
    return figures | {"quality": (figures["auroc"] + figures[second]) / 2}


def calibrate(
    predictor: Predictor, cache: ImageCache, indices: Sequence[int], labels: Sequence[int]
) -> tuple[Thresholds, list[float]]:
    """(the rule fitted to the validation images, their scores in order).

    The image threshold is found as configured, the pixel threshold by best Dice.

    Where defects may not be known of, or only which slices hold them, the image threshold, which is on the same scale,
    is that of the pixels too.
    """
    with show("calibrating on validation images", len(predictor.processes.share(indices))) as bar:
        scored, curve = _predict_validation(predictor, cache, indices, bar.advance)
    scores = [one.score for one in scored]
    threshold, fit_stats = fit_threshold(labels, scores, predictor.verdict)
    pixel_threshold = threshold if predictor.score_kind == "deviation" else curve.best_threshold()
    if pixel_threshold is None and predictor.score_kind == "slices":
        pixel_threshold = threshold
    if pixel_threshold is None:
        raise UserError("`data`: the pixel threshold needs defective validation images with masks")
    return Thresholds(threshold, pixel_threshold, predictor.verdict.calibration, fit_stats), scores


def is_marked(mask: np.ndarray) -> bool:
    """Whether a mask says where there is a defect and where not.

    One that covers the whole image stands for a defective image without a mask (see ``load``): figures of pixels
    leave it out.
    """
    return not mask.all()


@dataclass(frozen=True)
class TestChunk:
    """Test images judged in one go, and the wall time of that: from files to decisions, in seconds."""

    samples: Sequence[Sample]
    predictions: Sequence[Prediction]
    decisions: Sequence[bool]
    seconds: float


@dataclass(frozen=True)
class ImageResult:
    """Result of one test image, without its pixels. overlap, defect: None where no pixel is marked as either."""

    image_id: str
    label: int
    score: float
    decision: bool
    overlap: OverlapCounts | None = None
    defect: dict[str, Any] | None = None


@dataclass
class TestResult:
    """Figures of the test side under a fixed rule; images are in the order of the records."""

    images: list[ImageResult] = field(default_factory=list)
    pixels: PixelHistogram = field(default_factory=PixelHistogram.empty)
    executing_time_s: float = 0.0

    @property
    def labels(self) -> list[int]:
        return [image.label for image in self.images]

    @property
    def scores(self) -> list[float]:
        return [image.score for image in self.images]

    @property
    def decisions(self) -> list[bool]:
        return [image.decision for image in self.images]

    def add(self, chunk: TestChunk, rule: Thresholds) -> None:
        """Adds the images of a chunk; pixels count as predicted from the rule's pixel threshold on."""
        self.executing_time_s += chunk.seconds
        for sample, prediction, decision in zip(
            chunk.samples, chunk.predictions, chunk.decisions, strict=True
        ):
            overlap = defect = None
            if is_marked(prediction.mask):
                predicted = prediction.map >= rule.pixel_threshold
                self.pixels += PixelHistogram.from_map(prediction.map, prediction.mask)
                overlap = OverlapCounts.from_masks(predicted, prediction.mask)
                if sample.label:
                    areas = {"mask_px": int(prediction.mask.sum()), "predicted_px": int(predicted.sum())}
                    defect = {"image": sample.image_id, **areas, "dice": dice(predicted, prediction.mask)}
            self.images.append(
                ImageResult(sample.image_id, sample.label, prediction.score, decision, overlap, defect)
            )

    def gathered(self, processes: Processes) -> TestResult:
        """The result of all processes' shares; the executing time is the longest."""
        return TestResult(
            interleave(processes.gather(self.images)),
            sum(processes.gather(self.pixels), PixelHistogram.empty()),
            max(processes.gather(self.executing_time_s)),
        )

    def to_report(self, verdict: VerdictConfig) -> dict[str, Any]:
        """The figures as JSON values; each rate that is a share of images has its 95 % Wilson interval beside it."""
        counts = ImageCounts.from_decisions(self.labels, self.decisions)
        overlap = sum((i.overlap for i in self.images if i.overlap is not None), OverlapCounts())
        defects = [image.defect for image in self.images if image.defect is not None]
        report: dict[str, Any] = {
            "num_images": len(self.images),
            "num_defective": sum(self.labels),
            "tp": counts.tp,
            "fp": counts.fp,
            "fn": counts.fn,
            "tn": counts.tn,
        }
        for name, rate in counts.rates().items():
            report[name] = rate["value"]
            report[f"{name}_interval_95"] = [rate["low"], rate["high"]]
        return report | {
            "f1": counts.f1,
            "balanced_accuracy": counts.balanced_accuracy,
            "auroc": auroc(self.labels, self.scores),
            "average_precision": average_precision(self.labels, self.scores),
            "cost": counts.cost(verdict.fp_cost, verdict.fn_cost),
            "cost_fp_fn": [verdict.fp_cost, verdict.fn_cost],
            "dice_defective": overlap.mean_dice,
            "iou_defective": overlap.mean_iou,
            # Beside what predicting nothing gives it means something only over the same images.
            "nvidia_dice": overlap.mean_dice_all if len(defects) == sum(self.labels) else None,
            "nvidia_dice_if_nothing_is_predicted": 1 - sum(self.labels) / len(self.images),
            "pixel_auroc": self.pixels.auroc(),
            "pixel_average_precision": self.pixels.average_precision(),
            "dice_per_defective_image": sorted(defects, key=lambda defect: defect["mask_px"]),
        }


def evaluate_test_split(
    predictor: Predictor, samples: Sequence[Sample], shape: tuple[int, int] | None, rule: Thresholds
) -> Iterator[TestChunk]:
    """This process's share of the records, each judged once from its file on, chunk by chunk.

    ``shape``: (h, w) that every image must have, None for any. The seconds of a chunk are those of decoding, cutting,
    network, stitching, scoring and deciding. Nothing is read while the caller works on a chunk. Raises UserError for a
    file that has become unreadable.
    """
    samples = predictor.processes.share(samples)
    size = _chunk_size(predictor)
    images = predictor(_readable(samples, shape, size))
    with show("judging test images", len(samples)) as bar:
        for start in range(0, len(samples), size):
            chunk = samples[start : start + size]
            prediction, decisions = [], []
            start_s = time.perf_counter()
            for one in islice(images, len(chunk)):
                prediction.append(one)
                decisions.append(bool(rule.decide([one.score])[0]))
                bar.advance()
            yield TestChunk(chunk, prediction, decisions, time.perf_counter() - start_s)


def _chunk_size(predictor: Predictor) -> int:
    """Number of test images in a chunk: whole batches, of CHUNK_PX if one fits."""
    height, width = predictor.shape
    return max(1, CHUNK_PX // (height * width) // predictor.batch_size) * predictor.batch_size


def _readable(samples: Sequence[Sample], shape: tuple[int, int] | None, chunk_size: int) -> Iterator[Pixels]:
    """The pixels of the records in order; no chunk is begun before the one before it has been taken."""
    for start in range(0, len(samples), chunk_size):
        for loaded in load_all(samples[start : start + chunk_size], shape):
            if isinstance(loaded, BadImage):
                raise UserError(
                    f"{loaded} (it could be read when the run began; restore it and run the command again)"
                )
            yield loaded


def evaluate_baselines(
    cache: ImageCache,
    validation: Sequence[int],
    test: Sequence[int],
    labels: Sequence[int],
    verdict: VerdictConfig,
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Figures of two baselines on the same test images: the majority answer, and local texture energy.

    The energy's threshold is fitted on the same validation images by the same rule. ``on_image`` is called after each.
    """

    def scores(indices: Sequence[int]) -> list[float]:
        found = []
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for score in pool.map(lambda i: baselines.local_energy_score(cache.image(i)), indices):
                found.append(score)
                on_image()
        return found

    truth = [labels[i] for i in test]
    majority = baselines.majority_counts(truth)
    threshold, _ = fit_threshold([labels[i] for i in validation], scores(validation), verdict)
    test_scores = scores(test)
    energy = ImageCounts.from_decisions(truth, [score >= threshold for score in test_scores])
    return {
        "majority_accuracy": majority.accuracy,
        "local_energy_auroc": auroc(truth, test_scores),
        "local_energy_accuracy": energy.accuracy,
        "local_energy_f1": energy.f1,
    }


def finite_or_none(value: Any) -> Any:
    """JSON values with NaN and infinities replaced by null, which JSON has."""
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

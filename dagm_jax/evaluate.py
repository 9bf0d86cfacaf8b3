"""Every image once, from pixels to verdict: validation while training, calibration, and the test side's figures."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import jax
import numpy as np

from dagm_jax import baselines
from dagm_jax.data.cache import ImageCache
from dagm_jax.data.decode import load_all
from dagm_jax.data.files import BadImage
from dagm_jax.data.pipeline import full_batch
from dagm_jax.data.slicing import pad
from dagm_jax.figures import MAX_GALLERY_ITEMS, GalleryItem
from dagm_jax.metrics import (
    DiceCurve,
    ImageCounts,
    OverlapCounts,
    PixelHistogram,
    auroc,
    average_precision,
    dice,
)
from dagm_jax.tasks.base import Evidence
from dagm_jax.train.parallel import Devices
from dagm_jax.train.progress import show
from dagm_jax.types import Pixels, Record, UserError
from dagm_jax.verdict import (
    DecisionRule,
    VerdictConfig,
    deviation_map,
    fit_threshold,
    image_score,
    slices_score,
    smooth_map,
    spread_scores,
)


@dataclass(frozen=True)
class Judged:
    """One image judged: map of its evidence float32 ``[h w]`` in [0, 1], image score, loss and decisions of slices."""

    image: np.ndarray
    mask: np.ndarray
    map: np.ndarray
    score: float
    loss: float
    num_right: int
    num_counted: int


@dataclass(frozen=True)
class Judge:
    """A compiled network with the weights to judge with; ``batch_size`` images go to the devices at a time.

    shape: (h, w) in px that the network was compiled for; smaller images are padded, and their maps cut to their size.
    evidence: what the image score is read off (see ``tasks.base``).
    """

    compiled: jax.stages.Compiled
    params: Any
    stats: Any
    devices: Devices
    batch_size: int
    shape: tuple[int, int]
    verdict: VerdictConfig
    evidence: Evidence = "probability"

    def with_weights(self, params: Any, stats: Any) -> Judge:
        """The same compiled network with other weights."""
        return replace(self, params=params, stats=stats)

    def __call__(self, pixels: Iterable[Pixels]) -> Iterator[Judged]:
        """The judgement of each (image uint8 ``[h w]``, mask bool ``[h w]``) in order; the last batch is padded."""
        waiting = iter(pixels)
        while chosen := list(islice(waiting, self.batch_size)):
            padded = ((pad(image, self.shape), pad(mask, self.shape)) for image, mask in chosen)
            images, masks = full_batch(padded, self.batch_size)
            mask_px = np.zeros(self.batch_size, np.int32)
            mask_px[: len(chosen)] = [np.count_nonzero(mask) for _, mask in chosen]
            out = self.compiled(self.params, self.stats, *self.devices.shard_batch((images, masks, mask_px)))
            out = jax.device_get(out)
            for i, (image, mask) in enumerate(chosen):
                height, width = image.shape
                smooth = smooth_map(out["map"][i][:height, :width], self.verdict.smoothing_px)
                if self.evidence == "deviation":
                    smooth = deviation_map(smooth)
                if self.evidence == "slices":
                    score = slices_score(out["slice_scores"][i], self.verdict)
                else:
                    score = image_score(smooth, self.verdict)
                counts = int(out["num_right"][i]), int(out["num_counted"][i])
                yield Judged(image, mask, smooth, score, float(out["loss"][i]), *counts)


def validate(judge: Judge, cache: ImageCache, indices: Sequence[int]) -> dict[str, float]:
    """Loss, slice accuracy, image AUROC, balanced Dice, and the quality in [0, 1] that training is steered by.

    Balanced Dice is the mean of Dice on defective images and of the share of good images left empty. It is taken at
    the pixel threshold that is best for these images: a network whose maps are sharp but spread too far is not worse
    than one that calibration need not correct.

    Quality is the mean of AUROC and balanced Dice where pixels are told apart, of AUROC and slice accuracy where slices
    are, and 1/(1 + loss on good images) where the task may not know of defects: there all else is for the reader alone.
    Figures that need a label which is not there, or decisions that the task does not make, are left out.
    """
    labels, scores, losses = [], [], []
    right = counted = 0
    curve = DiceCurve()
    for judged in judge(cache[i] for i in indices):
        labels.append(int(judged.mask.any()))
        scores.append(judged.score)
        losses.append(judged.loss)
        right, counted = right + judged.num_right, counted + judged.num_counted
        if is_marked(judged.mask):
            curve += DiceCurve.from_map(judged.map, judged.mask)
    figures = {"loss": float(np.mean(losses))}
    if counted:
        figures["accuracy"] = right / counted
    area, balanced, defective = auroc(labels, scores), curve.balanced_dice(), curve.mean_dice()
    if area is not None:
        figures["auroc"] = area
    if area is not None and balanced is not None and defective is not None:
        best = int(balanced.argmax())
        figures |= {
            "dice_defective": float(defective[best]),
            "balanced_dice": float(balanced[best]),
        }
    if judge.evidence == "deviation":
        loss_of_good = float(np.mean([loss for loss, label in zip(losses, labels, strict=True) if not label]))
        return figures | {"quality": 1 / (1 + loss_of_good)}
    second = "balanced_dice" if judge.evidence == "probability" else "accuracy"
    if "auroc" not in figures or second not in figures:
        raise UserError("`data`: validation needs images of both labels, the defective ones with masks")
    return figures | {"quality": (figures["auroc"] + figures[second]) / 2}


def calibrate(judge: Judge, cache: ImageCache, indices: Sequence[int], labels: Sequence[int]) -> DecisionRule:
    """The rule fitted to the validation images: image threshold as configured, pixel threshold by best Dice.

    Where defects may not be known of, or only which slices hold them, the image threshold, which is on the same scale,
    is that of the pixels too.
    """
    scores = []
    curve = DiceCurve()
    with show("calibrating on validation images", len(indices)) as bar:
        for judged in judge(cache[i] for i in indices):
            scores.append(judged.score)
            if is_marked(judged.mask):
                curve += DiceCurve.from_map(judged.map, judged.mask)
            bar.advance()
    threshold, evidence = fit_threshold(labels, scores, judge.verdict)
    pixel_threshold = threshold if judge.evidence == "deviation" else curve.best_threshold()
    if pixel_threshold is None and judge.evidence == "slices":
        pixel_threshold = threshold
    if pixel_threshold is None:
        raise UserError("`data`: the pixel threshold needs defective validation images with masks")
    return DecisionRule(threshold, pixel_threshold, judge.verdict.calibration, evidence)


def is_marked(mask: np.ndarray) -> bool:
    """Whether a mask says where there is a defect and where not.

    One that covers the whole image stands for a defective image without a mask (see ``data.decode``): figures of pixels
    leave it out.
    """
    return not mask.all()


@dataclass
class TestResult:
    """The test side judged with a fixed rule, filled image by image; lists are in the order of the records.

    example: the first defective image, of those with masks where there are any, for a picture of what was done to it.
    """

    image_ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    decisions: list[bool] = field(default_factory=list)
    pixels: PixelHistogram = field(default_factory=PixelHistogram.empty)
    overlap: OverlapCounts = field(default_factory=OverlapCounts)
    defects: list[dict[str, Any]] = field(default_factory=list)
    hardest: list[GalleryItem] = field(default_factory=list)
    example: Judged | None = None
    executing_time_s: float = 0.0

    def to_report(self, verdict: VerdictConfig) -> dict[str, Any]:
        """The figures as JSON values; each rate that is a share of images has its 95 % Wilson interval beside it."""
        counts = ImageCounts.from_decisions(self.labels, self.decisions)
        report: dict[str, Any] = {
            "num_images": len(self.labels),
            "num_defective": sum(self.labels),
            "tp": counts.tp,
            "fp": counts.fp,
            "fn": counts.fn,
            "tn": counts.tn,
        }
        for name, rate in counts.rates().items():
            report[name] = rate["value"]
            report[f"{name}_interval_95"] = [rate["low"], rate["high"]]
        report |= {
            "f1": counts.f1,
            "balanced_accuracy": counts.balanced_accuracy,
            "auroc": auroc(self.labels, self.scores),
            "average_precision": average_precision(self.labels, self.scores),
            "cost": counts.cost(verdict.fp_cost, verdict.fn_cost),
            "cost_fp_fn": [verdict.fp_cost, verdict.fn_cost],
            "dice_defective": self.overlap.mean_dice,
            "iou_defective": self.overlap.mean_iou,
            # Beside what predicting nothing gives it means something only over the same images.
            "nvidia_dice": self.overlap.mean_dice_all if len(self.defects) == sum(self.labels) else None,
            "nvidia_dice_if_nothing_is_predicted": 1 - sum(self.labels) / len(self.labels),
            "pixel_auroc": self.pixels.auroc(),
            "pixel_average_precision": self.pixels.average_precision(),
            "dice_per_defective_image": sorted(self.defects, key=lambda defect: defect["mask_px"]),
        }
        return report


def judge_test_side(
    judge: Judge, records: Sequence[Record], shape: tuple[int, int] | None, rule: DecisionRule
) -> TestResult:
    """Every record once, from its file to its verdict; ``shape``: (h, w) that every image must have, None for any.

    ``executing_time_s`` is the wall time of just that (decode, cut, network, stitch, score, decide); measuring pixel
    figures and collecting the gallery are not in it, and the network is compiled before.
    """
    result = TestResult()
    gallery = _Hardest(rule)
    judged_images = judge(_readable(records, shape))
    seconds = 0.0
    with show("judging test images", len(records)) as bar:
        for record in records:
            start_s = time.perf_counter()
            judged = next(judged_images)
            decision = bool(rule.decide([judged.score])[0])
            seconds += time.perf_counter() - start_s
            result.image_ids.append(record.image_id)
            result.labels.append(record.label)
            result.scores.append(judged.score)
            result.decisions.append(decision)
            gallery.offer(record, judged, decision)
            prediction = judged.map >= rule.pixel_threshold
            shown = result.example
            if record.label and (shown is None or (is_marked(judged.mask) and not is_marked(shown.mask))):
                result.example = judged
            if record.label and is_marked(judged.mask):
                areas = {"mask_px": int(judged.mask.sum()), "predicted_px": int(prediction.sum())}
                result.defects.append(
                    {"image": record.image_id, **areas, "dice": dice(prediction, judged.mask)}
                )
            if is_marked(judged.mask):
                result.pixels += PixelHistogram.from_map(judged.map, judged.mask)
                result.overlap += OverlapCounts.from_masks(prediction, judged.mask)
            bar.advance()
    result.hardest, result.executing_time_s = gallery.items(), seconds
    return result


def _readable(records: Sequence[Record], shape: tuple[int, int] | None) -> Iterator[Pixels]:
    for loaded in load_all(records, shape):
        if isinstance(loaded, BadImage):
            raise UserError(
                f"{loaded} (it could be read when the run began; restore it and run the command again)"
            )
        yield loaded


class _Hardest:
    """The images of each label whose scores lie furthest on the wrong side of the threshold, or nearest to it."""

    def __init__(self, rule: DecisionRule) -> None:
        self._rule = rule
        self._heaps: dict[int, list[tuple[float, str, GalleryItem]]] = {0: [], 1: []}

    def offer(self, record: Record, judged: Judged, decision: bool) -> None:
        score, threshold = spread_scores([judged.score, self._rule.threshold])
        hardness = float(threshold - score) if record.label else float(score - threshold)
        title = (
            f"{record.image_id}\n{'defective' if record.label else 'good'}, "
            f"judged {'defective' if decision else 'good'}, {judged.score:.4f}"
        )
        outlined = judged.mask if is_marked(judged.mask) else np.zeros_like(judged.mask)
        item = GalleryItem(judged.image, judged.map, outlined, title, decision == bool(record.label))
        heap = self._heaps[record.label]
        heapq.heappush(heap, (hardness, record.image_id, item))
        if len(heap) > MAX_GALLERY_ITEMS // 2:
            heapq.heappop(heap)

    def items(self) -> list[GalleryItem]:
        """Hardest first, defective images before good ones."""
        return [
            item
            for label in (1, 0)
            for _, _, item in sorted(self._heaps[label], key=lambda entry: entry[:2], reverse=True)
        ]


def judge_baselines(
    cache: ImageCache,
    validation: Sequence[int],
    test: Sequence[int],
    labels: Sequence[int],
    verdict: VerdictConfig,
) -> dict[str, Any]:
    """What needs no training, on the same test images: the majority answer, and local texture energy.

    The energy's threshold is fitted on the same validation images by the same rule.
    """

    def scores(indices: Sequence[int]) -> list[float]:
        return [baselines.local_energy_score(cache[i][0]) for i in indices]

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

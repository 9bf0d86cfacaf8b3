"""Every image once, from pixels to verdict: validation while training, calibration, and the test side's figures."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from dagm_jax.data.cache import ImageCache
from dagm_jax.data.decode import load_all
from dagm_jax.data.files import BadImage
from dagm_jax.evaluation import baselines
from dagm_jax.evaluation.metrics import ImageCounts, auroc, average_precision
from dagm_jax.evaluation.pixel_metrics import DiceCurve, OverlapCounts, PixelHistogram, dice
from dagm_jax.evaluation.predictor import Prediction, Predictor
from dagm_jax.evaluation.threshold import (
    Thresholds,
    VerdictConfig,
    fit_threshold,
    spread_scores,
)
from dagm_jax.processes import Processes, interleave
from dagm_jax.train.progress import show
from dagm_jax.types import MAX_GALLERY_ITEMS, GalleryItem, Pixels, Record, UserError

# Of test images that are read and judged in one go, by the clock: 64 of DAGM's. Threads that read ahead would work on
# while it stands still.
CHUNK_PX = 1 << 24
# Pictures of test images, and the baseline's scores, are made by so many threads: most of it holds no interpreter lock.
NUM_THREADS = 8

# (record, judged image) → a function that makes what is kept of the image, to be called once, in any thread.
Draw = Callable[[Record, "Prediction"], Callable[[], Any]]


@dataclass(frozen=True)
class _Told:
    """What a validation image was judged to be, less its pixels; an empty curve where no defect is marked."""

    label: int
    score: float
    loss: float
    num_right: int
    num_counted: int
    curve: DiceCurve


def _judge_validation(
    judge: Predictor, cache: ImageCache, indices: Sequence[int], on_image: Callable[[], None] = lambda: None
) -> tuple[list[_Told], DiceCurve]:
    """What each of these images was judged to be, in order, and the Dice curve of them all.

    Each is judged once over all processes; ``on_image`` is called at those of this one.
    """
    told = []
    for judged in judge(cache[i] for i in judge.processes.share(indices)):
        marked = is_marked(judged.mask)
        curve = DiceCurve.from_map(judged.map, judged.mask) if marked else DiceCurve()
        counts = judged.num_right, judged.num_counted
        told.append(_Told(int(judged.mask.any()), judged.score, judged.loss, *counts, curve))
        on_image()
    told = interleave(judge.processes.gather(told))
    return told, sum((one.curve for one in told), DiceCurve())


def validate(judge: Predictor, cache: ImageCache, indices: Sequence[int]) -> dict[str, float]:
    """Loss, slice accuracy, image AUROC, balanced Dice, and the quality in [0, 1] that training is steered by.

    Balanced Dice is the mean of Dice on defective images and of the share of good images left empty. It is taken at
    the pixel threshold that is best for these images: a network whose maps are sharp but spread too far is not worse
    than one that calibration need not correct.

    Quality is the mean of AUROC and balanced Dice where pixels are told apart, of AUROC and slice accuracy where slices
    are, and 1/(1 + loss on good images) where the task may not know of defects: there all else is for the reader alone.
    Figures that need a label which is not there, or decisions that the task does not make, are left out.
    """
    told, curve = _judge_validation(judge, cache, indices)
    labels, scores, losses = ([getattr(one, name) for one in told] for name in ("label", "score", "loss"))
    figures = {"loss": float(np.mean(losses))}
    if counted := sum(one.num_counted for one in told):
        figures["accuracy"] = sum(one.num_right for one in told) / counted
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


def calibrate(
    judge: Predictor, cache: ImageCache, indices: Sequence[int], labels: Sequence[int]
) -> tuple[Thresholds, list[float]]:
    """(the rule fitted to the validation images, their scores in order).

    The image threshold is found as configured, the pixel threshold by best Dice.

    Where defects may not be known of, or only which slices hold them, the image threshold, which is on the same scale,
    is that of the pixels too.
    """
    with show("calibrating on validation images", len(judge.processes.share(indices))) as bar:
        told, curve = _judge_validation(judge, cache, indices, bar.advance)
    scores = [one.score for one in told]
    threshold, evidence = fit_threshold(labels, scores, judge.verdict)
    pixel_threshold = threshold if judge.evidence == "deviation" else curve.best_threshold()
    if pixel_threshold is None and judge.evidence == "slices":
        pixel_threshold = threshold
    if pixel_threshold is None:
        raise UserError("`data`: the pixel threshold needs defective validation images with masks")
    return Thresholds(threshold, pixel_threshold, judge.verdict.calibration, evidence), scores


def is_marked(mask: np.ndarray) -> bool:
    """Whether a mask says where there is a defect and where not.

    One that covers the whole image stands for a defective image without a mask (see ``data.decode``): figures of pixels
    leave it out.
    """
    return not mask.all()


@dataclass
class TestResult:
    """The test side judged with a fixed rule; lists are in the order of the records.

    example: the first defective image, of those with masks where there are any, for a picture of what was done to it.
    """

    image_ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    decisions: list[bool] = field(default_factory=list)
    drawn: list[Any] = field(default_factory=list)
    pixels: PixelHistogram = field(default_factory=PixelHistogram.empty)
    overlap: OverlapCounts = field(default_factory=OverlapCounts)
    defects: list[dict[str, Any]] = field(default_factory=list)
    hardest: list[GalleryItem] = field(default_factory=list)
    example: Prediction | None = None
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


@dataclass(frozen=True)
class _Verdict:
    """What a test image was judged to be, less its pixels. overlap, defect: None where no pixel is marked as either."""

    score: float
    decision: bool
    overlap: OverlapCounts | None
    defect: dict[str, Any] | None
    drawn: Any


class _TestShare:
    """One process's share of the test side, judged: verdicts in order, and what is added up or shown of the images."""

    def __init__(self, rule: Thresholds, draw: Draw) -> None:
        self._rule, self._draw = rule, draw
        self.verdicts: list[_Verdict] = []
        self.pixels = PixelHistogram.empty()
        self.hardest = _Hardest(rule)
        self.example: Prediction | None = None
        # Of the images that could be the example the one that is: marked before not marked, then in order.
        self.example_rank = (2, 0)
        self.seconds = 0.0

    def judge(self, judge: Predictor, records: Sequence[Record], shape: tuple[int, int] | None) -> None:
        """Judges the records; raises UserError for a file that has become unreadable."""
        size = _chunk_size(judge)
        judged_images = judge(_readable(records, shape, size))
        with ThreadPoolExecutor(NUM_THREADS) as pool, show("judging test images", len(records)) as bar:
            for start in range(0, len(records), size):
                chunk = records[start : start + size]
                told: list[tuple[Prediction, bool]] = []
                start_s = time.perf_counter()
                for judged in islice(judged_images, len(chunk)):
                    told.append((judged, bool(self._rule.decide([judged.score])[0])))
                    bar.advance()
                self.seconds += time.perf_counter() - start_s
                # All of them, before the clock runs again.
                jobs = [self._draw(record, judged) for record, (judged, _) in zip(chunk, told, strict=True)]
                drawn = list(pool.map(lambda job: job(), jobs))
                for record, (judged, decision), one in zip(chunk, told, drawn, strict=True):
                    self._add(record, judged, decision, one)

    def _add(self, record: Record, judged: Prediction, decision: bool, drawn: Any) -> None:
        self.hardest.offer(record, judged, decision)
        marked = is_marked(judged.mask)
        rank = (0 if marked else 1, len(self.verdicts))
        if record.label and rank < self.example_rank:
            self.example, self.example_rank = judged, rank
        overlap = defect = None
        if marked:
            prediction = judged.map >= self._rule.pixel_threshold
            self.pixels += PixelHistogram.from_map(judged.map, judged.mask)
            overlap = OverlapCounts.from_masks(prediction, judged.mask)
            if record.label:
                areas = {"mask_px": int(judged.mask.sum()), "predicted_px": int(prediction.sum())}
                defect = {"image": record.image_id, **areas, "dice": dice(prediction, judged.mask)}
        self.verdicts.append(_Verdict(judged.score, decision, overlap, defect, drawn))


def judge_test_side(
    judge: Predictor,
    records: Sequence[Record],
    shape: tuple[int, int] | None,
    rule: Thresholds,
    draw: Draw = lambda record, judged: lambda: None,
) -> TestResult:
    """Every record once, from its file to its verdict; ``shape``: (h, w) that every image must have, None for any.

    ``executing_time_s`` is the wall time of just that (decode, cut, network, stitch, score, decide), of several
    processes the longest; measuring pixel figures, collecting the gallery and drawing are not in it, and nothing is
    read while they go on. The network is compiled before.

    draw: called for each image in order; what the function that it gives makes is kept to show the image. It should be
    small, because it is kept of all images.
    """
    processes, share = judge.processes, _TestShare(rule, draw)
    processes.together(lambda: share.judge(judge, processes.share(records), shape))
    verdicts: list[_Verdict] = interleave(processes.gather(share.verdicts))
    ranks = [(rank, place) for place, rank in enumerate(processes.gather(share.example_rank))]
    shown = processes.gather(share.example if min(ranks)[1] == processes.index else None)
    return TestResult(
        image_ids=[record.image_id for record in records],
        labels=[record.label for record in records],
        scores=[verdict.score for verdict in verdicts],
        decisions=[verdict.decision for verdict in verdicts],
        drawn=[verdict.drawn for verdict in verdicts],
        pixels=sum(processes.gather(share.pixels), PixelHistogram.empty()),
        overlap=sum((v.overlap for v in verdicts if v.overlap is not None), OverlapCounts()),
        defects=[verdict.defect for verdict in verdicts if verdict.defect is not None],
        hardest=share.hardest.gathered(processes).items(),
        example=shown[min(ranks)[1]],
        executing_time_s=max(processes.gather(share.seconds)),
    )


def _chunk_size(judge: Predictor) -> int:
    """How many test images are judged before their figures are measured: whole batches, of CHUNK_PX if one fits."""
    height, width = judge.shape
    return max(1, CHUNK_PX // (height * width) // judge.batch_size) * judge.batch_size


def _readable(records: Sequence[Record], shape: tuple[int, int] | None, chunk_size: int) -> Iterator[Pixels]:
    """The pixels of the records in order; no chunk is begun before the one before it has been taken."""
    for start in range(0, len(records), chunk_size):
        for loaded in load_all(records[start : start + chunk_size], shape):
            if isinstance(loaded, BadImage):
                raise UserError(
                    f"{loaded} (it could be read when the run began; restore it and run the command again)"
                )
            yield loaded


class _Hardest:
    """The images of each label whose scores lie furthest on the wrong side of the threshold, or nearest to it."""

    def __init__(self, rule: Thresholds) -> None:
        self._rule = rule
        self._heaps: dict[int, list[tuple[float, str, GalleryItem]]] = {0: [], 1: []}

    def offer(self, record: Record, judged: Prediction, decision: bool) -> None:
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

    def gathered(self, processes: Processes) -> _Hardest:
        """The hardest of all processes' images; only these are sent."""
        own = {label: [entry[:2] for entry in heap] for label, heap in self._heaps.items()}
        keys = processes.gather(own)
        whole = _Hardest(self._rule)
        for label, heap in self._heaps.items():
            kept = sorted((key for part in keys for key in part[label]), reverse=True)[
                : MAX_GALLERY_ITEMS // 2
            ]
            chosen = [entry for entry in heap if entry[:2] in kept]
            whole._heaps[label] = [entry for part in processes.gather(chosen) for entry in part]
        return whole

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
    on_image: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """What needs no training, on the same test images: the majority answer, and local texture energy.

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

"""Evaluation of a predictor: validation while training, thresholds, figures of the test split."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from dagm_jax.console import show
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import load_all
from dagm_jax.data.synthetic.draw import WithSynthetic
from dagm_jax.distributed.processes import Processes, interleave
from dagm_jax.errors import UserError
from dagm_jax.evaluation import metrics
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.metrics import FloatArray, ImageCounts, IntArray, auroc
from dagm_jax.evaluation.predictor import Prediction, Predictor
from dagm_jax.evaluation.threshold import Thresholds, fit_threshold, margin, needs_normals, rule_for
from dagm_jax.tasks.base import ScoreKind
from dagm_jax.types import Pixels, Sample

# Limit of pixels of test images per timed chunk (64 DAGM images): chunked so that nothing decodes while the timer is
# stopped.
CHUNK_PX = 1 << 24
# Limit of threads that draw pictures of test images and score baselines: most of that work holds no interpreter lock.
NUM_THREADS = 8


class ValidationResult(NamedTuple):
    """Prediction for a validation image without its pixels; curve: its `dice_curve`, None without a mask.

    is_synthetic: whether the image was shown with a synthetic defect.
    """

    label: int
    score: float
    loss: float
    num_right: int
    num_counted: int
    curve: FloatArray | None
    is_synthetic: bool = False


def predict_validation(
    predictor: Predictor,
    images: WithSynthetic,
    indices: Sequence[int],
    on_image: Callable[[], None] = lambda: None,
) -> list[ValidationResult]:
    """One `ValidationResult` for each image of these numbers, in order, each predicted by one of all processes.

    ``on_image`` is called after each image of this process.
    """
    scored = []
    share = predictor.processes.share(indices)
    for i, one in zip(share, predictor(images[i] for i in share), strict=True):
        curve = metrics.dice_curve(one.map, one.mask) if is_marked(one.mask) else None
        label = int(one.mask.any())
        result = ValidationResult(label, one.score, one.loss, one.num_right, one.num_counted, curve)
        scored.append(result._replace(is_synthetic=images.is_synthetic(i)))
        on_image()
    return interleave(predictor.processes.gather(scored))


def _curves(scored: Sequence[ValidationResult], label: int) -> FloatArray:
    """The Dice curves of the images of this label that have masks, float64 [n 256]."""
    rows = [one.curve for one in scored if one.label == label and one.curve is not None]
    return np.reshape(rows, (-1, metrics.NUM_DICE_THRESHOLDS))


def of_real(scored: Sequence[ValidationResult]) -> list[ValidationResult]:
    """The results of images without a synthetic defect."""
    return [one for one in scored if not one.is_synthetic]


def summarise(scored: Sequence[ValidationResult], score_kind: ScoreKind) -> dict[str, float]:
    """Loss, accuracy of the decisions on slices or images, image AUROC, margin, balanced Dice, learnt, and quality.

    AUROC and margin are of real defects; where there are too few, all are counted, and likewise for masks. The loss of
    maps leaves out images without a mask.
    Balanced Dice is the mean of Dice on defective images and of the share of good images left empty, at the pixel
    threshold that is best for these images, which calibration finds later.

    The margin is that of `threshold.margin`. Learnt is 1.0 where AUROC and balanced Dice are better than a guess with
    95 % confidence, and else 0.0: the lower bounds of both are above 1/2, which a random order of the images has, and
    maps without a defect. It is left out where there are too few images to tell.

    Quality in [0, 1] steers training. It is the mean of AUROC and balanced Dice where pixels are scored, of AUROC and
    accuracy where slices are, and 1/(1 + loss on good images) where the task may not know of defects. Figures without
    their labels or decisions are left out. Raises UserError where those of the quality are.
    """
    lossy = [one for one in scored if one.curve is not None or score_kind != "probability"]
    figures = {"loss": float(np.mean([one.loss for one in lossy or scored]))}
    if counted := sum(one.num_counted for one in scored):
        figures["accuracy"] = sum(one.num_right for one in scored) / counted
    real = of_real(scored)
    few = needs_normals(sum(one.label for one in real), len(real) < len(scored))
    ranked = scored if few else real
    labels, scores = [one.label for one in ranked], [one.score for one in ranked]
    area, bound = auroc(labels, scores), metrics.auroc_bound(labels, scores)
    learnt = bound is not None and bound > 0.5
    if area is not None:
        figures["auroc"] = area
        figures["margin"] = margin(labels, scores)
        defective = _curves(scored, 1)
        if len(defective):
            balanced = metrics.balanced_dice(defective, _curves(scored, 0))
            best = int(balanced.argmax())
            figures["dice_defective"] = float(defective.mean(axis=0)[best])
            figures["balanced_dice"] = float(balanced[best])
            learnt &= metrics.balanced_dice_bound(defective, _curves(scored, 0)) > 0.5
    if bound is not None:
        figures["learnt"] = float(learnt)
    if score_kind == "deviation":
        loss_of_good = float(np.mean([one.loss for one in scored if not one.label]))
        return figures | {"quality": 1 / (1 + loss_of_good)}
    second = "balanced_dice" if score_kind == "probability" else "accuracy"
    if "auroc" not in figures or second not in figures:
        raise UserError("`data`: validation needs images of both labels, the defective ones with masks")
    return figures | {"quality": (figures["auroc"] + figures[second]) / 2}


def fit_thresholds(
    scored: Sequence[ValidationResult], labels: Sequence[int], verdict: VerdictConfig, score_kind: ScoreKind
) -> Thresholds:
    """The thresholds fitted to the validation images.

    labels: of the real images. The fit statistics say whether the network has learnt (see `summarise`), and how many
    synthetic defects the threshold misses, where there are any. The image threshold is found as configured (see
    `rule_for`), the pixel threshold by best Dice; where no map of probabilities is compared with masks, it is the image
    threshold.
    """
    real = of_real(scored)
    verdict = rule_for(labels, verdict, len(real) < len(scored))
    threshold, fit_stats = fit_threshold(labels, [one.score for one in real], verdict)
    if synthetic := [one.score for one in scored if one.is_synthetic and one.label]:
        fit_stats["synthetic"] = len(synthetic)
        fit_stats["synthetic_missed"] = sum(score < threshold for score in synthetic)
    pixel_threshold, defective = threshold, _curves(scored, 1)
    if score_kind != "deviation" and len(defective):
        # Synthetic masks follow what can be seen, real ones are looser; a threshold that also keeps good images empty
        # would cut real defects down.
        pixel_threshold = metrics.best_pixel_threshold(defective, _curves(() if synthetic else scored, 0))
    elif score_kind == "probability":
        raise UserError("`data`: the pixel threshold needs defective validation images with masks")
    figures = summarise(scored, score_kind)
    learnt = {"learnt": bool(figures["learnt"])} if "learnt" in figures else {}
    return Thresholds(threshold, pixel_threshold, verdict.calibration, fit_stats | learnt)


def is_marked(mask: np.ndarray) -> bool:
    """Whether a mask marks where the defect is, or that there is none.

    A mask of the whole image stands for a defective image without a mask (see ``load``): figures of pixels leave it
    out.
    """
    return not mask.all()


@dataclass(frozen=True)
class TestChunk:
    """Test images predicted together, and the wall time of that: from files to decisions, in seconds."""

    samples: Sequence[Sample]
    predictions: Sequence[Prediction]
    decisions: Sequence[bool]
    seconds: float


@dataclass(frozen=True)
class ImageResult:
    """Result of one test image, without its pixels; dice, regions: at the pixel threshold, None without a mask.

    boxes: the kind of each, and whether the map touches it. false_parts: parts of the map that touch none of them.
    """

    image_id: str
    label: int
    score: float
    decision: bool
    dice: float | None = None
    mask_px: int = 0
    predicted_px: int = 0
    regions: metrics.Regions | None = None
    kind: str = ""
    boxes: tuple[tuple[str, bool], ...] = ()
    false_parts: int = 0


@dataclass
class TestResult:
    """Results of the test split under fixed thresholds, in the order of the samples.

    pixels: `pixel_histogram` of all images that have masks.
    """

    images: list[ImageResult] = field(default_factory=list)
    pixels: IntArray = field(default_factory=lambda: np.zeros((2, metrics.NUM_PIXEL_BINS), np.int64))
    executing_time_s: float = 0.0

    @property
    def labels(self) -> list[int]:
        return [image.label for image in self.images]

    @property
    def scores(self) -> list[float]:
        return [image.score for image in self.images]

    @property
    def counts(self) -> ImageCounts:
        return ImageCounts.from_decisions(self.labels, [image.decision for image in self.images])

    def add(self, chunk: TestChunk, rule: Thresholds) -> None:
        """Adds the images of a chunk; pixels count as predicted from the rule's pixel threshold on."""
        self.executing_time_s += chunk.seconds
        for sample, one, decision in zip(chunk.samples, chunk.predictions, chunk.decisions, strict=True):
            image = ImageResult(sample.image_id, sample.label, one.score, decision, kind=sample.kind)
            predicted = one.map >= rule.pixel_threshold
            if is_marked(one.mask):
                self.pixels += metrics.pixel_histogram(one.map, one.mask)
                image = replace(
                    image,
                    dice=metrics.dice(predicted, one.mask),
                    mask_px=int(one.mask.sum()),
                    predicted_px=int(predicted.sum()),
                    regions=metrics.regions(predicted, one.mask),
                )
            if sample.boxes:
                touched, false = metrics.boxes_touched(predicted, sample.boxes)
                boxes = tuple((box.kind, hit) for box, hit in zip(sample.boxes, touched, strict=True))
                image = replace(image, boxes=boxes, false_parts=false)
            self.images.append(image)

    def gathered(self, processes: Processes) -> TestResult:
        """The result of all processes' shares; the executing time is the longest."""
        return TestResult(
            interleave(processes.gather(self.images)),
            np.sum(processes.gather(self.pixels), axis=0),
            max(processes.gather(self.executing_time_s)),
        )

    def to_report(self, verdict: VerdictConfig) -> dict[str, Any]:
        """The figures as JSON values; each rate that is a share of images has its 95 % Wilson interval beside it."""
        counts = self.counts
        report: dict[str, Any] = {
            "num_images": len(self.images),
            "num_defective": sum(self.labels),
            **asdict(counts),
        }
        for name, (num_right, num) in counts.shares().items():
            report[name] = counts.rate(name)
            report[f"{name}_interval_95"] = list(metrics.wilson_interval(num_right, num) or (None, None))
        marked = [(image, image.dice) for image in self.images if image.dice is not None]
        defects = [(image, dice) for image, dice in marked if image.label]
        positive, negative = self.pixels[:, ::-1]
        return report | {
            "f1": counts.f1,
            "balanced_accuracy": counts.balanced_accuracy,
            "auroc": auroc(self.labels, self.scores),
            "average_precision": metrics.average_precision(self.labels, self.scores),
            "cost": counts.cost(verdict.fp_cost, verdict.fn_cost),
            "cost_fp_fn": [verdict.fp_cost, verdict.fn_cost],
            "dice_defective": _mean(dice for _, dice in defects),
            # Intersection over union of two masks is D / (2 - D) of their Dice D.
            "iou_defective": _mean(dice / (2 - dice) for _, dice in defects),
            # Beside what predicting nothing gives it means something only over the same images.
            "nvidia_dice": _mean(dice for _, dice in marked) if len(defects) == sum(self.labels) else None,
            "nvidia_dice_if_nothing_is_predicted": 1 - sum(self.labels) / len(self.images),
            "pixel_auroc": metrics.auroc_of_counts(positive, negative),
            "pixel_average_precision": metrics.average_precision_of_counts(positive, negative),
            "regions": _describe_regions(self.images),
            "boxes": _describe_boxes(self.images),
            "kinds": {
                kind: _describe_kind([image for image in self.images if image.kind == kind])
                for kind in sorted({image.kind for image in self.images} - {""})
            },
            "dice_per_defective_image": [
                {"image": d.image_id, "mask_px": d.mask_px, "predicted_px": d.predicted_px, "dice": dice}
                for d, dice in sorted(defects, key=lambda defect: defect[0].mask_px)
            ],
        }


def describe_synthetic(
    good_scores: Sequence[float], scored: Sequence[ValidationResult], rule: Thresholds
) -> dict[str, Any]:
    """Figures of synthetic defects in good test images against these as they are, as JSON values."""
    found = [one for one in scored if one.label]
    scores, number = [one.score for one in found], len(found)
    hits = int(rule.decide(scores).sum())
    place = min(round(rule.pixel_threshold * metrics.NUM_DICE_THRESHOLDS), metrics.NUM_DICE_THRESHOLDS - 1)
    return {
        "num_images": number,
        "auroc": auroc([0] * len(good_scores) + [1] * number, [*good_scores, *scores]),
        "recall": metrics.ratio(hits, number),
        "recall_interval_95": list(metrics.wilson_interval(hits, number) or (None, None)),
        "dice": _mean(float(one.curve[place]) for one in found if one.curve is not None),
    }


def _describe_regions(images: Sequence[ImageResult]) -> dict[str, Any]:
    """Parts of the masks that the maps touch, and false parts of maps an image, as JSON values."""
    found = [image.regions for image in images if image.regions is not None]
    touched = [k < regions.touched for regions in found for k in range(regions.num)]
    false = metrics.ratio(sum(regions.false for regions in found), len(found))
    return _describe_touched(touched) | {"false_an_image": false}


def _describe_touched(touched: Sequence[bool]) -> dict[str, Any]:
    num = len(touched)
    return {"num": num, "touched": sum(touched), "touched_share": metrics.ratio(sum(touched), num)}


def _describe_boxes(images: Sequence[ImageResult]) -> dict[str, Any]:
    """`_describe_regions` by boxes in place of masks, and of each kind of box; empty without boxes.

    Defective images without a box may have defects that nobody has boxed, and count no false parts.
    """
    boxes = [box for image in images for box in image.boxes]
    if not boxes:
        return {}
    good = [image.regions.false for image in images if image.regions is not None and not image.label]
    false = [*good, *(image.false_parts for image in images if image.boxes)]

    kinds = {
        kind: _describe_touched([is_touched for other, is_touched in boxes if other == kind])
        for kind in sorted({kind for kind, _ in boxes} - {""})
    }
    figures = {"false_an_image": metrics.ratio(sum(false), len(false)), "kinds": kinds}
    return _describe_touched([is_touched for _, is_touched in boxes]) | figures


def _describe_kind(images: Sequence[ImageResult]) -> dict[str, Any]:
    """Recall, Dice and regions of the images with one kind of defect, as JSON values."""
    num_right = sum(image.decision for image in images)
    return {
        "num_images": len(images),
        "recall": num_right / len(images),
        "recall_interval_95": list(metrics.wilson_interval(num_right, len(images)) or ()),
        "dice": _mean(image.dice for image in images if image.dice is not None),
        "regions": _describe_regions(images),
    }


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return metrics.ratio(sum(found), len(found))


def evaluate_test_split(
    predictor: Predictor,
    samples: Sequence[Sample],
    shape: tuple[int, int] | None,
    largest_px: int,
    rule: Thresholds,
) -> Iterator[TestChunk]:
    """This process's share of the samples, each predicted once from its file on, chunk by chunk.

    shape: (h, w) that every image must have, None for any. largest_px: pixels of the largest image. The seconds of a
    chunk are those of decoding, padding, network, scoring and deciding. Nothing is read while the caller works on a
    chunk. Raises UserError for a file that has become unreadable.
    """
    samples = predictor.processes.share(samples)
    # Whole batches, of CHUNK_PX if one fits.
    batch_size = predictor.programs.batch_size
    size = max(1, CHUNK_PX // largest_px // batch_size) * batch_size
    with show("predicting test images", len(samples)) as bar:
        for start in range(0, len(samples), size):
            chunk, predictions, start_s = samples[start : start + size], [], time.perf_counter()
            for one in predictor(_readable(chunk, shape)):
                predictions.append(one)
                bar.advance()
            decisions = rule.decide([one.score for one in predictions]).tolist()
            yield TestChunk(chunk, predictions, decisions, time.perf_counter() - start_s)


def _readable(samples: Sequence[Sample], shape: tuple[int, int] | None) -> Iterator[Pixels]:
    """The pixels of the samples in order."""
    for loaded in load_all(samples, shape):
        if isinstance(loaded, BadImage):
            raise UserError(
                f"{loaded} (it could be read when the run began; restore it and run the command again)"
            )
        yield loaded

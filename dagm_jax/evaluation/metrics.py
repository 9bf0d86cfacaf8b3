"""Metrics over images and pixels: confusion counts and their rates, AUROC, average precision, curves, Dice.

Counts add up across batches and devices; rates are computed once at the end, so any batching gives the same
numbers. Positive means defective. A ratio with a zero denominator is ``None`` (null in JSON), never 0 or NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dagm_jax.types import Box

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Limits of the resolution of map values in pixel areas, and in the search for the best pixel threshold; powers of two.
NUM_PIXEL_BINS = 4096
NUM_DICE_THRESHOLDS = 256
# Tolerance of equal mean Dice: sums differ in the last bits with the order of merging, and a plateau must not break.
_PLATEAU_TOLERANCE = 1e-9
# Standard errors that a one-sided bound of 95 % lies below the mean.
ONE_SIDED_95 = 1.645


def wilson_interval(successes: int, trials: int) -> tuple[float, float] | None:
    """The ends of Wilson's 95 % score interval for a binomial share, None for no trials.

    (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n) with p = successes/trials and z = 1.96 (E. B. Wilson, J. Am.
    Stat. Assoc. 22 (1927) 209-212). Raises ValueError unless 0 <= successes <= trials.
    """
    if trials == 0:
        return None
    # Late, because it takes more than half a second.
    from scipy import stats

    interval = stats.binomtest(int(successes), int(trials)).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def ratio(numerator: float, denominator: float) -> float | None:
    """The quotient; None where the denominator is zero."""
    return numerator / denominator if denominator else None


@dataclass(frozen=True, slots=True)
class ImageCounts:
    """The four cells of a confusion matrix over images; they add up with ``+``."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    @classmethod
    def from_decisions(cls, labels: ArrayLike, decisions: ArrayLike) -> ImageCounts:
        """The counts of ``decisions`` (True = called defective) [n] against ``labels`` (1 = defective) [n].

        Raises ValueError for different lengths and for any value but 0 and 1.
        """
        truth, called = _binary(labels, "labels"), _binary(decisions, "decisions")
        if truth.shape != called.shape:
            raise ValueError(f"`decisions` {called.shape} must have the shape of `labels` {truth.shape}")
        tn, fn, fp, tp = np.bincount(2 * called + truth, minlength=4).tolist()
        return cls(tp, fp, fn, tn)

    def __add__(self, other: ImageCounts) -> ImageCounts:
        return ImageCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def num_images(self) -> int:
        """The number of images counted."""
        return self.tp + self.fp + self.fn + self.tn

    def shares(self) -> dict[str, tuple[int, int]]:
        """(successes, trials) of the rates that are shares of images, to which Wilson's interval belongs; not F1.

        Recall is the true positive rate, specificity the true negative rate.
        """
        return {
            "accuracy": (self.tp + self.tn, self.num_images),
            "precision": (self.tp, self.tp + self.fp),
            "recall": (self.tp, self.tp + self.fn),
            "specificity": (self.tn, self.tn + self.fp),
        }

    def rate(self, name: str) -> float | None:
        """A rate of `shares`; None without trials, such as precision where nothing was called defective."""
        return ratio(*self.shares()[name])

    @property
    def f1(self) -> float | None:
        """2·TP / (2·TP + FP + FN): the harmonic mean of precision and recall wherever both are defined.

        With defects present and nothing called defective, precision is None but F1 is 0.
        """
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def balanced_accuracy(self) -> float | None:
        """The mean of recall and specificity; None where either is."""
        recall, specificity = self.rate("recall"), self.rate("specificity")
        return None if recall is None or specificity is None else (recall + specificity) / 2

    def cost(self, fp: float, fn: float) -> float:
        """fp·FP + fn·FN; (1, 20) is the DAGM 2007 competition's: a miss weighs as 20 false alarms."""
        return fp * self.fp + fn * self.fn


def _binary(values: ArrayLike, name: str) -> BoolArray:
    array = np.asarray(values)
    if array.ndim != 1 or not np.all((array == 0) | (array == 1)):
        raise ValueError(f"`{name}` (shape {array.shape}) must be one row of values 0 and 1")
    return array.astype(bool)


def labels_and_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[BoolArray, FloatArray]:
    """Labels {0, 1} and scores as arrays [n]; raises ValueError for other labels, NaN and unequal lengths."""
    truth, values = _binary(labels, "labels"), np.asarray(scores, dtype=np.float64)
    if truth.shape != values.shape:
        raise ValueError(f"`scores` {values.shape} must have the shape of `labels` {truth.shape}")
    if np.isnan(values).any():
        raise ValueError(f"`scores` hold {int(np.isnan(values).sum())} NaN; a NaN has no rank")
    return truth, values


def counts_per_score(labels: ArrayLike, scores: ArrayLike) -> tuple[IntArray, IntArray, FloatArray]:
    """(positives, negatives, score) of each distinct score, the highest first; raises as `labels_and_scores`."""
    truth, values = labels_and_scores(labels, scores)
    distinct, place = np.unique(values, return_inverse=True)
    positive, negative = (np.bincount(place[held], minlength=distinct.size) for held in (truth, ~truth))
    return positive[::-1].astype(np.int64), negative[::-1].astype(np.int64), distinct[::-1]


def auroc_of_counts(positive: IntArray, negative: IntArray) -> float | None:
    """Share of (positive, negative) pairs in order, ties one half; counts run from the highest score."""
    num_pairs = float(positive.sum()) * float(negative.sum())
    if num_pairs == 0:
        return None
    negative_below = negative.sum() - np.cumsum(negative)
    return float(np.sum(positive * (negative_below + 0.5 * negative)) / num_pairs)


def average_precision_of_counts(positive: IntArray, negative: IntArray) -> float | None:
    """Σ (recall step)·(precision at that step); counts run from the highest score."""
    if positive.sum() == 0 or negative.sum() == 0:
        return None
    true_positive = np.cumsum(positive)
    precision = true_positive / np.maximum(true_positive + np.cumsum(negative), 1)
    return float(np.sum(positive * precision) / positive.sum())


def auroc(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """The area under the ROC curve, None where one class is missing.

    The probability that a random defective image outscores a random good one, a tie counting one half
    (Mann-Whitney's U over the number of pairs); exact under any number of ties.
    labels: {0, 1} [n]; scores: [n], infinities allowed. Raises ValueError for NaN and unequal lengths.
    """
    return auroc_of_counts(*counts_per_score(labels, scores)[:2])


def auroc_bound(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """The one-sided 95 % lower bound on `auroc`, against a guess; None where so few images show nothing in any order.

    AUROC - 1.645·sqrt((m + n + 1) / 12mn), the standard error of m defective and n good images in a random order (Mann
    and Whitney 1947).
    """
    area, counts = auroc(labels, scores), np.bincount(_binary(labels, "labels"), minlength=2)
    if area is None:
        return None
    error = ONE_SIDED_95 * np.sqrt((counts.sum() + 1) / (12 * counts.prod()))
    return float(area - error) if error < 0.5 else None


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float | None:
    """The average precision Σ (R_k - R_{k-1})·P_k over falling thresholds, None where a class is missing.

    One step per distinct score, no interpolation: scikit-learn's ``average_precision_score``.
    labels: {0, 1} [n]; scores: [n]. Raises ValueError for NaN and unequal lengths.
    """
    return average_precision_of_counts(*counts_per_score(labels, scores)[:2])


def rank_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(false-alarm rate, recall, precision) at each distinct score as threshold, [k] each, from the highest down.

    No end points are invented. Raises ValueError where one class is missing, besides what `auroc` raises.
    """
    positive, negative, _ = counts_per_score(labels, scores)
    if not (positive.any() and negative.any()):
        num = int(positive.sum())
        raise ValueError(f"`labels` ({num} of {np.size(labels)} defective) must hold both classes")
    hits, alarms = np.cumsum(positive), np.cumsum(negative)
    return alarms / negative.sum(), hits / positive.sum(), hits / (hits + alarms)


# Maps are float32 in [0, 1] [h w], masks bool [h w] (True = defect).


def _bin_counts(map_: ArrayLike, mask: ArrayLike, num_bins: int) -> tuple[IntArray, IntArray]:
    """(defect pixels, all pixels) per bin of the map's values."""
    values, truth = np.asarray(map_, dtype=np.float32), np.asarray(mask)
    if truth.dtype != np.bool_:
        raise ValueError(f"`mask` (dtype {truth.dtype}) must be bool")
    if values.shape != truth.shape:
        raise ValueError(f"`mask` {truth.shape} must have the shape of the map {values.shape}")
    # Written so that a NaN fails it too.
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"the map (range [{values.min()}, {values.max()}]) must lie in [0, 1]")
    # num_bins is a power of two: the product is exact, so bin >= k means value >= k / num_bins.
    bins = np.minimum((values * num_bins).astype(np.int32), num_bins - 1)
    inside, everywhere = (np.bincount(chosen.ravel(), minlength=num_bins) for chosen in (bins[truth], bins))
    return inside.astype(np.int64), everywhere.astype(np.int64)


def pixel_histogram(map_: ArrayLike, mask: ArrayLike) -> IntArray:
    """Pixels per bin of the map's values, int64 [2 4096]: defect pixels, then the others.

    Bin k holds values in [k/4096, (k+1)/4096), the last one 1.0 too. Pixels of one bin count as ties, so areas are
    those of rounded probabilities: within 1e-4 (AUROC) and 2e-3 (average precision) of the exact ones on smooth maps,
    .002 and .06 too low where 6 % of all pixels lie in the last bin. Raises ValueError for NaN, values outside [0, 1],
    a mask that is not bool, and unequal shapes.
    """
    positive, everywhere = _bin_counts(map_, mask, NUM_PIXEL_BINS)
    return np.stack([positive, everywhere - positive])


def dice(prediction: BoolArray, mask: BoolArray) -> float:
    """2·|P ∩ M| / (|P| + |M|) in [0, 1] for bool [h w] each; 1.0 where both are empty.

    The both-empty convention is that of NVIDIA's UNet_Industrial. Averaged over all of a test split it flatters:
    nothing predicted at all scores the share of good images.
    """
    # A map of probabilities passed for a mask would count every non-zero pixel.
    if prediction.dtype != np.bool_ or mask.dtype != np.bool_:
        raise ValueError(f"`prediction` ({prediction.dtype}) and `mask` ({mask.dtype}) must be bool")
    if prediction.shape != mask.shape:
        raise ValueError(f"`prediction` {prediction.shape} must have the shape of `mask` {mask.shape}")
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(mask))
    return 2 * int(np.count_nonzero(prediction & mask)) / total if total else 1.0


class Regions(NamedTuple):
    """Connected parts of a mask, corners touching: of all, those that a prediction touches; its own that touch none."""

    num: int
    touched: int
    false: int


def regions(prediction: BoolArray, mask: BoolArray) -> Regions:
    """The parts of ``mask`` and ``prediction``, bool [h w] each."""
    # Late, because commands that have no masks would wait for it.
    from scipy import ndimage

    corners = np.ones((3, 3), bool)
    (true, num), (found, num_found) = (ndimage.label(one, corners) for one in (mask, prediction))
    # Part 0 is the rest of the picture, which both masks leave out.
    touched, met = (np.unique(parts[mask & prediction]).size for parts in (true, found))
    return Regions(num, touched, num_found - met)


def boxes_touched(prediction: BoolArray, boxes: Sequence[Box]) -> tuple[list[bool], int]:
    """(whether the prediction, bool [h w], touches each box, its parts that touch none)."""
    touched, inside = [], np.zeros_like(prediction)
    for box in boxes:
        place = slice(box.top, box.bottom), slice(box.left, box.right)
        touched.append(bool(prediction[place].any()))
        inside[place] = True
    return touched, regions(prediction, inside).false


def dice_curve(map_: ArrayLike, mask: ArrayLike) -> FloatArray:
    """`dice` of the map cut at k/256 (map >= threshold), k = 0 … 255: float64 [256].

    One pass over the pixels: two histograms, added up from the top. Raises what `pixel_histogram` raises.
    """
    inside, everywhere = _bin_counts(map_, mask, NUM_DICE_THRESHOLDS)
    overlap, predicted = (np.cumsum(counts[::-1])[::-1] for counts in (inside, everywhere))
    total = predicted + np.count_nonzero(mask)
    return np.where(total, 2 * overlap / np.maximum(total, 1), 1.0)


def balanced_dice(defective: FloatArray, good: FloatArray) -> FloatArray:
    """The mean over labels of their images' mean `dice_curve`, float64 [256], from curves [d 256] and [g 256].

    Without good images the defective ones count alone.
    """
    groups = [group.mean(axis=0) for group in (defective, good) if len(group)]
    return np.asarray(sum(groups) / len(groups))


def balanced_dice_bound(defective: FloatArray, good: FloatArray) -> float:
    """The one-sided 95 % lower bound on the highest balanced Dice, by the standard errors of both means."""
    best = int(np.argmax(balanced_dice(defective, good)))
    groups = [group[:, best] for group in (defective, good) if len(group)]
    errors = [group.std(ddof=min(1, len(group) - 1)) / np.sqrt(len(group)) for group in groups]
    mean = np.mean([group.mean() for group in groups])
    return float(mean - ONE_SIDED_95 * np.hypot.reduce(errors) / len(groups))


def best_pixel_threshold(defective: FloatArray, good: FloatArray) -> float:
    """The threshold of the highest balanced Dice as far as these images can tell; curves [d 256], d > 0, and [g 256].

    Equally good are all thresholds that leave as many good images empty as the best one, and whose mean Dice is
    within one standard error of its own: the error of the mean difference, image by image (the one-standard-error
    rule of Breiman et al. 1984, section 3.4.3). The middle of their longest run is taken, where a small shift
    of the map changes least; the highest point alone is the luck of a few images where the curve is flat.
    """
    best, num = int(np.argmax(balanced_dice(defective, good))), len(defective)
    behind = defective[:, [best]] - defective
    error = behind.std(axis=0, ddof=min(1, num - 1)) / np.sqrt(num)
    num_empty = good.sum(axis=0)
    is_good = (behind.mean(axis=0) <= error + _PLATEAU_TOLERANCE) & (num_empty >= num_empty[best])
    edges = np.diff(np.concatenate([[0], is_good, [0]]).astype(int))
    first, last = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1) - 1
    longest = int(np.argmax(last - first))
    return int(first[longest] + last[longest]) // 2 / NUM_DICE_THRESHOLDS

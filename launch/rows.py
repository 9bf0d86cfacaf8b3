"""From reports to rows: means and standard deviations over seeds, class by class, and averages over the classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any, NamedTuple

from dagm_jax.evaluation.metrics import ImageCounts, wilson_interval
from launch import paper

# The figures that the paper's Table I has, and those that ours has besides.
PRINTED = paper.Printed._fields
EXTRA = ("auroc", "average_precision", "balanced_accuracy", "cost_1_20")
PAIRED = ("accuracy", "auroc", "dice_defective")
# The name of a row of averages, in the column of classes.
MEAN = "mean"

# Name → value, None where it is undefined; of one cell.
Figures = Mapping[str, float | None]


class Statistic(NamedTuple):
    """Mean and sample standard deviation (n - 1) of the values that are defined, and how many are not.

    mean: None where no value is defined; sd: None for fewer than two.
    """

    mean: float | None
    sd: float | None
    num_undefined: int


@dataclass(frozen=True)
class Row:
    """A line of a table: ``label`` (model or variant) on a class, or the average over the classes.

    class_name: the class's number, or MEAN; num_classes: how many classes the row speaks of; num_seeds: seeds that it
    has of them all; printed: the paper's values, none for a row that the paper cannot have; interval: of the accuracy,
    from the counts of all seeds together.
    """

    label: str
    class_name: str
    num_classes: int
    num_seeds: int
    statistics: Mapping[str, Statistic]
    printed: Mapping[str, float | None] = field(default_factory=dict)
    interval: tuple[float, float] | None = None

    def flat(self, names: Sequence[str], printed: Sequence[str]) -> dict[str, Any]:
        """The row as the files hold it: three columns a figure, and the printed value where there is such a column."""
        values: dict[str, Any] = {
            "class": self.class_name,
            "num_classes": self.num_classes,
            "num_seeds": self.num_seeds,
        }
        for name in names:
            mean, sd, undefined = self.statistics.get(name, Statistic(None, None, 0))
            values |= {f"{name}_mean": mean, f"{name}_sd": sd, f"{name}_undefined": undefined}
            if name in printed:
                values[f"{name}_printed"] = self.printed.get(name)
        if printed:
            low, high = self.interval or (None, None)
            values |= {"accuracy_low_95": low, "accuracy_high_95": high}
        return values


# --- what a report holds --------------------------------------------------------------------------------------


def counts_of(report: Mapping[str, Any]) -> ImageCounts:
    """The confusion matrix of the test side."""
    test = report["test"]
    return ImageCounts(test["tp"], test["fp"], test["fn"], test["tn"])


def figures_of(report: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a report that tables show; a miss costs as much as 20 false alarms, whatever it was run with."""
    test = report["test"]
    names = (*PRINTED[:-1], *EXTRA[:-1], "dice_defective")
    return {
        **{name: test.get(name) for name in names},
        "executing_time_s": report["cost_of_running"]["executing_time_s"],
        "cost_1_20": counts_of(report).cost(fp=1, fn=20),
    }


def majority_of(report: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of calling every image what most images are."""
    return {"accuracy": report["baselines"]["majority_accuracy"]}


def local_energy_of(report: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of local texture energy, which needs no training."""
    return {name: report["baselines"][f"local_energy_{name}"] for name in ("accuracy", "f1", "auroc")}


def differences(ours: Figures, base: Figures) -> dict[str, float | None]:
    """``figure_difference``: ours less the base's, of the same class and seed, for the figures compared in pairs."""
    pairs = {name: (ours[name], base[name]) for name in PAIRED}
    return {f"{name}_difference": None if a is None or b is None else a - b for name, (a, b) in pairs.items()}


# --- arithmetic -----------------------------------------------------------------------------------------------


def statistic(values: Sequence[float | None]) -> Statistic:
    """The statistic of these values."""
    known = [value for value in values if value is not None]
    return Statistic(
        fmean(known) if known else None,
        stdev(known) if len(known) > 1 else None,
        len(values) - len(known),
    )


def average(per_class: Sequence[Mapping[int, Figures]], name: str) -> Statistic:
    """A figure averaged over classes, each given as seed → figures.

    mean: of the classes' means, which weighs classes alike whatever seeds they have. sd: over the seeds that every
    class has, of the average of that seed; so it is how much the average moves, not how much classes differ.
    """
    statistics = [statistic([figures[name] for figures in seeds.values()]) for seeds in per_class]
    shared = set.intersection(*(set(seeds) for seeds in per_class))
    by_seed = [[seeds[seed][name] for seeds in per_class] for seed in sorted(shared)]
    whole = [fmean(v for v in values if v is not None) for values in by_seed if None not in values]
    return Statistic(
        statistic([s.mean for s in statistics]).mean,
        statistic(whole).sd,
        sum(s.num_undefined for s in statistics),
    )


def pooled_interval(counts: Sequence[ImageCounts]) -> tuple[float, float] | None:
    """Wilson's 95 % interval of the accuracy of all these verdicts together."""
    total = sum(counts, ImageCounts())
    return wilson_interval(total.tp + total.tn, total.num_images)


def class_rows(label: str, classes: Sequence[int], figures: Mapping[int, Mapping[int, Figures]]) -> list[Row]:
    """A row for each class, and their average. ``figures``: class → seed → figures, of the cells that are finished."""
    rows = []
    for class_id in classes:
        seeds = figures.get(class_id, {})
        names = next(iter(seeds.values()), {})
        values = {name: statistic([one[name] for one in seeds.values()]) for name in names}
        rows.append(Row(label, str(class_id), 1, len(seeds), values))
    present = [figures[class_id] for class_id in classes if figures.get(class_id)]
    if present:
        names = next(iter(present[0].values()))
        shared = set.intersection(*(set(seeds) for seeds in present))
        values = {name: average(present, name) for name in names}
        rows.append(Row(label, MEAN, len(present), len(shared), values))
    return rows


def printed_values(model: str, classes: Sequence[int]) -> dict[str, float | None]:
    """The paper's row of a model averaged over those of the classes that it has; every value None for none of them."""
    rows = [row for class_id in classes if (row := paper.printed(model, class_id))]
    return {name: fmean(getattr(row, name) for row in rows) if rows else None for name in PRINTED}

"""Table rows from reports: mean and standard deviation over seeds, for each class and averaged over classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from dagm_jax.evaluation.metrics import ImageCounts
from launch.paper.cells import Cell, Report
from launch.paper.printed import TABLE_1, Printed

# Figures of the paper's Table I; those that ours adds; those that the ablation compares in pairs.
PRINTED = Printed._fields
EXTRA = ("auroc", "average_precision", "balanced_accuracy", "cost_1_20")
PAIRED = ("accuracy", "auroc", "dice_defective")
# Class name of a row of averages.
MEAN = "mean"

# Type of one cell's figures: name → value, None where undefined.
Figures = Mapping[str, float | None]
# Type of a table row in CSV and JSON: column → value.
Row = dict[str, Any]


class Statistic(NamedTuple):
    """Mean and sample standard deviation (n - 1) of the defined values, and the number of undefined ones.

    mean: None where no value is defined; sd: None for fewer than two.
    """

    mean: float | None
    sd: float | None
    undefined: int


def counts_of(reports: Iterable[Report]) -> ImageCounts:
    """The confusion matrix of all test images of these reports together."""
    tests = [report["test"] for report in reports]
    return sum((ImageCounts(test["tp"], test["fp"], test["fn"], test["tn"]) for test in tests), ImageCounts())


def figures_of(report: Report) -> Figures:
    """Figures of the tables; a missed defect costs 20 false alarms, whatever costs the run was configured with."""
    names = (*PRINTED[:-1], *EXTRA[:-1], "dice_defective")
    return {
        **{name: report["test"].get(name) for name in names},
        "executing_time_s": report["cost_of_running"]["executing_time_s"],
        "cost_1_20": counts_of([report]).cost(fp=1, fn=20),
    }


def baselines_of(report: Report) -> dict[str, Figures]:
    """Baseline → figures: the label of most images for every image; local texture energy, without training."""
    values = report["baselines"]
    energy = {name: values[f"local_energy_{name}"] for name in ("accuracy", "f1", "auroc")}
    return {"majority": {"accuracy": values["majority_accuracy"]}, "local energy": energy}


def differences(ours: Figures, base: Figures) -> Figures:
    """NAME + ``_difference``: ours less the base's, None where either is undefined."""
    pairs = {name: (ours[name], base.get(name)) for name in PAIRED}
    return {f"{name}_difference": None if a is None or b is None else a - b for name, (a, b) in pairs.items()}


def statistic(values: Sequence[float | None]) -> Statistic:
    """Mean, sample standard deviation and number of undefined values."""
    known = [value for value in values if value is not None]
    return Statistic(
        fmean(known) if known else None, stdev(known) if len(known) > 1 else None, len(values) - len(known)
    )


def average(classes: Sequence[Mapping[int, Figures]], name: str) -> Statistic:
    """Statistic of a figure over classes, each given as seed → figures.

    mean: the mean of the classes' means, which weighs classes alike whatever seeds they have. sd: the deviation, over
    the seeds that every class has, of a seed's average over classes.
    """
    each = [statistic([figures[name] for figures in seeds.values() if name in figures]) for seeds in classes]
    by_seed = [[seeds[seed].get(name) for seeds in classes] for seed in shared_seeds(classes)]
    averages = [fmean(v for v in values if v is not None) for values in by_seed if None not in values]
    return Statistic(
        statistic([one.mean for one in each]).mean, statistic(averages).sd, sum(one.undefined for one in each)
    )


def shared_seeds(classes: Sequence[Mapping[int, Figures]]) -> list[int]:
    """Seeds that all classes have."""
    return sorted(set.intersection(*(set(seeds) for seeds in classes)))


def class_rows(
    label: Row, classes: Sequence[int], found: Mapping[Cell, Figures], names: Sequence[str]
) -> list[Row]:
    """A row for each class and one for the average over the finished classes, each beginning with ``label``.

    With a model in the label the paper's value follows each of its figures, in an average over those of our classes
    that have the figure; None for models that the paper has not.
    """
    by_class: dict[int, dict[int, Figures]] = {class_id: {} for class_id in classes}
    for cell, figures in found.items():
        by_class[cell.class_id][cell.seed] = figures
    groups = [(str(class_id), {class_id: seeds}) for class_id, seeds in by_class.items()]
    if found:
        groups.append((MEAN, {class_id: seeds for class_id, seeds in by_class.items() if seeds}))
    rows = []
    for class_name, group in groups:
        seeds = list(group.values())
        row = label | {"class": class_name, "num_classes": len(seeds), "num_seeds": len(shared_seeds(seeds))}
        for name in names:
            row |= {f"{name}_{part}": value for part, value in average(seeds, name)._asdict().items()}
            if name in PRINTED and "model" in label:
                own = [c for c in group if class_name != MEAN or average([group[c]], name).mean is not None]
                printed = TABLE_1.get(label["model"], {})
                values = [getattr(printed[c], name) for c in own if c in printed]
                row[f"{name}_printed"] = statistic(values).mean
        rows.append(row)
    return rows

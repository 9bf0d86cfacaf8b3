"""The tables' arithmetic against numbers worked out by hand, and the same numbers in every format."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from statistics import fmean, harmonic_mean, median
from typing import Any

import pytest
from fake_runs import Counts, make_report

from dagm_jax.evaluation.metrics import wilson_interval
from launch.paper import printed, tables
from launch.paper.cells import ABLATIONS, BASE, Cell, Grid, Plan, Variant

PLAN = Plan(models=("custom_unet",), classes=(1, 8), tasks=("segmentation",), seeds=(0, 1), ablation=True)
# (class, seed) → tp, fp, fn, tn: ten defective and ten good images; on class 8 seed 0 calls nothing defective.
COUNTS: dict[tuple[int, int], Counts] = {
    (1, 0): (8, 1, 2, 9),
    (1, 1): (10, 0, 0, 10),
    (8, 0): (0, 0, 10, 10),
    (8, 1): (9, 0, 1, 10),
}
ROOT_2 = math.sqrt(2)
PLAIN = ABLATIONS[0]


def add(grid: Grid, counts: Mapping[tuple[int, int], Counts], variant: Variant = BASE, **test: Any) -> None:
    """Puts finished cells of the custom U-Net into the grid."""
    for (class_id, seed), four in counts.items():
        cell = Cell("segmentation", "custom_unet", class_id, seed, variant)
        grid.reports[cell] = make_report(cell.read_config(True, []), four, **test)


def make_grid(counts: Mapping[tuple[int, int], Counts] = COUNTS, plan: Plan = PLAN) -> Grid:
    grid = Grid(plan, command="the command")
    add(grid, counts)
    return grid


def rows_of(table: tables.Table, label: str, column: str = "model") -> dict[str, Mapping[str, Any]]:
    """class → row of one model or variant."""
    return {row["class"]: row for row in table.rows if row[column] == label}


def lines_of(table: tables.Table) -> dict[str, list[str]]:
    """class → cells of the custom U-Net's Markdown line."""
    lines = [line.strip("| ").split(" | ") for line in table.md().splitlines()]
    return {line[1]: line for line in lines if line[0] == "custom_unet"}


table_1 = partial(tables.table_1, task="segmentation")


def ours(grid: Grid) -> dict[str, Mapping[str, Any]]:
    """class → row of the custom U-Net in Table I."""
    return rows_of(table_1(grid), "custom_unet")


def test_means_and_deviations_over_seeds() -> None:
    """Would catch: a population instead of a sample deviation, and F1 or cost taken of averaged rates."""
    rows = ours(make_grid())
    one, eight = rows["1"], rows["8"]
    assert one["num_seeds"] == eight["num_seeds"] == 2
    assert one["accuracy_mean"] == pytest.approx((0.85 + 1) / 2)
    assert one["accuracy_sd"] == pytest.approx(0.15 / ROOT_2)
    assert one["f1_mean"] == pytest.approx((16 / 19 + 1) / 2)
    assert one["cost_1_20_mean"] == pytest.approx((1 + 40 + 0) / 2)
    assert eight["recall_mean"] == pytest.approx(0.45)
    assert eight["balanced_accuracy_sd"] == pytest.approx((0.95 - 0.5) / ROOT_2)


def test_undefined_rates_are_left_out_and_counted() -> None:
    """Would catch: a null taken for 0, and one that makes the whole mean undefined."""
    table = table_1(make_grid())
    eight = rows_of(table, "custom_unet")["8"]
    assert (eight["precision_mean"], eight["precision_sd"], eight["precision_undefined"]) == (1.0, None, 1)
    assert lines_of(table)["8"][4] == "1.0000, 1 undefined (-)"
    never = table_1(make_grid({(8, 0): COUNTS[8, 0]}))
    assert rows_of(never, "custom_unet")["8"]["precision_mean"] is None
    assert lines_of(never)["8"][4] == "undefined (-)"


def test_average_over_classes() -> None:
    """Would catch: a deviation over all cells, which would mix how classes differ with how seeds do."""
    mean = ours(make_grid())["mean"]
    assert mean["accuracy_mean"] == pytest.approx((0.925 + 0.725) / 2)
    assert mean["accuracy_sd"] == pytest.approx((0.975 - 0.675) / ROOT_2)
    # Class means 17/18 and 1; only seed 1 has both precisions, and one seed has no deviation.
    assert mean["precision_mean"] == pytest.approx((17 / 18 + 1) / 2)
    assert (mean["precision_sd"], mean["precision_undefined"]) == (None, 1)


def test_interval_is_of_the_pooled_decisions() -> None:
    """Would catch: an interval of one seed, or a mean of intervals: 37 of 40 are right."""
    one = ours(make_grid())["1"]
    assert (one["accuracy_low_95"], one["accuracy_high_95"]) == wilson_interval(37, 40)


def test_printed_values_stand_beside() -> None:
    """Would catch: printed numbers of another row, of a class that the paper has not, and a mean over classes not
    here."""
    table = table_1(make_grid())
    rows, lines = rows_of(table, "custom_unet"), lines_of(table)
    assert [rows[c]["accuracy_printed"] for c in ("1", "8", "mean")] == [0.9803, None, 0.9803]
    assert rows["1"]["executing_time_s_printed"] == 29.8
    assert lines["1"][3] == "0.9250 ± 0.1061 (0.9803)" and lines["8"][3] == "0.7250 ± 0.3182 (-)"
    assert lines["1"][7] == "10.0 ± 0.0 (29.8)"


def test_an_unfinished_grid_says_what_is_missing() -> None:
    """Would catch: a mean over the finished classes that looks like one over all, a deviation of one seed."""
    lines = lines_of(table_1(make_grid({(1, 0): COUNTS[1, 0]})))
    assert lines["8"][2:4] == ["0", "- (-)"]
    assert lines["mean of 1 of 2"][3] == "0.8500 (0.9803)"
    empty = table_1(make_grid({}))
    assert list(rows_of(empty, "custom_unet")) == ["1", "8"]
    assert "no cell is finished" in empty.md()


def test_the_papers_mean_is_over_the_classes_of_ours() -> None:
    """Would catch: our mean over the finished classes beside the paper's over all that are planned."""
    grid = make_grid({(1, 0): COUNTS[1, 0]}, replace(PLAN, classes=(1, 2, 3)))
    add(grid, {(3, 0): COUNTS[8, 0]})
    rows = ours(grid)
    assert rows["mean"]["accuracy_printed"] == pytest.approx((0.9803 + 0.9453) / 2)
    # Nothing was called defective on class 3, so that our mean precision is of class 1 alone.
    assert (rows["mean"]["precision_mean"], rows["mean"]["precision_printed"]) == (8 / 9, 0.9724)
    assert [rows[c]["accuracy_printed"] for c in ("1", "2", "3")] == [0.9803, 0.9775, 0.9453]
    add(grid, {(2, 0): COUNTS[1, 1]})
    assert ours(grid)["mean"]["accuracy_printed"] == pytest.approx((0.9803 + 0.9775 + 0.9453) / 3)


def test_baselines_count_each_seed_once() -> None:
    """Would catch: baselines left out, and ones counted once for each model, on which they do not depend."""
    grid = make_grid(plan=replace(PLAN, models=("custom_unet", "unet3plus")))
    for cell, report in list(grid.reports.items()):
        grid.reports[replace(cell, model="unet3plus")] = report
    table = table_1(grid)
    energy, majority = rows_of(table, "local energy"), rows_of(table, "majority")
    assert energy["1"]["num_seeds"] == 2
    assert (energy["mean"]["accuracy_mean"], energy["mean"]["auroc_mean"]) == (0.75, 1.0)
    assert (energy["1"]["f1_mean"], energy["1"]["f1_undefined"]) == (None, 2)
    assert majority["1"]["accuracy_mean"] == 0.5 and majority["1"]["auroc_mean"] is None


def test_a_table_says_where_its_numbers_come_from() -> None:
    """Would catch: a table that can be read without its command, images, device and versions."""
    text = table_1(make_grid()).md()
    above = text[: text.index("| model |")]
    images = [f"fake images of classes ({class_id},)" for class_id in (1, 8)]
    assert all(part in above for part in ("`the command`", "fake device", *images))


@pytest.mark.parametrize("make", [tables.table_1, tables.ablation_table])
def test_csv_and_json_hold_the_same(make: Callable[[Grid, str], tables.Table]) -> None:
    """Would catch: rounding in one of them, and None written as text."""
    grid = make_grid()
    add(grid, {(1, 1): (9, 0, 1, 10)}, PLAIN)
    table = make(grid, "segmentation")
    texts = list(csv.DictReader(io.StringIO(table.csv())))
    values = json.loads(table.json())["rows"]
    assert len(texts) > 3
    assert texts == [{k: "" if v is None else str(v) for k, v in row.items()} for row in values]


def test_ablation_compares_in_pairs() -> None:
    """Would catch: a difference of means over other seeds: seed 0 of class 1, far worse, has no plain twin here; a
    failed base cell that takes the table with it."""
    grid = make_grid()
    add(grid, {(1, 1): (9, 0, 1, 10)}, PLAIN, dice_defective=0.6)
    rows = rows_of(tables.ablation_table(grid, "segmentation"), "plain", "variant")
    assert rows["1"]["accuracy_difference_mean"] == pytest.approx(0.95 - 1.0)
    assert rows["1"]["dice_defective_difference_mean"] == pytest.approx(-0.1)
    assert rows["8"]["num_seeds"] == 0 and rows["8"]["accuracy_difference_mean"] is None
    alone = make_grid({})
    add(alone, {(1, 0): COUNTS[1, 0]}, PLAIN)
    rows = rows_of(tables.ablation_table(alone, "segmentation"), "plain", "variant")
    assert rows["1"]["accuracy_mean"] == pytest.approx(0.85)
    assert rows["1"]["accuracy_difference_mean"] is None


def test_models() -> None:
    """Would catch: speeds of training and of executing exchanged."""
    (row,) = tables.models_table(make_grid()).rows
    assert row["num_cells"] == 4 and row["base_channels"] == 8
    assert (row["training_slices_per_s"], row["executing_images_per_s"]) == (50.0, 2.0)
    assert row["weights_mb"] == pytest.approx(1.0)


def test_table_2_names_what_its_numbers_are() -> None:
    """Would catch: the numbers of unlike things standing there without a word."""
    text = tables.table_2(make_grid()).md()
    for part in ("72.0 %", "95.6 %", "88.4 %", "97.3 %", "IoU", "82.5 %"):
        assert part in text


@pytest.mark.parametrize(
    ("model", "means"),
    [
        ("custom_unet", printed.Printed(0.97255, 0.96045, 0.95588, 0.96127, 33.1)),
        ("conv_autoencoder", printed.Printed(0.95668, 0.95103, 0.95023, 0.95333, 37.5)),
        ("unet3plus", printed.Printed(0.91967, 0.90793, 0.91538, 0.91680, 71.3)),
    ],
)
def test_printed_means_are_those_of_the_rows(model: str, means: printed.Printed) -> None:
    """Would catch: a slip in copying the table: its row of means agrees with its columns to the printed digits."""
    rows = list(printed.TABLE_1[model].values())
    assert printed.MEAN_ACCURACIES[model] == means.accuracy
    for name, mean in means._asdict().items():
        digits = 0.05 if name == "executing_time_s" else 0.5e-5
        assert fmean(getattr(row, name) for row in rows) == pytest.approx(mean, abs=1.001 * digits)


def test_remarks_are_those_of_the_rows() -> None:
    """Would catch: a slip in the table or in what is said about it."""
    rows = [row for table in printed.TABLE_1.values() for row in table.values()]
    half_unit = 0.5e-4
    # Rounding of P and R moves their harmonic mean by at most half a unit, that of F1 adds as much.
    harmonic = sum(abs(row.f1 - harmonic_mean(row[1:3])) <= 2 * half_unit for row in rows)
    outside = sum(not min(row[1:3]) <= row.f1 <= max(row[1:3]) for row in rows)
    whole = sum(abs(row.accuracy - round(230 * row.accuracy) / 230) <= half_unit for row in rows)
    shares = [
        (1 - row.accuracy) / (1 - row.recall + row.recall * (1 - row.precision) / row.precision)
        for row in rows
    ]
    first, second, third = printed.REMARKS
    assert f"in {harmonic} of {len(rows)} rows, and lies outside the two in {outside}," in first
    assert f"over 230 images (20 % of a class) in {whole} of {len(rows)} rows" in second
    assert f"{min(shares):.0%} to {max(shares):.0%} are defective (median {median(shares):.0%})" in third
    assert f"hold {150 / 1150:.0%}" in third

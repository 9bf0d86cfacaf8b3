"""The tables' arithmetic against numbers worked out by hand, and the same numbers in every format."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from fake_runs import Counts, make_report

from dagm_jax.main import read_config
from launch import paper, tables
from launch.cells import ABLATIONS, BASE, Cell, Plan, Variant
from launch.grid import Result, State

PLAN = Plan(models=("custom_unet",), classes=(1, 8), tasks=("segmentation",), seeds=(0, 1))
# (class, seed) → tp, fp, fn, tn: ten defective and ten good images; on class 8 seed 0 calls nothing defective.
COUNTS: dict[tuple[int, int], Counts] = {
    (1, 0): (8, 1, 2, 9),
    (1, 1): (10, 0, 0, 10),
    (8, 0): (0, 0, 10, 10),
    (8, 1): (9, 0, 1, 10),
}
ROOT_2 = math.sqrt(2)
PLAIN, SQUEEZE = ABLATIONS[0], ABLATIONS[1]


def add(state: State, counts: Mapping[tuple[int, int], Counts], variant: Variant = BASE, **test: Any) -> None:
    """Puts finished cells of the custom U-Net into the state."""
    for (class_id, seed), four in counts.items():
        cell = Cell("segmentation", "custom_unet", class_id, seed, variant)
        config = read_config(cell.config_path(True), cell.overrides([]))
        state.results[cell] = Result(cell, Path("nowhere"), make_report(config, four, **test))
        state.cells = [*state.cells, cell]


def make_state(counts: Mapping[tuple[int, int], Counts] = COUNTS) -> State:
    state = State([])
    add(state, counts)
    return state


def rows_of(table: tables.Table, label: str, column: str = "model") -> dict[str, Mapping[str, Any]]:
    """class → row of one model or variant."""
    return {row["class"]: row for row in table.rows if row[column] == label}


def lines_of(table: tables.Table, label: str) -> dict[str, list[str]]:
    """class → cells of the Markdown line."""
    return {line[1]: list(line) for line in table.lines if line[0] == label}


def table_1(state: State) -> tables.Table:
    return tables.table_1(PLAN, state, "segmentation", "the command")


def test_means_and_deviations_over_seeds() -> None:
    """Catches a population instead of a sample deviation, and F1 or cost taken of averaged rates."""
    rows = rows_of(table_1(make_state()), "custom_unet")
    one, eight = rows["1"], rows["8"]
    assert one["num_seeds"] == eight["num_seeds"] == 2
    assert one["accuracy_mean"] == pytest.approx((0.85 + 1) / 2)
    assert one["accuracy_sd"] == pytest.approx(0.15 / ROOT_2)
    assert one["f1_mean"] == pytest.approx((16 / 19 + 1) / 2)
    assert one["cost_1_20_mean"] == pytest.approx((1 + 40 + 0) / 2)
    assert eight["recall_mean"] == pytest.approx(0.45)
    assert eight["balanced_accuracy_sd"] == pytest.approx((0.95 - 0.5) / ROOT_2)


def test_undefined_rates_are_left_out_and_counted() -> None:
    """Catches a null taken for 0, and one that makes the whole mean undefined."""
    table = table_1(make_state())
    eight = rows_of(table, "custom_unet")["8"]
    assert (eight["precision_mean"], eight["precision_sd"], eight["precision_undefined"]) == (1.0, None, 1)
    assert lines_of(table, "custom_unet")["8"][4] == "1.0000, 1 undefined (-)"
    never = table_1(make_state({(8, 0): COUNTS[8, 0]}))
    assert rows_of(never, "custom_unet")["8"]["precision_mean"] is None
    assert lines_of(never, "custom_unet")["8"][4] == "undefined (-)"


def test_average_over_classes() -> None:
    """Catches a deviation over all cells, which would mix how classes differ with how seeds do."""
    mean = rows_of(table_1(make_state()), "custom_unet")["mean"]
    assert mean["accuracy_mean"] == pytest.approx((0.925 + 0.725) / 2)
    assert mean["accuracy_sd"] == pytest.approx((0.975 - 0.675) / ROOT_2)
    # Class means 17/18 and 1; only seed 1 has both precisions, and one seed has no deviation.
    assert mean["precision_mean"] == pytest.approx((17 / 18 + 1) / 2)
    assert (mean["precision_sd"], mean["precision_undefined"]) == (None, 1)


def test_interval_is_of_the_pooled_verdicts() -> None:
    """Catches an interval of one seed, or a mean of intervals: 37 of 40 right, by Wilson's formula."""
    p, n, z = 37 / 40, 40, 1.959963984540054
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low, high = ((p + z * z / (2 * n) + sign * half) / (1 + z * z / n) for sign in (-1, 1))
    one = rows_of(table_1(make_state()), "custom_unet")["1"]
    assert (one["accuracy_low_95"], one["accuracy_high_95"]) == pytest.approx((low, high))


def test_printed_values_stand_beside() -> None:
    """Catches printed numbers of another row, of a class that the paper has not, and a mean over classes not here."""
    table = table_1(make_state())
    rows, lines = rows_of(table, "custom_unet"), lines_of(table, "custom_unet")
    assert [rows[c]["accuracy_printed"] for c in ("1", "8", "mean")] == [0.9803, None, 0.9803]
    assert rows["1"]["executing_time_s_printed"] == 29.8
    assert lines["1"][3] == "0.9250 ± 0.1061 (0.9803)" and lines["8"][3] == "0.7250 ± 0.3182 (-)"
    assert lines["1"][7] == "10.0 ± 0.0 (29.8)"


def test_one_seed_has_no_deviation() -> None:
    """Catches a deviation of 0, which one seed does not show."""
    state = make_state({key: COUNTS[key] for key in COUNTS if key[1] == 0})
    rows, lines = rows_of(table_1(state), "custom_unet"), lines_of(table_1(state), "custom_unet")
    assert {row["accuracy_sd"] for row in rows.values()} == {None}
    assert not any("±" in cell for line in lines.values() for cell in line)


def test_an_unfinished_grid_says_what_is_missing() -> None:
    """Catches a mean over the classes at hand that looks like one over all of them."""
    state = make_state({key: COUNTS[key] for key in COUNTS if key[0] == 1})
    lines = lines_of(table_1(state), "custom_unet")
    assert lines["8"][2:4] == ["0", "- (-)"]
    assert lines["mean of 1 of 2"][3].startswith("0.9250")
    empty = table_1(State([]))
    assert [row["class"] for row in rows_of(empty, "custom_unet").values()] == ["1", "8"]
    assert "no cell is finished" in empty.markdown()


def test_the_papers_mean_is_over_the_classes_of_ours() -> None:
    """Would catch: our mean over the finished classes beside the paper's over all that are planned."""
    plan = replace(PLAN, classes=(1, 2, 3))
    state = make_state({(1, 0): COUNTS[1, 0]})
    add(state, {(3, 0): COUNTS[8, 0]})

    def rows() -> dict[str, Mapping[str, Any]]:
        return rows_of(tables.table_1(plan, state, "segmentation", ""), "custom_unet")

    assert rows()["mean"]["accuracy_printed"] == pytest.approx((0.9803 + 0.9453) / 2)
    assert rows()["mean"]["executing_time_s_printed"] == pytest.approx((29.8 + 31.8) / 2)
    # Nothing was called defective on class 3, so that our mean precision is of class 1 alone.
    assert (rows()["mean"]["precision_mean"], rows()["mean"]["precision_printed"]) == (8 / 9, 0.9724)
    assert [rows()[c]["accuracy_printed"] for c in ("1", "2", "3")] == [0.9803, 0.9775, 0.9453]
    add(state, {(2, 0): COUNTS[1, 1]})
    assert rows()["mean"]["accuracy_printed"] == pytest.approx((0.9803 + 0.9775 + 0.9453) / 3)


def test_baselines_count_each_seed_once() -> None:
    """Catches baselines left out, and ones counted once per model: they do not depend on it."""
    state = make_state()
    plan = Plan(("custom_unet", "unet3plus"), PLAN.classes, PLAN.tasks, PLAN.seeds)
    for cell, result in list(state.results.items()):
        twin = Cell(cell.task, "unet3plus", cell.class_id, cell.seed)
        state.results[twin] = Result(twin, result.workdir, result.report)
        state.cells = [*state.cells, twin]
    table = tables.table_1(plan, state, "segmentation", "the command")
    energy, majority = rows_of(table, "local energy"), rows_of(table, "majority")
    assert energy["1"]["num_seeds"] == 2
    assert (energy["mean"]["accuracy_mean"], energy["mean"]["auroc_mean"]) == (0.75, 1.0)
    assert (energy["1"]["f1_mean"], energy["1"]["f1_undefined"]) == (None, 2)
    assert majority["1"]["accuracy_mean"] == 0.5 and majority["1"]["auroc_mean"] is None


def test_markdown_says_where_the_numbers_come_from() -> None:
    """Catches a table that can be read without its command, images, device and versions."""
    text = table_1(make_state()).markdown()
    for part in (
        "`the command`",
        "fake images of classes (1,)",
        "fake images of classes (8,)",
        "fake device",
    ):
        assert part in text
    assert text.index("`the command`") < text.index("| model |")


def test_cells_that_ran_at_another_pace_are_told() -> None:
    """Would catch: times of cells with other threads or compilers averaged without a word, and a note on equal ones."""
    state = make_state()

    def notes() -> list[list[str]]:
        made = (
            table_1(state),
            tables.ablation_table(PLAN, state, "segmentation", "the command"),
            tables.models_table(PLAN, state),
        )
        return [[note for note in (*one.header, *one.notes) if "Cells ran" in note] for one in made]

    assert notes() == [[], [], []]
    configs = [result.report["config"] for result in state.results.values()]
    configs[0]["parallel"]["cpu_convolutions"] = "default"
    configs[1]["data"]["num_workers"] = 2
    expected = [
        "Cells ran with different `data.num_workers`: 0, 2; times are averaged over them",
        "Cells ran with different `parallel.cpu_convolutions`: default, eigen; times are averaged over them",
    ]
    assert notes() == [expected] * 3
    configs[3]["parallel"]["mode"] = "pmap"
    mode = "Cells ran with different `parallel.mode`: jit, pmap; times are averaged over them"
    assert notes() == [[*expected, mode]] * 3


@pytest.mark.parametrize("name", ["table_1", "ablation"])
def test_csv_and_json_hold_the_same(name: str) -> None:
    """Catches rounding in one of them, and None written as text."""
    state = make_state()
    add(state, {(1, 1): (9, 0, 1, 10)}, PLAIN)
    made = {"table_1": tables.table_1, "ablation": tables.ablation_table}[name]
    table = made(PLAN, state, "segmentation", "the command")

    def plain(text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return text or None

    from_csv = [{k: plain(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(table.csv()))]
    from_json = [
        {k: plain(v) if isinstance(v, str) else v for k, v in row.items()}
        for row in json.loads(table.json())["rows"]
    ]
    assert from_csv == from_json and len(from_csv) > 3


def test_ablation_compares_in_pairs() -> None:
    """Catches a difference of means over other seeds: seed 0 of class 1, far worse, has no plain twin here."""
    state = make_state()
    add(state, {(1, 1): (9, 0, 1, 10)}, PLAIN, dice_defective=0.6)
    rows = rows_of(tables.ablation_table(PLAN, state, "segmentation", ""), "plain", "variant")
    assert rows["1"]["accuracy_difference_mean"] == pytest.approx(0.95 - 1.0)
    assert rows["1"]["dice_defective_difference_mean"] == pytest.approx(-0.1)
    assert rows["8"]["num_seeds"] == 0 and rows["8"]["accuracy_difference_mean"] is None


def test_ablation_without_its_base_shows_no_difference() -> None:
    """Catches a failure of the base cell taking the table with it."""
    state = State([])
    add(state, {(1, 0): COUNTS[1, 0]}, PLAIN)
    rows = rows_of(tables.ablation_table(PLAN, state, "segmentation", ""), "plain", "variant")
    assert rows["1"]["accuracy_mean"] == pytest.approx(0.85)
    assert rows["1"]["accuracy_difference_mean"] is None


def test_models() -> None:
    """Catches speeds of images for those of slices: 2 images/s are 24 slices/s of 12 strips."""
    (row,) = tables.models_table(PLAN, make_state()).rows
    assert row["num_cells"] == 4 and row["base_channels"] == 8
    assert (row["training_slices_per_s"], row["executing_slices_per_s"]) == (50.0, 24.0)
    assert row["weights_mb"] == pytest.approx(1.0)
    squeezed = State([])
    add(squeezed, {(1, 0): COUNTS[1, 0]}, SQUEEZE)
    (result,) = squeezed.results.values()
    assert tables.executing_speed(result.report) == 2.0


@pytest.mark.parametrize(
    ("overrides", "largest_px", "num_slices"),
    [
        (("mode=tiles",), (512, 512), 64),
        (("mode=tiles", "overlap_px=16"), (512, 700), 11 * 15),
        # As many as cover the image, and an even number where half of them are turned.
        (("num_slices=2",), (512, 512), 8),
        (("num_slices=31",), (512, 512), 30),
        (("num_slices=31",), (512, 700), 31),
        (("mode=whole",), (512, 512), 1),
    ],
)
def test_executing_speed_is_of_the_slices_that_judging_cuts(
    overrides: tuple[str, ...], largest_px: tuple[int, int], num_slices: int
) -> None:
    """Would catch: 64 tiles counted as one slice, and the number asked for where another one is cut."""
    cell = Cell("segmentation", "custom_unet", 1, 0)
    config = read_config(cell.config_path(True), [f"--config.slicing.{one}" for one in overrides])
    report = make_report(config, COUNTS[1, 0])
    report["data"]["largest_px"] = list(largest_px)
    assert tables.executing_speed(report) == 2.0 * num_slices


def test_table_2_names_what_its_numbers_are() -> None:
    """Catches the numbers of unlike things standing there without a word."""
    text = tables.table_2(PLAN, make_state()).markdown()
    for part in ("72.0 %", "95.6 %", "88.4 %", "97.3 %", "IoU", "82.5 %"):
        assert part in text


# --- the paper's numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", paper.TABLE_1)
def test_printed_means_are_those_of_the_rows(model: str) -> None:
    """Catches a slip in copying the table: its row of means agrees with its columns to the printed digits."""
    rows = list(paper.TABLE_1[model].values())
    for name, printed in paper.TABLE_1_MEANS[model]._asdict().items():
        digits = 0.05 if name == "executing_time_s" else 0.5e-5
        assert fmean(getattr(row, name) for row in rows) == pytest.approx(printed, abs=1.001 * digits)


def test_remarks_are_computed() -> None:
    """Catches the remarks drifting from the data; the numbers are those of an analysis made by hand before."""
    first, second, third = paper.remarks()
    assert "in 0 of 18 rows" in first and "in 0 of 18 rows" in second
    assert "14% to 51%" in third and "median 43%" in third


def test_implied_share_by_hand() -> None:
    """Catches the algebra: of 100 images 40 defective, 30 found, 10 false alarms."""
    row = paper.Printed(accuracy=0.8, precision=0.75, recall=0.75, f1=0.75, executing_time_s=1)
    assert paper.implied_defect_share(row) == pytest.approx(0.4)
    assert paper.implied_f1(row) == pytest.approx(0.75)
    assert paper.is_share_of(0.8043, 230) and not paper.is_share_of(0.8050, 230)

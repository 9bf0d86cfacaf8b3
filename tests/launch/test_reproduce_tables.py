"""The grid: runs, failures, mistakes of the command line, and the files that it leaves; runs are faked."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
from fake_runs import FakeRuns

from dagm_jax.errors import Interrupted, UserError
from dagm_jax.evaluation.programs import SlicedImages
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.types import DAGM_SHAPE
from dagm_jax.visualization.figures import write_figure
from launch.paper import pages
from launch.paper.cells import ABLATIONS, BASE, Cell, Grid, Plan
from launch.paper.pages import group_by_model, plot_confusions, plot_curves, shown_class
from launch.paper.reproduce import reproduce, time_left_s
from launch.reproduce_tables import parse_flags

TWO_BY_TWO = ("--models=custom_unet,conv_autoencoder", "--classes=1,8", "--seeds=0")


def request(workdir: Path, *arguments: str) -> Grid:
    return parse_flags(["reproduce_tables", f"--workdir={workdir}", "--small", *arguments])


@pytest.mark.usefixtures("no_pictures")
def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    """Would catch: a grid that trains everything anew, other tables from a grid that only reads, cells named by their
    place in the grid."""
    first, second, larger = FakeRuns(), FakeRuns(), FakeRuns()
    reproduce(request(tmp_path, *TWO_BY_TWO), first)
    table = (tmp_path / "table_1.md").read_text()
    reproduce(request(tmp_path, *TWO_BY_TWO), second)
    models = ("custom_unet", "conv_autoencoder")
    assert first.calls == [f"{model}-class{class_id}-seed0" for class_id in (1, 8) for model in models]
    assert second.calls == [] and (tmp_path / "table_1.md").read_text() == table
    reproduce(request(tmp_path, "--models=custom_unet", "--classes=8,2", "--seeds=0,1"), larger)
    assert larger.calls == [f"custom_unet-class{place}" for place in ("2-seed0", "8-seed1", "2-seed1")]


@pytest.mark.usefixtures("no_pictures")
def test_every_cell_is_run_with_its_own_configuration(tmp_path: Path) -> None:
    """Would catch: classes, seeds, tasks, variants or overrides that do not reach the run."""
    runs, seen = FakeRuns(), []

    def run(config: Any, workdir: Path) -> dict[str, Any]:
        seen.append(config)
        return runs(config, workdir)

    arguments = ("--models=custom_unet", "--classes=8", "--seeds=3", "--ablation")
    reproduce(request(tmp_path, *arguments, "--config.train.num_steps=7"), run)
    assert runs.calls == [
        f"custom_unet-class8-seed3{v}" for v in ("", "-plain", "-squeeze", "-no_rotation", "-no_upsampling")
    ]
    base, plain, squeeze, no_rotation, no_upsampling = seen
    assert all(c.data.classes == (8,) and c.seed == 3 and c.train.num_steps == 7 for c in seen)
    assert (base.model.extra_skips, plain.model.extra_skips) == ("previous_encoder", "none")
    assert (base.slicing.mode, squeeze.slicing.mode) == ("auto", "squeeze")
    assert (base.augment.rotate90, no_rotation.augment.rotate90) == (True, False)
    assert (base.train.balance, no_upsampling.train.balance) == (True, False)


@pytest.mark.usefixtures("no_pictures")
def test_fewer_labels_are_cells_with_a_table_of_their_own(tmp_path: Path) -> None:
    """Would catch: labels that do not reach the run, a second cell for what the configured run is already, a curve in
    another order than asked for, and tables of an earlier grid that stay."""
    runs, seen = FakeRuns(), []

    def run(config: Any, workdir: Path) -> dict[str, Any]:
        seen.append((workdir.name, config.data.max_masks, config.data.max_tags))
        return runs(config, workdir)

    arguments = ("--models=custom_unet,unet3plus", "--classes=8", "--seeds=3")
    reproduce(request(tmp_path, *arguments, "--supervision=good,tags,tags:7,masks:5,masks"), run)
    name = "custom_unet-class8-seed3"
    assert seen == [
        (name, -1, -1), ("unet3plus-class8-seed3", -1, -1), (f"{name}-good", 0, 0), (f"{name}-tags", 0, -1),
        (f"{name}-tags7", 0, 7), (f"{name}-masks5", 5, -1),
    ]  # fmt: skip
    rows = list(csv.DictReader((tmp_path / "supervision.csv").read_text().splitlines()))
    expected = [
        (labels, c) for labels in ("good", "tags", "tags:7", "masks:5", "masks") for c in ("8", "mean")
    ]
    assert [(row["labels"], row["class"]) for row in rows] == expected
    assert {row["auroc_mean"] for row in rows} == {"0.9"}
    index = (tmp_path / "index.md").read_text()
    assert "![Figures by labels](supervision.png)" in index and "masks5: labels for training" in index
    reproduce(request(tmp_path, *arguments), FakeRuns())
    assert not list(tmp_path.glob("supervision.*"))


def test_no_rotation_says_how_it_is_tested() -> None:
    """Would catch: a variant that is tested in another way than its note in the table says."""
    (variant,) = (variant for variant in ABLATIONS if variant.name == "no_rotation")
    cells = [Cell("segmentation", "custom_unet", 1, 0, one) for one in (BASE, variant)]
    configs = [
        cell.read_config(False, ["--config.eval.tiling=slices", "--config.slicing.mode=strips"])
        for cell in cells
    ]
    tilings = [make_tiling(config, DAGM_SHAPE, ()) for config in configs]
    assert all(isinstance(one, SlicedImages) for one in tilings)
    base, upright = (one.slicer_for(DAGM_SHAPE) for one in tilings if isinstance(one, SlicedImages))
    assert base.horizontal_edges and base.mirrored
    assert not (upright.horizontal_edges or upright.mirrored)
    assert cells[1].read_config(False, []).eval.tiling == "whole"
    assert "tested on whole images, or on upright strips alone" in variant.effect


def test_cells_of_a_plan(tmp_path: Path) -> None:
    """Would catch: an order in which a grid that is cut short has no whole table; an ablation of up-sampling in a task
    that sees no defects."""
    cells = Plan(tasks=("segmentation", "classification"), seeds=(0, 1)).cells()
    assert [cell.seed for cell in cells] == [0] * 12 + [1] * 12
    assert len({cell.workdir(tmp_path) for cell in cells}) == 24
    cells = Plan(tasks=("reconstruction",), seeds=(0,), ablation=True).cells()
    assert {cell.variant.name for cell in cells} == {"", "plain", "squeeze", "no_rotation"}
    assert {cell.model for cell in cells if cell.variant.name} == {"custom_unet"}


@pytest.mark.usefixtures("no_pictures")
def test_a_failed_cell_is_named_and_the_others_run(tmp_path: Path, capsys: Any) -> None:
    """Would catch: one bad class that ends the grid, a failure that nobody sees, and one that is never tried again."""
    runs = FakeRuns(2, UserError("`data.root`: no image of class 1 [b h w]"))
    message = "1 of 4 cells failed, the first: segmentation, conv_autoencoder, class 1"
    with pytest.raises(UserError, match=message):
        reproduce(request(tmp_path, *TWO_BY_TWO), runs)
    assert len(runs.calls) == 4
    index = (tmp_path / "index.md").read_text()
    assert "3 of 4 cells finished, 1 failed" in index and "no image of class 1 [b h w]" in index
    assert "failed: segmentation, conv_autoencoder, class 1, seed 0" in capsys.readouterr().out
    again = FakeRuns()
    reproduce(request(tmp_path, *TWO_BY_TWO), again)
    assert again.calls == ["conv_autoencoder-class1-seed0"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("error", [Interrupted("asked to"), KeyboardInterrupt(), MemoryError()])
def test_a_grid_that_is_cut_short_goes_on(tmp_path: Path, error: BaseException) -> None:
    """Would catch: an interruption taken for a cell's failure, and tables that wait for the last cell."""
    runs = FakeRuns(3, error)
    with pytest.raises(type(error)):
        reproduce(request(tmp_path, *TWO_BY_TWO), runs)
    assert "2 of 4 cells finished" in (tmp_path / "index.md").read_text()
    assert "| custom_unet | 1 | 1 | 0.9000 (0.9803) |" in (tmp_path / "table_1.md").read_text()
    again = FakeRuns()
    reproduce(request(tmp_path, *TWO_BY_TWO), again)
    assert again.calls == ["custom_unet-class8-seed0", "conv_autoencoder-class8-seed0"]


@pytest.mark.usefixtures("no_pictures")
def test_cells_of_another_configuration_are_refused_first(tmp_path: Path) -> None:
    """Would catch: tables that mix runs of two configurations, found out after hours or never."""
    reproduce(request(tmp_path, "--models=custom_unet", "--classes=8", "--seeds=0"), FakeRuns())
    runs = FakeRuns()
    with pytest.raises(UserError, match=r"class8-seed0\) holds a run with train.num_steps=300, not 7"):
        reproduce(request(tmp_path, *TWO_BY_TWO, "--config.train.num_steps=7"), runs)
    assert runs.calls == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--models=unet3plus,unet3pls", r"`--models` \(=unet3pls\) must be of .*; did you mean unet3plus\?"),
        ("--classes=8,0", r"`--classes` \(=8,0\) must be whole numbers from 1 on"),
        ("--seeds=-1", r"`--seeds` \(=-1\) must be whole numbers from 0 on"),
        ("--classes=1,8,01", r"`--classes` \(=1,8,1\) must name at least one value, and each once"),
        ("--ablation --models=unet3plus", r"`--ablation` varies custom_unet, which `--models`"),
        (
            "--supervision=good,mask:5",
            r"`--supervision` \(=mask:5\) must be of good, tags, tags:N, masks, masks:N",
        ),
        ("--supervision=good:5", r"`--supervision` \(=good:5\) must be of"),
        ("--supervision=tags --tasks=classification", r"`--supervision` is of segmentation, which `--tasks`"),
        ("--config.seed=4", r"`--config.seed` differs from cell to cell; set it with `--seeds`"),
        ("--config.data.classes=(1,)", r"`--config.data.classes` differs .* `--classes`"),
    ],
)
def test_mistakes_in_the_command_line(tmp_path: Path, argument: str, message: str) -> None:
    """Would catch: a mistake that is found out by the cell that it breaks, or by a traceback."""
    with pytest.raises(UserError, match=message) as caught:
        request(tmp_path, *argument.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.train.num_step=7", r"cell segmentation, .*`config.train.num_step` is no.*num_steps"),
        ("--config.model.extra_skips=none", r"plain is the configured run itself.*leave out --config.model"),
    ],
)
def test_mistakes_in_the_overrides_end_the_grid_at_once(tmp_path: Path, argument: str, message: str) -> None:
    """Would catch: a slip that fails every cell, one by one; and an ablation that compares a thing with itself."""
    runs = FakeRuns()
    with pytest.raises(UserError, match=message):
        reproduce(request(tmp_path, "--models=custom_unet", "--ablation", argument), runs)
    assert runs.calls == [] and list(tmp_path.iterdir()) == []


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file() and path.name != ".lock"}


def names(ending: str, *stems: str) -> set[str]:
    return {f"{stem}{ending}.{kind}" for stem in stems for kind in pages.TASK_FILES[stem]}


ALWAYS = {"index.md", "table_2.md", "models.md", "models.csv"}
BOTH_TASKS = ("--classes=8", "--seeds=0", "--ablation", "--tasks=segmentation,reconstruction")


@pytest.mark.usefixtures("no_pictures")
def test_the_index_shows_everything_that_is_there(tmp_path: Path) -> None:
    """Would catch: dead links, a figure that no page shows, and tables of several tasks written over one another."""
    reproduce(request(tmp_path, "--models=custom_unet,unet3plus", *BOTH_TASKS), FakeRuns())
    index = (tmp_path / "index.md").read_text()
    linked = set(re.findall(r"\]\(([^)]+)\)", index))
    assert all((tmp_path / name).is_file() for name in linked)
    assert files(tmp_path) - linked == {"index.md"}
    both = {name for task in ("_segmentation", "_reconstruction") for name in names(task, *pages.TASK_FILES)}
    assert files(tmp_path) == both | ALWAYS
    for name in ("table_1_segmentation.md", "ablation_reconstruction.md", "models.md", "table_2.md"):
        assert (tmp_path / name).read_text().partition("\n")[2] in index


@pytest.mark.usefixtures("no_pictures")
def test_files_of_an_earlier_grid_are_removed(tmp_path: Path) -> None:
    """Would catch: tables and figures of an earlier grid beside those of this one, and a stranger's file removed."""
    strangers = {"table_1_notes.md", "ablation.txt", "fig_5.png"}
    for name in strangers:
        (tmp_path / name).touch()
    reproduce(request(tmp_path, "--models=custom_unet", *BOTH_TASKS), FakeRuns())
    reproduce(request(tmp_path, "--models=custom_unet", "--classes=8", "--seeds=0"), FakeRuns())
    assert files(tmp_path) == strangers | ALWAYS | names("", "table_1", "fig_3", "fig_4")
    # No cell of this one is finished.
    failing = FakeRuns(1, UserError("no image of class 1"))
    with pytest.raises(UserError, match="1 of 1 cells failed"):
        reproduce(request(tmp_path, "--models=unet3plus", "--classes=1", "--seeds=0"), failing)
    assert files(tmp_path) == strangers | ALWAYS | names("", "table_1")


@pytest.mark.usefixtures("no_pictures")
def test_figures_are_of_the_paper_s_cells(tmp_path: Path) -> None:
    """Would catch: figures of the first class where the paper's is there."""
    arguments = ("--models=unet3plus,custom_unet", "--classes=8,1", "--seeds=0")
    grid = request(tmp_path, *arguments)
    reproduce(grid, FakeRuns())
    assert shown_class(Plan(classes=(1, 4, 8))) == 4
    assert shown_class(Plan(classes=(8, 1))) == 8
    for plot in (plot_confusions, plot_curves):
        figure = plot(grid, group_by_model(grid, "segmentation"))
        write_figure(figure, tmp_path / "drawn.png")
        assert "custom_unet, class 8" in figure.axes[-1].get_title()


def test_time_left_knows_that_models_differ() -> None:
    """Would catch: one mean for networks whose times differ tenfold."""
    models = ("custom_unet", "unet3plus", "conv_autoencoder")
    small, large, unseen = (Cell("segmentation", model, 1, 0) for model in models)
    assert time_left_s({}, [small]) is None
    seconds = {"custom_unet": [10.0], "unet3plus": [100.0, 120.0]}
    assert time_left_s(seconds, [small, small, large]) == pytest.approx(10 + 10 + 110)
    assert time_left_s(seconds, [unseen]) == pytest.approx((10 + 100 + 120) / 3)

"""The command itself, in processes of its own: what a run leaves behind, what stops it, and how it goes on.

The processes share one cache of compiled programs, which is all that keeps this file within minutes.
"""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_dagm
from PIL import Image
from shell import Shell, run_python
from sklearn import metrics as sk
from tiny import assert_same, visible_steps

from dagm_jax.command_line import read_config
from dagm_jax.errors import UserError
from dagm_jax.experiment.run import run
from dagm_jax.storage import locked
from dagm_jax.train.history import read_history

pytestmark = pytest.mark.timeout(1200)
CONFIG = "--config=configs/smoke.py"
# Validation after 4, 8 and 12 steps; 3 defective and 4 good test images.
SMALL = (
    CONFIG,
    "--config.model.base_channels=1",
    "--config.slicing.num_slices=8",
    "--config.data.procedural_defective=15",
    "--config.data.procedural_good=20",
    "--config.train.num_steps=12",
    "--config.train.validate_every=4",
    "--config.train.cooldown_share=0.5",
    "--config.train.log_every=1",
)
# Compiled in two thirds of the time.
WITHOUT_NORM = ("--config.model.norm=none",)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    workdir: Path
    output: str

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.workdir / "report.json").read_text())
        return report

    def predictions(self) -> list[dict[str, str]]:
        with (self.workdir / "predictions.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    def page_rows(self) -> list[list[Any]]:
        """The images of the report page: name, label, score, …, paths of the pictures, error."""
        text = (self.workdir / "index.html").read_text(encoding="utf-8")
        return [json.loads(row) for row in re.findall(r'class="entry">(.*)</script>', text)]


def finished(done: subprocess.CompletedProcess[str], workdir: Path) -> Run:
    assert done.returncode == 0, done.stderr[-3000:]
    return Run(workdir, done.stdout)


@pytest.fixture(scope="module")
def whole(shell: Shell, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run without interruption."""
    workdir = tmp_path_factory.mktemp("whole")
    return finished(shell.run(*SMALL, f"--workdir={workdir}"), workdir)


# --- what a run leaves behind -------------------------------------------------------------------------------


def test_workdir_holds_everything(whole: Run) -> None:
    """Would catch: a figure, table or file that is promised and not written, and decoded images left behind."""
    for name in ("report.json", "predictions.csv", "decision_rule.json", "metrics.jsonl", "config.json"):
        assert (whole.workdir / name).stat().st_size > 0, name
    for name in ("curves", "confusion", "roc_pr", "hardest"):
        with Image.open(whole.workdir / "figures" / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 100, name
    assert list((whole.workdir / "tensorboard").glob("events*"))
    assert not (whole.workdir / "cache").exists()
    assert not list(whole.workdir.rglob("*.partial"))
    for line in ("built-in procedural images", "validation", "auroc", "dice_defective", "executing time"):
        assert line in whole.output, line


def test_page_shows_the_test_split(whole: Run) -> None:
    """Would catch: a page of other images, labels or scores than the predictions, or with links that lead nowhere."""
    rows = whole.page_rows()
    expected = [(row["image"], int(row["label"]), float(row["score"])) for row in whole.predictions()]
    assert [(name, label, score) for name, label, score, *_ in rows] == expected
    linked = [Path(url) for row in rows for url in row[5:7]]
    assert sorted(linked) == sorted(p.relative_to(whole.workdir) for p in whole.workdir.glob("images/*"))
    assert len(linked) == 2 * len(rows)


def assert_all_is_left(run: Run, task: str) -> None:
    """Checks the files that a run of any task leaves: reports and figures that not only segmentation can fill."""
    assert (run.report["model"], run.report["task"]) == ("custom_unet", task)
    assert run.report["config"]["task"]["name"] == task
    for name in ("curves", "confusion", "roc_pr", "hardest"):
        assert (run.workdir / "figures" / f"{name}.png").exists()
    rows = read_history(run.workdir / "metrics.jsonl")
    assert all(("accuracy" in row) == (task == "classification") for row in rows)
    scores = [float(row["score"]) for row in run.predictions()]
    assert len(set(scores)) == len(scores)
    assert 0 < min(scores) <= max(scores) < 1


@pytest.mark.long
def test_reconstruction_leaves_the_same_behind(shell: Shell, tmp_path: Path) -> None:
    """Would catch: a task that the command refuses, a threshold that depends on defects, and decisions on slices."""
    command = (f"{CONFIG}:reconstruction", *SMALL[1:], *WITHOUT_NORM, "--config.train.num_steps=4")
    done = finished(shell.run(*command, f"--workdir={tmp_path}"), tmp_path)
    assert_all_is_left(done, "reconstruction")
    assert "data: reconstruction learns from 14 good images alone" in done.output
    rule = done.report["decision_rule"]
    assert rule["calibration"] == "normals"
    assert rule["pixel_threshold"] == rule["threshold"]


def test_history_has_every_step_and_validation(whole: Run) -> None:
    """Would catch: rows that are lost, repeated, or without the figures that the curves are drawn from."""
    rows = read_history(whole.workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 13))
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [4, 8, 12]
    for row in rows:
        names = {"loss", "accuracy"} | (
            {"grad_norm", "learning_rate"} if row["kind"] == "train" else {"quality", "auroc"}
        )
        assert names <= row.keys()


def test_report_is_what_scikit_learn_makes_of_the_predictions(whole: Run) -> None:
    """Would catch: a report and a table that are not of the same decisions; `test_evaluate` has the other figures."""
    rows, test = whole.predictions(), whole.report["test"]
    labels = np.array([int(row["label"]) for row in rows])
    scores = np.array([float(row["score"]) for row in rows])
    called = np.array([int(row["defective"]) for row in rows])
    assert [row["image"] for row in rows] == sorted({row["image"] for row in rows})
    assert (len(labels), labels.sum()) == (7, 3)
    np.testing.assert_array_equal(called, scores >= whole.report["decision_rule"]["threshold"])
    (tn, fp), (fn, tp) = sk.confusion_matrix(labels, called, labels=[0, 1])
    assert {name: test[name] for name in ("tp", "fp", "fn", "tn")} == {"tp": tp, "fp": fp, "fn": fn, "tn": tn}
    assert test["accuracy"] == pytest.approx(sk.accuracy_score(labels, called))
    assert test["auroc"] == pytest.approx(sk.roc_auc_score(labels, scores))


def test_report_says_what_was_done(whole: Run) -> None:
    """Would catch: figures that are promised and missing, a description of another run, a report on a state that is
    neither the best of training nor the last, and a choice that is not printed."""
    report = whole.report
    cost, data, training = report["cost_of_running"], report["data"], report["training"]
    assert 0 < cost["executing_time_s"] < 1000
    assert cost["images_per_s"] == pytest.approx(7 / cost["executing_time_s"])
    assert cost["compile_time_s"] > 0
    assert cost["gflop_per_slice"] > 0
    assert training["last_step"] == 12
    sides = {name: (one["images"], one["defective_images"]) for name, one in data["sides"].items()}
    assert sides == {"train": (24, 10), "validation": (4, 2), "test": (7, 3)}
    assert report["baselines"]["majority_accuracy"] == pytest.approx(4 / 7)
    rows = [row for row in read_history(whole.workdir / "metrics.jsonl") if row["kind"] == "validation"]
    best = max(rows, key=lambda row: row["quality"])["step"]
    assert training["best_step"] in (best, 12)
    assert best == 12 or f"tested checkpoint: step {training['best_step']}" in whole.output
    rule = json.loads((whole.workdir / "decision_rule.json").read_text())
    assert rule["threshold"] == report["decision_rule"]["threshold"]
    assert report["config"]["model"]["base_channels"] == 1
    assert {"jax", "flax", "python"} <= report["versions"].keys()


def test_second_call_prints_the_report_and_changes_nothing(shell: Shell, whole: Run, tmp_path: Path) -> None:
    """Would catch: a finished run that is trained or tested again, also from another folder; a run that mixes two
    configurations, or returns the report of another one."""
    before = {path: path.stat().st_mtime_ns for path in whole.workdir.rglob("*") if path.name != ".lock"}
    done = shell.run(*SMALL, f"--workdir={whole.workdir}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "holds a finished run" in done.stdout
    accuracy = whole.report["test"]["accuracy"]
    assert f"{accuracy:.4f}" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in whole.workdir.rglob("*") if path.name != ".lock"}
    assert after == before
    done = shell.run(*SMALL, "--config.train.num_steps=13", f"--workdir={whole.workdir}")
    assert_one_error(done, str(whole.workdir), "train.num_steps=12, not 13")


# --- interrupted runs ---------------------------------------------------------------------------------------


def test_killed_and_terminated_run_ends_like_a_whole_one(shell: Shell, whole: Run, tmp_path: Path) -> None:
    """Would catch: a batch that is repeated or left out, optimiser state that is lost, rows that are there twice, and a
    worker that outlives the process that was killed.

    Killed after its first checkpoint, while a worker process makes its batches; terminated in the middle of the next
    steps; then left alone.
    """
    workdir = tmp_path
    command = (*SMALL, f"--workdir={workdir}")
    with_worker = (*command, "--config.data.num_workers=1")
    killed = shell.run_until(signal.SIGKILL, lambda: bool(visible_steps(workdir)), *with_worker)
    assert killed.returncode == -signal.SIGKILL
    assert 12 not in visible_steps(workdir)
    last = visible_steps(workdir)[-1]
    path = workdir / "metrics.jsonl"
    file_of_killed = path.stat().st_ino

    def has_gone_on() -> bool:
        # Opening the history again replaces its file; rows before that are the killed process's.
        return path.stat().st_ino != file_of_killed and any(row["step"] > last for row in read_history(path))

    stopped = shell.run_until(signal.SIGTERM, has_gone_on, *command)
    assert f"resuming from the checkpoint of step {last}" in stopped.stdout
    assert stopped.returncode == 130, stopped.stderr
    assert stopped.stderr.splitlines()[-1].startswith("stopped: at step ")
    saved = visible_steps(workdir)[-1]
    assert saved > last
    assert read_history(path)[-1]["step"] == saved
    assert not (workdir / "report.json").exists()
    done = shell.run(*command)
    assert f"resuming from the checkpoint of step {saved}" in done.stdout
    assert_same(finished(done, workdir).workdir, whole.workdir)


@pytest.mark.long
def test_run_killed_while_testing_ends_like_a_whole_one_with_any_workers(
    shell: Shell, whole: Run, tmp_path: Path
) -> None:
    """Would catch: a half-written report, a second training, and batches that depend on the number of workers.

    Killed when the decision rule was there and the report was not; with one worker process all along.
    """
    command = (*SMALL, "--config.data.num_workers=1", f"--workdir={tmp_path}")
    killed = shell.run_until(signal.SIGKILL, lambda: (tmp_path / "decision_rule.json").exists(), *command)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "report.json").exists()
    assert_same(finished(shell.run(*command), tmp_path).workdir, whole.workdir)


# --- mistakes -----------------------------------------------------------------------------------------------


def assert_one_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Exit status 2 and one line on stderr that holds all the parts."""
    lines = done.stderr.splitlines()
    assert done.returncode == 2, done.stderr[-3000:]
    assert len(lines) == 1, done.stderr[-3000:]
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--workdir=x",), "`--config` is missing"),
        ((CONFIG, "--config.train.batch_size=0"), "must be at least 1"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(
    shell: Shell, arguments: tuple[str, ...], part: str, tmp_path: Path
) -> None:
    """Would catch: a trace back, another status, and a folder made for nothing."""
    assert_one_error(shell.run(*arguments, cwd=tmp_path), part)
    assert list(tmp_path.iterdir()) == []


def test_missing_data_root_is_one_line(shell: Shell, tmp_path: Path) -> None:
    """Would catch: a silent change to built-in images, and a trace back from the file system."""
    root = tmp_path / "nowhere"
    done = shell.run(*SMALL, f"--config.data.root={root}", f"--workdir={tmp_path / 'run'}")
    assert_one_error(done, "`data.root`", str(root), "does not exist")
    # The mistake mended, the same folder may be named again.
    assert not (tmp_path / "run" / "config.json").exists()


def test_workdir_in_use_is_refused(tmp_path: Path) -> None:
    """Would catch: two processes that write the same checkpoints."""
    with locked(tmp_path, "workdir"), pytest.raises(UserError, match="in use by another run"):
        run(read_config("configs/smoke.py"), tmp_path)


def test_every_command_imports_without_fcntl() -> None:
    """Would catch: commands that cannot start on Windows, where fcntl does not exist; the lock takes msvcrt's there."""
    code = (
        "import sys, tempfile, types, pathlib\n"
        "sys.modules['fcntl'] = None\n"
        "import dagm_jax.main, dagm_jax.predict, dagm_jax.calibrate, dagm_jax.export, dagm_jax.experiment.run\n"
        "import dagm_jax.inspection.inspector, dagm_jax.inspection.folder, "
        "launch.prepare_data, launch.reproduce_tables, launch.benchmark\n"
        "calls = []\n"
        "def locking(*arguments): calls.append(arguments[1:])\n"
        "sys.modules['msvcrt'] = types.SimpleNamespace(locking=locking, LK_NBLCK=2)\n"
        "from dagm_jax.storage import locked\n"
        "with locked(pathlib.Path(tempfile.mkdtemp()), 'workdir'): assert calls == [(2, 1)]\n"
    )
    done = run_python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


# --- a folder of images -------------------------------------------------------------------------------------


def test_folder_with_damage_is_used_and_the_damage_listed(shell: Shell, tmp_path: Path) -> None:
    """Would catch: a run that one bad file stops, or that leaves it out without a word; and a path relative to here.

    Its task is classification, which has masks here: its map is drawn and measured like any.
    """
    small_dagm.layout_a(tmp_path / "data")
    folder = tmp_path / "data" / "Class1" / "Train"
    (folder / "0012.PNG").write_bytes((folder / "0012.PNG").read_bytes()[:-100])
    (folder / "0017.PNG").unlink()
    short = ("--config.train.num_steps=2", "--config.train.validate_every=2", *WITHOUT_NORM)
    command = (f"{CONFIG}:classification", *SMALL[1:], "--config.data.root=data", "--workdir=run", *short)
    done = finished(shell.run(*command, cwd=tmp_path), tmp_path / "run")
    data = done.report["data"]
    assert data["num_skipped"] == 2
    assert done.report["task"] == "classification"
    assert done.report["test"]["dice_defective"] is not None
    assert done.report["test"]["pixel_auroc"] is not None
    reasons = {skip["what"]: skip["reason"] for skip in data["skipped"]}
    (truncated,) = (text for what, text in reasons.items() if "0012" in what)
    assert "truncated" in truncated
    (without_file,) = (text for what, text in reasons.items() if "Labels.txt" in what)
    assert "image 17 is not there" in without_file
    assert "2 left out" in done.output
    sides = {name: (one["images"], one["defective_images"]) for name, one in data["sides"].items()}
    assert sides == {"train": (14, 8), "validation": (2, 1), "test": (4, 2)}
    assert "layout A" in data["source"]
    listed = {row[0]: row[7] for row in done.page_rows() if row[2] is None}
    assert listed == {what: f"left out: {reason}" for what, reason in reasons.items()}
    names = [row["image"] for row in done.predictions()]
    assert len(names) == 4
    assert all("Class1" in name for name in names)


# --- a user's own images ------------------------------------------------------------------------------------


def write_own_images(root: Path, with_masks: bool) -> None:
    """An MVTec category: 12 good and 8 defective images of 5 sizes, grey, colour and 16-bit, one of them damaged."""
    rng = np.random.default_rng(0)
    for i in range(20):
        height, width = 96 + 3 * (i % 5), 100 - 7 * (i % 5)
        grey = rng.integers(90, 130, (height, width)).astype(np.uint8)
        kind = "hole" if i >= 12 else "good"
        folder = root / ("train" if i < 8 else "test") / kind
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "hole":
            row, column = rng.integers(10, height - 30), rng.integers(10, width - 30)
            mask = np.zeros((height, width), np.uint8)
            mask[row : row + 20, column : column + 12] = 255
            grey[mask > 0] = 20
            (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
            if with_masks:
                Image.fromarray(mask).save(root / "ground_truth" / kind / f"{i:03d}_mask.png")
        pixels = [grey, np.repeat(grey[..., None], 3, axis=2), grey.astype(np.uint16) * 4][i % 3]
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    (root / "train" / "good" / "damaged.png").write_bytes(b"\x89PNG\r\n")


OWN = (
    "--config.data.root=data",
    "--config.data.split=random80_20",
    "--config.slicing.mode=tiles",
    "--config.slicing.slice_height_px=48",
    "--config.slicing.overlap_px=8",
    "--config.train.num_steps=2",
    "--config.train.validate_every=2",
    "--workdir=run",
)


def test_own_images_of_many_sizes_and_depths_make_a_detector(shell: Shell, tmp_path: Path) -> None:
    """Would catch: images of one's own that the command cannot cut, score, draw or report, unlike DAGM's."""
    write_own_images(tmp_path / "data", with_masks=True)
    rows = [f"{i:03d},hole,0,0,64,64\n" for i in range(12, 20)]
    (tmp_path / "boxes.csv").write_text("image,kind,left,top,right,bottom\n" + "".join(rows))
    command = (*SMALL, *WITHOUT_NORM, *OWN, "--config.data.boxes=boxes.csv")
    done = finished(shell.run(*command, cwd=tmp_path), tmp_path / "run")
    assert "data: 8 boxes, 0 of them on images that are left out" in done.output
    assert done.report["test"]["boxes"]["kinds"]["hole"]["num"] == done.report["test"]["num_defective"]
    data = done.report["data"]
    assert "own images, MVTec layout" in data["source"]
    assert [skip["what"] for skip in data["skipped"]] == ["train/good/damaged.png"]
    sides = [(one["images"], one["defective_images"]) for one in data["sides"].values()]
    assert [sum(column) for column in zip(*sides, strict=True)] == [20, 8]
    assert done.report["test"]["dice_defective"] is not None
    assert len(done.predictions()) == done.report["test"]["num_images"] == 4
    assert (done.workdir / "figures" / "hardest.png").exists()
    assert "the set's own halves are mixed; --config.data.split=official keeps them" in done.output


def test_own_images_without_masks_make_a_detector_of_images(shell: Shell, tmp_path: Path) -> None:
    """Would catch: a Dice against masks that nobody has drawn.

    Trained by pmap, whose states and batches have to fit the rest.
    """
    write_own_images(tmp_path / "data", with_masks=False)
    command = (f"{CONFIG}:classification", *SMALL[1:], *OWN, "--config.parallel.mode=pmap")
    done = finished(shell.run(*command, cwd=tmp_path), tmp_path / "run")
    assert_all_is_left(done, "classification")
    assert "data: classification learns from 8 good and 5 defective images" in done.output
    assert done.report["decision_rule"]["calibration"] == "f1"
    test = done.report["test"]
    undefined = ("dice_defective", "iou_defective", "nvidia_dice", "pixel_auroc", "pixel_average_precision")
    assert [test[name] for name in undefined] == [None] * 5
    assert test["auroc"] is not None
    assert test["tp"] + test["fn"] == 2


def test_segmentation_learns_from_tags_and_from_good_images_alone(shell: Shell, tmp_path: Path) -> None:
    """Would catch: a set without masks that is refused; figures of synthetic defects that pass for those of real ones;
    a threshold from tags that are there and not looked at, or from defects that are not there; a report, card or
    command behind it that needs both labels."""
    write_own_images(tmp_path / "data", with_masks=False)
    tags = finished(shell.run(*SMALL, *OWN, cwd=tmp_path), tmp_path / "run")
    rule, test, synthetic = (tags.report[name] for name in ("decision_rule", "test", "synthetic_test"))
    assert rule["calibration"] == "f1" and rule["validation_num_defective"] == 6
    assert rule["validation_synthetic"] == 2 and test["auroc"] is not None and test["dice_defective"] is None
    assert synthetic["num_images"] == 2 and synthetic["dice"] is not None
    learnt_from = "8 good images, 50% of their slices with synthetic defects, and 0 masks"
    assert f"segmentation learns from {learnt_from}; 6 defective images without a mask" in tags.output
    assert tags.report["data"]["learnt_from"].startswith(learnt_from)

    shutil.rmtree(tmp_path / "data" / "test" / "hole")
    more = ("--config.data.validation_share=0.4", "--workdir=good")
    good = finished(shell.run(*SMALL, *OWN, *more, cwd=tmp_path), tmp_path / "good")
    assert good.report["decision_rule"]["calibration"] == "normals"
    assert (good.report["test"]["auroc"], good.report["test"]["recall"]) == (None, None)
    assert good.report["synthetic_test"]["auroc"] is not None and "AUROC of synthetic" in good.output
    assert not (good.workdir / "figures" / "roc_pr.png").exists()
    page = (good.workdir / "index.html").read_text()
    assert "learnt from" in page and "synthetic defects in good test images" in page
    export = replace(shell, program=("-m", "dagm_jax.export"))
    done = export.run(
        "--model=good", "--format=stablehlo", "--output=good.bin", "--num_checked=1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "good.bin.md").read_text()
    assert "auroc of synthetic defects in good images" in card and "Learnt from" in card
    for command, status in (("--rule=false_alarm_rate", 0), ("--rule=f1", 2)):
        calibrate = replace(shell, program=("-m", "dagm_jax.calibrate"))
        done = calibrate.run(command, "--model=good", cwd=tmp_path)
        assert done.returncode == status, done.stderr

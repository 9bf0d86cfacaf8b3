"""A folder and ``predict``: every file accounted for once, whatever it holds, whenever the command is stopped."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bright
import numpy as np
import png_files
import pytest
import small_dagm
from PIL import Image
from shell import Shell

from dagm_jax import predict
from dagm_jax.data.images.decode import BadImage, read_bytes
from dagm_jax.errors import UserError
from dagm_jax.evaluation.predictor import NonFiniteOutput
from dagm_jax.inspection.drift import score_drift
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.inspection.predictions import Prediction, print_summary, summarise
from dagm_jax.inspection.scan import make_source
from dagm_jax.visualization.overlay import write_overlay


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No network is loaded, but in tests that ask for a run of one."""
    if "own" not in request.fixturenames:
        monkeypatch.setattr(Inspector, "load", staticmethod(bright.load))


def save(path: Path, level: int, shape: tuple[int, int] = (20, 30)) -> Path:
    """A picture of that brightest level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full(shape, level // 2, np.uint8)
    values[5:9, 10:16] = level
    Image.fromarray(values).save(path, format="PNG")
    return path


def run(images: Path | str, output: Path, *more: str, model: str = "bright") -> int:
    return predict.main(["predict", f"--model={model}", f"--images={images}", f"--output={output}", *more])


def lines(output: Path) -> list[dict[str, Any]]:
    text = (output / "predictions.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def table(output: Path) -> list[dict[str, str]]:
    path = output / "predictions.csv"
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


def decisions(output: Path) -> dict[str, str]:
    return {row["image"]: row["defective"] for row in table(output)}


def summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return found


BROKEN: dict[str, Callable[[Path], object]] = {
    "zero.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("not an image"),
    "[/b].png": lambda path: path.write_text("markup to the terminal"),
    "cut.png": lambda path: save(path, 200) and path.write_bytes(path.read_bytes()[:-30]),
    # A whole file of few bytes whose header says ten thousand million pixels.
    "bomb.png": lambda path: path.write_bytes(png_files.png(100_000, 100_000, 8, 0, bytes(1000))),
    "wide.png": lambda path: save(path, 200, (20, 1001)),
    "link.png": lambda path: path.symlink_to("nowhere"),
    "loop.png": lambda path: path.symlink_to("loop.png"),
    "pipe.png": lambda path: os.mkfifo(path),
}


def mixed(root: Path, num_readable: int) -> set[str]:
    """Fills the folder; the names of all files that are to be accounted for."""
    odd = 'ä ö ü.png|面.PNG|a,"b".png|two\nlines.png|return\r.png|sub/deep/er/x.png|sub/x.png|[1].png|[red]x[/red].jpg'
    special = [*odd.split("|"), os.fsdecode(b"raw\xff.png"), "x.png", "x.tif", "-f.png", " .png"]
    special += ["=1+1.png", "\u2028.png", "sub_x.png", "sub x.png", "sub-x.png", "x" * 200 + ".png"]
    names = special + [f"many/{i:05d}.png" for i in range(num_readable - len(special))]
    for i, name in enumerate(names):
        save(root / name, 60 + 150 * (i % 3 == 0) + i % 40)
    for name, write in BROKEN.items():
        path = root / "broken" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path)
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_bytes(b"")
    (root / "sub" / "round").symlink_to(root, target_is_directory=True)
    return set(names) | {f"broken/{name}" for name in BROKEN}


def test_every_file_is_accounted_for_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch: a file left out, twice there or ending the job; names that break table or terminal; loops followed;
    overlays whose names collide once the folders and odd characters are gone, and overlays of unreadable files.

    The output lies in the folder of the images, and must not be taken for images at the second time, nor that of
    another model.
    """
    images = tmp_path / "[/red]in"
    names = mixed(images, 50)
    output = images / "[/red]out"
    assert run(images, output) == predict.EXIT_UNREADABLE
    found = lines(output)
    assert Counter(row["image"] for row in found) == Counter(names)
    assert Counter(row["image"] for row in table(output)) == Counter(names)
    by_name = {row["image"]: row for row in found}
    for name in names:
        row, path = by_name[name], images / name
        if name.startswith("broken/"):
            assert row["score"] is row["defective"] is row["boxes"] is row["overlay"] is None
            assert row["error"] and "\n" not in row["error"] and "broken/" not in row["error"]
        else:
            with Image.open(path) as picture:
                level = int(np.asarray(picture).max())
            assert row["score"] == pytest.approx(level / 255)
            assert row["defective"] == int(level / 255 >= 0.5)
            assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert row["error"] is None and row["latency_s"] > 0
            assert (row["boxes"] == [[10, 5, 6, 4]]) == bool(row["defective"])
            with Image.open(output / row["overlay"]) as picture:
                assert picture.size == (30, 20) and picture.mode == "RGB"
    on_disk = [f"overlays/{path.name}" for path in (output / "overlays").iterdir()]
    assert sorted(on_disk) == sorted(row["overlay"] for row in found if row["overlay"])
    totals = summary(output)
    assert (totals["num_files"], totals["num_judged"], totals["num_unreadable"]) == (
        len(names),
        50,
        len(BROKEN),
    )
    assert totals["num_defective"] == sum(row["defective"] or 0 for row in found)
    assert {one["image"] for one in totals["unreadable"]} == {f"broken/{name}" for name in BROKEN}
    text = capsys.readouterr().out
    assert "unreadable: broken/bomb.png: 10000000000 pixels are more than the limit" in text
    assert "unreadable: broken/[/b].png: " in text and "[/red]out" in text
    page = (output / "index.html").read_text()
    assert page.count('class="entry"') == len(names)
    before = (output / "predictions.jsonl").read_bytes()
    assert run(images, output) == predict.EXIT_UNREADABLE
    assert (output / "predictions.jsonl").read_bytes() == before
    assert set(names_of(images, images / "new")) == names


def test_unreadable_files_shift_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: scores given to the neighbours of unreadable files, another batch size than asked for."""
    used = bright.Bright()
    monkeypatch.setattr(Inspector, "load", staticmethod(lambda *rest: Inspector.of_backend(used)))
    for i in range(20):
        path = save(tmp_path / "in" / f"{i:02d}.png", 100 + i)
        if i % 3 == 1:
            path.write_bytes(b"x")
    run(tmp_path / "in", tmp_path / "out", "--batch_size=4")
    # The first is the one that compiles.
    assert used.calls == [(1, 4), (3, 4), (2, 4), (3, 4), (3, 4), (2, 4)]
    scores = {row["image"]: row["score"] for row in lines(tmp_path / "out")}
    assert scores == {f"{i:02d}.png": None if i % 3 == 1 else (100 + i) / 255 for i in range(20)}


def test_the_runs_own_test_images_get_its_verdicts(own: Path, tmp_path: Path) -> None:
    """Would catch: files decoded otherwise than in training, another rule, labels or masks of own folders not known."""
    images = own.parent / "own"
    assert predict.main(["predict", f"--model={own}", f"--images={images}", f"--output={tmp_path}"]) == 0
    rows = {row["image"]: row for row in table(tmp_path)}
    assert set(rows) == {path.relative_to(images).as_posix() for path in images.glob("[gd]*/*.png")}
    with (own / "predictions.csv").open(newline="") as stream:
        expected = list(csv.DictReader(stream))
    for row in expected:
        mine = rows[row["image"]]
        assert (mine["label"], mine["defective"]) == (row["label"], row["defective"])
        assert float(mine["score"]) == pytest.approx(float(row["score"]), rel=1e-6)
    totals = summary(tmp_path)
    assert sum(totals["confusion"].values()) == len(rows)
    assert totals["drift"]["compared"] == "images known to be good"
    assert totals["drift"]["num_validation_normals"] > 0


def test_only_what_is_new_or_changed_is_predicted(tmp_path: Path) -> None:
    """Would catch: a second verdict on the same content, a changed file taken for the old one, a touched file anew."""
    for name in ("a", "b", "c"):
        save(tmp_path / "in" / f"{name}.png", 100)
    (tmp_path / "in" / "late.png").write_bytes(b"")
    output = tmp_path / "out"
    run(tmp_path / "in", output)
    os.utime(tmp_path / "in" / "a.png", ns=(1, 1))
    save(tmp_path / "in" / "b.png", 250)
    save(tmp_path / "in" / "late.png", 240)
    save(tmp_path / "in" / "d.png", 90)
    assert run(tmp_path / "in", output) == 0
    names = [row["image"] for row in lines(output)]
    assert names == ["a.png", "b.png", "c.png", "late.png", "b.png", "d.png", "late.png"]
    rows = {row["image"]: row for row in table(output)}
    assert sorted(rows) == ["a.png", "b.png", "c.png", "d.png", "late.png"]
    assert rows["a.png"] == {"image": "a.png", "label": "", "score": repr(100 / 255), "defective": "0"}
    assert (rows["b.png"]["defective"], rows["late.png"]["defective"]) == ("1", "1")
    assert summary(output)["num_unreadable"] == 0


def test_a_file_that_changes_while_it_is_read_is_predicted_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a verdict on half of an old and half of a new content, and a file that silently gets none."""
    save(tmp_path / "in" / "a.png", 100)
    save(tmp_path / "in" / "gone.png", 100)
    (tmp_path / "out").mkdir()

    def read(path: Path) -> bytes:
        if path.name == "gone.png":
            path.unlink()
        else:
            save(path, 250)
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr("dagm_jax.inspection.folder.read_bytes", read)
        assert run(tmp_path / "in", tmp_path / "out") == predict.EXIT_UNREADABLE
    errors = {row["image"]: row["error"] for row in lines(tmp_path / "out")}
    changed = "changed while it was read; run the same command again"
    assert errors == {"a.png": changed, "gone.png": "file is missing"}
    run(tmp_path / "in", tmp_path / "out")
    assert decisions(tmp_path / "out") == {"a.png": "1", "gone.png": ""}


def test_a_line_cut_short_is_predicted_again(tmp_path: Path) -> None:
    """Would catch: a torn last line that ends the next run, or that is continued into one line with the next record;
    another damaged line dropped in silence, so that its image is predicted twice."""
    for name in ("a", "b"):
        save(tmp_path / "in" / f"{name}.png", 100)
    output = tmp_path / "out"
    run(tmp_path / "in", output)
    whole = (output / "predictions.jsonl").read_bytes()
    for cut in (1, 40):
        (output / "predictions.jsonl").write_bytes(whole[:-cut])
        assert run(tmp_path / "in", output) == 0
        assert [row["image"] for row in lines(output)] == ["a.png", "b.png"]
    for damage in (b'{"image": "a.png"}\n', b"nonsense\n", b"[]\n"):
        (output / "predictions.jsonl").write_bytes(damage + whole)
        with pytest.raises(UserError, match=r"line 1 of predictions\.jsonl is damaged"):
            run(tmp_path / "in", output)


def test_predictions_of_two_models_or_folders_do_not_mix(tmp_path: Path) -> None:
    """Would catch: a table of which nobody can say which model made it, and names of another folder taken for known."""
    save(tmp_path / "in" / "a.png", 100)
    save(tmp_path / "other" / "a.png", 100)
    run(tmp_path / "in", tmp_path / "out")
    first, second = (bright.Bright(name).model_id for name in ("bright", "another"))
    with pytest.raises(UserError, match=f"predictions of {first}.* is {second}; name another folder"):
        run(tmp_path / "in", tmp_path / "out", model="another")
    with pytest.raises(UserError, match=f"predictions of {first}"):
        run(tmp_path / "in", tmp_path / "out", "--threshold=0.3")
    with pytest.raises(UserError, match=r"predictions of .*in, and .*other"):
        run(tmp_path / "other", tmp_path / "out")


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: verdicts lost in the writer's thread while the others go on."""
    for i in range(12):
        save(tmp_path / "in" / f"{i:02d}.png", 100)

    def full(path: Path, *rest: Any) -> None:
        if path.name.startswith("05"):
            raise OSError(28, "No space left on device")
        write_overlay(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("dagm_jax.inspection.folder.write_overlay", full)
        with pytest.raises(UserError, match=r"cannot be written .No space left on device"):
            run(tmp_path / "in", tmp_path / "out")
    assert run(tmp_path / "in", tmp_path / "out") == 0
    names = [row["image"] for row in lines(tmp_path / "out")]
    assert sorted(names) == [f"{i:02d}.png" for i in range(12)]


def test_watching_waits_for_the_end_of_a_file(tmp_path: Path) -> None:
    """Would catch: half a file predicted, or listed as unreadable while it is still being written."""
    slow = tmp_path / "in" / "slow.png"
    save(tmp_path / "in" / "first.png", 100)
    data = save(tmp_path / "whole.png", 250).read_bytes()
    slow.write_bytes(data[:10])

    def write_slowly() -> None:
        with slow.open("ab") as stream:
            for place in range(10, len(data), len(data) // 8 + 1):
                time.sleep(0.1)
                stream.write(data[place : place + len(data) // 8 + 1])
                stream.flush()

    writer = threading.Thread(target=write_slowly)
    writer.start()
    # Patience is far beyond what a busy machine makes of the writer's pauses.
    patient = ("--watch", "--poll_s=0.02", "--patience_s=120", "--idle_exit_s=0.5")
    assert run(tmp_path / "in", tmp_path / "out", *patient) == 0
    writer.join()
    scores = {row["image"]: row["score"] for row in lines(tmp_path / "out")}
    assert scores == {"first.png": 100 / 255, "slow.png": 250 / 255}


def test_watching_lists_what_stays_unreadable(tmp_path: Path) -> None:
    """Would catch: a broken file that is waited for without end, or listed again at every look."""
    save(tmp_path / "in" / "good.png", 100)
    (tmp_path / "in" / "never.png").write_bytes(b"no image")
    quick = ("--watch", "--poll_s=0.02", "--patience_s=0.3", "--idle_exit_s=0.5")
    assert run(tmp_path / "in", tmp_path / "out", *quick) == predict.EXIT_UNREADABLE
    assert decisions(tmp_path / "out") == {"good.png": "0", "never.png": ""}
    assert len(lines(tmp_path / "out")) == 2


def num_lines(output: Path) -> int:
    path = output / "predictions.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_watcher_killed_and_restarted_predicts_each_once(tmp_path: Path, shell: Shell) -> None:
    """Would catch: verdicts that are lost with the process, or given again after its restart.

    The last is ended by SIGTERM, which is its usual end: it finishes and writes the table.
    """
    incoming, output = tmp_path / "in", tmp_path / "out"
    for i in range(30):
        save(incoming / f"{i:02d}.png", 100 + i)
    arguments = ("--model=slow", f"--images={incoming}", f"--output={output}", "--watch", "--poll_s=0.05")
    watcher = replace(shell, program=(bright.__file__,))
    watcher.run_until(signal.SIGKILL, lambda: num_lines(output) >= 5, *arguments)
    assert 5 <= num_lines(output) < 30
    save(incoming / "new.png", 250)
    done = watcher.run_until(signal.SIGTERM, lambda: num_lines(output) >= 31, *arguments)
    assert done.returncode == 0, done.stderr
    names = [f"{i:02d}.png" for i in range(30)] + ["new.png"]
    assert Counter(row["image"] for row in lines(output)) == Counter(names)
    assert len(table(output)) == 31


def names_of(images: Path | str, output: Path) -> list[str]:
    return [file.name for file in make_source(str(images), output).files()]


def test_globs_and_files_name_what_they_say(tmp_path: Path) -> None:
    """Would catch: a glob that reaches too far or not into folders, ** that needs one, a folder named like a glob."""
    for name in ("a/1.png", "a/b/2.png", "a/b/c/3.png", "x[1]/4.png", "5.png"):
        save(tmp_path / name, 100)
    out = tmp_path / "out"
    assert names_of(f"{tmp_path}/a/*.png", out) == ["1.png"]
    assert names_of(f"{tmp_path}/**/2.png", out) == ["a/b/2.png"]
    assert names_of(f"{tmp_path}/a/**/*.png", out) == ["1.png", "b/2.png", "b/c/3.png"]
    assert names_of(f"{tmp_path}/a/**/c/*.png", out) == ["b/c/3.png"]
    assert names_of(f"{tmp_path}/[a]/*/2.png", out) == ["a/b/2.png"]
    assert names_of(f"{tmp_path}/a/*/3.png", out) == []
    assert names_of(f"{tmp_path}/x[1]", out) == ["4.png"]
    assert names_of(tmp_path / "x[1]" / "4.png", out) == ["4.png"]
    assert names_of(f"{tmp_path}/?.png", out) == ["5.png"]
    with pytest.raises(UserError, match=r"`--images` .* does not exist"):
        make_source(f"{tmp_path}/nothing", out)
    with pytest.raises(UserError, match=r"is the folder of the images"):
        make_source(str(tmp_path), tmp_path)


def test_labels_come_from_the_place_of_a_file(tmp_path: Path) -> None:
    """Would catch: masks taken for images, labels that are guessed or swapped, or known at the start alone."""
    dagm = small_dagm.layout_a(tmp_path / "dagm")
    for images in (dagm, dagm / "Class1", dagm / "Class1" / "Train"):
        files = list(make_source(str(images), tmp_path / "out").files())
        labels = {int(file.path.stem): file.label for file in files}
        wanted = range(11, 23) if images.name == "Train" else range(1, 23)
        assert labels == {number: int(number in small_dagm.DEFECTIVE) for number in wanted}
        assert len(files) == len(labels)
    labelled = {
        "train/good/1.png": 0,
        "test/good/2.png": 0,
        "test/hole/3.png": 1,
        "4.png": None,
        "test/Good/5.png": None,
    }
    for name in (*labelled, "ground_truth/hole/3_mask.png"):
        save(tmp_path / "mvtec" / name, 100)
    found = {f.name: f.label for f in make_source(str(tmp_path / "mvtec"), tmp_path / "out").files()}
    assert found == labelled
    save(tmp_path / "plain" / "1.png", 100)
    source = make_source(str(tmp_path / "plain"), tmp_path / "out")
    assert [file.label for file in source.files()] == [None]
    assert source.description == "labels are not known"
    # Folders that come while a watcher waits.
    for name in ("good/a.png", "defect/b.png", "masks/b.png"):
        save(tmp_path / "plain" / name, 100)
    found = {file.name: file.label for file in source.files()}
    assert found == {"1.png": None, "good/a.png": 0, "defect/b.png": 1}


def refuse(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """``folder`` cannot be listed from here on; the user of a test may be one to whom permissions mean nothing."""
    plain = os.scandir

    def scan(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path)

    monkeypatch.setattr(os, "scandir", scan)


def test_a_folder_below_that_cannot_be_listed_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a job that one folder ends, also where no file of it was asked for; one left out without a word."""
    save(tmp_path / "in" / "a.png", 100)
    save(tmp_path / "in" / "locked" / "b.png", 100)
    refuse(monkeypatch, tmp_path / "in" / "locked")
    for one in (str(tmp_path / "in" / "a.png"), f"{tmp_path}/in/*.png", f"{tmp_path}/*/a.png"):
        assert [Path(name).name for name in names_of(one, tmp_path / "out")] == ["a.png"]
    assert run(tmp_path / "in", tmp_path / "out") == predict.EXIT_UNREADABLE
    assert "unreadable: locked: not a file" in capsys.readouterr().out
    refuse(monkeypatch, tmp_path / "in")
    with pytest.raises(UserError, match=r"`--images`: the folder .* cannot be listed \(Permission denied\)"):
        names_of(tmp_path / "in", tmp_path / "out2")


def test_a_path_that_is_empty_or_may_not_be_entered_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: an error of the file system in the place of one line; a wrong folder that looks like a clean one."""
    plain = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if isinstance(path, str | os.PathLike) and "locked" in os.fspath(path):
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        with pytest.raises(UserError, match=r"`--images` .* does not exist"):
            make_source(f"{tmp_path}/locked/x", tmp_path / "out")
    with pytest.raises(UserError, match="does not exist"):
        make_source("x" * 5000, tmp_path / "out")
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"holds no image file"):
        run(tmp_path / "in", tmp_path / "out")


def test_what_could_not_be_read_is_tried_again_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: an image that is never predicted because its permissions, or a share, were wrong once; a status that
    speaks of a file that is gone; a line more of the same at each call."""
    for name in ("a.png", "b.png"):
        save(tmp_path / "in" / name, 100)
    (tmp_path / "in" / "empty.png").write_bytes(b"")

    def read(path: Path) -> bytes:
        if path.name == "a.png":
            raise BadImage(f"{path}: cannot be read (Permission denied)")
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr("dagm_jax.inspection.folder.read_bytes", read)
        for _ in range(2):
            assert run(tmp_path / "in", tmp_path / "out") == predict.EXIT_UNREADABLE
            assert len(lines(tmp_path / "out")) == 3
    assert run(tmp_path / "in", tmp_path / "out") == predict.EXIT_UNREADABLE
    latest = {row["image"]: row["score"] for row in lines(tmp_path / "out")}
    assert [name for name, score in latest.items() if score is None] == ["empty.png"]
    (tmp_path / "in" / "empty.png").unlink()
    assert run(tmp_path / "in", tmp_path / "out") == 0


# --- pieces -------------------------------------------------------------------------------------------------


def prediction(name: str, score: float | None, label: int | None = None) -> Prediction:
    decided = None if score is None else int(score >= 0.5)
    error = "bad" if score is None else None
    return Prediction(name, label, score, decided, 0.5, "0" * 12, "ab", 1, 2, (3, 4), [], 0.1, None, error)


def test_figures_of_a_summary() -> None:
    """Would catch: unreadable files among the readable, cells of the matrix exchanged, defects taken for drift."""
    known = [("a", 0.9, 1), ("b", 0.1, 1), ("c", 0.8, 0), ("d", 0.2, 0), ("e", 0.3, 0), ("f", None, None)]
    rows = [prediction(*one) for one in known]
    totals = summarise(rows, [], [])
    assert totals["confusion"] == {"tp": 1, "fp": 1, "fn": 1, "tn": 2}
    assert (totals["num_files"], totals["num_judged"], totals["num_defective"]) == (6, 5, 2)
    assert totals["unreadable"] == [{"image": "f", "error": "bad"}]
    assert (totals["drift"]["level"], totals["drift"]["num_scores"]) == ("too few", 3), "good images alone"
    assert summarise([prediction("f", None)], [], [])["latency_s"] is None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--model=a --images=b --output=c --poll_s=2", "`--poll_s` holds with --watch alone"),
        ("--model=a --images=b --output=c --watch --poll_s=nan", r"`--poll_s` \(=nan\) must be"),
        ("--model=a --images=b --output=c --watch --idle_exit_s=0", r"`--idle_exit_s` \(=0.0\) must be"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments: str, match: str) -> None:
    """Would catch: an option that is taken and does nothing, a traceback."""
    with pytest.raises(UserError, match=match) as caught:
        predict.main(["predict", *arguments.split()])
    assert "\n" not in str(caught.value)


def test_an_output_that_is_not_finite_names_image_and_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a name looked up among all files, also unreadable ones; advice on training alone.

    The first image that a model gets is a black one, while it is compiled.
    """
    plain = bright.Bright.predict
    bad = 0

    def predict(self: bright.Bright, images: list[np.ndarray], batch_size: int) -> Any:
        found = [place for place, image in enumerate(images) if image.max() == bad]
        if found:
            raise NonFiniteOutput(found[0], (20, 30))
        return plain(self, images, batch_size)

    monkeypatch.setattr(bright.Bright, "predict", predict)
    for number in (0, 2, 3):
        save(tmp_path / "in" / f"{number}.png", 100 + number)
    (tmp_path / "in" / "1.png").write_bytes(b"x")
    start = rf"^`--model` \(={bright.Bright('bright').model_id}\): its output for"
    for level, name in ((0, "a black image"), (102, r"2\.png")):
        bad = level
        with pytest.raises(UserError, match=rf"{start} {name} is not finite.*restore the model"):
            run(tmp_path / "in", tmp_path / "out")


def test_drift_by_hand() -> None:
    """Would catch: a logarithm of the wrong base or direction, bins that are not the deciles, no smoothing."""
    p, q = np.full(10, 0.5) / 205, np.full(10, 10.5) / 105
    p[9] = 200.5 / 205
    drift = score_drift(np.full(200, 2.0), np.arange(100) / 100)
    assert drift["population_stability_index"] == pytest.approx(sum((p - q) * np.log(p / q)))
    assert drift["by_chance"] == pytest.approx(9 * (1 / 200 + 1 / 100))
    assert drift["level"] == "large"


def test_scores_above_normals_that_are_all_equal_have_drifted() -> None:
    """Would catch: scores that share a bin with the one score of saturated normals, however far they lie above it."""
    for reference in (np.full(200, 0.001), np.r_[np.zeros(190), np.linspace(0, 0.1, 10)]):
        assert score_drift(np.full(500, 0.9), reference)["level"] == "large"
        alike = np.random.default_rng(0).choice(reference, 500)
        assert score_drift(alike, reference)["level"] == "stable"


def test_no_drift_is_seldom_called_one() -> None:
    """Would catch: the luck of few images taken for drift, and another mean of the index than by_chance."""
    rng = np.random.default_rng(1)
    drifts = [score_drift(rng.normal(size=150), rng.normal(size=60)) for _ in range(300)]
    levels = [drift["level"] for drift in drifts]
    assert levels.count("stable") > 0.8 * len(levels)
    assert levels.count("large") < 0.02 * len(levels)
    mean = np.mean([drift["population_stability_index"] for drift in drifts])
    assert mean == pytest.approx(9 * (1 / 150 + 1 / 60), rel=0.2)


def test_too_few_images_say_nothing() -> None:
    """Would catch: a warning out of a handful of images, and a division by zero."""
    for num_scores, num_reference in ((99, 100), (100, 19), (0, 0)):
        drift = score_drift(np.zeros(num_scores), np.zeros(num_reference))
        assert (drift["level"], drift["population_stability_index"]) == ("too few", None)
    assert score_drift(np.zeros(100), np.zeros(20))["level"] == "stable"


def test_a_watcher_warns_of_drift_while_it_watches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a camera that has changed, and a warning only when the watcher ends, months later."""
    monkeypatch.setattr("dagm_jax.inspection.folder.DRIFT_EVERY", 100)
    inspector = bright.load("bright")
    inspector.backend.normal_scores = list(np.random.default_rng(0).normal(0.3, 0.02, 200))
    monkeypatch.setattr(Inspector, "load", staticmethod(lambda *arguments: inspector))
    for i in range(101):
        save(tmp_path / "in" / f"{i}.png", 200)
    assert run(tmp_path / "in", tmp_path / "out", "--watch", "--idle_exit_s=0.3", "--poll_s=0.1") == 0
    shown = capsys.readouterr().out
    assert shown.index("warning: the scores have moved") < shown.index("101 files, model")
    assert shown.count("warning: the scores have moved") == 2


def test_large_drift_of_this_call_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch: scores that have all moved without a warning, or one where nothing has moved; a camera that changed
    today hidden behind the predictions of a year."""
    rng = np.random.default_rng(0)
    normals, year = list(rng.normal(0.2, 0.02, 200)), rng.normal(0.2, 0.02, 10_000)
    for scores, num_now, level, records in (
        (rng.normal(0.2, 0.02, 300), 0, "stable", "of all calls"),
        (rng.normal(0.25, 0.02, 300), 0, "large", "of all calls"),
        (np.r_[year, np.full(500, 0.9)], 500, "large", "of this call"),
        (np.r_[year, np.full(20, 0.9)], 20, "stable", "of all calls"),
    ):
        rows = [prediction(str(i), score) for i, score in enumerate(scores)]
        found = summarise(rows, rows[len(rows) - num_now :], normals)
        print_summary(found | {"model_id": "x", "threshold": 0.5, "images_per_s": None}, tmp_path)
        assert (found["drift"]["level"], found["drift"]["records"]) == (level, records)
        assert ("warning: the scores have moved far" in capsys.readouterr().out) == (level == "large")

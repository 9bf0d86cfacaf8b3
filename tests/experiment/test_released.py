"""Files of earlier releases are read for ever, or refused with the version that wrote them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from make_released import EXPECTED, IMAGES, PROGRAM, RELEASED, RUN, UNFINISHED, UNFINISHED_OVERRIDES

from dagm_jax import calibrate
from dagm_jax.command_line import read_config
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import EvalConfig, VerdictConfig
from dagm_jax.experiment.run import run
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train.history import read_history

RELEASES = sorted(path.name for path in RELEASED.iterdir())


@pytest.fixture
def unpacked(tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a release's run."""

    def unpack(release: str) -> Path:
        shutil.unpack_archive(RELEASED / release / RUN, tmp_path / "run")
        return tmp_path / "run"

    return unpack


def test_the_first_release_is_kept_and_each_is_small() -> None:
    """Would catch: the files deleted, with which every test below would pass, and a repository that grows."""
    assert "0.1.0" in RELEASES
    for release in RELEASES:
        files = [path for path in (RELEASED / release).rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= 350_000


@pytest.mark.parametrize("form", [RUN, PROGRAM])
@pytest.mark.parametrize("release", RELEASES)
def test_a_release_s_files_predict_as_they_did(
    release: str, form: str, unpacked: Callable[[str], Path]
) -> None:
    """Would catch: a renamed field or layer, another order of arrays, cuts or scores that changed their meaning."""
    inspector = Inspector.load(unpacked(release) if form == RUN else RELEASED / release / form)
    expected = json.loads((RELEASED / release / EXPECTED).read_text())
    assert {known["defective"] for known in expected.values()} == {False, True}
    for name, known in expected.items():
        verdict = inspector.inspect(RELEASED / release / IMAGES / name)
        assert verdict.score == pytest.approx(known["score"], rel=1e-4)
        assert verdict.defective == known["defective"]
        assert float(np.mean(verdict.map)) == pytest.approx(known["map_mean"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_s_run_is_calibrated_anew(release: str, unpacked: Callable[[str], Path]) -> None:
    """Would catch: validation scores or a rule of an old run that the commands of today do not take."""
    assert calibrate.main(["calibrate", f"--model={unpacked(release)}", "--rule=f1"]) == 0


@pytest.mark.parametrize("release", RELEASES)
def test_a_release_s_unfinished_run_is_finished(
    release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a renamed field of the progress or of the state, other digests, or other images of a split, by which
    an upgrade costs a run that was stopped."""
    monkeypatch.chdir(tmp_path)
    shutil.unpack_archive(RELEASED / release / UNFINISHED, "run")
    tiny.write_images(Path("data"))
    config = read_config("configs/conv_autoencoder.py", UNFINISHED_OVERRIDES)
    # Defaults have changed; the run's own have no names for some.
    with pytest.raises(UserError, match=r"eval\.tiling=slices, not whole") as refusal:
        run(config, Path("run"))
    flags = str(refusal.value).partition("(--config.")[2].partition(")")[0].replace("--config.", "").split()
    assert dict(flag.split("=") for flag in flags) == {
        "eval.tiling": "slices",
        "optim.learning_rate": "0.002",
        "optim.optimizer": "adamw",
        "task.dice_weight": "1.0",
        "verdict.smoothing_px": "2.0",
    }
    own: Any = dict(
        eval=EvalConfig("slices"),
        optim=replace(config.optim, optimizer="adamw", learning_rate=0.002),
        task=SegmentationConfig(dice_weight=1.0),
        verdict=VerdictConfig(smoothing_px=2.0),
    )
    report = run(replace(config, **own), Path("run"))
    assert "resuming from the checkpoint of step 2" in capsys.readouterr().out
    assert report["training"]["last_step"] == 4
    rows = [row["step"] for row in read_history(Path("run/metrics.jsonl")) if row["kind"] == "train"]
    assert rows == [1, 2, 3, 4]


def test_a_later_version_s_run_is_refused_by_name(unpacked: Callable[[str], Path]) -> None:
    """Would catch: a message that sends people to look for damage where an upgrade is all that is needed."""
    copy = unpacked("0.1.0")
    report = json.loads((copy / "report.json").read_text())
    report["versions"]["dagm-jax"] = "9.8.7"
    (copy / "report.json").write_text(json.dumps(report))
    Inspector.load(copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"sharpness": 1}))
    with pytest.raises(UserError, match=r"written by dagm-jax 9\.8\.7.*sharpness"):
        Inspector.load(copy)
    config["model"]["norm"] = "group"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"checkpoint.*written by dagm-jax 9\.8\.7"):
        Inspector.load(copy)


def test_a_program_that_this_jax_cannot_read_is_refused_by_name(tmp_path: Path) -> None:
    """Would catch: a traceback of jax's where a file outlives the time for which jax promises to read it."""
    release = RELEASED / "0.1.0"
    for name in (PROGRAM, f"{PROGRAM}.json"):
        shutil.copy(release / name, tmp_path / name)
    (tmp_path / PROGRAM).write_bytes(b"of another age")
    contract = json.loads((tmp_path / f"{PROGRAM}.json").read_text())
    contract["sha256"] = hashlib.sha256(b"of another age").hexdigest()
    (tmp_path / f"{PROGRAM}.json").write_text(json.dumps(contract))
    with pytest.raises(
        UserError, match=rf"written by dagm-jax 0\.1\.0 and jax {contract['versions']['jax']}"
    ):
        Inspector.load(tmp_path / PROGRAM)

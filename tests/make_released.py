"""Writes what a release leaves for later ones to read: ``python tests/make_released.py 0.1.0``, once a release.

Makes tests/data/released/VERSION: a finished run of the smallest network without what no reader needs (an archive,
because orbax writes 0.6 MB of descriptions for it), the same as a StableHLO file, three images, and what the release
says of them; and an unfinished run of ``tiny.py``, stopped after two of four steps.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_run
import tiny
from PIL import Image

from dagm_jax import export
from dagm_jax.command_line import read_config
from dagm_jax.errors import Interrupted
from dagm_jax.experiment.run import run
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.train.checkpoint import Checkpoints

RELEASED = Path(__file__).resolve().parent / "data" / "released"
RUN, PROGRAM, IMAGES, EXPECTED = "run.zip", "inspector.stablehlo", "images", "expected.json"
UNFINISHED = "unfinished.zip"
# The unfinished run reads tiny.write_images("data").
UNFINISHED_OVERRIDES = (*tiny.ARGUMENTS[1:], "--config.train.num_steps=4", "--config.data.root=data")
OVERRIDES = (
    "--config.model.base_channels=1",
    "--config.slicing.num_slices=4",
    "--config.slicing.slice_px=16",
    "--config.train.num_steps=4",
    "--config.train.validate_every=4",
    "--config.train.cooldown_share=0",
)
KEPT = ("config.json", "decision_rule.json", "report.json", "validation_scores.csv")


def make(version: str, folder: Path) -> None:
    """Fills ``folder``, which must not exist, with the files of this version."""
    installed = importlib.metadata.version("dagm-jax")
    if installed != version:
        raise SystemExit(f"version (={version}) must be the installed one, {installed}")
    # Relative paths: the files are to say nothing of the machine that made them.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        root = small_run.write_own(Path("own"), num_good=16, num_defective=12)
        workdir = Path("run")
        config = read_config("configs/smoke.py", (*OVERRIDES, f"--config.data.root={root}"))
        run(config, workdir)
        kept = Path("kept")
        step = json.loads((workdir / "report.json").read_text())["training"]["best_step"]
        shutil.copytree(workdir / "checkpoints" / str(step), kept / "checkpoints" / str(step))
        for name in KEPT:
            shutil.copy(workdir / name, kept / name)
        folder.mkdir(parents=True)
        pack(kept, folder / RUN)
        pack(make_unfinished(), folder / UNFINISHED)
        inspector = Inspector.load(kept)
        argv = ["export", f"--model={workdir}", "--format=stablehlo", f"--output={folder / PROGRAM}"]
        assert export.main([*argv, "--num_checked=2"]) == 0
    (folder / IMAGES).mkdir()
    for seed, defective in ((100, False), (101, True), (102, True)):
        Image.fromarray(small_run.picture(seed, defective)).save(folder / IMAGES / f"{seed}.png")
    verdicts = {path.name: inspector.inspect(path) for path in sorted((folder / IMAGES).iterdir())}
    expected = {
        name: {
            "score": verdict.score,
            "defective": verdict.defective,
            "map_mean": float(np.mean(verdict.map)),
        }
        for name, verdict in verdicts.items()
    }
    (folder / EXPECTED).write_text(json.dumps(expected, indent=2) + "\n")


def pack(kept: Path, path: Path) -> None:
    """Archives the folder without the paths that orbax writes into its markers, of which only the existence counts."""
    for marker in kept.rglob("commit_success.txt"):
        marker.write_text("committed\n")
    shutil.make_archive(str(path.with_suffix("")), "zip", kept)


def make_unfinished() -> Path:
    """The workdir of a run that was interrupted when its first checkpoint, of step 2, was written."""
    tiny.write_images(Path("data"))
    plain = Checkpoints.save

    def save(checkpoints: Checkpoints, step: int, *rest: Any) -> None:
        plain(checkpoints, step, *rest)
        raise Interrupted(f"at step {step}")

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Interrupted):
        patch.setattr(Checkpoints, "save", save)
        run(read_config("configs/conv_autoencoder.py", UNFINISHED_OVERRIDES), Path("unfinished"))
    for name in ("cache", "tensorboard"):
        shutil.rmtree(Path("unfinished", name))
    Path("unfinished", ".lock").unlink()
    return Path("unfinished")


if __name__ == "__main__":
    make(sys.argv[1], RELEASED / sys.argv[1])

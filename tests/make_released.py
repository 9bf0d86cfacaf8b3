"""Writes what a release leaves for later ones to read: ``python tests/make_released.py 0.1.0``, once a release.

Makes tests/data/released/VERSION: a finished run of the smallest network without what no reader needs (an archive,
because orbax writes 0.6 MB of descriptions for it), the same as a StableHLO file, three images, and what the release
says of them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import small_run
from PIL import Image

from dagm_jax import export
from dagm_jax.command_line import read_config
from dagm_jax.experiment.run import run
from dagm_jax.inspection.inspector import Inspector

RELEASED = Path(__file__).resolve().parent / "data" / "released"
RUN, PROGRAM, IMAGES, EXPECTED = "run.zip", "inspector.stablehlo", "images", "expected.json"
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
        for marker in kept.rglob("commit_success.txt"):
            # Only that it is there counts; orbax writes into it where it was.
            marker.write_text("committed\n")
        for name in KEPT:
            shutil.copy(workdir / name, kept / name)
        folder.mkdir(parents=True)
        shutil.make_archive(str((folder / RUN).with_suffix("")), "zip", kept)
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


if __name__ == "__main__":
    make(sys.argv[1], RELEASED / sys.argv[1])

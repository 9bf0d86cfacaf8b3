"""The smallest run of the main job: 24 images of 64 px, cut into tiles of 32, and an auto-encoder of one channel.

And whether two runs of whatever size are the same.
"""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

from dagm_jax.train.history import read_history

SIZE_PX = 64
# Validation after every second step; the cool-down begins at step 6.
ARGUMENTS = (
    "--config=configs/conv_autoencoder.py",
    "--config.slicing.mode=tiles",
    "--config.slicing.slice_height_px=32",
    "--config.slicing.slice_px=32",
    "--config.slicing.overlap_px=8",
    "--config.model.base_channels=1",
    "--config.model.bottleneck_channels=2",
    "--config.optim.warmup_steps=2",
    "--config.train.batch_size=4",
    "--config.train.num_steps=12",
    "--config.train.validate_every=2",
    "--config.train.target_quality=1.0",
    "--config.train.log_every=1",
)


def write_images(root: Path) -> Path:
    """Writes 12 good images and 12 with a dark block, in the folders good, defect and masks; returns ``root``."""
    rng = np.random.default_rng(0)
    for folder in ("good", "defect", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(24):
        grey = rng.integers(90, 130, (SIZE_PX, SIZE_PX)).astype(np.uint8)
        if i < 12:
            row, column = rng.integers(4, 40, 2)
            mask = np.zeros_like(grey)
            mask[row : row + 18, column : column + 12] = 255
            grey[mask > 0] = 40
            Image.fromarray(mask).save(root / "masks" / f"{i:02d}.png")
        Image.fromarray(grey).save(root / ("defect" if i < 12 else "good") / f"{i:02d}.png")
    return root


def command(root: Path, workdir: Path, *more: str) -> tuple[str, ...]:
    """The arguments of the main job on the images in ``root``."""
    return (*ARGUMENTS, f"--config.data.root={root}", f"--workdir={workdir}", *more)


def visible_steps(workdir: Path) -> list[int]:
    """The steps of the checkpoints, as a user sees them."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def arrays(workdir: Path) -> list[np.ndarray]:
    """The arrays of the last checkpoint, read by orbax alone, as one process sees them."""
    last = json.loads((workdir / "report.json").read_text())["training"]["last_step"]
    assert last == visible_steps(workdir)[-1]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
        folder = (workdir / "checkpoints" / str(last) / "state").absolute()
        state = checkpointer.restore(folder, args=ocp.args.StandardRestore(fallback_sharding=here))
    return [np.asarray(leaf) for leaf in ocp.tree.to_flat_dict(state).values()]


def assert_same(workdir: Path, whole: Path) -> None:
    """Bit for bit the same last state, scores and rule, the same history, and nothing half-written."""
    state, expected_state = ([one.tobytes() for one in arrays(folder)] for folder in (workdir, whole))
    assert state == expected_state
    for name in ("predictions.csv", "validation_scores.csv", "decision_rule.json"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    # Without what a clock measured.
    rows, expected = (
        [
            {name: value for name, value in row.items() if name != "slices_per_s"}
            for row in read_history(folder / "metrics.jsonl")
        ]
        for folder in (workdir, whole)
    )
    assert rows == expected
    reports = [json.loads((folder / "report.json").read_text()) for folder in (workdir, whole)]
    assert reports[0]["test"] == reports[1]["test"]
    assert reports[0]["training"]["best_step"] == reports[1]["training"]["best_step"]

"""Finished runs of a tiny network, each trained once for all tests that ask for it; copy one before changing it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dagm_jax.command_line import read_config
from dagm_jax.config import RunConfig
from dagm_jax.experiment.run import run

SMALL = (
    "--config.model.base_channels=1",
    "--config.slicing.num_slices=8",
    "--config.data.procedural_defective=8",
    "--config.data.procedural_good=12",
    "--config.train.num_steps=4",
    "--config.train.validate_every=2",
)
# Own images: h, w of the largest; others are smaller. Of 12 bits, in files of 16.
LARGEST = (48, 80)
WHITE = 4095


def built_in_run(factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run on built-in images, judged by averages of its weights."""

    def train(folder: Path) -> None:
        config = read_config("configs/smoke.py", (*SMALL, "--config.optim.average_decay=0.5"))
        run(config, folder)

    return _once(factory, "built_in", train)


def own_run(factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run on own images, which lie beside it in ``own``: good/, defect/ and masks/ of 16 bits."""

    def train(folder: Path) -> None:
        root = write_own(folder.parent / "own", num_good=16, num_defective=12)
        run(own_config(root, *SMALL[:2], *SMALL[4:]), folder)

    return _once(factory, "own_run", train)


def own_config(root: Path, *more: str, task: str = "segmentation") -> RunConfig:
    """The configuration of a run on the own images in ``root``, cut into narrow strips."""
    slicing = ("--config.slicing.mode=strips", "--config.slicing.slice_px=16")
    return read_config(f"configs/smoke.py:{task}", (f"--config.data.root={root}", *slicing, *more))


def _once(factory: pytest.TempPathFactory, name: str, train: Callable[[Path], None]) -> Path:
    """``train``'s workdir; of several test processes the first trains and the others wait for it."""
    base = factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "small_runs" / name
    shared.mkdir(parents=True, exist_ok=True)
    with (shared / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        workdir = shared / "run"
        if not (workdir / "report.json").exists():
            train(workdir)
    return workdir


def picture(seed: int, defective: bool, shape: tuple[int, int] = LARGEST) -> np.ndarray:
    """A texture of 12 bits, uint16 [h w]; a defective one has a bright square."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1000, 2000, shape, dtype=np.uint16)
    if defective:
        top, left = rng.integers(2, shape[0] - 14), rng.integers(2, shape[1] - 14)
        values[top : top + 12, left : left + 12] += 2000
    return values


def mask_of(values: np.ndarray) -> np.ndarray:
    """Mask of the square of a `picture`, uint8 {0, 255}."""
    return np.where(values >= 3000, 255, 0).astype(np.uint8)


def write_own(root: Path, num_good: int, num_defective: int, first_seed: int = 0) -> Path:
    """Writes the folders good, defect and masks; every third image is smaller than the largest; returns ``root``."""
    for folder in ("good", "defect", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(num_good + num_defective):
        defective = i >= num_good
        values = picture(first_seed + i, defective, LARGEST if i % 3 else (40, 64))
        # The whole range of 12 bits, by which it is told from 16.
        values[0, 0] = WHITE
        Image.fromarray(values).save(root / ("defect" if defective else "good") / f"{i:04d}.png")
        if defective:
            values[0, 0] = 0
            Image.fromarray(mask_of(values)).save(root / "masks" / f"{i:04d}.png")
    return root


def write_contract(path: Path, white: int | None = None) -> None:
    """Writes a contract that fits an exported file of that suffix for images of 16x16 px."""
    contract = {
        "format": path.suffix[1:],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "model_id": "0123456789ab",
        "input": {"name": "image", "shape": ["b", 16, 16], "white": white},
        "outputs": [{"name": name} for name in ("score", "defective", "map", "mask")],
        "rule": {"threshold": 0.5, "pixel_threshold": 0.5, "calibration": "f1", "evidence": {}},
        "validation_normal_scores": [0.1],
    }
    path.with_name(f"{path.name}.json").write_text(json.dumps(contract))

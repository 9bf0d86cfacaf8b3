"""The smallest run of the main job: 24 images of 64 px, cut into tiles of 32, and an auto-encoder of one channel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

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

"""The shipped recipe learns: a bug that two runs share is invisible where they are compared with each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagm_jax.command_line import read_config
from dagm_jax.experiment.run import run

# A fifth of the recipe's images, a third of its slices, a quarter of its width and a twelfth of its steps.
SHORT = (
    "--config.data.procedural_defective=20",
    "--config.data.procedural_good=28",
    "--config.slicing.num_slices=10",
    "--config.model.base_channels=4",
    "--config.train.batch_size=8",
    "--config.train.num_steps=60",
    "--config.train.validate_every=30",
    "--config.train.max_validation_images=3",
)


@pytest.mark.timeout(900)
def test_the_shipped_recipe_learns_within_a_minute(tmp_path: Path) -> None:
    """Would catch: a tenth of the learning rate (Dice .3), warm-up without end, gradients of the wrong scale, masks
    that are shifted or mirrored against their images, and anything else that halves Dice (.7)."""
    test = run(read_config("configs/custom_unet.py", SHORT), tmp_path)["test"]
    assert test["auroc"] >= 0.95
    assert test["dice_defective"] >= 0.5

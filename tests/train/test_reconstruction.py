"""Why reconstruction hides part of its input: a network with skips redraws defects as well as everything else."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from dagm_jax.data.config import SlicingConfig
from dagm_jax.data.slicing import make_slicer
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.postprocess import postprocess
from dagm_jax.evaluation.step import make_sliced_step
from dagm_jax.models.config import CustomUNetConfig
from dagm_jax.models.network import make_network
from dagm_jax.tasks.reconstruction import Corruption, ReconstructionConfig
from dagm_jax.train.optim import OptimConfig, make_optimizer
from dagm_jax.train.schedule import learning_rate
from dagm_jax.train.step import make_state, make_train_step

SIDE, NUM_STEPS, BATCH = 96, 60, 8
SMOOTHING_PX = 4.0


def draw(rng: np.random.Generator, defective: bool) -> np.ndarray:
    """A noise texture, uint8 ``[h w]``; a defect wipes a disc of it out to the mean grey, as in DAGM's class 1."""
    texture = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 1.0)
    texture /= texture.std()
    if defective:
        row, column = rng.integers(16, SIDE - 16, 2)
        rows, columns = np.mgrid[:SIDE, :SIDE]
        texture *= 1 - np.clip((12 - np.hypot(rows - row, columns - column)) / 3, 0, 1)
    return np.clip(128 + 30 * texture, 0, 255).astype(np.uint8)


def trained_auroc(corruption: Corruption) -> float:
    """Image AUROC on 20 good and 20 defective images after a short training on good ones."""
    config, task = CustomUNetConfig(base_channels=4, norm="none"), ReconstructionConfig(corruption, cell_px=8)
    network, params, stats = make_network(
        lambda rngs: config.build(in_channels=1, out_channels=1, rngs=rngs),
        seed=0,
        in_channels=1,
        mean=128.0,
        std=30.0,
    )
    optim = OptimConfig(learning_rate=5e-3, warmup_steps=5)
    optimizer = make_optimizer(optim)
    step = jax.jit(make_train_step(network, task, optimizer, partial(learning_rate, optim), seed=0))
    state: Any = make_state(params, stats, optimizer)
    rng = np.random.default_rng(1)
    for _ in range(NUM_STEPS):
        image = np.stack([draw(rng, False) for _ in range(BATCH)])[..., None]
        label = np.zeros(BATCH, np.int32)
        state, _ = step(state, {"image": image, "mask": image * 0, "label": label, "valid": label == 0})
    rng = np.random.default_rng(0)
    labels = [0, 1] * 20
    images = np.stack([draw(rng, bool(label)) for label in labels])
    predictor = jax.jit(make_sliced_step(network, task, make_slicer(SlicingConfig("whole"), SIDE, SIDE)))
    out = predictor(state.params, state.stats, images, jnp.zeros(images.shape, bool), jnp.zeros(len(images)))
    verdict = VerdictConfig(smoothing_px=SMOOTHING_PX)
    _, scores = postprocess(out["map"], out["slice_scores"], None, verdict, "deviation")
    return float(roc_auc_score(labels, scores))


@pytest.mark.long
@pytest.mark.parametrize(("corruption", "least", "most"), [("mask", 0.9, 1.0), ("none", 0.25, 0.75)])
def test_hidden_cells_separate_what_plain_reconstruction_cannot(
    corruption: Corruption, least: float, most: float
) -> None:
    """Catches a mask that lets the input through, and a score of good images by luck: the identity knows no defect.

    With 20 images of each kind the AUROC of a score that means nothing has a standard deviation of .09.
    """
    assert least <= trained_auroc(corruption) <= most

"""Every network on every task: the shipped configurations, narrowed, build, step and learn one batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from dagm_jax.command_line import read_config
from dagm_jax.config import TASKS, RunConfig
from dagm_jax.models.network import make_network
from dagm_jax.train.optim import OptimConfig, make_optimizer
from dagm_jax.train.schedule import learning_rate
from dagm_jax.train.step import TrainState, make_state, make_train_step

NETWORKS = ("custom_unet", "conv_autoencoder", "unet3plus")
NUM_STEPS = 12
OPTIM = OptimConfig(learning_rate=0.01, warmup_steps=1)


def make_batch(h: int = 32, w: int = 32) -> dict[str, np.ndarray]:
    """Four slices of stripes, two of them with a blot."""
    rng = np.random.default_rng(0)
    mask = np.zeros((4, h, w, 1), np.uint8)
    mask[::2, 8:20, 6:18] = 1
    stripes = 128 + 40 * np.sin(np.arange(w) * 0.8)[None, None, :, None]
    image = stripes + rng.normal(0, 5, mask.shape) + 60 * mask
    return {
        "image": image.astype(np.uint8),
        "mask": mask,
        "label": np.array([1, 0, 1, 0], np.int32),
        "valid": np.ones(4, bool),
    }


def train(config: RunConfig) -> tuple[Any, TrainState, list[float]]:
    """(initial parameters, state after the steps, loss of every step)."""

    def build(rngs: nnx.Rngs) -> nnx.Module:
        out_channels = config.task.out_channels or config.in_channels
        return config.model.build(in_channels=config.in_channels, out_channels=out_channels, rngs=rngs)

    network, params, stats = make_network(build, seed=0, in_channels=config.in_channels, mean=128.0, std=35.0)
    optimizer = make_optimizer(OPTIM)
    step = make_train_step(network, config.task, optimizer, partial(learning_rate, OPTIM), seed=0)
    compiled = jax.jit(step)
    state, losses = make_state(params, stats, optimizer), []
    for _ in range(NUM_STEPS):
        state, metrics = compiled(state, make_batch())
        losses.append(float(metrics["loss"]))
        assert ("accuracy" in metrics) == config.task.learns_from_defects
    return params, state, losses


def pairs() -> list[Any]:
    """Every network with every task; all but two of them, whose compilation takes minutes, in the long form."""
    short = {("custom_unet", "reconstruction"), ("custom_unet", "classification")}
    return [
        pytest.param(n, t, marks=[] if (n, t) in short else [pytest.mark.long])
        for n in NETWORKS
        for t in TASKS
    ]


@pytest.mark.parametrize(("network", "task"), pairs())
def test_every_network_learns_every_task(network: str, task: str) -> None:
    """Catches a shipped configuration that does not train, and parameters that no loss of its task reaches.

    Among them the heads of coarser stages and the classification-guided module, which in the public codes never learns.
    """
    config = read_config(f"configs/{network}.py:{task}", ["--config.model.base_channels=2"])
    before, state, losses = train(config)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
    flat, _ = jax.tree_util.tree_flatten_with_path(before)
    moved = {
        jax.tree_util.keystr(path): float(np.abs(np.asarray(new) - np.asarray(old)).max())
        for (path, old), new in zip(flat, jax.tree.leaves(state.params), strict=True)
    }
    # Under batch norm U-Net 3+'s convolution biases have no gradient, which its code says.
    still = {name for name, by in moved.items() if by == 0}
    assert all(network == "unet3plus" and "bias" in name for name in still), still
    if network == "unet3plus":
        heads = {name: by for name, by in moved.items() if "heads" in name or "classifier" in name}
        assert len(heads) == 10 + 2 * (task != "reconstruction")
        assert min(heads.values()) > 1e-4

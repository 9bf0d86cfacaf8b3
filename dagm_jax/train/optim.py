"""The optimiser: Muon or AdamW behind gradient clipping (optax)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from dagm_jax.errors import check_choices, require

# Root mean square of the entries of Muon's directions, that of Adam's by experience (Liu et al. 2025, equation 4).
MUON_RMS = 0.2


@dataclass(frozen=True)
class OptimConfig:
    """The learning rate rises linearly to ``learning_rate``, stays, and falls by a half cosine to 1 % of it.

    optimizer: Muon makes the momentum of kernels orthogonal and leaves vectors to Adam; earlier releases have adamw.
    average_decay: share of the moving averages of parameters and norm statistics that every step keeps; evaluation uses
    the averages. 0: no averages.
    """

    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: float = 6e-3
    warmup_steps: int = 20
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    average_decay: float = 0.0

    def __post_init__(self) -> None:
        check_choices("optim", self)
        require("optim", self, "learning_rate clip_norm", lambda x: x > 0, "be greater than 0")
        require("optim", self, "learning_rate", lambda x: x < math.inf, "be finite")
        average = "lie in [0, 1); 0 keeps no averages"
        require("optim", self, "average_decay", lambda x: 0 <= x < 1, average)
        finite = "be at least 0 and finite"
        require("optim", self, "warmup_steps weight_decay", lambda x: 0 <= x < math.inf, finite)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """The optimiser without its learning rate, by the negative of which the training step multiplies the directions.

    Gradients are clipped by their global norm; the decay leaves biases and norm parameters (vectors) alone.
    """
    # A learning rate of -1 leaves Muon's directions as they are.
    directions = (
        optax.scale_by_adam()
        if config.optimizer == "adamw"
        else muon(-1.0, consistent_rms=MUON_RMS, muon_weight_dimension_numbers=_as_matrices)
    )
    decay = optax.add_decayed_weights(config.weight_decay, lambda t: jax.tree.map(lambda p: p.ndim > 1, t))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), directions, decay)


def _as_matrices(params: Any) -> Any:
    """How each kernel is a matrix from what it reads to what it makes; None for vectors, which Adam moves."""

    def axes(p: jax.Array) -> MuonDimensionNumbers | None:
        if p.ndim == 1:
            return None
        # A transposed convolution (c, 2, 2, d) reads one pixel and makes four; others are (k, k, c, d).
        is_transposed = p.shape[1:-1] == (2, 2)
        return MuonDimensionNumbers(0, (1, 2, 3)) if is_transposed else MuonDimensionNumbers((0, 1, 2), 3)

    return jax.tree.map(axes, params)

"""Reconstruction: the network learns to redraw defect-free images; a defect is what it redraws unlike the rest.

A network with skips learns the identity, which redraws defects as well as anything else. So the default hides part of
the input: the network has to infer a hidden cell from its surroundings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dagm_jax.errors import UserError, check_choices, require
from dagm_jax.tasks.base import (
    Forward,
    LossOutput,
    ScoreKind,
    SlicePrediction,
    Slices,
    highest,
    mean_over_outputs,
)
from dagm_jax.tasks.losses import ssim_map

Corruption = Literal["mask", "stain", "gaussian", "none"]


@dataclass(frozen=True)
class ReconstructionConfig:
    """The corruption of the input, and the loss between the network's drawing and the clean slice.

    mask: a checkerboard of ``cell_px`` cells is set to the mean grey, at a random offset; predicted in two passes that
    hide complementary cells. stain: one ellipse per slice of a grey of its own. gaussian: noise of ``noise_std``
    standard deviations of the grey levels. none: the paper's plain reconstruction. Loss: ``pixel_weight`` times the
    absolute difference (l1) or its square (mse), in standard deviations, + ``dssim_weight`` · (1 - SSIM); with ``mask``
    pixels outside of hidden cells count ``visible_weight``.
    """

    corruption: Corruption = "mask"
    cell_px: int = 16
    visible_weight: float = 0.1
    noise_std: float = 0.3
    pixel_loss: Literal["l1", "mse"] = "l1"
    pixel_weight: float = 1.0
    dssim_weight: float = 1.0

    name: ClassVar[str] = "reconstruction"
    score_kind: ClassVar[ScoreKind] = "deviation"
    learns_from_defects: ClassVar[bool] = False
    learns_from_masks: ClassVar[bool] = False
    # Their mean is the grey that is drawn.
    out_channels: ClassVar[int | None] = None

    def __post_init__(self) -> None:
        check_choices("task", self)
        require("task", self, "cell_px", lambda x: x >= 1, "be at least 1")
        numbers = "visible_weight noise_std pixel_weight dssim_weight"
        require("task", self, numbers, lambda x: 0 <= x < math.inf, "be at least 0 and finite")
        if not self.pixel_weight + self.dssim_weight:
            raise UserError("`task.pixel_weight`, `task.dssim_weight` (=0) must not both be 0")

    def loss(self, forward: Forward, slices: Slices, key: PRNGKeyArray) -> LossOutput:
        """The loss of redrawing each slice from a corrupted copy of it. Masks and labels have no part in it."""
        corruption_key, network_key = jax.random.split(key)
        x, weight = self.corrupt(slices["x"], corruption_key, slices["place"])
        output = forward(x, network_key)
        loss = mean_over_outputs(output, lambda logits: self.slice_loss(drawn_grey(logits), slices, weight))
        return LossOutput(loss, jnp.ones_like(loss), None)

    def predict(self, forward: Forward, slices: Slices) -> SlicePrediction:
        """The map is the DSSIM, (1 - SSIM)/2, of the slice and its drawing; the score of a slice is its maximum."""
        x = slices["x"]
        if self.corruption == "mask":
            hidden = checkerboard((x.shape[1], x.shape[2]), self.cell_px, jnp.zeros(2, jnp.int32))[None]
            first, second = (
                drawn_grey(forward(jnp.where(h, 0.0, x), None).logits) for h in (hidden, ~hidden)
            )
            drawn = jnp.where(hidden, first, second)
        else:
            drawn = drawn_grey(forward(x, None).logits)
        drawn = _within(drawn, slices)
        # Every pixel was hidden once, or none was.
        loss = self.slice_loss(drawn, slices, jnp.ones_like(x[..., :1]))
        residual = jnp.clip((1 - _similarity(drawn, slices)) / 2, 0.0, 1.0)
        loss_output = LossOutput(loss, jnp.ones_like(loss), None)
        return SlicePrediction(loss_output, residual, highest(residual, slices))

    def slice_loss(
        self, drawn: Float[Array, "b h w 1"], slices: Slices, weight: Float[Array, "b h w 1"]
    ) -> Float[Array, " b"]:
        """The loss of each slice; ``weight`` is that of its pixels, of which those beyond the image have none."""
        if slices["valid"] is not None:
            drawn, weight = _within(drawn, slices), weight * slices["valid"]
        difference = drawn - slices["x"][..., :1]
        distance = jnp.abs(difference) if self.pixel_loss == "l1" else difference**2
        per_pixel = self.pixel_weight * distance
        if self.dssim_weight:
            per_pixel += self.dssim_weight * (1 - _similarity(drawn, slices))
        return (per_pixel * weight).sum((1, 2, 3)) / jnp.maximum(weight.sum((1, 2, 3)), 1.0)

    def corrupt(
        self, x: Float[Array, "b h w c"], key: PRNGKeyArray, place: Int[Array, " b"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w 1"]]:
        """(corrupted slices, weight of each pixel in the loss), random by the key and the place in the whole batch."""
        keys = jax.vmap(partial(jax.random.fold_in, key))(place)
        shape, ones = (x.shape[1], x.shape[2]), jnp.ones_like(x[..., :1])
        if self.corruption == "none":
            return x, ones
        if self.corruption == "gaussian":
            # One noise for all channels, which are copies of each other.
            noise = jax.vmap(lambda k: jax.random.normal(k, (*shape, 1)))(keys)
            return x + self.noise_std * noise, ones
        if self.corruption == "stain":
            inside, grey = jax.vmap(partial(draw_stain, shape))(keys)
            return jnp.where(inside, grey[:, None, None, None], x), ones
        offset = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, 2 * self.cell_px))(keys)
        hidden = jax.vmap(partial(checkerboard, shape, self.cell_px))(offset)
        return jnp.where(hidden, 0.0, x), jnp.where(hidden, 1.0, self.visible_weight)


def drawn_grey(logits: Float[Array, "b h w c"]) -> Float[Array, "b h w 1"]:
    """The grey that the network draws, in standard deviations: the mean of its channels."""
    grey: Array = logits.mean(axis=-1, keepdims=True)
    return grey


def _within(drawn: Float[Array, "b h w 1"], slices: Slices) -> Float[Array, "b h w 1"]:
    """The drawing within the image, and the image itself beyond, where windows at the border see no difference."""
    valid = slices["valid"]
    return drawn if valid is None else jnp.where(valid, drawn, slices["x"][..., :1])


def _similarity(drawn: Float[Array, "b h w 1"], slices: Slices) -> Float[Array, "b h w 1"]:
    """The SSIM map in grey levels from 0 to 1; values of mean 0 would upset the constants of its luminance term."""
    mean, std = slices["mean"], slices["std"]
    return ssim_map(mean + std * drawn, mean + std * slices["x"][..., :1], 1.0)


def checkerboard(shape: tuple[int, int], cell_px: int, offset: Array) -> Array:
    """True on every other cell of ``cell_px`` x ``cell_px``, moved by ``offset`` (rows, columns): bool ``[h w 1]``."""
    rows, columns = ((jnp.arange(shape[axis]) + offset[axis]) // cell_px for axis in (0, 1))
    return ((rows[:, None] + columns) % 2 == 0)[..., None]


def draw_stain(shape: tuple[int, int], key: PRNGKeyArray) -> tuple[Array, Array]:
    """(bool ``[h w 1]``, grey in standard deviations): an ellipse of 4 to 32 px semi-axes anywhere, any way round."""
    where, size, turn, grey = jax.random.split(key, 4)
    center = jax.random.uniform(where, (2,)) * jnp.array(shape)
    semi = jnp.exp(jax.random.uniform(size, (2,), minval=math.log(4), maxval=math.log(32)))
    angle = jax.random.uniform(turn, (), maxval=math.pi)
    dy = jnp.arange(shape[0])[:, None] - center[0]
    dx = jnp.arange(shape[1]) - center[1]
    u, v = dx * jnp.cos(angle) + dy * jnp.sin(angle), dy * jnp.cos(angle) - dx * jnp.sin(angle)
    inside = (u / semi[0]) ** 2 + (v / semi[1]) ** 2 <= 1
    return inside[..., None], 2 * jax.random.normal(grey, ())

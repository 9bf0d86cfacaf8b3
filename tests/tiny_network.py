"""A network of one weight for each channel, for tests of a whole run whose time is the network's compilation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dagm_jax.models.blocks import BatchNorm
from dagm_jax.models.config import CustomUNetConfig
from dagm_jax.types import NetworkOutput


class Dot(nnx.Module):
    """A weighted sum of the channels, normalised over the batch."""

    def __init__(self, in_channels: int, out_channels: int, axis_name: str | None) -> None:
        self.kernel = nnx.Param(jnp.ones((in_channels, out_channels)) / in_channels)
        self.norm = BatchNorm(out_channels, axis_name=axis_name)

    def __call__(self, x: jax.Array, *, train: bool, key: Any) -> NetworkOutput:
        del key
        return NetworkOutput(self.norm(x @ self.kernel[...], train=train))


def replace_unet(patch: pytest.MonkeyPatch) -> None:
    """Configurations of the customised U-Net build a `Dot`."""
    patch.setattr(CustomUNetConfig, "build", lambda self, rngs, **channels: Dot(**channels))

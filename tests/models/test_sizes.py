"""Sizes of maps that the networks take."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig


@pytest.mark.parametrize("config", [CustomUNetConfig(1), ConvAutoencoderConfig(1), UNet3PlusConfig(1)])
@pytest.mark.parametrize("size", [(24, 32), (32, 40)])
def test_sizes_that_cannot_be_halved_four_times_are_refused(
    config: CustomUNetConfig | ConvAutoencoderConfig | UNet3PlusConfig, size: tuple[int, int]
) -> None:
    """Would catch: a reshape or a concatenation that fails deep inside, where the message names no argument."""
    model = nnx.eval_shape(lambda: config.build(in_channels=1, out_channels=1, rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((1, *size, 1), jnp.float32)
    with pytest.raises(
        ValueError, match=rf"`x` \(of shape \(1, {size[0]}, {size[1]}, 1\)\) must .* multiples of 16"
    ):
        jax.eval_shape(lambda x: model(x, train=False), x)

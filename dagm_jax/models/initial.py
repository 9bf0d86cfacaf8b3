"""Initial weights, drawn on the host.

``jax.random`` compiles a program for each shape of a kernel, which took seconds at every start of a run; a host draws
the same in milliseconds, and the same numbers on every accelerator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

Shape = tuple[int, ...]
Initializer = Callable[[PRNGKeyArray, Shape, jax.typing.DTypeLike], Array]

# The standard deviation of a standard normal variable between -2 and 2.
CUT_STD = 0.87962566103423978


def scaled_normal(gain: float) -> Initializer:
    """Gives kernels ``[… in out]`` of variance ``gain`` / fan-in: normal, cut at two standard deviations.

    A gain of 2 is He's initialisation, of 1 LeCun's, as ``jax.nn.initializers`` have them.
    """

    def draw(key: PRNGKeyArray, shape: Shape, dtype: jax.typing.DTypeLike = np.float32) -> Array:
        std = math.sqrt(gain / math.prod(shape[:-1])) / CUT_STD
        result = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(dtype))

        def on_host(words: Array) -> np.ndarray:
            rng = np.random.default_rng(np.asarray(words))
            values = rng.standard_normal(shape)
            while (outside := np.abs(values) > 2).any():
                values[outside] = rng.standard_normal(outside.sum())
            return (std * values).astype(result.dtype)

        words = jax.random.key_data(key)
        # Traced: a module is built under jit, or only its shapes are asked for.
        is_traced = isinstance(words, jax.core.Tracer)
        # jnp.asarray would compile a program for the shape.
        drawn: Array = (
            jax.pure_callback(on_host, result, words) if is_traced else jax.device_put(on_host(words))
        )
        return drawn

    return draw


he_normal = scaled_normal(2.0)
lecun_normal = scaled_normal(1.0)

"""The customised U-Net: the paper's parameter counts, a second writing of the forward pass, and every skip alone."""

from __future__ import annotations

from functools import cache, partial
from itertools import product
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from second_writing import block, conv, count, pool, resize, up

from dagm_jax.models.config import CustomUNetConfig, ExtraSkips, NormKind, UpKind
from dagm_jax.models.custom_unet import CustomUNet

EXTRA_SKIPS, NORMS, UPS = get_args(ExtraSkips), get_args(NormKind), get_args(UpKind)
WIDTH = 2
# Encoder levels (0 = finest) that decoder level 0…3 sees besides its own, as the network's description has them.
EXTRA_LEVELS: dict[str, list[list[int]]] = {
    "previous_encoder": [[], [0], [1], [2]],
    "none": [[], [], [], []],
    "next_encoder": [[1], [2], [3], [4]],
    "both": [[1], [0, 2], [1, 3], [2, 4]],
    "all_shallower": [[], [0], [0, 1], [0, 1, 2]],
}
X = np.random.default_rng(0).normal(0, 1, (2, 64, 32, 1)).astype(np.float32)
COTANGENT = np.random.default_rng(1).normal(0, 1, X.shape).astype(np.float32)
ROUTES = [
    (extra_skips, level, source)
    for extra_skips, levels in EXTRA_LEVELS.items()
    for level in range(4)
    for source in [level, *levels[level]]
]


def build(seed: int = 0, in_channels: int = 1, out_channels: int = 1, **options: Any) -> CustomUNet:
    config = CustomUNetConfig(**{"base_channels": WIDTH, **options})
    return CustomUNet(config, in_channels=in_channels, out_channels=out_channels, rngs=nnx.Rngs(seed))


@cache
def make_gradients(extra_skips: str, norm: str, up: str) -> tuple[Any, dict[str, Any]]:
    """(parameters → (gradients of a weighted output, output) in training mode, initial parameters)."""
    model = build(extra_skips=extra_skips, norm=norm, up=up)
    graphdef, state, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
    params = nnx.to_pure_dict(state)

    def weighted(params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        y = nnx.merge(graphdef, params, stats, copy=True)(X, train=True).logits
        return (y * COTANGENT).sum(), y

    return jax.jit(jax.grad(weighted, has_aux=True)), params


@pytest.mark.parametrize(
    ("extra_skips", "base_channels", "expected"),
    [
        ("none", 16, 1_942_611),
        ("none", 32, 7_763_107),
        ("none", 64, 31_037_763),
        ("previous_encoder", 16, 2_039_379),
        ("previous_encoder", 32, 8_150_179),
        ("previous_encoder", 64, 32_586_051),
    ],
)
def test_parameter_counts_of_the_paper(extra_skips: str, base_channels: int, expected: int) -> None:
    """Would catch: any layer too many or too wide: biases before a norm, a missing skip, a three-tap head."""
    options = {"extra_skips": extra_skips, "base_channels": base_channels}
    assert count(nnx.eval_shape(lambda: build(in_channels=3, out_channels=3, **options))) == expected


# Compiled in the form that is not long: every option is in one of them.
PAIRED = dict(zip(EXTRA_SKIPS, product(NORMS, UPS), strict=False))


def pairings() -> list[Any]:
    """Every combination; those that are not `PAIRED` are long."""
    return [
        pytest.param(e, *pair, marks=[] if pair == PAIRED[e] else [pytest.mark.long])
        for e in EXTRA_SKIPS
        for pair in product(NORMS, UPS)
    ]


@pytest.mark.parametrize(("extra_skips", "norm", "up"), pairings())
def test_every_option_runs_and_learns_with_every_parameter(extra_skips: str, norm: str, up: str) -> None:
    """Would catch: shapes that do not meet, and a parameter that takes no part in the output."""
    gradients_of, params = make_gradients(extra_skips, norm, up)
    gradients, y = gradients_of(params)
    assert y.shape == (2, 64, 32, 1)
    assert y.dtype == jnp.float32
    assert np.isfinite(y).all()
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)
        assert np.any(np.asarray(gradient) != 0), jax.tree_util.keystr(path)


def segments(extra_skips: str, level: int) -> dict[int | str, slice]:
    """Which channels of a decoder stage's input come from where: "up", or an encoder level."""
    widths = [WIDTH * 2**j for j in range(5)]
    sources = ["up", level, *EXTRA_LEVELS[extra_skips][level]]
    sizes = [widths[level], widths[level], *(widths[j] for j in EXTRA_LEVELS[extra_skips][level])]
    ends = np.cumsum(sizes)
    return {s: slice(int(e - n), int(e)) for s, n, e in zip(sources, sizes, ends, strict=True)}


def keep_only(params: dict[str, Any], extra_skips: str, level: int, source: int | str) -> dict[str, Any]:
    """Parameters whose decoder stage ``level`` sees one source alone, and finer ones only the stage below."""
    cut = jax.tree.map(lambda p: p, params)
    for i in range(level + 1):
        kernel = cut["decoder"][i]["first"]["conv"]["kernel"]
        wanted = segments(extra_skips, i)[source if i == level else "up"]
        kept = jnp.zeros_like(kernel).at[:, :, wanted].set(kernel[:, :, wanted])
        cut["decoder"][i]["first"]["conv"]["kernel"] = kept
    return cut


@pytest.mark.parametrize(("extra_skips", "level", "source"), ROUTES)
def test_each_skip_alone_carries_its_encoder_stage_to_the_output(
    extra_skips: str, level: int, source: int
) -> None:
    """Would catch: a skip that is dropped, doubled, or taken from another stage.

    With every other way cut, the bottleneck's too, the output must still depend on the encoder up to ``source`` and
    on nothing deeper.
    """
    gradients_of, params = make_gradients(extra_skips, *PAIRED[extra_skips])
    gradients, _ = gradients_of(keep_only(params, extra_skips, level, source))
    for stage in range(5):
        kernel = np.asarray(gradients["encoder"][stage]["second"]["conv"]["kernel"])
        assert np.any(kernel != 0) == (stage <= source), stage
    for deeper in range(level, 4):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients["ups"][deeper])), deeper


@partial(jax.jit, static_argnums=3)
def reference(x: Any, params: Any, stats: Any, extra_skips: str) -> jax.Array:
    """The network in evaluation mode, written from its description with XLA's general operations."""
    e = []
    for stage in range(5):
        x = block(pool(x) if stage else x, params["encoder"][stage], stats["encoder"][stage])
        e.append(x)
    d = e[4]
    for i in (3, 2, 1, 0):
        levels = EXTRA_LEVELS[extra_skips][i]
        extra = [resize(e[j], 2) if j > i else pool(e[j], 2 ** (i - j)) for j in levels]
        seen = jnp.concatenate([up(d, params["ups"][i]), e[i], *extra], axis=-1)
        d = block(seen, params["decoder"][i], stats["decoder"][i])
    return conv(d, params["head"])


@pytest.mark.parametrize(("extra_skips", "way"), zip(EXTRA_SKIPS, 3 * UPS, strict=False))
def test_forward_pass_is_that_of_the_description(extra_skips: str, way: str) -> None:
    """Catches skips in another order, a stage pooled once too often, and the ups of two levels exchanged."""
    graphdef, params, stats = nnx.split(build(extra_skips=extra_skips, up=way), nnx.Param, nnx.BatchStat)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: np.float32(p + rng.normal(0, 0.2, p.shape)), params)
    stats = jax.tree.map(lambda s: np.float32(s + rng.random(s.shape)), stats)
    got = jax.jit(lambda *state: nnx.merge(graphdef, *state)(X, train=False).logits)(params, stats)
    plain = nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    expected = np.asarray(reference(X, *plain, extra_skips))
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())

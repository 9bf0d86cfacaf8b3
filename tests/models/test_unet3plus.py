"""U-Net 3+: the paper's parameter counts, two other writings of the forward pass, and every branch and head alone."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from random_weights import numbers, randomised
from second_writing import conv, count, norm_relu, pool, resize

from dagm_jax.models.blocks import upsample
from dagm_jax.models.config import UNet3PlusConfig
from dagm_jax.models.unet3plus import UNet3Plus, dropout, upsampled_conv3x3

BASE = 2
SIZE = (32, 48)


def build(seed: Any = 0, in_channels: int = 1, out_channels: int = 1, **options: Any) -> UNet3Plus:
    config = UNet3PlusConfig(**{"base_channels": BASE, **options})
    return UNet3Plus(config, in_channels=in_channels, out_channels=out_channels, rngs=nnx.Rngs(seed))


def abstract(**options: Any) -> UNet3Plus:
    return nnx.eval_shape(lambda: build(**options))


@cache
def network() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    return randomised(abstract())


@cache
def make_apply(train: bool) -> Any:
    """Compiled (parameters, statistics, input, key) -> output of the full network, shared below."""
    graphdef, _, _ = network()
    build = partial(nnx.merge, graphdef, copy=True)
    return jax.jit(lambda params, stats, x, key: build(params, stats)(x, train=train, key=key))


def test_kernels_are_drawn_by_hes_rule() -> None:
    """Would catch: layers that name no initialiser, and a fan-in of the wrong dimensions."""
    kernel = nnx.to_pure_dict(nnx.state(build(base_channels=4), nnx.Param))["encoder"][4]["second"]["kernel"]
    assert np.std(kernel) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return numbers(2, *SIZE, 1)


# --- resampling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("size", [(5, 3), (1, 4), (1, 1)])
def test_upsampling_by_any_power_of_two_is_the_general_resize(size: tuple[int, int], factor: int) -> None:
    """Catches a cascade of doublings, aligned corners, swapped neighbours, up to the border and for one pixel."""
    x = numbers(2, *size, 3)
    np.testing.assert_allclose(upsample(x, factor), resize(x, factor), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("factor", "size"), [(1, (3, 4)), (2, (3, 5)), (4, (1, 2)), (16, (2, 3))])
def test_convolution_before_upsampling_is_the_convolution_after_it(
    size: tuple[int, int], factor: int
) -> None:
    """Catches a tap that lands on the wrong side, zeros missing beyond the border, rows and columns exchanged."""
    x, kernel = numbers(2, *size, 4), numbers(3, 3, 4, 3, seed=1)
    cotangent = numbers(2, size[0] * factor, size[1] * factor, 3, seed=2)

    def before(x: Any, kernel: Any) -> jax.Array:
        return upsampled_conv3x3(x, kernel, factor)

    def after(x: Any, kernel: Any) -> jax.Array:
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(resize(x, factor), kernel, (1, 1), "SAME", dimension_numbers=dims)

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(form: Any, x: Any, kernel: Any) -> Any:
        value, pull = jax.vjp(form, x, kernel)
        return value, *pull(cotangent)

    got, expected = (value_and_gradients(form, x, kernel) for form in (before, after))
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


# --- parameters ---------------------------------------------------------------------------------------------


PLAIN = {"deep_supervision": False, "classification_guided": False}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"base_channels": 16, "out_channels": 3, **PLAIN}, 1_691_715),
        ({"base_channels": 32, "out_channels": 3, **PLAIN}, 6_751_875),
        ({"base_channels": 64, "out_channels": 3, **PLAIN}, 26_977_539),
        ({"base_channels": 64, **PLAIN}, 26_971_777),
        ({"base_channels": 64, "classification_guided": False}, 26_989_637),
        ({"base_channels": 64}, 26_991_687),
    ],
)
def test_parameter_counts_of_the_paper(options: dict[str, Any], expected: int) -> None:
    """Would catch: any layer too many or too wide: lost biases, a missing branch, 1x1 heads."""
    assert count(abstract(in_channels=3, **options)) == expected


# --- a second writing ---------------------------------------------------------------------------------------


@jax.jit
def reference(params: Any, stats: Any, x: Any) -> tuple[list[jax.Array], jax.Array]:
    """(five maps of logits, class logits) in evaluation mode, from the description with XLA's general operations."""
    e = []
    for level in range(5):
        x = pool(x, 2) if level else x
        for name in ("first", "second"):
            layer = params["encoder"][level][name]
            x = norm_relu(conv(x, layer), layer["norm"], stats["encoder"][level][name]["norm"])
        e.append(x)
    d = dict(enumerate(e))
    for i in (3, 2, 1, 0):
        stage, running = params["decoder"][i], stats["decoder"][i]
        seen = [pool(e[j], 2 ** (i - j)) if j < i else resize(d[j], 2 ** (j - i)) for j in range(5)]
        layers = zip(seen, stage["branches"].values(), running["branches"].values(), strict=True)
        branches = [norm_relu(conv(x, layer), layer["norm"], own["norm"]) for x, layer, own in layers]
        fused = conv(jnp.concatenate(branches, -1), stage["fusion"])
        d[i] = norm_relu(fused, stage["fusion"]["norm"], running["fusion"]["norm"])
    logits = [resize(conv(d[i], params["heads"][i]), 2**i) for i in range(5)]
    return logits, conv(e[4], params["classifier"]).max((1, 2))


def assert_near(got: Any, expected: Any) -> None:
    """Within 1e-4 of the largest expected value."""
    expected = np.asarray(expected)
    assert expected.std() > 0.05
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_forward_pass_is_that_of_the_description(x: np.ndarray) -> None:
    """Catches branches in another order, one that is not used, a wrong source, a stage pooled once too often, a lost
    bias or statistic, heads that are exchanged, shared, or put on one stage."""
    _, params, stats = network()
    output = make_apply(False)(params, stats, x, None)
    logits, class_logits = reference(params, stats, x)
    for ours, theirs in zip([output.logits, *output.side_logits], logits, strict=True):
        assert_near(ours, theirs)
    assert_near(output.class_logits.max((1, 2)), class_logits)
    for leaf in jax.tree.leaves(output):
        assert leaf.dtype == jnp.float32


# --- every branch, every head -------------------------------------------------------------------------------


@cache
def make_gradients() -> Any:
    """Compiled (cotangents of logits, side logits and class logits, input) -> gradients in training mode."""
    graphdef, params, stats = network()

    @jax.jit
    def gradients(cotangents: tuple[Any, Any, Any], x: Any) -> Any:
        def weighted(params: Any) -> jax.Array:
            model = nnx.merge(graphdef, params, stats, copy=True)
            output = model(x, train=True, key=jax.random.key(0))
            return sum(jax.tree.leaves(jax.tree.map(lambda c, o: (c * o).sum(), cotangents, tuple(output))))

        return jax.grad(weighted)(params)

    return gradients


def gradients_of(*parts: str, x: np.ndarray) -> dict[str, np.ndarray]:
    """Gradients by name of a random combination of the named parts of the output."""
    maps = [numbers(2, *SIZE, 1, seed=i) * (("logits" if i == 0 else "sides") in parts) for i in range(5)]
    classes = numbers(2, SIZE[0] // 16, SIZE[1] // 16, 2, seed=9) * ("classes" in parts)
    tree = make_gradients()((maps[0], tuple(maps[1:]), classes), x)
    return {jax.tree_util.keystr(p): np.asarray(g) for p, g in jax.tree_util.tree_leaves_with_path(tree)}


def test_every_parameter_learns(x: np.ndarray) -> None:
    """Catches a parameter that takes no part. A bias before batch statistics has none to take, and gets exactly 0."""
    for name, gradient in gradients_of("logits", "sides", "classes", x=x).items():
        before_norm = name.endswith("['bias']") and not any(
            s in name for s in ("norm", "heads", "classifier")
        )
        assert np.isfinite(gradient).all(), name
        assert np.any(gradient != 0) != before_norm, name


def test_side_outputs_teach_their_stages_alone(x: np.ndarray) -> None:
    """Catches a stage that deep supervision does not reach, or a finer one that a coarser head touches."""
    gradients = gradients_of("sides", x=x)
    for stage in range(4):
        learns = np.any(gradients[f"['decoder'][{stage}]['fusion']['kernel']"] != 0)
        assert learns == (stage > 0), stage


def test_the_classifier_learns_from_the_class_logits_alone(x: np.ndarray) -> None:
    """Catches the public codes' fault: an argmax, or no loss of its own, through which nothing ever learns."""
    by_class = gradients_of("classes", x=x)
    for name, gradient in by_class.items():
        if "classifier" in name or ("encoder" in name and "kernel" in name):
            assert np.any(gradient != 0), name
        if "decoder" in name or "heads" in name:
            assert not np.any(gradient), name
    by_maps = gradients_of("logits", "sides", x=x)
    assert not any(np.any(g) for name, g in by_maps.items() if "classifier" in name)


def test_parts_that_are_switched_off_are_not_there() -> None:
    """Would catch: an option that is read nowhere."""
    x = jax.ShapeDtypeStruct((2, *SIZE, 1), jnp.float32)
    plain = abstract(**PLAIN)
    # No key: nothing draws.
    output = nnx.eval_shape(lambda m, x: m(x, train=True), plain, x)
    assert output.logits.shape == (2, *SIZE, 1)
    assert output.side_logits == ()
    assert output.class_logits is None


def test_outputs_that_are_not_used_cost_nothing_under_jit() -> None:
    """Would catch: side heads that inference, which looks at the finest map alone, would pay for."""
    x = jax.ShapeDtypeStruct((1, *SIZE, 1), jnp.float32)

    def num_arguments(**options: Any) -> int:
        graphdef, state = nnx.split(abstract(**options))
        lowered = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x, train=False).logits).lower(state, x)
        signature = lowered.as_text().split("@main(")[1].split(") ->")[0]
        return signature.count("%arg")

    # jax leaves out of a compiled function the arguments that its result does not need.
    assert num_arguments() == num_arguments(**PLAIN)


# --- modes, dropout, types, sizes ---------------------------------------------------------------------------


def test_dropout_draws_in_training_only_and_from_the_key_alone(x: np.ndarray) -> None:
    """Catches a mask that is the same in every step, drawn in evaluation, or laid on the decoder's input too."""
    _, params, stats = network()
    apply = make_apply(True)
    first, again, other = (apply(params, stats, x, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first.class_logits, again.class_logits)
    assert np.abs(first.class_logits - other.class_logits).max() > 1e-3
    np.testing.assert_array_equal(first.logits, other.logits)
    with_key, without = (make_apply(False)(params, stats, x, k) for k in (jax.random.key(1), None))
    np.testing.assert_array_equal(with_key.class_logits, without.class_logits)


def test_dropout_by_its_definition() -> None:
    """Catches a rate that keeps what it should drop, a mean that shrinks, and one mask for all examples."""
    y = np.asarray(dropout(jnp.ones((4, 8, 8, 32)), 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.02)
    assert np.any(y[0] != y[1])


def test_dropout_over_a_mapped_axis_is_that_of_the_whole_batch() -> None:
    """Catches masks that repeat on every device under pmap, which would part its updates from one device's."""
    x = jnp.asarray(numbers(4, 2, 2, 8))
    key = jax.random.key(3)

    def apply(part: jax.Array) -> jax.Array:
        return dropout(part, 0.5, key, "devices")

    got = jax.vmap(apply, axis_name="devices")(x.reshape(2, 2, 2, 2, 8))
    np.testing.assert_array_equal(got.reshape(x.shape), dropout(x, 0.5, key))


def test_training_without_a_key_is_refused() -> None:
    """Would catch: dropout that is silently left out."""
    x = jax.ShapeDtypeStruct((1, 16, 16, 1), jnp.float32)
    with pytest.raises(ValueError, match=r"`key` \(=None\) must be given to train"):
        nnx.eval_shape(lambda m, x: m(x, train=True), abstract(), x)

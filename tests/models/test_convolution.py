"""Convolutions in the forms of CPUs: against a sum over taps in float64, and where which form runs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dagm_jax.models import convolution as module
from dagm_jax.models.config import CustomUNetConfig
from dagm_jax.models.convolution import convolve_by_rows, convolve_in_blocks, convolve_on_cpu
from dagm_jax.models.network import make_network

# (batch, height, width, channels in, channels out, edge of the kernel) and the form that a CPU gives them.
FORMS = {
    (2, 8, 16, 3, 5, 3): "blocks",
    (1, 3, 8, 1, 16, 3): "blocks",
    (2, 8, 12, 3, 5, 3): "plain",
    (2, 8, 4, 32, 40, 3): "rows",
    (1, 4, 1, 40, 32, 3): "rows",
    (2, 6, 4, 32, 40, 3): "plain",
    (2, 8, 4, 32, 16, 3): "plain",
    (2, 8, 16, 3, 5, 1): "plain",
    (2, 8, 8, 32, 32, 1): "plain",
    (1, 9, 10, 4, 6, 5): "plain",
}
Shape = tuple[int, int, int, int, int, int]


@pytest.fixture(autouse=True)
def little_work_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small maps take the forms of large ones."""
    monkeypatch.setattr(module, "ROWS_PRODUCTS", 0)


def arrays(shape: Shape, dtype: Any = np.float32) -> tuple[Any, Any, Any]:
    """(map, kernel, cotangent) of random numbers."""
    b, h, w, c, d, k = shape
    rng = np.random.default_rng(0)
    sizes = ((b, h, w, c), (k, k, c, d), (b, h, w, d))
    x, kernel, cotangent = (jnp.asarray(rng.normal(0, 1, size), dtype) for size in sizes)
    return x, kernel, cotangent


def sum_over_taps(x: Any, kernel: Any, cotangent: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(convolution, gradients towards the map and the kernel) by their definitions, in float64."""
    x, kernel, cotangent = (np.asarray(a, np.float64) for a in (x, kernel, cotangent))
    size, (_, h, w, _) = kernel.shape[0], x.shape
    edge = size // 2
    padding = ((0, 0), (edge, edge), (edge, edge), (0, 0))
    padded, y = np.pad(x, padding), np.zeros(cotangent.shape)
    of_padded, of_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
    for i in range(size):
        for j in range(size):
            window = np.s_[:, i : i + h, j : j + w]
            y += padded[window] @ kernel[i, j]
            of_padded[window] += cotangent @ kernel[i, j].T
            of_kernel[i, j] = np.einsum("bhwc,bhwd->cd", padded[window], cotangent)
    return y, of_padded[:, edge : edge + h, edge : edge + w], of_kernel


def assert_near(got: Any, expected: Any, share: float) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize("shape", FORMS)
def test_convolution_and_its_gradients(shape: Shape) -> None:
    """Catches a tap on the wrong side, a wrong number in a transform, a border that is not zero, an unturned kernel."""
    x, kernel, cotangent = arrays(shape)
    y, pull = jax.vjp(jax.jit(convolve_on_cpu), x, kernel)
    for got, expected in zip((y, *pull(cotangent)), sum_over_taps(x, kernel, cotangent), strict=True):
        assert_near(got, expected, 1e-5)


@pytest.mark.parametrize("shape", FORMS)
def test_which_form_a_cpu_gets(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a form that no shape reaches, and one that is given a size which it cannot divide."""
    taken = ["plain"]
    for name in ("blocks", "rows"):
        function = {"blocks": "convolve_in_blocks", "rows": "convolve_by_rows"}[name]
        form = getattr(module, function)
        monkeypatch.setattr(module, function, lambda *a, f=form, n=name: (taken.append(n), f(*a))[1])
    x, kernel, _ = arrays(shape)
    convolve_on_cpu(x, kernel)
    assert taken[-1] == FORMS[shape]


def test_maps_beyond_the_caches_bfloat16_and_little_work_are_convolved_plainly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Catches transforms of maps that no cache holds, of numbers that have three digits to lose, and for nothing."""

    def convolutions(b: int, dtype: Any) -> int:
        x, kernel = jax.ShapeDtypeStruct((b, 256, 64, 64), dtype), jax.ShapeDtypeStruct((3, 3, 64, 32), dtype)
        return str(jax.make_jaxpr(convolve_on_cpu)(x, kernel)).count("conv_general_dilated[")

    counts = [convolutions(*case) for case in ((3, jnp.float32), (4, jnp.float32), (3, jnp.bfloat16))]
    assert counts == [6, 1, 1]
    monkeypatch.setattr(module, "ROWS_PRODUCTS", 4 * 256 * 64 * 64 * 32 * 9)
    # Another size: jax keeps what it has traced.
    assert convolutions(2, jnp.float32) == 1


@pytest.mark.parametrize(
    ("form", "shape"), [(convolve_in_blocks, (2, 8, 16, 3, 5, 3)), (convolve_by_rows, (2, 8, 4, 32, 40, 3))]
)
def test_forms_are_the_convolution_in_float64(form: Any, shape: Shape) -> None:
    """Would catch: a number of a transform that is wrong by less than rounding in float32 hides."""
    with jax.enable_x64(True):
        x, kernel, cotangent = arrays(shape, np.float64)
        got = form(x, kernel)
        assert got.dtype == jnp.float64
        assert_near(got, sum_over_taps(x, kernel, cotangent)[0], 1e-13)


def test_gradients_in_loops_are_in_the_order_that_cpus_run_fast() -> None:
    """Catches gradients left to JAX, whose order XLA mends outside of loops only: 25 times as slow inside."""
    x, kernel, cotangent = arrays((2, 8, 8, 16, 16, 3))

    def total(kernel: Any) -> Any:
        def one(total: Any, _: Any) -> Any:
            of_x, of_kernel = jax.vjp(convolve_on_cpu, x, kernel)[1](cotangent)
            return total + of_kernel + of_x.sum(), None

        return jax.lax.scan(one, jnp.zeros_like(kernel), length=3)[0]

    lines = jax.jit(total).lower(kernel).compile().as_text().splitlines()
    orders = [line.split("dim_labels=")[1].split(",")[0] for line in lines if " convolution(" in line]
    assert orders
    assert set(orders) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("shape", [shape for shape, form in FORMS.items() if form == "plain"])
def test_what_a_plain_convolution_and_its_gradients_read_is_computed_once(shape: Shape) -> None:
    """Catches a norm and its ReLU that XLA computes again in the order of the kernel's gradient, and a cotangent."""

    def gradients(x: Any, kernel: Any, cotangent: Any) -> Any:
        y, pull = jax.vjp(convolve_on_cpu, jnp.maximum(x * 2, 0), kernel)
        return y, pull(jnp.minimum(cotangent * 2, 1))

    text = jax.jit(gradients).lower(*arrays(shape)).compile().as_text()
    assert [text.count(f" {name}(") for name in ("maximum", "minimum")] == [1, 1]


def test_a_network_on_each_platform() -> None:
    """Catches a layer that keeps to one form, forms of CPUs on accelerators or in exported programs, and other numbers
    from one of them.
    """
    config = CustomUNetConfig(base_channels=8)
    network, params, stats = make_network(
        lambda rngs: config.build(in_channels=3, out_channels=1, rngs=rngs),
        seed=0,
        in_channels=3,
        mean=0.0,
        std=1.0,
    )
    x = jnp.asarray(np.random.default_rng(0).normal(0, 1, (1, 32, 32, 3)), jnp.float32)

    def logits(network: Any) -> Any:
        return jax.jit(lambda x: network.apply(params, stats, train=False)[0](x, None).logits)

    texts = [
        str(jax.make_jaxpr(logits(one))(x))
        for one in (network, network.for_platform("gpu"), network.for_platform("cpu"))
    ]
    # Two to each of nine blocks, and the head; the one of 1x1 is in the same form on CPUs.
    assert [text.count("conv_general_dilated[") for text in texts[:2]] == [19, 19]
    assert [text.count("custom_vjp_call[") for text in texts] == [18, 18, 18 + 19]
    assert (
        texts[0]
        == texts[1]
        == str(jax.make_jaxpr(logits(network.for_platform("cpu").for_platform("tpu")))(x))
    )
    np.testing.assert_allclose(logits(network.for_platform("cpu"))(x), logits(network)(x), atol=1e-5)

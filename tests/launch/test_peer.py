"""PyTorch twins against our networks: outputs, running statistics and SGD updates.

Twins are built of torch's own layers, so that our code is not compared with itself.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from random_weights import numbers, randomised

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("one_thread")]
torch = pytest.importorskip("torch", reason="the peer extra (pip install -e '.[peer]') is not installed")

from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from dagm_jax.types import NetworkOutput
from launch import peer

SMALL = (2, 64, 32)
STRIP = (1, 512, 64)
IN_CHANNELS, OUT_CHANNELS = 3, 2

custom_unet = partial(CustomUNetConfig, base_channels=2)
autoencoder = partial(ConvAutoencoderConfig, base_channels=2, bottleneck_channels=3)
unet3plus = partial(UNet3PlusConfig, base_channels=2)


@cache
def split_model(config: peer.Config) -> tuple[Any, Any, Any]:
    """(structure, random parameters, random statistics) of our network."""
    sizes = {"in_channels": IN_CHANNELS, "out_channels": OUT_CHANNELS}
    return randomised(nnx.eval_shape(lambda: config.build(**sizes, rngs=nnx.Rngs(0))))


def copy(config: peer.Config, twin: Any) -> None:
    peer.copy_weights(nnx.merge(*split_model(config)), twin)


def build(config: peer.Config) -> Any:
    return peer.build(config, in_channels=IN_CHANNELS, out_channels=OUT_CHANNELS)


def make_twin(config: peer.Config) -> Any:
    """The twin with the weights of `split_model`."""
    twin = build(config)
    copy(config, twin)
    return twin


def nchw(x: np.ndarray) -> Any:
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def nhwc(leaf: Any) -> np.ndarray:
    """Maps in our layout; class logits as they are."""
    array = leaf.detach().numpy()
    return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def assert_close(got: Any, expected: Any, what: str, *, rtol: float = 1e-3, atol: float = 0.0) -> None:
    """Within ``rtol`` of the largest of the expected numbers, and ``atol``; finite, and not all zero if atol is."""
    largest = np.abs(np.asarray(expected)).max()
    assert largest > 0 or atol > 0, what
    np.testing.assert_allclose(
        got, expected, rtol=0, atol=rtol * largest + atol, equal_nan=False, err_msg=what
    )


def assert_outputs_near(ours: NetworkOutput, theirs: NetworkOutput) -> None:
    assert len(ours.side_logits) == len(theirs.side_logits)
    assert (ours.class_logits is None) == (theirs.class_logits is None)
    if ours.class_logits is not None:
        # Our module gives the logits before their maxima are taken.
        ours = ours._replace(class_logits=ours.class_logits.max((1, 2)))
    for i, (a, b) in enumerate(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)):
        expected = nhwc(b)
        assert expected.std() > 0.05
        assert_close(a, expected, f"output {i}", rtol=1e-4)


# Every value of every option once; the default of each network is also trained below.
FORWARD = [
    (custom_unet(base_channels=16), STRIP),
    (custom_unet(extra_skips="none"), SMALL),
    (custom_unet(extra_skips="next_encoder", up="bilinear", base_channels=4), SMALL),
    (custom_unet(extra_skips="both", norm="none"), SMALL),
    # 12 channels make two groups of six, 24 three of eight.
    (custom_unet(extra_skips="all_shallower", norm="group", base_channels=12), SMALL),
    (autoencoder(base_channels=16), STRIP),
    (autoencoder(norm="group", base_channels=12), SMALL),
    (autoencoder(norm="none"), SMALL),
    (unet3plus(base_channels=16), STRIP),
    (unet3plus(deep_supervision=False, classification_guided=False), SMALL),
    # As wide as its authors built it; the size of their images, and ours. The class logits, two numbers from a thousand
    # channels each, cancel to less than float32 gives to 1e-4.
    pytest.param(
        unet3plus(base_channels=64, classification_guided=False), (1, 320, 320), marks=pytest.mark.long
    ),
    pytest.param(unet3plus(base_channels=64, classification_guided=False), STRIP, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("config", "size"), FORWARD)
def test_forward_pass_is_pytorch_s(config: peer.Config, size: tuple[int, int, int]) -> None:
    """Would catch: transposed kernels, skips in another order or from another level, aligned corners, an epsilon."""
    x = numbers(*size, IN_CHANNELS)
    graphdef, *state = split_model(config)
    output = jax.jit(lambda state, x: nnx.merge(graphdef, *state)(x, train=False))(state, x)
    with torch.inference_mode():
        theirs = make_twin(config).eval()(nchw(x))
    assert_outputs_near(output, theirs)


def test_bfloat16_twin_computes_in_bfloat16() -> None:
    """Would catch: a twin that is timed in float32 beside a network in bfloat16, and outputs left in bfloat16."""
    x = nchw(numbers(*SMALL, IN_CHANNELS))
    exact, rounded = make_twin(custom_unet()).eval(), make_twin(custom_unet(compute_dtype="bfloat16")).eval()
    seen = []
    rounded.encoder[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.inference_mode():
        a, b = exact(x).logits, rounded(x).logits
    assert seen == [torch.bfloat16]
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().mean() < 0.1 * a.std()


LEARNING_RATE = 0.1
TRAINED = [
    custom_unet(),
    custom_unet(extra_skips="both", norm="none", up="bilinear"),
    autoencoder(),
    # Without the guided module: its dropout draws other numbers in PyTorch.
    unet3plus(classification_guided=False),
]


@cache
def make_step(config: peer.Config) -> Any:
    """(parameters, statistics, x, target) → (loss, output, gradients, new parameters, new statistics), jitted."""
    graphdef, _, _ = split_model(config)
    optimizer = optax.sgd(LEARNING_RATE)

    def loss(params: Any, stats: Any, x: Any, target: Any) -> Any:
        model = nnx.merge(graphdef, params, stats, copy=True)
        output = model(x, train=True)
        losses = [
            optax.sigmoid_binary_cross_entropy(logits, target).mean()
            for logits in [output.logits, *output.side_logits]
        ]
        return sum(losses), (output, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    @jax.jit
    def step(params: Any, stats: Any, x: Any, target: Any) -> Any:
        (value, (output, stats)), gradients = jax.value_and_grad(loss, has_aux=True)(params, stats, x, target)
        updates, _ = optimizer.update(gradients, optimizer.init(params))
        return value, output, gradients, optax.apply_updates(params, updates), stats

    return step


def data(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Slices and their masks {0, 1} of one step."""
    return (
        numbers(*SMALL, IN_CHANNELS, seed=step),
        (numbers(*SMALL, OUT_CHANNELS, seed=100 + step) > 0.5).astype(np.float32),
    )


def numpy_state(config: peer.Config, params: Any, stats: Any) -> dict[str, np.ndarray]:
    """Our parameters (or their gradients) and statistics under the twin's names and in its layout."""
    twin = build(config)
    peer.copy_weights(nnx.merge(split_model(config)[0], params, stats), twin)
    return snapshot(twin)


def snapshot(twin: Any) -> dict[str, np.ndarray]:
    return {
        name: tensor.numpy().copy()
        for name, tensor in twin.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("config", TRAINED)
def test_three_sgd_updates_are_pytorch_s(config: peer.Config) -> None:
    """Would catch: gradients that stop or count twice in a layer, sums that should be means, biased running variances,
    a momentum the other way round, statistics of a part of the batch.
    """
    twin = make_twin(config).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=LEARNING_RATE)
    _, params, stats = split_model(config)
    before = snapshot(twin)
    for i in range(3):
        x, target = data(i)
        value, ours_output, gradients, params, stats = make_step(config)(params, stats, x, target)
        output = twin(nchw(x))
        if i == 0:
            assert_outputs_near(ours_output, output)
        loss = sum(
            torch.nn.functional.binary_cross_entropy_with_logits(logits, nchw(target))
            for logits in [output.logits, *output.side_logits]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
        if i == 0:
            ours = numpy_state(config, gradients, stats)
            for name, parameter in twin.named_parameters():
                # Biases before batch statistics have no gradient: 0 in ours, rounding errors in PyTorch.
                assert_close(ours[name], parameter.grad.numpy(), name, atol=3e-7)
    ours, after = numpy_state(config, params, stats), snapshot(twin)
    num_norms = sum(isinstance(module, torch.nn.BatchNorm2d) for module in twin.modules())
    assert sum("running" in name for name in after) == 2 * num_norms
    for name, tensor in after.items():
        # float32 holds few bits of an update that is a small part of a parameter.
        atol = 1e-6 * np.abs(tensor).max()
        assert_close(ours[name] - before[name], tensor - before[name], name, atol=atol)


def test_copying_sets_every_tensor() -> None:
    """Would catch: a tensor that keeps PyTorch's initial number, and a counter of batches of an earlier training."""
    twin = build(unet3plus())
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.fill_(77)
    copy(unet3plus(), twin)
    assert not any((tensor == 77).any() for tensor in twin.state_dict().values())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (autoencoder(), r"Missing key.*bottleneck.weight"),
        (custom_unet(base_channels=1), r"size mismatch for encoder.0.first.conv.weight"),
        (custom_unet(extra_skips="none"), r"size mismatch for decoder.1.first.conv.weight"),
        (custom_unet(norm="none"), r"Unexpected key.*encoder.0.first.norm.weight"),
    ],
)
def test_twins_of_another_network_are_refused(other: peer.Config, message: str) -> None:
    """Would catch: numbers that torch's copy_ would broadcast, and weights that are silently left behind."""
    with pytest.raises(RuntimeError, match=message):
        copy(custom_unet(), build(other))

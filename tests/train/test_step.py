"""The training and evaluation steps against the same written out by hand, and over several devices."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dagm_jax.command_line import read_config
from dagm_jax.data.config import SlicingConfig
from dagm_jax.data.slicing import make_slicer, slice_labels
from dagm_jax.evaluation.step import MOST_SLICES, make_sliced_step, most_slices
from dagm_jax.experiment.trained_model import build_network
from dagm_jax.models.blocks import FLOAT32, Block, Conv, LayerOptions
from dagm_jax.models.config import NormKind
from dagm_jax.models.network import Network, make_network
from dagm_jax.tasks.base import LossOutput, SlicePrediction, Task
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train.optim import OptimConfig, make_optimizer
from dagm_jax.train.schedule import learning_rate
from dagm_jax.train.step import NEVER, TrainState, _in_parts, make_state, make_train_step
from dagm_jax.types import NetworkOutput

TASK = SegmentationConfig()
RATE = 0.25
MEAN, STD = 100.0, 40.0
SHALLOW = "shallow"


def shipped_step(name: str, axis_name: str | None) -> tuple[Any, TrainState, Network, Task]:
    """Plain gradient descent, first state, network and task of the configuration ``name``, narrowed; or `Shallow`."""
    if name == SHALLOW:
        dtype = jnp.dtype(jnp.result_type(float))
        network, *arrays = make_network(
            lambda rngs: Shallow("batch", rngs, axis_name, dtype), seed=0, in_channels=2, mean=MEAN, std=STD
        )
        return sgd_step(network, axis_name), sgd_state(*arrays), network, TASK
    compute = "float64" if jnp.result_type(float) == jnp.float64 else "float32"
    overrides = ["--config.model.base_channels=1", f"--config.model.compute_dtype={compute}"]
    config = read_config(f"configs/{name}", overrides)
    network, *arrays = build_network(config, MEAN, STD, axis_name)
    return sgd_step(network, axis_name, config.task), sgd_state(*arrays), network, config.task


class Shallow(nnx.Module):
    """Two convolutions and a head: what is tested here is the step round a network, and compiling that is short."""

    def __init__(
        self,
        norm: NormKind,
        rngs: nnx.Rngs,
        axis_name: str | None = None,
        dtype: jnp.dtype = FLOAT32,
    ) -> None:
        self.block = Block(2, 4, LayerOptions(norm, dtype, axis_name), rngs=rngs)
        self.head = Conv(4, 1, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> NetworkOutput:
        return NetworkOutput(self.head(self.block(x, train=train)))


@cache
def make_tiny(norm: NormKind = "batch") -> tuple[Network, Any, Any]:
    return make_network(lambda rngs: Shallow(norm, rngs), seed=0, in_channels=2, mean=MEAN, std=STD)


def make_batch(size: int, seed: int = 0, h: int = 32, w: int = 16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, h, w, 1), np.uint8)
    mask[::2, 8:20, 4:12] = 1
    image = rng.integers(60, 140, (size, h, w, 1)) + 80 * mask
    return {
        "image": image.astype(np.uint8),
        "mask": mask,
        "label": np.where(mask.any((1, 2, 3)), 1, 0).astype(np.int32),
        "valid": np.ones(size, bool),
        "image_index": np.arange(size, dtype=np.int32),
    }


def sgd_step(network: Network, axis_name: str | None = None, task: Task = TASK, **options: Any) -> Any:
    """The step with plain gradient descent: Adam would hide a gradient of the wrong scale."""
    rate = lambda step, cooldown: jnp.float32(RATE)  # noqa: E731
    return make_train_step(network, task, optax.identity(), rate, 0, axis_name, **options)


def logits_of(network: Network, *, train: bool) -> Any:
    """(parameters, statistics, image) -> logits, compiled."""

    def apply(params: Any, stats: Any, image: Any) -> Any:
        forward, _ = network.apply(params, stats, train=train)
        return forward(network.preprocess(image, None, None, None)["x"], None).logits

    return jax.jit(apply)


@cache
def fast_sgd_step(norm: str = "batch") -> Any:
    """Step of the tiny network, compiled once for all tests."""
    return jax.jit(sgd_step(make_tiny(norm)[0]))


def sgd_state(params: Any, stats: Any) -> TrainState:
    # Copies, because a compiled step may take its state's memory.
    return jax.tree.map(jnp.copy, make_state(params, stats, optax.identity()))


def leaves(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_close(a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    for x, y in zip(leaves(a), leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def test_one_step_is_plain_gradient_descent_by_hand() -> None:
    """Would catch: a wrong sign or scale of the update, lost statistics, and an input that is not standardised."""
    network, params, stats = make_tiny()
    batch = make_batch(4)
    batch["valid"][3] = False
    new, metrics = fast_sgd_step()(sgd_state(params, stats), batch)

    def mean_loss(params: Any) -> tuple[jax.Array, Any]:
        model = nnx.merge(network.graphdef, params, stats, copy=True)
        grey = (batch["image"].astype(np.float32) - MEAN) / STD
        z = model(np.concatenate([grey, grey], axis=-1), train=True).logits
        t = batch["mask"].astype(np.float32)
        per_pixel = -t * jax.nn.log_sigmoid(z) - (1 - t) * jax.nn.log_sigmoid(-z)
        p = 1 / (1 + jnp.exp(-z))
        dims = (1, 2, 3)
        dice = 1 - (2 * (p * t).sum(dims) + 1) / (p.sum(dims) + t.sum(dims) + 1)
        loss = per_pixel.mean(dims) + 2 * dice
        return loss[:3].mean(), nnx.state(model, nnx.BatchStat)

    (loss, new_stats), gradients = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    assert_close(new.params, jax.tree.map(lambda p, g: p - RATE * g, params, gradients), rtol=1e-4)
    assert_close(new.stats, new_stats)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    norm = np.sqrt(sum((g**2).sum() for g in leaves(gradients)))
    assert float(metrics["grad_norm"]) == pytest.approx(float(norm), rel=1e-4)
    assert float(metrics["learning_rate"]) == RATE
    assert int(new.step) == 1
    assert np.asarray(new.cooldown).tolist() == [NEVER, NEVER]
    assert any(np.any(a != b) for a, b in zip(leaves(new.stats), leaves(stats), strict=True))


def test_padding_does_not_count() -> None:
    """Would catch: padded examples in the loss, in its mean's denominator, in the gradient, and in the accuracy.

    Without norm: under batch norm padding takes part in the statistics, which is why training has none.
    """
    _, params, stats = make_tiny("none")
    step, whole = fast_sgd_step("none"), make_batch(6)
    padded = {name: values.copy() for name, values in whole.items()}
    padded["valid"][4:] = False
    padded["image"][4:] = 255
    padded["mask"][4:] = 1
    short = {name: values[:4] for name, values in whole.items()}
    new_padded, metrics_padded = step(sgd_state(params, stats), padded)
    new_short, metrics_short = step(sgd_state(params, stats), short)
    assert_close(new_padded.params, new_short.params)
    assert_close(metrics_padded, metrics_short)


def test_a_batch_of_padding_alone_is_harmless() -> None:
    """Would catch: 0/0, which would turn every parameter into NaN; a division by a standard deviation of 0."""
    _, params, stats = make_tiny("none")
    batch = make_batch(6)
    batch["valid"][:] = False
    new, metrics = fast_sgd_step("none")(sgd_state(params, stats), batch)
    assert_close(new.params, params)
    assert float(metrics["loss"]) == 0
    flat, *_ = make_network(lambda rngs: Shallow("none", rngs), seed=0, in_channels=2, mean=128.0, std=0.0)
    assert flat.std == 1.0


def test_accuracy_leaves_out_slices_without_a_label() -> None:
    """Would catch: slices with too little of the defect to count (label -1) that are counted as wrong or as good."""
    network, params, stats = make_tiny()
    batch = make_batch(4)
    logits = logits_of(network, train=True)(params, stats, batch["image"])
    positive = np.asarray(logits).max((1, 2, 3)) > 0
    step = fast_sgd_step()
    for label, expected in (
        (np.where(positive, 1, 0), 1.0),
        (np.where(positive, 0, 1), 0.0),
        (np.array([positive[0], -1, -1, not positive[3]]), 0.5),
        (np.array([-1, -1, -1, -1]), 0.0),
    ):
        _, metrics = step(sgd_state(params, stats), {**batch, "label": label.astype(np.int32)})
        assert float(metrics["accuracy"]) == expected, label


def test_learning_rate_follows_the_step_and_the_cool_down_of_the_state() -> None:
    """Would catch: a rate that is fixed when the step is compiled, and a cool-down that the step forgets."""
    network, params, stats = make_tiny("none")
    config = OptimConfig(learning_rate=0.1, warmup_steps=1)
    optimizer = make_optimizer(config)
    step = jax.jit(make_train_step(network, TASK, optimizer, partial(learning_rate, config), 0))
    state, rates = make_state(params, stats, optimizer), []
    for number in range(6):
        if number == 3:
            state = replace(state, cooldown=jnp.array([3, 5], jnp.int32))
        state, metrics = step(state, make_batch(6))
        rates.append(float(metrics["learning_rate"]))
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.1, 0.1 * (0.01 + 0.99 / 2), 0.001])
    assert np.asarray(state.cooldown).tolist() == [3, 5]


# --- accumulation and averages ------------------------------------------------------------------------------


def test_accumulated_parts_give_the_update_of_the_whole() -> None:
    """Would catch: means of means where parts count differently, parts that leave slices out, a gradient of one part.

    Without norm, since batch norm sees one part at a time. The labels make the parts differ in what counts.
    """
    network, params, stats = make_tiny("none")
    batch = make_batch(8)
    batch["valid"][[0, 1, 5]] = False
    batch["label"][2] = -1
    whole, whole_metrics = fast_sgd_step("none")(sgd_state(params, stats), batch)
    for accumulate, num_shards in ((2, 1), (4, 2)):
        step = sgd_step(network, accumulate=accumulate, num_shards=num_shards)
        new, metrics = jax.jit(step)(sgd_state(params, stats), batch)
        assert_close(new.params, whole.params)
        assert_close(metrics, whole_metrics)
        assert int(new.step) == 1


def test_batch_norm_sees_the_parts_one_after_the_other() -> None:
    """Would catch: statistics of the last part alone, or none at all."""
    network, params, stats = make_tiny()
    batch = make_batch(4)
    new, _ = jax.jit(sgd_step(network, accumulate=2))(sgd_state(params, stats), batch)
    expected = stats
    for part in (slice(0, 2), slice(2, 4)):
        forward, after = network.apply(params, expected, train=True)
        forward(network.preprocess(batch["image"][part], None, None, None)["x"], None)
        expected = after()
    assert_close(new.stats, expected, rtol=1e-4, atol=1e-5)


def test_each_device_takes_its_share_of_every_part() -> None:
    """Would catch: parts that lie on one device each, which would leave the others idle, and slices lost or doubled."""
    parts = np.asarray(_in_parts(jnp.arange(12), 3, 2))
    assert parts.tolist() == [[0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11]]


def test_averages_follow_parameters_and_statistics() -> None:
    """Would catch: an average that stands still, is the newest weights or lacks the statistics; weights without it."""
    network, params, stats = make_tiny()
    step = jax.jit(sgd_step(network, average_decay=0.15))
    state = jax.tree.map(jnp.copy, make_state(params, stats, optax.identity(), averaged=True))
    average = (params, stats)
    for number in range(3):
        state, _ = step(state, make_batch(6, seed=number))
        share = min(0.15, (1 + number) / (10 + number))
        average = jax.tree.map(
            lambda a, new, share=share: share * a + (1 - share) * new, average, (state.params, state.stats)
        )
    assert share == 0.15
    assert_close(state.average, average, rtol=1e-4, atol=1e-5)
    assert_close(state.eval_weights, average, rtol=1e-4, atol=1e-5)
    assert any(
        np.any(a != b) for a, b in zip(leaves(state.eval_weights[0]), leaves(state.params), strict=True)
    )
    without = make_state(params, stats, optax.identity())
    assert without.eval_weights == (without.params, without.stats)


# --- evaluation ------------------------------------------------------------------------------------------------


def test_evaluation_by_hand() -> None:
    """Would catch: strips stitched at the wrong place or summed, losses of another image, counts of wrong slices,
    images judged by the statistics of their batch."""
    network, params, stats = make_tiny()
    h, w, edges = 32, 48, (0, 8, 16, 24, 32)
    slicer = make_slicer(SlicingConfig(num_slices=5, slice_px=16), h, w)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (3, h, w)).astype(np.uint8)
    image[1, :, 16:] //= 4
    mask = np.zeros((3, h, w), bool)
    mask[1, 4:12, 2:10] = True  # 64 px: 64 in strip 0, 16 (a quarter, positive) in strip 1
    mask[2, :, 13:48] = True  # 1120 px, of which strips 0…4 hold 96, 352, 512, 512, 512
    labels = [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [-1, 1, 1, 1, 1]]

    cut = np.stack([[one[:, e : e + 16] for e in edges] for one in image])
    logits = np.asarray(logits_of(network, train=False)(params, stats, cut.reshape(15, h, 16, 1)))
    logits = logits.reshape(3, 5, h, 16)
    # A head bias between the strips' highest logits makes some of them positive.
    shift = float(np.median(logits.max((2, 3))) + 1e-4)
    head = nnx.to_pure_dict(params)
    head["head"]["bias"] = head["head"]["bias"] - shift
    params = nnx.State(head) if not isinstance(params, dict) else head
    logits = logits - shift

    predictor = jax.jit(make_sliced_step(network, TASK, slicer))
    out = jax.device_get(predictor(params, stats, image, mask, mask.sum((1, 2))))
    total, count = np.zeros((3, h, w)), np.zeros(w)
    window = np.sin(np.pi * (np.arange(16) + 0.5) / 16) ** 2
    for k, edge in enumerate(edges):
        weight = window.copy()
        weight[:8] = 1 if k == 0 else weight[:8]
        weight[8:] = 1 if k == 4 else weight[8:]
        total[:, :, edge : edge + 16] += weight / (1 + np.exp(-logits[:, k]))
        count[edge : edge + 16] += weight
    np.testing.assert_allclose(out["map"], total / count, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out["slice_scores"], 1 / (1 + np.exp(-logits.max((2, 3)))), rtol=1e-4)

    for i in range(3):
        cut_mask = np.stack([mask[i][:, e : e + 16] for e in edges])[..., None]
        loss = np.asarray(TASK.pixel_loss(jnp.asarray(logits[i][..., None]), jnp.asarray(cut_mask), None))
        assert out["loss"][i] == pytest.approx(loss.mean(), rel=1e-4)
    decided = logits.max((2, 3)) > 0
    assert decided.any() and not decided.all()
    right = [
        sum(bool(d) == bool(t) for d, t in zip(row, truth, strict=True) if t >= 0)
        for row, truth in zip(decided, labels, strict=True)
    ]
    assert out["num_right"].tolist() == right
    assert out["num_counted"].tolist() == [5, 5, 4]


def test_many_slices_are_evaluated_in_parts() -> None:
    """Would catch: slices of the last, shorter part lost, in another order, or padding stitched into the map."""
    network, params, stats = make_tiny()
    slicer = make_slicer(SlicingConfig(num_slices=5, slice_px=16), 32, 48)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2, 32, 48)).astype(np.uint8)
    mask = image > 250
    pixels = (image, mask, mask.sum((1, 2)))
    whole = jax.device_get(jax.jit(make_sliced_step(network, TASK, slicer))(params, stats, *pixels))
    program = jax.jit(make_sliced_step(network, TASK, slicer, most=3))
    assert "while" in program.lower(params, stats, *pixels).as_text()
    parts = jax.device_get(program(params, stats, *pixels))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-6)


def test_how_many_slices_are_evaluated_at_a_time() -> None:
    """Would catch: parts of a CPU on an accelerator, none for large slices or many images, more than memory allows."""
    strips = make_slicer(SlicingConfig(slice_px=64), 512, 512)
    small = make_slicer(SlicingConfig(num_slices=5, slice_px=16), 32, 48)
    whole = make_slicer(SlicingConfig("whole"), 512, 512)
    assert [most_slices("cpu", strips, images) for images in (1, 2, 8)] == [2, 1, 1]
    assert most_slices("cpu", whole, 1) == 1
    assert most_slices("cpu", small, 1) == most_slices("gpu", strips, 8) == MOST_SLICES


@pytest.mark.parametrize("mode", ["strips", "two_orientations", "squeeze", "whole"])
def test_slices_are_compared_with_the_labels_that_they_are_trained_with(mode: Any) -> None:
    """Would catch: labels of squeezed masks, which hold fewer pixels; and a map that rounding lifts above 1."""
    network, params, stats = make_tiny()
    slicer = make_slicer(SlicingConfig(mode, num_slices=8, slice_px=16), 64, 64)
    mask = np.zeros((2, 64, 64), bool)
    mask[0, 10:30, 3:40] = True
    labels = [slice_labels(slicer.held(one), np.count_nonzero(one)) for one in mask]
    np.testing.assert_array_equal(slicer.held(mask[0]), jax.jit(lambda m: slicer.held(m, jnp))(mask[0]))

    class Certain:
        """Sure of a defect everywhere."""

        def predict(self, forward: Any, slices: Any) -> SlicePrediction:
            ones = jnp.ones(slices["mask"].shape, jnp.float32)
            loss_output = LossOutput(ones[:, 0, 0, 0], ones[:, 0, 0, 0], ones[:, 0, 0, 0] > 0)
            return SlicePrediction(loss_output, ones, ones[:, 0, 0, 0])

    predictor = jax.jit(make_sliced_step(network, Certain(), slicer))  # type: ignore[arg-type]
    out = jax.device_get(predictor(params, stats, np.zeros(mask.shape, np.uint8), mask, mask.sum((1, 2))))
    assert out["num_counted"].tolist() == [int((label >= 0).sum()) for label in labels]
    assert out["num_right"].tolist() == [int((label == 1).sum()) for label in labels]
    assert out["map"].max() <= 1.0
    np.testing.assert_allclose(out["map"], 1, rtol=1e-6)

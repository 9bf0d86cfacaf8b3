"""PyTorch in the benchmark: losses, optimiser, maps and input against ours, and a run beside it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from PIL import Image
from random_weights import numbers, randomised

pytestmark = [pytest.mark.peer, pytest.mark.usefixtures("one_thread")]
torch = pytest.importorskip("torch", reason="the peer extra (pip install -e '.[peer]') is not installed")

from dagm_jax.command_line import read_config
from dagm_jax.config import RunConfig
from dagm_jax.data.augment import Move
from dagm_jax.data.config import AugmentConfig, SlicingConfig
from dagm_jax.data.slicing import make_slicer
from dagm_jax.errors import UserError
from dagm_jax.models import unet3plus
from dagm_jax.models.network import Network
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.train.optim import OptimConfig, make_optimizer
from dagm_jax.train.schedule import learning_rate
from dagm_jax.train.step import NEVER, make_state, make_train_step
from dagm_jax.train.stopping import TrainConfig
from dagm_jax.types import NetworkOutput
from launch import benchmark
from launch.bench import compare, measure, peer_step, session, timing
from launch.bench.peer_data import (
    BalancedSampler,
    StripDataset,
    make_loader,
)

MEAN, STD = 120.0, 40.0


def make_batch() -> Any:
    """Random slices and masks with labels 0, -1 and 1."""
    rng = np.random.default_rng(0)
    mask = (rng.random((3, 32, 32, 1)) > 0.7).astype(np.uint8)
    mask[0] = 0
    image = rng.integers(0, 256, mask.shape, dtype=np.uint8)
    return {"image": image, "mask": mask, "label": np.array([0, -1, 1], np.int32), "valid": np.ones(3, bool)}


def narrow(name: str) -> RunConfig:
    """A shipped configuration with a narrow network and gradients that are not clipped."""
    config = read_config(f"configs/{name}.py")
    return replace(
        config,
        model=replace(config.model, base_channels=2),
        optim=OptimConfig("adamw", clip_norm=1e9, warmup_steps=0),
    )


def make_weights(config: RunConfig) -> tuple[Network, Any, Any]:
    """(network, random parameters, random statistics)."""
    sizes = {"in_channels": config.in_channels, "out_channels": 1}
    graphdef, params, stats = randomised(
        nnx.eval_shape(lambda: config.model.build(**sizes, rngs=nnx.Rngs(0)))
    )
    return Network(graphdef, config.in_channels, MEAN, STD), params, stats


# --- training ---


@pytest.mark.parametrize("name", ["custom_unet", pytest.param("unet3plus", marks=pytest.mark.long)])
def test_the_loss_of_a_batch_is_ours(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: another standardisation, masks in another order, an output or the guided module left out."""
    # Dropout draws other numbers in PyTorch; a rate of 0 leaves all else of the guided module.
    monkeypatch.setattr(unet3plus, "DROPOUT_RATE", 0.0)
    config = narrow(name)
    network, params, stats = make_weights(config)
    twin = peer_step.make_twin(config, network, params, stats)
    for module in twin.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rate = lambda step, cooldown: jnp.float32(0.0)  # noqa: E731
    step = jax.jit(make_train_step(network, config.task, optax.identity(), rate, config.seed))
    batch = make_batch()
    _, metrics = step(make_state(params, stats, optax.identity()), batch)
    example = peer_step.as_examples([batch])[0]
    assert twin.loss(*example).item() == pytest.approx(float(metrics["loss"]), rel=1e-5)


@pytest.mark.parametrize(
    "task",
    [
        SegmentationConfig(dice_weight=2.0, iou_weight=0.5, focal_weight=0.25),
        SegmentationConfig(
            bce_weight=0, dice_weight=0, focal_weight=1, ssim_weight=1, iou_weight=1, class_weight=0.7
        ),
    ],
    ids=["weights", "unet3plus"],
)
def test_loss_of_all_outputs_and_its_gradient_are_ours(task: SegmentationConfig) -> None:
    """Would catch: a weight that is read as 0 or 1, an output or the guided module left out, labels that do not count
    counted, sums for means."""
    rng = np.random.default_rng(0)
    mask = (rng.random((3, 16, 16, 1)) > 0.5).astype(np.uint8)
    label = np.array([0, -1, 1], np.int32)
    arrays = [*(numbers(3, 16, 16, 1, seed=seed) for seed in range(3)), numbers(3, 2)]

    def loss(arrays: Any) -> Any:
        output = NetworkOutput(arrays[0], tuple(arrays[1:3]), arrays[3][:, None, None, :])
        slices: Any = {"x": None, "mask": mask, "label": label, "valid": None, "slice_shape": (16, 16)}
        return task.loss(lambda x, key: output, slices, jax.random.key(0)).loss.mean()

    expected, gradients = jax.jit(jax.value_and_grad(loss))(arrays)
    leaves = [
        torch.from_numpy(np.moveaxis(a, -1, 1).copy() if a.ndim == 4 else a).requires_grad_() for a in arrays
    ]
    output = NetworkOutput(leaves[0], tuple(leaves[1:3]), leaves[3])
    targets = torch.from_numpy(np.moveaxis(mask, -1, 1).copy()).float()
    ssim = peer_step.SSIM(data_range=1.0, channel=1)
    theirs = peer_step.batch_loss(task, output, targets, torch.from_numpy(label), ssim)
    theirs.backward()
    assert theirs.item() == pytest.approx(float(expected), rel=1e-5)
    for leaf, gradient in zip(leaves, gradients, strict=True):
        found = leaf.grad.numpy()
        found = np.moveaxis(found, 1, -1) if found.ndim == 4 else found
        np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-4 * np.abs(gradient).max())


def test_adamw_is_ours_with_its_clip_decay_and_warm_up() -> None:
    """Would catch: decay of vectors or of none, decay that is clipped or not decoupled, a clip left out, a constant
    learning rate."""
    config = OptimConfig("adamw", 0.1, warmup_steps=2, weight_decay=0.3, clip_norm=0.5)
    rng = np.random.default_rng(0)
    start = {"weight": numbers(3, 4), "bias": numbers(3)}
    gradients = [
        {name: (scale * rng.normal(size=value.shape)).astype(np.float32) for name, value in start.items()}
        for scale in (1.0, 0.01, 1.0, 1.0)
    ]
    ours, optimizer = dict(start), make_optimizer(config)
    opt_state = optimizer.init(ours)
    for step, gradient in enumerate(gradients):
        direction, opt_state = optimizer.update(gradient, opt_state, ours)
        rate = learning_rate(config, jnp.int32(step), jnp.full(2, NEVER))
        ours = jax.tree.map(lambda p, d, rate=rate: p - rate * d, ours, direction)

    module = torch.nn.Linear(4, 3)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in start.items()})
    given = iter(gradients)

    def loss(*_: Any) -> Any:
        gradient = next(given)
        return sum((p * torch.from_numpy(gradient[name])).sum() for name, p in module.named_parameters())

    twin: Any = SimpleNamespace(module=module, optim=config, loss=loss, place=lambda example: example)
    take = peer_step.make_adamw_step(twin, compiled=False)
    for _ in gradients:
        take((torch.zeros(1),) * 3)
    for name, value in ours.items():
        np.testing.assert_allclose(module.state_dict()[name], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["custom_unet", "unet3plus"])
def test_maps_are_ours(name: str) -> None:
    """Would catch: logits timed for maps, a map that is not gated, dropout and batch statistics in inference."""
    config = narrow(name)
    network, params, stats = make_weights(config)
    twin = peer_step.make_twin(config, network, params, stats)
    batch = make_batch()

    def predict(params: Any, stats: Any) -> Any:
        forward, _ = network.apply(params, stats, train=False)
        slices = network.preprocess(batch["image"], batch["mask"], batch["label"], jnp.arange(3))
        return config.task.predict(forward, slices).map

    ours = jax.jit(predict)(params, stats)
    theirs = peer_step.make_predict(twin, compiled=False)(torch.from_numpy(batch["image"]))
    np.testing.assert_allclose(np.moveaxis(theirs.numpy(), 1, -1), ours, rtol=0, atol=1e-5)


def test_tasks_that_pytorch_s_side_lacks_are_refused() -> None:
    """Would catch: another loss timed beside ours."""
    with pytest.raises(UserError, match="not of reconstruction; leave the peer out"):
        session.check_task(read_config("configs/custom_unet.py:reconstruction"))


def test_a_compiler_that_fails_leaves_its_reason_and_the_eager_form() -> None:
    """Would catch: a comparison lost to a machine without a C++ compiler, and an eager failure passed over."""

    def make(compiled: bool) -> tuple[timing.Run]:
        if compiled:
            raise RuntimeError("no compiler:\n g++ not found")
        return (lambda number: None,)

    runs, notes = compare.peer_runs(make, compiles=True)
    assert list(runs) == ["eager"]
    assert notes == {"compiled_error": "RuntimeError: no compiler: g++ not found"}
    assert compare.peer_runs(make, compiles=False)[1] == {}
    values = compare.beside({"ours": 2.0, "eager": 3.0, "compiled": 2.5}, "step")
    assert [values[f"step_ratio{end}"] for end in ("_eager", "_compiled", "")] == [1.5, 1.25, 1.25]


class Doubling(torch.nn.Module):
    """A network of one sum."""

    def forward(self, x: Any) -> NetworkOutput:
        return NetworkOutput(x + x)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The sizes that each graph of torch.compile is made for, in place of compiling it."""
    found: list[Any] = []

    def note(graph: Any, inputs: Any) -> Any:
        found.append([size for tensor in inputs for size in tensor.shape])
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=note))
    return found


def doubling_twin() -> Any:
    task, ssim = SegmentationConfig(ssim_weight=1.0), peer_step.SSIM(data_range=1.0, channel=1)
    return peer_step.Twin(Doubling(), task, OptimConfig(), 1, MEAN, STD, 1, torch.device("cpu"), ssim)


def test_the_window_of_ssim_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a window made on the host and copied at each output of each step, for which a GPU waits."""
    twin = doubling_twin()

    def refuse(*_: Any) -> None:
        raise AssertionError("made at a call")

    monkeypatch.setattr(sys.modules["pytorch_msssim.ssim"], "_fspecial_gauss_1d", refuse)
    image, mask, label = peer_step.as_examples([make_batch()])[0]
    assert torch.isfinite(twin.loss(image, mask, label))


def test_each_twin_is_compiled_for_its_own_batch(graphs: list[Any]) -> None:
    """Would catch: a later cell's graph of any batch size, and one that runs eagerly and is called compiled, because
    torch has compiled other twins before."""
    sizes = range(2, 14)
    for b in sizes:
        predict = peer_step.make_predict(doubling_twin(), compiled=True)
        predict(torch.zeros(b, 4, 4, 1, dtype=torch.uint8))
    assert graphs == [[b, 4, 4, 1] for b in sizes]
    assert {type(size) for graph in graphs for size in graph} == {int}


def test_a_part_that_torch_gives_up_compiling_is_no_compiled_figure(graphs: list[Any]) -> None:
    """Would catch: figures of eager code in the column of the compiled one."""
    images = [torch.zeros(b, 4, 4, 1, dtype=torch.uint8) for b in range(2, 14)]

    def make(compiled: bool) -> tuple[timing.Run]:
        predict = peer_step.make_predict(doubling_twin(), compiled)

        def run(number: int) -> None:
            for image in images:
                predict(image)

        return (run,)

    runs, notes = compare.peer_runs(make, compiles=True)
    assert list(runs) == ["eager"]
    assert "RecompileLimit" in notes["compiled_error"] and len(graphs) == 8


# --- input ---

SLICER = make_slicer(SlicingConfig(num_slices=5, slice_px=16), 64, 64)


@pytest.fixture
def dataset(tmp_path: Path) -> StripDataset:
    """Two defective images and three good ones, decoded; the mask of the former is where they are bright."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for number in range(5):
        image = rng.integers(0, 100, (64, 64), dtype=np.uint8)
        if number < 2:
            image[5:30, 2 + 8 * number : 20] += 150
            Image.fromarray(((image >= 150) * 255).astype(np.uint8)).save(tmp_path / f"{number}_label.png")
        masks.append(tmp_path / f"{number}_label.png" if number < 2 else None)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
        images.append(tmp_path / f"{number}.png")
    found = StripDataset(tuple(images), tuple(masks), (64, 64), SLICER, AugmentConfig())
    found.decode()
    return found


def test_strips_are_those_of_turned_images_with_their_masks(dataset: StripDataset) -> None:
    """Would catch: a mask that stays while its image turns, a move that is never drawn, a strip at no edge, a
    request that is not heeded."""
    image = np.asarray(Image.open(dataset.image_files[0]))
    views = {
        (turns, flip, edge): Move(turns, flip, 0.0, (0.0, 0.0)).turn(image)[:, edge : edge + 16]
        for turns in range(4)
        for flip in (False, True)
        for edge in SLICER.vertical_edges
    }
    found = set()
    for _ in range(300):
        strip, mask, _ = dataset[0, None]
        assert strip.shape == mask.shape == (64, 16, 1) and strip.dtype == mask.dtype == torch.uint8
        np.testing.assert_array_equal(mask.numpy() == 1, strip.numpy() >= 150)
        found |= {name for name, view in views.items() if (view == strip[..., 0].numpy()).all()}
    assert {name[:2] for name in found} == {(t, f) for t in range(4) for f in (False, True)}
    assert {name[2] for name in found} == set(SLICER.vertical_edges)
    assert {int(dataset[0, True][2]) for _ in range(20)} == {1}
    assert 1 not in {int(dataset[0, False][2]) for _ in range(20)}


def test_half_of_a_batch_is_positive(dataset: StripDataset) -> None:
    """Would catch: an epoch without up-sampling, an image that is drawn twice before another is drawn once."""
    requests = list(BalancedSampler(dataset, 20, balance=True, seed=0))
    assert [positive for _, positive in requests] == [True, False] * 10
    assert {index for index, positive in requests if positive} == {0, 1}
    assert sorted(index for index, positive in requests[:10] if not positive) == [0, 1, 2, 3, 4]
    assert {positive for _, positive in BalancedSampler(dataset, 4, balance=False, seed=0)} == {None}
    config = RunConfig(train=TrainConfig(batch_size=4))
    loader = make_loader(dataset, config, num_slices=11)
    seen = list(loader)
    assert [tuple(image.shape) for image, _, _ in seen] == [(4, 64, 16, 1)] * 2
    assert all((label == 1).sum() == 2 for _, _, label in seen)
    warm_up = peer_step.as_examples([make_batch()])[0]
    assert [part.dtype for part in seen[0]] == [part.dtype for part in warm_up]


@pytest.mark.usefixtures("quick_compiles")
def test_a_run_beside_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a comparison that fails where it is called, ratios of other seconds than those beside them, an
    epoch that holds a compilation because its batches are of another type than those of the warm-up."""
    monkeypatch.setattr(timing, "LEAST_BLOCK_S", 1e-3)
    monkeypatch.setattr(measure, "WARM_UP_BATCHES", 1)
    flags = [
        *("--what=peer_step,peer_inference,peer_pipeline,peer_epoch", "--nopeer_compiles", "--repetitions=2"),
        *("--batch_sizes=4", "--inference_batches=2", "--epoch_slices=1", f"--output={tmp_path}"),
        *("--config.model.base_channels=1", "--config.slicing.slice_px=16"),
        *("--config.data.procedural_defective=8", "--config.data.procedural_good=8"),
    ]
    inputs = set()
    make_adamw_step = peer_step.make_adamw_step

    def note_inputs(twin: Any, compiled: bool) -> Any:
        step = make_adamw_step(twin, compiled)

        def noted(example: Any) -> Any:
            inputs.add(tuple((part.dtype, part.shape, part.stride()) for part in example))
            return step(example)

        return noted

    monkeypatch.setattr(peer_step, "make_adamw_step", note_inputs)
    session.run(*benchmark.parse(["benchmark", *flags]), "a command", "")
    cells = json.loads((tmp_path / "benchmark.json").read_text())["cells"]
    assert {cell["kind"]: cell["error"] for cell in cells} == {cell["kind"]: None for cell in cells}
    found = {cell["kind"]: cell["values"] for cell in cells}
    assert list(found) == ["peer_inference", "peer_step", "peer_pipeline", "peer_epoch"]
    for kind, name in (("peer_step", "step"), ("peer_inference", "latency"), ("peer_epoch", "first")):
        values = found[kind]
        ratio = values[f"{name}_eager_s"] / values[f"{name}_ours_s"]
        assert values[f"{name}_ratio"] == values[f"{name}_ratio_eager"] == pytest.approx(ratio)
        assert values[f"{name}_compiled_s"] is None
    pipeline, epoch = found["peer_pipeline"], found["peer_epoch"]
    expected = pipeline["ours_slices_per_core_s"] / pipeline["peer_slices_per_core_s"]
    assert pipeline["ratio_per_core"] == pytest.approx(expected)
    assert epoch["steps"] == epoch["num_images"] // 4
    assert len(inputs) == 1
    text = (tmp_path / "benchmark.md").read_text()
    assert "Training step beside PyTorch" in text and "step ratio eager, x" in text

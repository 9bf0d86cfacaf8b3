"""Whole images: padding counts nowhere, tiles change nothing, and what slices pool has its meaning over an image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagm_jax.config import TASKS, ModelConfig, RunConfig
from dagm_jax.data.config import SlicingConfig
from dagm_jax.distributed.devices import make_devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import EvalConfig, VerdictConfig
from dagm_jax.evaluation.postprocess import postprocess
from dagm_jax.evaluation.predictor import Prediction, Predictor
from dagm_jax.evaluation.programs import (
    MOST_PROGRAMS,
    Programs,
    Shape,
    WholeImages,
    choose_shapes,
    padded,
)
from dagm_jax.evaluation.step import make_whole_step
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.trained_model import build_network
from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from dagm_jax.models.network import Network
from dagm_jax.tasks.base import Slices, defect_logits, gate, guidance_loss
from dagm_jax.types import NetworkOutput, Pixels

NETWORKS = (
    CustomUNetConfig(base_channels=1, extra_skips="both", up="bilinear"),
    ConvAutoencoderConfig(base_channels=2, bottleneck_channels=2),
    UNet3PlusConfig(base_channels=1),
)
SIZES = st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=40)


def made(config: RunConfig) -> tuple[Network, Any, Any]:
    """A network of random weights and statistics whose few channels do not die behind their ReLU."""
    network, params, stats = build_network(config, mean=90.0, std=40.0)
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    stats = jax.tree.map(lambda x: x + 0.3 * jax.random.uniform(next(keys), x.shape), stats)
    return network, jax.tree.map(lambda x: x + 0.3 if x.ndim == 1 else x, params), stats


def make_predictor(config: RunConfig, shapes: tuple[Shape, ...], batch_size: int) -> Predictor:
    network, params, stats = made(config)
    devices = make_devices(config.parallel)
    tiling = make_tiling(replace(config, slicing=SlicingConfig()), (128, 128), shapes)
    weights = devices.replicate((params, stats))
    programs = Programs(network, config.task, tiling, config.verdict, devices, weights, batch_size)
    return Predictor(programs, *weights)


def pictures(sizes: list[Shape], seed: int = 0) -> list[Pixels]:
    """An image of noise of each size, every other one with a defect."""
    rng = np.random.default_rng(seed)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in sizes]
    return [(image, (image > 250) & bool(place % 2)) for place, image in enumerate(images)]


# --- sizes ---


@settings(derandomize=True, max_examples=40, deadline=None)
@given(sizes=SIZES, most=st.integers(1, MOST_PROGRAMS))
def test_every_image_has_a_program_that_holds_it(sizes: list[Shape], most: int) -> None:
    """Would catch: an image that no program holds, more programs than allowed, sizes that are no multiples of 128, and
    padding to a larger size than the image's own where there are programs enough."""
    shapes = choose_shapes(sizes, most)
    assert len(shapes) <= most
    assert all(edge % 128 == 0 for shape in shapes for edge in shape)
    own = {padded(size) for size in sizes}
    for height, width in sizes:
        assert any(shape[0] >= height and shape[1] >= width for shape in shapes)
    if len(own) <= most:
        assert set(shapes) == own
    area = [height * width for height, width in shapes]
    assert area == sorted(area)


def test_sizes_that_share_a_program_add_few_pixels() -> None:
    """Would catch: all sizes that are too many joined to the largest one."""
    sizes = [(100, 128 * k) for k in range(1, 12)] + [(3000, 4000)]
    shapes = choose_shapes(sizes)
    assert len(shapes) == MOST_PROGRAMS
    assert shapes[-1] == (3072, 4096) and shapes[-2] == (128, 1408)
    many = [(h, w) for h in range(100, 4000, 100) for w in range(100, 4000, 100)]
    assert len(choose_shapes(many)) == MOST_PROGRAMS


def test_one_large_image_makes_no_small_one_pay() -> None:
    """Would catch: images padded to the largest of their set."""
    tiling = make_tiling(
        RunConfig(slicing=SlicingConfig()), (3000, 4000), choose_shapes([(256, 256)] * 100 + [(3000, 4000)])
    )
    assert tiling.shape_for((256, 256)) == (256, 256)
    assert tiling.shape_for((3000, 4000)) == (3072, 4096)
    assert tiling.shape_for((5000, 100)) == (5120, 128)


def test_once_enough_programs_are_there_new_sizes_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a folder of parts of many sizes that compiles a program for almost every image."""
    compiled: list[Shape] = []
    monkeypatch.setattr(Programs, "_compile", lambda self, shape: compiled.append(shape))
    config = RunConfig(slicing=SlicingConfig(), model=CustomUNetConfig(base_channels=1))
    programs = make_predictor(config, ((128, 128),), 1).programs
    sizes = [(128 * height, 128 * width) for height in (1, 2, 3, 4) for width in (1, 2, 3)]
    for _ in range(2):
        for height, width in sizes[::-1]:
            shape = programs.shape_for((height, width))
            assert shape[0] >= height and shape[1] >= width
            programs.begin(shape).result()
    assert len(compiled) == MOST_PROGRAMS
    # Four times as many pixels would cost more than a compilation.
    assert programs.shape_for((128, 4 * 128)) == (128, 4 * 128)
    pooling = RunConfig(slicing=SlicingConfig(), model=CustomUNetConfig(base_channels=1, norm="group"))
    assert not make_tiling(pooling, (128, 128), ()).shares


def test_each_image_of_a_mixed_set_is_predicted_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: verdicts in the order of the programs that give them; pixels beyond an image in its score, loss,
    decision or map; the size or label of another image of the batch; edges continued otherwise than by the edge."""
    # In batches, as accelerators take them.
    batch_size = 2 * jax.local_device_count()
    monkeypatch.setattr(WholeImages, "images_per_call", lambda *_: None)
    config = RunConfig(model=CustomUNetConfig(base_channels=1), verdict=VerdictConfig(smoothing_px=1.0))
    images = pictures([(100, 90), (100, 130), (128, 128)])
    predictor = make_predictor(config, ((128, 128), (128, 256)), batch_size)
    network, params, stats = made(config)
    for (image, mask), one in zip(images, predictor(images), strict=True):
        expected = alone(config, network, params, stats, image, mask)
        assert one.image is image and one.map.shape == image.shape
        np.testing.assert_allclose(one.map, expected.map, atol=2e-5)
        assert one.score == pytest.approx(expected.score, abs=2e-5)
        assert one.loss == pytest.approx(expected.loss, rel=2e-4)
        assert (one.num_right, one.num_counted) == (expected.num_right, expected.num_counted)


def alone(
    config: RunConfig, network: Network, params: Any, stats: Any, image: np.ndarray, mask: np.ndarray
) -> Prediction:
    """The prediction by the network's output for the padded image, cut to the image before anything is made of it."""
    (height, width), shape = image.shape, padded((image.shape[0], image.shape[1]))

    @jax.jit
    def predict(image: Any, mask: Any, label: Any) -> Any:
        def forward(x: Any, key: Any) -> NetworkOutput:
            more = ((0, 0), (0, shape[0] - height), (0, shape[1] - width), (0, 0))
            whole = network.apply(params, stats, train=False)[0](jnp.pad(x, more, "edge"), key)
            return NetworkOutput(whole.logits[:, :height, :width])

        out = config.task.predict(
            forward, network.preprocess(image, mask, label, jnp.zeros(1, jnp.int32), None, (128, 64))
        )
        return out, postprocess(
            out.map[..., 0], out.score[:, None], None, config.verdict, config.task.score_kind
        )

    label = np.array([int(mask.any())])
    out, (map_, score) = predict(image[None, ..., None], mask[None, ..., None], label)
    decision = out.loss_output.is_defective
    right = 0 if decision is None else int(decision[0] == bool(label[0]))
    loss = float(out.loss_output.loss[0])
    return Prediction(
        image, mask, np.asarray(map_[0]), float(score[0]), loss, right, int(decision is not None)
    )


# --- tiles ---


@pytest.mark.parametrize("model", NETWORKS, ids=lambda model: f"{model.name}-{getattr(model, 'up', '')}")
def test_the_halo_holds_the_receptive_field(model: ModelConfig) -> None:
    """Would catch: a network that grew deeper than its halo, so that tiles show their borders.

    With weights that are all positive, a pixel of the input changes all that see it.
    """
    length, config = 384, RunConfig(model=model)
    network, params, stats = build_network(config, mean=0.0, std=1.0)
    params = jax.tree.map(
        lambda x: jnp.full_like(x, 1 / max(1, x[..., 0].size)) if x.ndim > 1 else x * 0 + 1, params
    )

    @jax.jit
    def outputs(x: Any) -> tuple[Any, Any]:
        output = network.apply(params, stats, train=False)[0](x, None)
        classes = (
            output.logits if output.class_logits is None else output.class_logits.repeat(16, 1).repeat(16, 2)
        )
        return output.logits, classes

    for place in (192, 207):
        image = np.ones((1, length, length, 3), np.float32)
        before = outputs(image.copy())
        # So large that what is left of it at the border of the field is not lost in rounding.
        image[0, place, place] = 1e30
        changed = [np.any(a != b, axis=(0, 2, 3)) for a, b in zip(before, outputs(image), strict=True)]
        seen = np.flatnonzero(np.logical_or(*changed))
        assert 60 < max(place - seen[0], seen[-1] - place) <= model.halo_px < 192
    assert model.halo_px % 16 == 0


@pytest.mark.parametrize(
    ("model", "task", "downscale"),
    [
        (ConvAutoencoderConfig(base_channels=1, bottleneck_channels=1), "reconstruction", 1),
        (UNet3PlusConfig(base_channels=1, deep_supervision=False), "segmentation", 1),
        (CustomUNetConfig(base_channels=1), "segmentation", 2),
    ],
    ids=lambda one: getattr(one, "name", one),
)
def test_tiles_give_the_map_of_the_whole_image(model: ModelConfig, task: str, downscale: int) -> None:
    """Would catch: a tile at the wrong place, a halo cut off at a border that is not the image's, a last tile beyond
    it; a guided module or a score that knows its own tile alone; a halo of the network's pixels, not the image's."""
    config = RunConfig(model=model, task=TASKS[task], slicing=SlicingConfig(downscale=downscale))
    network, params, stats = made(config)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 384, 384 + 128 * downscale), dtype=np.uint8)
    # Contrast that changes over the image, so that tiles differ.
    image[:, :, 300:] //= 3
    mask = image > 250
    pixels = (image, mask, mask.sum((1, 2)), np.array([[380, 500]], np.int32))
    halo_px = make_tiling(config, image.shape[1:], [image.shape[1:]]).halo_px
    whole, tiled = (
        jax.device_get(
            jax.jit(make_whole_step(network, config.task, (384, 64), False, tile, halo_px))(
                params, stats, *pixels
            )
        )
        for tile in (None, 128)
    )
    assert np.ptp(whole["map"]) > 1e-3
    for name in whole:
        np.testing.assert_allclose(tiled[name], whole[name], rtol=1e-5, atol=1e-5)


def test_a_norm_over_the_image_takes_no_tiles() -> None:
    """Would catch: a map of tiles whose group norms differ, without a word."""
    config = RunConfig(model=CustomUNetConfig(base_channels=1, norm="group"), eval=EvalConfig(max_px=2**15))
    predictor = make_predictor(config, ((128, 128),), 1)
    assert len(list(predictor(pictures([(128, 128)])))) == 1
    with pytest.raises(UserError, match=r"`model.norm` \(=group\) .* 256x256 px .*`eval.max_px` \(=32768\)"):
        list(predictor(pictures([(256, 256)])))


# --- what slices pool ---


def make_slices(shape: Shape, slice_shape: Shape, valid: Any = None) -> Slices:
    empty = jnp.zeros((1, *shape, 1))
    return Slices(
        x=empty,
        mask=empty,
        label=jnp.array([1]),
        place=jnp.array([0]),
        valid=valid,
        slice_shape=slice_shape,
        mean=0.4,
        std=0.1,
    )


def test_a_guided_module_looks_at_the_slice_around_each_place() -> None:
    """Would catch: the highest logit of either class taken over the whole image, where one slice has a defect and all
    others are sure that they have none: the gate would then be shut on the defect."""
    logits = np.tile([4.0, -4.0], (1, 8, 32, 1)).astype(np.float32)
    logits[0, :, 20] = [-6.0, 6.0]
    output = NetworkOutput(jnp.zeros((1, 128, 512, 1)), (), jnp.asarray(logits))
    slices = make_slices((128, 512), (128, 64))
    found = np.asarray(gate(output, slices))[0, :, :, 0]
    assert found.shape == (128, 512)
    # Places whose slice of 5 places holds column 20 see a defect at 6 and none at 4.
    near = slice(18 * 16, 23 * 16)
    np.testing.assert_allclose(found[:, near], 1 / (1 + np.exp(-2.0)), rtol=1e-5)
    assert found[:, : 18 * 16].max() < 1e-3 > found[:, 23 * 16 :].max()
    assert float(guidance_loss(output, slices)[0]) == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-5)
    beyond = jnp.arange(512)[None, None, :, None] < 18 * 16
    hidden = make_slices((128, 512), (128, 64), jnp.broadcast_to(beyond, (1, 128, 512, 1)))
    assert float(guidance_loss(output, hidden)[0]) > 7
    assert defect_logits(output, make_slices((128, 512), (128, 512)))[0].shape == (1, 1, 1, 1)
    # The mirror image of a padded one ends within a place.
    mirrored = make_slices(
        (128, 512), (128, 64), (jnp.arange(512) >= 502)[None, None, :, None].repeat(128, 1)
    )
    assert defect_logits(output, mirrored)[1][0, 0, :, 0].tolist() == [False] * 31 + [True]


def test_one_slice_with_a_defect_decides_on_a_large_image() -> None:
    """Would catch: a defect that is found in a slice and drowns in the mean over a large image."""
    task: Any = TASKS["classification"]
    logits = np.full((1, 64, 64, 1), -6.0, np.float32)
    logits[0, 20:30, 20:30] = 5.0
    slice_ = float(task.pool(jnp.asarray(logits), make_slices((64, 64), (64, 64)))[0])
    image = np.full((1, 1024, 1024, 1), -6.0, np.float32)
    image[0, :64, :64] = logits[0]
    whole = float(task.pool(jnp.asarray(image), make_slices((1024, 1024), (64, 64)))[0])
    assert slice_ > 3 and whole == pytest.approx(slice_, abs=1e-3)
    assert float(task.pool(jnp.asarray(image[:, 64:]), make_slices((960, 1024), (64, 64)))[0]) < -4.8


def test_flips_are_the_mean_over_mirror_images() -> None:
    """Would catch: a map that is not turned back, a view left out, a mask that stays behind."""
    config = RunConfig(model=CustomUNetConfig(base_channels=1))
    network, params, stats = made(config)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 32, 48), dtype=np.uint8)
    pixels = (np.zeros(image.shape, bool), np.zeros(1, np.int32))
    plain = jax.jit(make_whole_step(network, config.task, (32, 16)))
    views = []
    for dims in ((), (1,), (2,), (1, 2)):
        views.append(np.flip(plain(params, stats, np.flip(image, dims), *pixels)["map"], dims))
    assert np.abs(views[0] - views[1]).max() > 1e-3
    flipped = jax.jit(make_whole_step(network, config.task, (32, 16), flips=True))
    np.testing.assert_allclose(
        flipped(params, stats, image, *pixels)["map"], np.mean(views, axis=0), atol=1e-6
    )

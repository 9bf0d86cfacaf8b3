"""The three tasks with networks that are plain functions: what each learns from, and what its map and score say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from dagm_jax.errors import UserError
from dagm_jax.tasks.base import Slices, guidance_loss, mean_over_outputs
from dagm_jax.tasks.classification import ClassificationConfig
from dagm_jax.tasks.losses import binary_cross_entropy, focal, soft_dice, soft_iou, ssim
from dagm_jax.tasks.reconstruction import ReconstructionConfig, checkerboard, draw_stain
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.types import NetworkOutput

B, H, W = 3, 64, 48
MEAN, STD = 0.4, 0.1
KEY = jax.random.key(0)


def make_slices(channels: int = 3, seed: int = 0) -> Slices:
    """Three slices of noise: one with a defect, one without, one with too little of it."""
    rng = np.random.default_rng(seed)
    x = np.repeat(rng.normal(size=(B, H, W, 1)), channels, axis=-1).astype(np.float32)
    mask = np.zeros((B, H, W, 1), np.uint8)
    mask[0, 10:40, 5:30] = 1
    mask[2, 0, 0] = 1
    label = np.array([1, 0, -1], np.int32)
    place = jnp.arange(len(x))
    return Slices(
        x=jnp.asarray(x),
        mask=jnp.asarray(mask),
        label=jnp.asarray(label),
        place=place,
        valid=None,
        slice_shape=(H, W),
        mean=MEAN,
        std=STD,
    )


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sigmoid(z: Any) -> np.ndarray:
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def saying(output: NetworkOutput) -> Callable[[Any, Any], NetworkOutput]:
    """A network that says the same of everything."""
    return lambda x, key: output


def identity(x: Any, key: Any) -> NetworkOutput:
    return NetworkOutput(x)


# --- what networks with several outputs share ---


def test_guidance_loss_by_hand() -> None:
    """Would catch: classes that are exchanged, and slices of label -1 that count as the last class."""
    class_logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]]))[:, None, None, :]
    output = NetworkOutput(jnp.zeros((3, H, W, 1)), (), class_logits)
    got = guidance_loss(output, make_slices())
    np.testing.assert_allclose(got, [math.log(4 / 3), math.log(4), 0], rtol=1e-6)
    np.testing.assert_array_equal(guidance_loss(NetworkOutput(output.logits), make_slices()), 0)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(
    "task",
    [
        SegmentationConfig(1.0, 1.0, 1.0, 1.0, 1.0),
        ClassificationConfig(),
        ReconstructionConfig(corruption="none"),
        ReconstructionConfig(),
    ],
    ids=["segmentation", "classification", "reconstruction", "hidden cells"],
)
def test_what_lies_beyond_an_image_counts_nowhere(task: Any, guided: bool) -> None:
    """Would catch: pixels of the padding in a loss of training or validation, a score, a decision, the map inside."""
    inside = np.zeros((B, H, W, 1), bool)
    inside[0, :40, :30], inside[1, :, :16], inside[2] = True, True, True
    slices = make_slices() | {"valid": jnp.asarray(inside), "slice_shape": (32, 32)}
    found, losses = [], []
    for seed in (1, 2):
        # Higher than the logits inside, and another height each time.
        junk = 2 * seed + noise(B, H, W, 1, seed=seed)
        mask = np.where(inside, slices["mask"], junk > 0).astype(np.uint8)
        logits = np.where(inside, noise(B, H, W, 1), junk)
        classes = np.where(inside[:, ::16, ::16], noise(B, H // 16, W // 16, 2), noise(B, 4, 3, 2, seed=seed))
        output = NetworkOutput(jnp.asarray(logits), (), jnp.asarray(classes) if guided else None)
        seen = Slices(**{**slices, "mask": jnp.asarray(mask)})
        found.append(task.predict(saying(output), seen))
        losses.append((*found[-1].loss_output, *task.loss(saying(output), seen, KEY)))
    first, second = found
    for a, b in zip(*losses, strict=True):
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-5)
    np.testing.assert_allclose(first.score, second.score, rtol=1e-6)
    np.testing.assert_allclose(first.map[inside], second.map[inside], atol=1e-6)


def test_the_loss_is_the_mean_over_all_supervised_stages() -> None:
    """Would catch: side outputs without a loss, and a sum, which makes the loss five times that of one stage."""
    stages = [jnp.full((2, 4, 4, 1), value) for value in (1.0, 2.0, 6.0)]
    got = mean_over_outputs(NetworkOutput(stages[0], tuple(stages[1:])), lambda z: z.mean((1, 2, 3)))
    np.testing.assert_allclose(got, [3, 3])


# --- segmentation ---

TERMS = {
    "bce": binary_cross_entropy,
    "dice": soft_dice,
    "focal": focal,
    "ssim": lambda z, t: 1 - ssim(jax.nn.sigmoid(z), t, 1.0),
    "iou": soft_iou,
}


def test_segmentation_weighs_its_terms() -> None:
    """Would catch: weights that are exchanged or unused, and a mask of integers that is not converted."""
    slices, logits = make_slices(), jnp.asarray(noise(B, H, W, 1))
    targets = slices["mask"].astype(jnp.float32)
    weights = dict(zip(TERMS, (0.5, 3.0, 7.0, 11.0, 13.0), strict=True))
    task = SegmentationConfig(**{f"{name}_weight": weight for name, weight in weights.items()})

    @jax.jit
    def loss(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss_output = task.loss(saying(NetworkOutput(logits)), slices, KEY)
        return loss_output.loss, loss_output.weight

    loss, weight_of_slices = loss(logits)
    expected = sum(
        weight * np.asarray(jax.jit(TERMS[name])(logits, targets)) for name, weight in weights.items()
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(weight_of_slices, 1)


@pytest.mark.parametrize("task", [SegmentationConfig(), ClassificationConfig()])
def test_side_outputs_and_the_guided_module_are_trained(task: Any) -> None:
    """Would catch: deep supervision or guidance that a task leaves out: their parameters would never move."""
    slices = make_slices()
    stages = [jnp.asarray(noise(B, H, W, 1, seed=k)) for k in range(3)]
    alone = [np.asarray(task.loss(saying(NetworkOutput(z)), slices, KEY).loss) for z in stages]
    output = NetworkOutput(stages[0], tuple(stages[1:]), jnp.asarray(noise(B, H // 16, W // 16, 2)))
    expected = sum(alone) / 3 + np.asarray(guidance_loss(output, slices))
    np.testing.assert_allclose(task.loss(saying(output), slices, KEY).loss, expected, rtol=1e-5)


def test_segmentation_map_score_and_decision() -> None:
    """Would catch: a map of logits, one that is not gated, a decision by the mean where one defect pixel must do."""
    logits = np.full((B, H, W, 1), -1.0, np.float32)
    logits[1, 2, 3] = 0.01
    prediction = SegmentationConfig().predict(saying(NetworkOutput(jnp.asarray(logits))), make_slices())
    np.testing.assert_allclose(prediction.map, sigmoid(logits), rtol=1e-5)
    np.testing.assert_allclose(prediction.score, sigmoid(logits).max((1, 2, 3)), rtol=1e-5)
    assert np.asarray(prediction.loss_output.is_defective).tolist() == [False, True, False]
    classes = jnp.log(jnp.array([[1.0, 3.0], [3.0, 1.0], [1.0, 3.0]]))[:, None, None, :]
    guided = NetworkOutput(jnp.asarray(logits), (), classes)
    prediction = SegmentationConfig().predict(saying(guided), make_slices())
    closed = sigmoid(logits) * np.array([0.75, 0.25, 0.75])[:, None, None, None]
    np.testing.assert_allclose(prediction.map, closed, rtol=1e-5)
    assert not np.asarray(prediction.loss_output.is_defective).any()


# --- classification ---


def test_pooling_lies_between_mean_and_maximum() -> None:
    """Would catch: a sum instead of a mean (the logit would grow with the slice), a sharpness the wrong way round."""
    evidence = jnp.asarray(noise(B, H, W, 1))
    slices, even = make_slices(), jnp.full((B, H, W, 1), -3.25)
    np.testing.assert_allclose(ClassificationConfig().pool(even, slices), -3.25, rtol=1e-6)
    by_hand = np.log(np.exp(5 * np.asarray(evidence, np.float64)).mean((1, 2, 3))) / 5
    np.testing.assert_allclose(ClassificationConfig().pool(evidence, slices), by_hand, rtol=1e-5)
    soft, sharp = (ClassificationConfig(pooling_sharpness=r).pool(evidence, slices) for r in (1e-3, 1e3))
    np.testing.assert_allclose(soft, evidence.mean((1, 2, 3)), atol=1e-2)
    np.testing.assert_allclose(sharp, evidence.max((1, 2, 3)), atol=1e-2)


def test_classification_learns_from_labels_that_count() -> None:
    """Would catch: slices of label -1 in the loss, labels that are exchanged, and a loss that looks at masks."""
    slices, evidence = make_slices(), jnp.asarray(noise(B, H, W, 1))
    task = ClassificationConfig()
    loss_output = task.loss(saying(NetworkOutput(evidence)), slices, KEY)
    p = sigmoid(task.pool(evidence, slices))
    np.testing.assert_allclose(loss_output.loss[:2], [-np.log(p[0]), -np.log(1 - p[1])], rtol=1e-5)
    np.testing.assert_array_equal(loss_output.weight, [1, 1, 0])
    unmasked = task.loss(
        saying(NetworkOutput(evidence)), Slices(**{**slices, "mask": 1 - slices["mask"]}), KEY
    )
    np.testing.assert_array_equal(unmasked.loss, loss_output.loss)


def test_classification_score_is_the_slice_probability() -> None:
    """Would catch: a score by the map's maximum, and a map that shows no place."""
    evidence = np.full((B, H, W, 1), -2.0, np.float32)
    evidence[0, 5, 7] = 30.0
    task = ClassificationConfig()
    prediction = task.predict(saying(NetworkOutput(jnp.asarray(evidence))), make_slices())
    p = sigmoid(task.pool(jnp.asarray(evidence), make_slices()))
    np.testing.assert_allclose(prediction.score, p, rtol=1e-5)
    np.testing.assert_allclose(prediction.map, p[:, None, None, None] * sigmoid(evidence), rtol=1e-5)
    assert np.asarray(prediction.loss_output.is_defective).tolist() == [True, False, False]
    classes = jnp.log(jnp.array([[3.0, 1.0], [1.0, 3.0], [1.0, 3.0]]))[:, None, None, :]
    guided = NetworkOutput(jnp.asarray(evidence), (), classes)
    gated = task.predict(saying(guided), make_slices())
    np.testing.assert_allclose(gated.score, p * [0.25, 0.75, 0.75], rtol=1e-5)
    assert not np.asarray(gated.loss_output.is_defective).any()
    assert np.unravel_index(np.argmax(prediction.map[0]), (H, W)) == (5, 7)


# --- reconstruction ---


def test_the_checkerboard_hides_cells_and_moves() -> None:
    """Would catch: cells of another size, a board that hides more than half, and an offset along one axis alone."""
    board = np.asarray(checkerboard((64, 48), 16, jnp.array([0, 0])))[..., 0]
    assert board.shape == (64, 48)
    for i in range(4):
        for j in range(3):
            cell = board[16 * i : 16 * (i + 1), 16 * j : 16 * (j + 1)]
            assert cell.all() == cell.any() == ((i + j) % 2 == 0)
    moved = np.asarray(checkerboard((64, 48), 16, jnp.array([5, 3])))[..., 0]
    np.testing.assert_array_equal(moved[: 64 - 5, : 48 - 3], board[5:, 3:])


def test_hidden_cells_are_grey_and_count_most() -> None:
    """Would catch: a mask that leaks the input, weights on the wrong pixels, one offset for all slices of a batch."""
    slices, task = make_slices(), ReconstructionConfig(visible_weight=0.25)
    x, weight = (np.asarray(a) for a in task.corrupt(slices["x"], KEY, slices["place"]))
    hidden = weight[..., 0] == 1
    assert set(np.unique(weight)) == {0.25, 1.0}
    assert (x[hidden] == 0).all()
    np.testing.assert_array_equal(x[~hidden], np.asarray(slices["x"])[~hidden])
    assert any(np.any(hidden[0] != hidden[k]) for k in (1, 2))
    again = task.corrupt(slices["x"], KEY, slices["place"])
    np.testing.assert_array_equal(again[0], x)
    other = task.corrupt(slices["x"], jax.random.key(1), slices["place"])
    assert np.any(np.asarray(other[0]) != x)


def test_two_passes_hide_every_pixel_once() -> None:
    """Would catch: passes that hide the same cells, and a drawing taken from the pass that saw the pixel.

    The identity then draws nothing but the mean grey, whatever the slice: nothing seen is passed through.
    """
    slices, task = make_slices(), ReconstructionConfig(dssim_weight=0.0)
    seen: list[np.ndarray] = []

    def watched(x: Any, key: Any) -> NetworkOutput:
        seen.append(np.asarray(x))
        return NetworkOutput(x)

    prediction = task.predict(watched, slices)
    assert len(seen) == 2
    shown = [(s == np.asarray(slices["x"])).all(-1) for s in seen]
    np.testing.assert_array_equal(shown[0], ~shown[1])
    np.testing.assert_allclose(prediction.loss_output.loss, np.abs(slices["x"]).mean((1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("corruption", ["none", "gaussian", "stain"])
def test_the_identity_redraws_everything_without_a_mask(corruption: Any) -> None:
    """Would catch: a corruption that stays on in prediction: what was put there would be found as a defect."""
    prediction = ReconstructionConfig(corruption=corruption).predict(identity, make_slices())
    np.testing.assert_allclose(prediction.map, 0, atol=1e-6)
    np.testing.assert_allclose(prediction.loss_output.loss, 0, atol=1e-5)
    assert prediction.loss_output.is_defective is None


def test_the_map_is_dssim_in_grey_levels() -> None:
    """Would catch: a similarity of standardised values, an inverted map, and channels that do not share one grey."""
    slices, drawn = make_slices(), noise(B, H, W, 3, seed=5)
    prediction = ReconstructionConfig(corruption="none").predict(
        saying(NetworkOutput(jnp.asarray(drawn))), slices
    )
    for k in range(B):
        a = MEAN + STD * drawn[k].mean(-1)
        b = MEAN + STD * np.asarray(slices["x"])[k, ..., 0]
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        _, similarity = structural_similarity(a, b, full=True, **options)
        np.testing.assert_allclose(prediction.map[k, ..., 0], (1 - similarity) / 2, atol=2e-5)
        assert prediction.score[k] == pytest.approx(((1 - similarity) / 2).max(), abs=2e-5)


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("mse", 2)])
def test_reconstruction_loss_by_hand(kind: Any, power: int) -> None:
    """Would catch: weights that do not add up to one, a loss against the corrupted slice, and l1 for mse."""
    slices = make_slices()
    task = ReconstructionConfig(pixel_loss=kind, pixel_weight=2.0, dssim_weight=0.0, visible_weight=0.25)
    _, weight = task.corrupt(slices["x"], jax.random.split(KEY)[0], slices["place"])
    drawn = noise(B, H, W, 3, seed=5)
    loss_output = task.loss(saying(NetworkOutput(jnp.asarray(drawn))), slices, KEY)
    error = np.abs(drawn.mean(-1) - np.asarray(slices["x"])[..., 0]) ** power
    w = np.asarray(weight)[..., 0]
    np.testing.assert_allclose(loss_output.loss, 2 * (error * w).sum((1, 2)) / w.sum((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(loss_output.weight, 1)


def test_reconstruction_never_looks_at_masks_or_labels() -> None:
    """Would catch: a task for defect-free images that learns from what it may not know."""
    slices, task = make_slices(), ReconstructionConfig()
    blind = Slices(**{**slices, "mask": 1 - slices["mask"], "label": -slices["label"]})
    first, second = (task.loss(identity, s, KEY).loss for s in (slices, blind))
    np.testing.assert_array_equal(first, second)
    first, second = (task.predict(identity, s).map for s in (slices, blind))
    np.testing.assert_array_equal(first, second)


def test_stains_are_single_grey_ellipses() -> None:
    """Would catch: a stain that covers everything or nothing, and channels that differ."""
    slices = make_slices()
    x, weight = ReconstructionConfig(corruption="stain").corrupt(slices["x"], KEY, slices["place"])
    changed = np.asarray(x != slices["x"])
    np.testing.assert_array_equal(changed.all(-1), changed.any(-1))
    np.testing.assert_array_equal(weight, 1)
    sizes = []
    for k in range(40):
        inside, _ = draw_stain((512, 64), jax.random.key(k))
        sizes.append(int(np.asarray(inside).sum()))
    # Half an ellipse of the smallest size at a border, and the largest whole.
    assert max(sizes) <= math.pi * 32 * 32 * 1.02
    assert np.median(sizes) >= math.pi * 4 * 4 / 2
    for k in range(B):
        assert len(np.unique(np.asarray(x)[k][changed[k]])) <= 1


def test_noise_has_the_given_spread_and_one_grey() -> None:
    """Would catch: independent noise in the channels, which a network would average away, and another spread."""
    x = jnp.zeros((2, 256, 64, 3))
    noisy, weight = ReconstructionConfig(corruption="gaussian", noise_std=0.3).corrupt(
        x, KEY, jnp.arange(len(x))
    )
    np.testing.assert_array_equal(noisy[..., 0], noisy[..., 2])
    assert float(noisy.std()) == pytest.approx(0.3, rel=0.02)
    np.testing.assert_array_equal(weight, 1)
    assert np.any(np.asarray(noisy[0] != noisy[1]))


@pytest.mark.parametrize(
    ("kind", "values", "match"),
    [
        (SegmentationConfig, {"bce_weight": -1.0}, r"`task\.bce_weight` \(=-1\.0\) must be at least 0"),
        (SegmentationConfig, {"class_weight": math.inf}, r"`task\.class_weight` \(=inf\)"),
        (SegmentationConfig, {"bce_weight": 0.0, "dice_weight": 0.0}, "must not all be 0"),
        (ClassificationConfig, {"pooling_sharpness": 0.0}, r"`task\.pooling_sharpness` .* greater than 0"),
        (ClassificationConfig, {"pooling_sharpness": math.nan}, r"`task\.pooling_sharpness` \(=nan\)"),
        (ReconstructionConfig, {"corruption": "masks"}, r"must be one of .*did you mean mask\?"),
        (ReconstructionConfig, {"cell_px": 0}, r"`task\.cell_px` \(=0\)"),
        (ReconstructionConfig, {"noise_std": math.nan}, r"`task\.noise_std` \(=nan\)"),
        (ReconstructionConfig, {"pixel_weight": 0.0, "dssim_weight": 0.0}, "must not both be 0"),
    ],
)
def test_a_task_of_no_sense_is_refused(kind: Any, values: dict[str, Any], match: str) -> None:
    """Would catch: a loss that rewards mistakes or is nothing at all, and pooling by a division by zero."""
    with pytest.raises(UserError, match=match):
        kind(**values)


@pytest.mark.parametrize("task", [SegmentationConfig(), ReconstructionConfig(), ClassificationConfig()])
def test_every_example_is_predicted_for_itself(task: Any) -> None:
    """Would catch: a statistic over the batch in a loss or a map: results would depend on the neighbours."""
    slices = make_slices()
    one = Slices(**{**slices, **{name: slices[name][1:2] for name in ("x", "mask", "label", "place")}})

    def mean_channel(x: Any, key: Any) -> NetworkOutput:
        return NetworkOutput(x[..., : task.out_channels])

    together, alone = (task.predict(mean_channel, s) for s in (slices, one))
    np.testing.assert_allclose(together.map[1:2], alone.map, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together.loss_output.loss[1:2], alone.loss_output.loss, rtol=1e-5, atol=1e-6)

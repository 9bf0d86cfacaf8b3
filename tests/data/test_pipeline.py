"""Tests of the training stream: the same for every way to run it, half of it defect, and from training images only."""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
from absl import flags
from PIL import Image

from dagm_jax.data.cache import ImageCache, build_cache
from dagm_jax.data.config import AugmentConfig, DataConfig, SlicingConfig
from dagm_jax.data.pipeline import iterate, make_training_stream
from dagm_jax.data.slicing import make_slicer, slice_labels
from dagm_jax.data.split import split_samples
from dagm_jax.errors import UserError
from dagm_jax.types import Manifest, Sample

SIZE_PX = 64
# zlib.crc32 of the first slices' pixels.
PINNED = [3158974738, 3554714743, 489074125, 1411635924, 641019561]
PINNED += [1127904636, 837543695, 2997929757, 4020482924, 329806830]
NUM_DEFECTIVE, NUM_GOOD = 10, 14
DEFECTIVE = list(range(NUM_DEFECTIVE))
EVERYTHING = list(range(NUM_DEFECTIVE + NUM_GOOD))
SLICING = SlicingConfig(num_slices=6, slice_px=16)
SLICER = make_slicer(SLICING, SIZE_PX, SIZE_PX)
OFF = AugmentConfig(rotate90=False, flip=False)

Stream = grain.MapDataset


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, ImageCache]:
    """Dark noise with a bright block where the mask is: pixels > 150 are the mask. The first ten are defective."""
    folder = tmp_path_factory.mktemp("images")
    samples = []
    rng = np.random.default_rng(0)
    for k in EVERYTHING:
        image = rng.integers(0, 100, (SIZE_PX, SIZE_PX), np.uint8)
        label = int(k < NUM_DEFECTIVE)
        mask_path = None
        if label:
            row, column = rng.integers(0, SIZE_PX - 14, 2)
            image[row : row + 14, column : column + 11] += 156
            mask_path = folder / f"{k}_label.png"
            Image.fromarray(np.where(image > 150, 255, 0).astype(np.uint8)).save(mask_path)
        Image.fromarray(image).save(folder / f"{k}.png")
        kind: Any = label
        samples.append(Sample(str(k), 1, kind, None, folder / f"{k}.png", mask_path))
    return build_cache(Manifest(tuple(samples), (), "blocks"), folder / "cache", (SIZE_PX, SIZE_PX))


@pytest.fixture(scope="module")
def stream(images: tuple[Manifest, ImageCache]) -> Callable[..., Stream]:
    """``make_training_stream`` on all images, or on those of ``indices``."""

    def make(
        indices: list[int] = EVERYTHING,
        slicing: SlicingConfig = SLICING,
        augment: AugmentConfig = AugmentConfig(),  # noqa: B008
        **options: Any,
    ) -> Stream:
        manifest, cache = images
        by_label = [[i for i in indices if manifest.samples[i].label == label] for label in (1, 0)]
        defaults = dict(batch_size=4, num_batches=12, balance=True, seed=0)
        return make_training_stream(cache, *by_label, slicing, augment, **(defaults | options))

    return make


def bright(batch: Any) -> np.ndarray:
    """The pixels of the mask as the images show them."""
    return np.asarray((batch["image"] > 150) & batch.get("inside", True))


def check_equal(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key])


def facts(batches: Any) -> list[tuple[int, int]]:
    """(image_index, label) of every slice in order."""
    return [
        pair for b in batches for pair in zip(b["image_index"].tolist(), b["label"].tolist(), strict=True)
    ]


def checksums(batches: Any) -> list[int]:
    """Of the pixels of every slice, in order."""
    return [zlib.crc32(image.tobytes()) for batch in batches for image in batch["image"]]


# --- the same stream, however it is run ---


def test_a_batch_has_the_declared_types(stream: Callable[..., Stream]) -> None:
    """Would catch: float images (four times the transfer), a mask in 0…255, labels in int64."""
    batch = stream()[0]
    described = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert described == {
        "image": ("uint8", (4, 64, 16, 1)),
        "mask": ("uint8", (4, 64, 16, 1)),
        "label": ("int32", (4,)),
        "valid": ("bool", (4,)),
        "image_index": ("int32", (4,)),
    }
    assert batch["valid"].all()
    assert batch["mask"].max() == 1
    assert len(stream()) == 12


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("balance", [True, False])
def test_blocks_of_several_processes_are_the_batch_in_its_order(
    stream: Callable[..., Stream], count: int, balance: bool
) -> None:
    """Would catch: slices that two processes draw both, or that stand elsewhere in the batch than in a job of one."""
    whole = stream(batch_size=8, num_batches=5, balance=balance)
    parts = [
        stream(batch_size=8, num_batches=5, balance=balance, part=(index, count)) for index in range(count)
    ]
    assert [len(part) for part in parts] == [5] * count
    for step in range(5):
        blocks = [part[step] for part in parts]
        check_equal(
            {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}, whole[step]
        )


@pytest.mark.parametrize(("start", "balance"), [(0, True), (5, False), (11, True)])
def test_the_rest_of_the_stream_resumes_it(stream: Callable[..., Stream], start: int, balance: bool) -> None:
    """Would catch: a restart that begins the stream anew, or draws other moves for the batches that are left; a batch
    that depends on what was asked before."""
    whole = list(stream(balance=balance))
    rest = list(iterate(stream(balance=balance), start, num_workers=0))
    assert len(rest) == 12 - start
    for a, b in zip(rest, whole[start:], strict=True):
        check_equal(a, b)
    check_equal(stream(balance=balance)[start:][0], whole[start])
    views = {one.tobytes() for batch in stream([0], balance=False) for one in batch["image"]}
    assert len(views) > 20, "48 draws of 8 moves x 6 strips each"


@pytest.mark.parametrize("balance", [True, False])
def test_a_longer_run_begins_with_the_batches_of_a_shorter_one(
    stream: Callable[..., Stream], balance: bool
) -> None:
    """Would catch: an order of images that depends on how many steps are planned: no run could become longer."""
    short, long = (stream(num_batches=number, balance=balance) for number in (9, 40))
    for step in range(9):
        check_equal(short[step], long[step])


@pytest.fixture
def parsed_flags() -> Iterator[None]:
    """absl's flags as they are in the main job, where grain reads one of its own."""
    was_parsed = flags.FLAGS.is_parsed()
    flags.FLAGS.mark_as_parsed()
    yield
    if not was_parsed:
        flags.FLAGS.unparse_flags()


@pytest.mark.usefixtures("parsed_flags")
def test_worker_processes_give_the_same_batches(stream: Callable[..., Stream]) -> None:
    """Would catch: a stream that depends on the number of workers: a run could not be resumed on another machine."""
    expected = list(stream(num_batches=5))
    iterator = iterate(stream(num_batches=5), 1, num_workers=2)
    try:
        for step in range(1, 5):
            check_equal(next(iterator), expected[step])
    finally:
        iterator.close()


def test_the_first_slices_are_pinned(stream: Callable[..., Stream]) -> None:
    """Would catch: a change of grain or of the sampling, of turns, flips or strips, after which a seed no longer gives
    the run it gave.

    To regenerate after a change on purpose: print(facts(stream())[:10], checksums(stream())[:10]).
    """
    pinned = [(4, 1), (1, 0), (6, 1), (21, 0), (2, 1), (7, 0), (7, 1), (17, 0), (3, 1), (16, 0)]
    assert facts(stream())[:10] == pinned
    assert checksums(stream())[:10] == PINNED


# --- what is drawn ---


@pytest.mark.parametrize(("batch_size", "augment"), [(2, AugmentConfig()), (8, AugmentConfig()), (4, OFF)])
def test_half_of_every_batch_is_positive(
    stream: Callable[..., Stream], batch_size: int, augment: AugmentConfig
) -> None:
    """Would catch: half of the *images* defective (a sixth of the slices), or half on average only; balance that is not
    read: 10 of 24 images have about 2 of 6 strips positive, near 1 in 7."""
    for batch in stream(batch_size=batch_size, augment=augment):
        assert (batch["label"] == 1).sum() == batch_size // 2
    labels = [label for _, label in facts(stream(balance=False, num_batches=60))]
    assert 0.05 < labels.count(1) / len(labels) < 0.3


@pytest.mark.parametrize("mode", ["strips", "two_orientations", "tiles"])
def test_labels_images_and_masks_belong_together(
    stream: Callable[..., Stream], images: tuple[Manifest, ImageCache], mode: Any
) -> None:
    """Would catch: an unmoved mask, a label of the slice before the move, an index of another image; sums of one image
    kept for another."""
    seen = Counter[int]()
    for balance in (True, False):
        for batch in stream(slicing=SlicingConfig(mode, 12, 16, 16), balance=balance, num_batches=15):
            np.testing.assert_array_equal(batch["mask"] == 1, bright(batch))
            held = batch["mask"].sum(axis=(1, 2, 3))
            whole = np.array([np.count_nonzero(images[1][int(i)][1]) for i in batch["image_index"]])
            assert batch["label"].tolist() == slice_labels(held, whole).tolist()
            assert all(held[batch["label"] == 1] > 0)
            assert all(held[batch["label"] == 0] == 0)
            assert all(held[batch["label"] == -1] > 0)
            seen.update(batch["label"].tolist())
    assert seen[1] and seen[0] and seen[-1]
    for i in EVERYTHING:
        sums, (_, mask) = images[1].mask_sums(i), images[1][i]
        np.testing.assert_array_equal(sums.down, mask.sum(0))
        np.testing.assert_array_equal(sums.across, mask.sum(1))
        assert sums.total == mask.sum()


def test_every_positive_strip_of_a_view_can_be_drawn(
    stream: Callable[..., Stream], images: tuple[Manifest, ImageCache]
) -> None:
    """Would catch: always the first fitting strip, so that defects stand at one place within the slice."""
    mask = images[1][0][1][:, :, None]
    labels = slice_labels(SLICER.held(mask[:, :, 0]), mask.sum())
    possible = {SLICER.cut_one(mask, k).tobytes() for k in np.flatnonzero(labels == 1)}
    assert len(possible) > 1
    drawn = {
        slice_.astype(bool).tobytes()
        for batch in stream([0], augment=OFF)
        for slice_, label in zip(batch["mask"], batch["label"], strict=True)
        if label == 1
    }
    assert drawn == possible


def test_all_images_occur_once_an_epoch(stream: Callable[..., Stream]) -> None:
    """Would catch: sampling with replacement, images that never occur, good slices from good images only."""
    drawn = facts(stream(num_batches=24))
    positive = [index for index, label in drawn if label == 1]
    other = [index for index, label in drawn if label != 1]
    assert len(positive) == len(other) == 48
    for epoch in range(4):
        assert sorted(positive[10 * epoch :][:10]) == DEFECTIVE
    for epoch in range(2):
        assert sorted(other[24 * epoch :][:24]) == EVERYTHING
    # Each epoch in an order of its own.
    assert len({tuple(positive[10 * epoch :][:10]) for epoch in range(4)}) == 4
    assert other[:24] != other[24:]
    unbalanced = [index for index, _ in facts(stream(num_batches=12, balance=False))]
    assert sorted(unbalanced[:24]) == sorted(unbalanced[24:]) == EVERYTHING
    assert unbalanced[:24] != unbalanced[24:]


def test_a_mask_without_a_fitting_strip_still_gives_a_slice(
    images: tuple[Manifest, ImageCache], tmp_path: Path
) -> None:
    """Would catch: a crash of step 317 when a defect touches every strip, so that no other slice is left."""
    Image.fromarray(np.full((64, 64), 7, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "a_label.png")
    sample = Sample("a", 1, 1, None, tmp_path / "a.png", tmp_path / "a_label.png")
    _, cache = build_cache(Manifest((sample,), (), ""), tmp_path / "cache", (64, 64))
    made = make_training_stream(
        cache, [0], [], SLICING, AugmentConfig(), batch_size=2, num_batches=3, balance=True, seed=0
    )
    for batch in made:
        assert batch["label"].tolist() == [1, 1]
        assert batch["mask"].all()


def test_half_a_batch_of_defects_needs_some(stream: Callable[..., Stream]) -> None:
    """Would catch: a division by zero, and good images alone refused where nothing asks for defects."""
    good = EVERYTHING[NUM_DEFECTIVE:]
    with pytest.raises(
        UserError, match=r"`train\.balance` \(=True\) needs defective images in the train split"
    ):
        stream(good)
    batch = stream(good, balance=False)[0]
    assert set(batch["image_index"]) <= set(good)
    assert (batch["label"] == 0).all()


# --- leakage ---


def hashes_of(image: np.ndarray) -> set[bytes]:
    """Content hashes of all slices of all eight views of an image, made without the code's own moves."""
    views = [np.rot90(side, k) for side in (image, np.fliplr(image)) for k in range(4)]
    return {
        hashlib.sha256(np.ascontiguousarray(view[:, edge : edge + 16])).digest()
        for view in views
        for edge in SLICER.vertical_edges
    }


@pytest.mark.parametrize("balance", [True, False])
def test_no_validation_or_test_image_reaches_training(
    stream: Callable[..., Stream], images: tuple[Manifest, ImageCache], balance: bool
) -> None:
    """Would catch: a leak, by index and by content: a slice of a held-out image in any batch, however it is turned."""
    manifest, cache = images
    split = split_samples(manifest.samples, "random80_20", 0.15, 0)
    held_out = {h for i in split.validation + split.test for h in hashes_of(cache[i][0])}
    trained = {i: hashes_of(cache[i][0]) for i in split.train}
    assert not held_out & set().union(*trained.values())
    seen = set()
    for batch in stream(list(split.train), num_batches=20, balance=balance):
        for index, image in zip(batch["image_index"].tolist(), batch["image"], strict=True):
            content = hashlib.sha256(image).digest()
            assert content not in held_out
            assert content in trained[index]
            seen.add(index)
    assert seen == set(split.train)


# --- wiring ---


AUGMENTS = [
    AugmentConfig(rotate90=False),
    AugmentConfig(flip=False),
    AugmentConfig(max_angle_deg=20),
    AugmentConfig(max_shift_px=5),
]


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"balance": False}, *({"augment": a} for a in AUGMENTS)], ids=str
)
def test_every_option_of_the_stream_is_read(stream: Callable[..., Stream], changes: dict[str, Any]) -> None:
    """Would catch: the seed, the balance or an option of augment that changes nothing."""
    plain = stream()
    assert any((plain[step]["image"] != stream(**changes)[step]["image"]).any() for step in range(4))


@pytest.mark.parametrize("augment", [AUGMENTS[0], AUGMENTS[2]])
def test_an_experiment_hands_its_configuration_to_the_stream(
    images: tuple[Manifest, ImageCache], augment: AugmentConfig
) -> None:
    """Would catch: a stream over the whole manifest, or one that gets defaults in the place of `augment`, the seed, the
    batch size or the balance; all of it looks right to a run that is compared with itself."""
    from dagm_jax.config import RunConfig
    from dagm_jax.distributed.devices import make_devices
    from dagm_jax.experiment.data import Data
    from dagm_jax.experiment.setup import Setup
    from dagm_jax.train.stopping import TrainConfig

    manifest, cache = images
    split = split_samples(manifest.samples, "random80_20", 0.15, 0)
    for seed, balance, share in ((0, True, 0.5), (3, False, 0.0)):
        train = TrainConfig(batch_size=8, num_steps=12, balance=balance)
        config = RunConfig(train=train, augment=augment, seed=seed, data=DataConfig(synthetic_share=share))
        data = Data(manifest, cache, "random80_20", split, SLICING, ((SIZE_PX, SIZE_PX),), 50.0, 30.0, seed)
        made = Setup(config, data, make_devices(config.parallel)).stream()
        defective, good = ([i for i in split.train if manifest.samples[i].label == label] for label in (1, 0))
        options: Any = dict(batch_size=8, num_batches=12, balance=balance, seed=seed, synthetic_share=share)
        expected = make_training_stream(cache, defective, good, SLICING, augment, **options)
        assert len(made) == 12
        for step in range(12):
            check_equal(made[step], expected[step])


def test_synthetic_defects_are_drawn_into_slices_of_good_images_alone(stream: Callable[..., Stream]) -> None:
    """Would catch: a real defect that is drawn over, a label without its mask, and a share that draws none or all."""
    num_drawn = num_good = 0
    for plain, half in zip(stream(num_batches=60), stream(num_batches=60, synthetic_share=0.5), strict=True):
        drawn = (plain["image"] != half["image"]).any((1, 2, 3))
        is_good = plain["image_index"] >= NUM_DEFECTIVE
        assert not (drawn & ~is_good).any()
        for name in plain:
            np.testing.assert_array_equal(half[name][~drawn], plain[name][~drawn])
        assert (half["label"][drawn] == 1).all() and half["mask"][drawn].any((1, 2, 3)).all()
        num_drawn, num_good = num_drawn + drawn.sum(), num_good + is_good.sum()
    assert 0.2 < num_drawn / num_good < 0.6


# --- images of many sizes ---


def make_cache(folder: Path, images: list[np.ndarray], masks: list[np.ndarray]) -> ImageCache:
    """A cache of defective images uint8 [h w] with these masks bool [h w]."""
    samples = []
    for k, (image, mask) in enumerate(zip(images, masks, strict=True)):
        Image.fromarray(image).save(folder / f"{k}.png")
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / f"{k}_label.png")
        samples.append(Sample(f"{k}", 1, 1, None, folder / f"{k}.png", folder / f"{k}_label.png"))
    return build_cache(Manifest(tuple(samples), (), "sizes"), folder / "cache", None)[1]


@pytest.mark.parametrize(
    ("slicing", "size"),
    [
        (SlicingConfig(num_slices=6, slice_px=16), (48, 16)),
        (SlicingConfig("tiles", slice_px=32, slice_height_px=32), (32, 32)),
        (SlicingConfig("two_orientations", num_slices=6, slice_px=16), (48, 16)),
        (SlicingConfig("whole"), (48, 48)),
    ],
)
@pytest.mark.parametrize("num", [1, 4])
@pytest.mark.parametrize("augment", [OFF, AugmentConfig(), AugmentConfig(max_angle_deg=10)])
def test_small_images_are_continued_by_their_edge_which_is_told(
    slicing: SlicingConfig, size: tuple[int, int], augment: AugmentConfig, num: int, tmp_path: Path
) -> None:
    """Would catch: mirror images of a part with its defect, and added pixels that the loss takes for the part's own.

    Values of an image differ, so that those of another place, or of one that is there twice, show.
    """
    rng = np.random.default_rng(1)
    shapes = [(40, 24), (16, 20), (33, 48), (48, 48)][:num]
    if num == 1 and slicing.mode == "whole":
        size = 48, 32
    images = [rng.permutation(h * w).reshape(h, w) % 251 for h, w in shapes]
    images = [image.astype(np.uint8) for image in images]
    cache = make_cache(tmp_path, images, [image > 200 for image in images])
    options: Any = dict(batch_size=4, num_batches=20, balance=False, seed=0)
    for batch in make_training_stream(cache, list(range(num)), [], slicing, augment, **options):
        assert batch["inside"].shape == batch["image"].shape == (4, *size, 1)
        marked = batch["mask"] == 1
        assert not marked[~batch["inside"]].any()
        if not augment.max_angle_deg:
            np.testing.assert_array_equal(marked, (batch["image"] > 200) & batch["inside"])
        for image, inside, index in zip(batch["image"], batch["inside"], batch["image_index"], strict=True):
            rows, columns = inside[..., 0].any(1), inside[..., 0].any(0)
            # A rectangle, no larger than the image turned by any angle.
            np.testing.assert_array_equal(inside[..., 0], rows[:, None] & columns[None, :])
            own = sorted(cache.shapes[index])
            assert all(a <= b for a, b in zip(sorted([rows.sum(), columns.sum()]), own, strict=True))
            assert rows.any() and columns.any()
            # Beyond the image each pixel equals its nearest inside.
            near = [
                np.clip(np.arange(n), *np.flatnonzero(some)[[0, -1]])
                for n, some in zip(size, (rows, columns), strict=True)
            ]
            np.testing.assert_array_equal(image[..., 0], image[near[0]][:, near[1], 0])


def test_images_as_large_as_their_slices_tell_nothing_of_what_is_inside(
    stream: Callable[..., Stream],
) -> None:
    """Would catch: a training step on DAGM that computes the mask of added pixels which there are none of."""
    assert "inside" not in stream()[0]


def test_some_tiles_reach_over_the_edge_as_judged_images_are_continued(
    stream: Callable[..., Stream],
) -> None:
    """Would catch: a network that has never seen the edge by which images are continued, and calls it a defect."""
    slicing, shown = SlicingConfig("tiles", slice_px=16, slice_height_px=32), []
    for batch in stream(slicing=slicing, num_batches=60):
        shown += [(one.any((1, 2)).sum(), one.any((0, 2)).sum()) for one in batch["inside"]]
    rows, columns = np.transpose(shown)
    assert 16 <= rows.min() < 24 and 8 <= columns.min() < 15
    assert 0.1 < np.mean((rows < 32) | (columns < 16)) < 0.6


def test_tiles_lie_anywhere_and_hold_the_defect_where_asked(stream: Callable[..., Stream]) -> None:
    """Would catch: tiles on a grid, defects always in a tile's middle, and tiles of another kind than asked for."""
    slicing = SlicingConfig("tiles", slice_px=16, slice_height_px=16)
    middles, labels = set(), []
    for batch in stream(slicing=slicing, num_batches=40):
        np.testing.assert_array_equal(batch["mask"] == 1, bright(batch))
        labels += batch["label"].tolist()
        for mask, label in zip(batch["mask"], batch["label"], strict=True):
            if label == 1:
                middles.add(tuple(np.argwhere(mask[..., 0]).mean(0).round().astype(int)))
    assert set(labels[::2]) == {1} and 1 not in labels[1::2]
    rows, columns = np.array(list(middles)).T
    assert len(middles) > 50 and all(np.ptp(places) >= 9 for places in (rows, columns))


def test_a_quarter_of_the_images_own_mask_makes_a_slice_positive(tmp_path: Path) -> None:
    """Would catch: a quarter of the mask with what is added to it, which a tile with the whole mask does not reach."""
    mask = np.zeros((64, 64), bool)
    mask[20:36, 20:38] = True
    cache = make_cache(tmp_path, [mask.astype(np.uint8) * 127], [mask])
    options: Any = dict(batch_size=4, num_batches=4, balance=True, seed=0)
    slicing = SlicingConfig("tiles", slice_px=128, slice_height_px=128)
    for batch in make_training_stream(cache, [0], [], slicing, OFF, **options):
        assert batch["label"].tolist() == [1] * 4
        assert (batch["mask"].sum(axis=(1, 2, 3)) == mask.sum()).all()

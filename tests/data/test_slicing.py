"""Tests of cutting and stitching: where the slices lie, what comes back, and how slices are labelled."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagm_jax.data.config import SlicingConfig
from dagm_jax.data.sampling import SliceKind
from dagm_jax.data.slicing import (
    Slicer,
    cover_weight,
    edge_weights,
    make_slicer,
    padded_shape,
    random_tile,
    slice_labels,
)
from dagm_jax.errors import UserError

# round(k·448/29) for k = 0…29, worked out by hand.
# fmt: off
EDGES_512 = (
    0, 15, 31, 46, 62, 77, 93, 108, 124, 139, 154, 170, 185, 201, 216,
    232, 247, 263, 278, 294, 309, 324, 340, 355, 371, 386, 402, 417, 433, 448,
)
# fmt: on
NAMESPACES = pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])


def slicer_of(mode: Any, num_slices: int, slice_px: int, height_px: int, width_px: int) -> Slicer:
    return make_slicer(SlicingConfig(mode, num_slices, slice_px), height_px, width_px)


# Every mode that keeps the pixels, a square and an oblong size where the mode allows both.
KEEPING = {
    "strips": slicer_of("strips", 6, 16, 64, 64),
    "strips, oblong": slicer_of("strips", 10, 16, 32, 128),
    "strips, disjoint": slicer_of("strips", 4, 16, 32, 64),
    "two_orientations": slicer_of("two_orientations", 12, 16, 64, 64),
    "whole": slicer_of("whole", 30, 64, 32, 48),
    "tiles": make_slicer(SlicingConfig("tiles", slice_px=16, slice_height_px=32, overlap_px=5), 75, 53),
    "tiles, disjoint": make_slicer(SlicingConfig("tiles", slice_px=32, slice_height_px=16), 64, 64),
    "tiles, one": make_slicer(SlicingConfig("tiles", slice_px=32, slice_height_px=16), 16, 32),
    "tiles, one row": make_slicer(SlicingConfig("tiles", slice_px=32, slice_height_px=16), 16, 70),
}
KEEPERS = pytest.mark.parametrize("slicer", KEEPING.values(), ids=KEEPING)


def pixels(slicer: Slicer, channels: int = 1, seed: int = 0) -> np.ndarray:
    shape = (slicer.height_px, slicer.width_px, channels)
    return np.random.default_rng(seed).random(shape, np.float32)


# --- where the slices lie ---


def test_thirty_strips_of_512_lie_where_the_paper_puts_them() -> None:
    """Would catch: floor instead of round, a stride of 15, 448/30 between strips, a last strip short of the border;
    512, 64 or 30 as literals in the rule (256 wide, 10 strips: round(k·192/9)); 30 strips each way."""
    other = slicer_of("strips", 10, 64, 128, 256)
    assert other.vertical_edges == (0, 21, 43, 64, 85, 107, 128, 149, 171, 192)
    assert other.slice_shape == (128, 64)
    slicer = make_slicer(SlicingConfig(), 512, 512)
    assert slicer.vertical_edges == EDGES_512
    assert slicer.horizontal_edges == ()
    assert (slicer.num_slices, slicer.slice_shape) == (30, (512, 64))
    both = make_slicer(SlicingConfig("two_orientations"), 512, 512)
    assert both.vertical_edges == both.horizontal_edges == tuple(range(0, 449, 32))
    assert both.num_slices == 30


def test_edge_weights_by_hand() -> None:
    """Would catch: a window that is not symmetric, and one that falls off at the image's own borders."""
    weights = edge_weights((0, 2, 4), 4, 8)
    low, high = np.sin(np.pi / 8) ** 2, np.sin(3 * np.pi / 8) ** 2
    np.testing.assert_allclose(weights[1], [low, high, high, low])
    np.testing.assert_allclose(weights[0], [1, 1, high, low])
    np.testing.assert_allclose(weights[2], [low, high, 1, 1])
    np.testing.assert_allclose(cover_weight((0, 2, 4), 4, 8), [1, 1, 1, 1, 1, 1, 1, 1])


def test_crossed_strips_cover_every_pixel_along_both_axes() -> None:
    """Would catch: every other strip of thirty, which leaves a border uncovered, another number of strips, and slicers
    that cannot be crossed but are."""
    crossed = make_slicer(SlicingConfig(), 512, 512).crossed()
    assert crossed == make_slicer(SlicingConfig("two_orientations"), 512, 512)
    for edges in (crossed.vertical_edges, crossed.horizontal_edges):
        assert cover_weight(edges, 64, 512).min() > 0.5
    mirrored = replace(make_slicer(SlicingConfig(), 512, 512), mirrored=True).crossed()
    assert mirrored.mirrored
    image = pixels(mirrored)
    np.testing.assert_allclose(mirrored.stitch(mirrored.cut(image)), image, rtol=0, atol=1e-6)
    # Three of 16 px each way would leave 16 of 64 px out; the others are oblong or no strips.
    for mode, number, height, width in (
        ("strips", 7, 64, 64),
        ("strips", 20, 32, 128),
        ("two_orientations", 12, 64, 64),
        ("whole", 30, 64, 64),
        ("squeeze", 30, 64, 64),
    ):
        slicer = slicer_of(mode, number, 16, height, width)
        assert slicer.crossed() == slicer


# --- cut and stitch ---


@KEEPERS
def test_stitch_is_the_weighted_mean_of_the_slices_that_cover_a_pixel(slicer: Slicer) -> None:
    """Would catch: a last-one-wins or an unweighted stitch, strips put back beside their place or turned the wrong way;
    sums of bytes that overflow at 256."""
    shape = (slicer.num_slices, *slicer.slice_shape, 1)
    slices = np.random.default_rng(1).random(shape)
    total = np.zeros((slicer.height_px, slicer.width_px, 1))
    count = np.zeros_like(total)
    height_px, width_px = slicer.slice_shape
    across = edge_weights(slicer.vertical_edges, width_px, slicer.width_px)
    along = edge_weights(slicer.row_edges, height_px, slicer.height_px)
    places = itertools.product(enumerate(slicer.row_edges), enumerate(slicer.vertical_edges))
    for k, ((i, top), (j, left)) in enumerate(places):
        weight = (along[i][:, None] * across[j][None, :])[..., None]
        total[top : top + height_px, left : left + width_px] += slices[k] * weight
        count[top : top + height_px, left : left + width_px] += weight
    down = edge_weights(slicer.horizontal_edges, slicer.slice_px, slicer.height_px)
    for k, edge in enumerate(slicer.horizontal_edges, start=slicer.num_upright):
        # A quarter turn clockwise undoes the one by which the strip was cut.
        weight = down[k - slicer.num_upright][:, None, None]
        total[edge : edge + slicer.slice_px] += slices[k].transpose(1, 0, 2)[:, ::-1] * weight
        count[edge : edge + slicer.slice_px] += weight
    np.testing.assert_allclose(slicer.stitch(slices), total / count, rtol=0, atol=1e-6)
    grey = (255 * pixels(slicer, channels=3)).astype(np.uint8)
    np.testing.assert_allclose(slicer.stitch(slicer.cut(grey)), grey, atol=1e-3)


@NAMESPACES
@pytest.mark.parametrize("mode", ["two_orientations", "tiles", "squeeze"])
def test_mirrored_slices_are_shown_four_ways_and_stitched_back(mode: Any, xp: ModuleType) -> None:
    """Would catch: a mirror that stitch does not undo, one along the wrong axis, and fewer ways than four."""
    plain = make_slicer(SlicingConfig(mode, 12, 16), 64, 64)
    mirrored = replace(plain, mirrored=True)
    image = np.random.default_rng(0).random((64, 64, 2)).astype(np.float32)
    shown = np.asarray(mirrored.cut(image, xp))
    ways = [lambda s: s, lambda s: s[:, ::-1], lambda s: s[::-1], lambda s: s[::-1, ::-1]]
    for k, one in enumerate(plain.cut(image)):
        np.testing.assert_array_equal(shown[k], ways[k % 4](one))
    back = mirrored.stitch(xp.asarray(shown), xp)
    np.testing.assert_allclose(back, plain.stitch(plain.cut(image)), atol=1e-6)


@KEEPERS
def test_slices_are_pieces_of_the_image(slicer: Slicer) -> None:
    """Would catch: a strip that starts one column late; a horizontal strip that is mirrored or turned by -90°."""
    image = pixels(slicer)
    slices = slicer.cut(image)
    height_px, width_px = slicer.slice_shape
    for k, (top, left) in enumerate(itertools.product(slicer.row_edges, slicer.vertical_edges)):
        np.testing.assert_array_equal(slices[k], image[top : top + height_px, left : left + width_px])
    for k, edge in enumerate(slicer.horizontal_edges, start=slicer.num_upright):
        strip = image[edge : edge + slicer.slice_px]
        # By 90° anticlockwise: the strip's last column becomes the slice's first row.
        np.testing.assert_array_equal(slices[k], strip.transpose(1, 0, 2)[::-1])
    for k in range(slicer.num_slices):
        np.testing.assert_array_equal(slicer.cut_one(image, k), slices[k])


@pytest.mark.parametrize("mode", ["strips", "two_orientations", "tiles", "whole", "squeeze"])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
def test_numpy_and_jax_cut_alike(mode: Any, dtype: type) -> None:
    """Would catch: training (numpy, in workers) and judging (jax, compiled) on different slices."""
    slicer = slicer_of(mode, 12, 16, 64, 64)
    image = (pixels(slicer, 2) * (255 if dtype == np.uint8 else 2)).astype(dtype)
    ours, compiled = slicer.cut(image), jax.jit(lambda x: slicer.cut(x, jnp))(image)
    assert ours.dtype == compiled.dtype == dtype
    assert ours.shape == compiled.shape == (slicer.num_slices, 64, slicer.slice_px, 2)
    np.testing.assert_allclose(ours.astype(float), np.asarray(compiled, float), rtol=0, atol=1e-6)
    back = jax.jit(lambda x: slicer.stitch(x, jnp))(ours.astype(np.float32))
    np.testing.assert_allclose(slicer.stitch(ours.astype(np.float32)), back, rtol=1e-6, atol=1e-5)


def test_squeeze_averages_eight_columns() -> None:
    """Would catch: sub-sampling instead of averaging, and bytes that are cut off instead of rounded."""
    slicer = slicer_of("squeeze", 30, 64, 16, 512)
    assert (slicer.num_slices, slicer.slice_shape) == (1, (16, 64))
    row = np.repeat(np.arange(64), 8)
    row[:8] = [0, 0, 0, 0, 0, 2, 2, 2]  # mean 0.75: 1 as a byte
    image = np.broadcast_to(row[None, :, None], (16, 512, 1))
    expected = np.arange(64, dtype=float)
    expected[0] = 0.75
    np.testing.assert_allclose(slicer.cut(image.astype(np.float32))[0, 5, :, 0], expected)
    expected[0] = 1
    squeezed = slicer.cut(image.astype(np.uint8))
    assert squeezed.dtype == np.uint8
    np.testing.assert_array_equal(squeezed[0, 5, :, 0], expected)
    np.testing.assert_array_equal(slicer.stitch(squeezed)[3, :, 0], np.repeat(expected, 8))


# --- labels ---


@KEEPERS
def test_held_counts_the_mask_of_each_slice(slicer: Slicer) -> None:
    """Would catch: a running sum that is off by one column, and rows counted where columns are meant."""
    mask = np.random.default_rng(2).random((slicer.height_px, slicer.width_px)) < 0.1
    mask[5:20, 7:9] = True
    mask[:, 0] = mask[:, -1] = mask[-1] = True
    counted = slicer.cut(mask[:, :, None]).sum(axis=(1, 2, 3))
    assert slicer.held(mask).tolist() == counted.tolist()
    # Squeezing shows the network an eighth of the pixels; all of them are counted.
    assert slicer_of("squeeze", 30, 64, 16, 512).held(np.ones((16, 512), bool)).tolist() == [16 * 512]


@NAMESPACES
@pytest.mark.parametrize(
    ("mask_px", "held", "label"),
    [
        (1000, 250, 1),  # a quarter
        (1000, 249, -1),  # just under it, and under 500
        (1000, 1, -1),
        (1000, 0, 0),
        (4000, 500, 1),  # an eighth, but 500 px
        (4000, 499, -1),
        (2000, 500, 1),  # both rules at once
        (2000, 499, -1),
        (3, 1, 1),  # a third of very few
        (10, 2, -1),
        (0, 0, 0),  # defect-free: 0 is a quarter of 0, but not positive
    ],
)
def test_slice_labels_by_hand(xp: ModuleType, mask_px: int, held: int, label: int) -> None:
    """Would catch: > for >=, `and` for `or` between the rules, good images labelled positive, another type than the
    batch's int32, and a mask size that is not its own image's."""
    labels = slice_labels(xp.asarray([[held, 0], [0, held]]), xp.asarray([[mask_px], [10**6]]), xp)
    assert labels.dtype == np.int32
    assert labels.tolist() == [[label, 0], [0, 0 if held == 0 else 1 if held >= 500 else -1]]


# --- what is refused ---


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (dict(mode="strip"), r"`slicing\.mode` \(=strip\) must be one of auto, .*did you mean strips\?"),
        (dict(slice_px=0), r"`slicing\.slice_px` \(=0\) must be a positive multiple of 16"),
        (dict(slice_px=-16), r"`slicing\.slice_px` \(=-16\) must be a positive multiple of 16"),
        (dict(slice_px=24), r"`slicing\.slice_px` \(=24\) must be a positive multiple of 16"),
        (dict(slice_height_px=8), r"`slicing\.slice_height_px` \(=8\) must be a positive multiple of 16"),
        (dict(overlap_px=64), r"`slicing\.overlap_px` \(=64\) must lie in \[0, 64\)"),
        (dict(overlap_px=-1), r"`slicing\.overlap_px` \(=-1\) must lie in \[0, 64\)"),
        (
            dict(mode="tiles", slice_px=96, slice_height_px=32, overlap_px=40),
            r"\(=40\) must lie in \[0, 32\)",
        ),
        (dict(num_slices=1), r"`slicing\.num_slices` \(=1\) must be at least 2"),
        (dict(mode="two_orientations", num_slices=7), r"\(=7\) must be .*even for two_orientations"),
    ],
)
def test_config_refuses(values: dict[str, Any], match: str) -> None:
    """Would catch: a value that fails later, inside compiled code, with shapes instead of names."""
    with pytest.raises(UserError, match=match):
        SlicingConfig(**values)


@pytest.mark.parametrize(
    ("config", "shape", "padded"),
    [
        (SlicingConfig(), (512, 512), (512, 512)),
        (SlicingConfig(), (500, 512), (512, 512)),
        (SlicingConfig(), (512, 48), (512, 64)),
        (SlicingConfig(), (1270, 501), (1280, 501)),
        (SlicingConfig("whole"), (512, 500), (512, 512)),
        (SlicingConfig("squeeze"), (500, 500), (512, 512)),
        (SlicingConfig("two_orientations"), (512, 250), (512, 512)),
        (SlicingConfig("two_orientations"), (20, 30), (64, 64)),
        (SlicingConfig("tiles", slice_height_px=128), (100, 1000), (128, 1000)),
        (SlicingConfig("tiles", slice_height_px=128), (131, 33), (131, 64)),
        (SlicingConfig("whole", downscale=2), (500, 33), (512, 64)),
    ],
)
def test_images_are_padded_as_little_as_their_slices_need(
    config: SlicingConfig, shape: tuple[int, int], padded: tuple[int, int]
) -> None:
    """Would catch: a border that no slice shows, a size the network cannot halve, and pixels that need not be there."""
    assert padded_shape(config, *shape) == padded
    slicer = make_slicer(config, *padded)
    height_px, width_px = slicer.slice_shape
    assert height_px % 16 == 0
    assert width_px % 16 == 0
    if padded != shape:
        with pytest.raises(ValueError, match=rf"must be padded to \({padded[0]}, {padded[1]}\) px"):
            make_slicer(config, *shape)


@given(
    height_px=st.integers(1, 300),
    width_px=st.integers(1, 300),
    tile=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    overlap_px=st.integers(0, 15),
)
@settings(max_examples=100, deadline=None)
def test_tiles_cover_any_size_and_overlap_as_told(
    height_px: int, width_px: int, tile: tuple[int, int], overlap_px: int
) -> None:
    """Would catch: a gap between tiles, a border left out, less overlap than asked for, one tile more than it takes."""
    config = SlicingConfig(
        "tiles", slice_height_px=16 * tile[0], slice_px=16 * tile[1], overlap_px=overlap_px
    )
    slicer = make_slicer(config, *padded_shape(config, height_px, width_px))
    lengths = slicer.height_px, slicer.width_px
    for edges, size, length in zip(
        (slicer.row_edges, slicer.vertical_edges), slicer.slice_shape, lengths, strict=True
    ):
        assert edges[0] == 0
        assert edges[-1] + size == length
        assert all(0 < b - a <= size - overlap_px for a, b in itertools.pairwise(edges))
        assert len(edges) == 1 or length > size + (len(edges) - 2) * (size - overlap_px)
    image = pixels(slicer)
    np.testing.assert_allclose(slicer.stitch(slicer.cut(image)), image, rtol=0, atol=1e-6)


def test_strips_that_would_leave_columns_out_become_more() -> None:
    """Would catch: columns that nobody looks at, an overlap that strips ignore, a number that is not kept, and one
    strip more where they just fit."""
    assert slicer_of("strips", 8, 64, 512, 512).vertical_edges == tuple(range(0, 512, 64))
    assert slicer_of("strips", 2, 64, 512, 64).vertical_edges == (0, 0)
    assert slicer_of("strips", 7, 64, 512, 512).num_slices == 8
    assert slicer_of("two_orientations", 14, 64, 512, 512).num_slices == 16
    assert slicer_of("strips", 30, 64, 512, 4096).num_slices == 64
    overlapping = make_slicer(SlicingConfig(num_slices=2, overlap_px=32), 512, 512)
    assert overlapping.vertical_edges == tuple(range(0, 449, 32))


@pytest.mark.parametrize(
    ("shapes", "may_downscale", "found"),
    [
        ([(300, 40), (50, 60), (90, 900)], True, (64, 1)),
        ([(127, 127)], True, (112, 1)),
        ([(200, 230), (3000, 4000), (190, 500)], True, (192, 2)),
        ([(200, 230), (3000, 4000), (190, 500)], False, (192, 1)),
        ([(3000, 4000)], True, (256, 2)),
    ],
)
def test_tiles_are_sized_by_the_images(
    shapes: list[tuple[int, int]], may_downscale: bool, found: tuple[int, int]
) -> None:
    """Would catch: tiles of the largest image's size, of one that the network cannot halve, and small ones that get
    smaller still."""
    config = SlicingConfig("auto").for_images(shapes, True, may_downscale)
    assert (config.mode, config.slice_px, config.slice_height_px, config.downscale) == (
        "tiles",
        found[0],
        found[0],
        found[1],
    )
    assert SlicingConfig("auto").for_images(shapes, False, may_downscale) == SlicingConfig()


def test_the_edges_of_an_image_are_seen_about_half_as_often_as_the_rest() -> None:
    """Would catch: tiles at uniform places, of which one in a hundred shows the image's last row: a network then calls
    edges defects."""
    rng, seen = np.random.default_rng(0), np.zeros((120, 200))
    for _ in range(2000):
        place, _ = random_tile(np.zeros(seen.shape, bool), (64, 64), 0, SliceKind.NOT_POSITIVE, rng)
        seen[place] += 1
    seen /= seen.mean()
    for edge in (seen[0], seen[-1], seen[:, 0], seen[:, -1]):
        assert 0.4 < edge.mean() < 1

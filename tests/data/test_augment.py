"""Tests of the random moves: the mask goes where the image goes, and nothing appears that was not there."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from dagm_jax.data.augment import Move, draw_moves
from dagm_jax.data.config import AugmentConfig

ALL_MOVES = [(turns, flip) for turns in range(4) for flip in (False, True)]
OFF = AugmentConfig(rotate90=False, flip=False)


def augment(
    image: np.ndarray, mask: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One random move of image and mask, that keeps their shape."""
    move = draw_moves(config, rng, 1)[0]
    return (move if image.shape[0] == image.shape[1] else move.lying())(image, mask)


def drawn(size: tuple[int, int] = (64, 64)) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of an L off the centre: no rotation and no mirror image of it is itself."""
    mask = np.zeros(size, bool)
    mask[8:40, 10:20] = True
    mask[30:40, 10:34] = True
    return np.where(mask, 200, 50).astype(np.uint8), mask


def moves_of(config: AugmentConfig, size: tuple[int, int], num_seeds: int) -> Counter[tuple[int, bool]]:
    """How often each of the eight moves came out of ``augment``, recognised by its pixels."""
    image = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    mask = image > 128
    known = {}
    for turns, flip in ALL_MOVES:
        # Written with other functions than the code's own: mirror, then transpose and mirror per quarter.
        moved = np.fliplr(image) if flip else image
        for _ in range(turns):
            moved = np.flipud(moved.T)
        known[moved.shape, moved.tobytes()] = (turns, flip)
    seen: Counter[tuple[int, bool]] = Counter()
    for seed in range(num_seeds):
        moved, moved_mask = augment(image, mask, config, np.random.default_rng(seed))
        assert (moved.shape, moved.dtype, moved_mask.dtype) == (size, np.uint8, bool)
        np.testing.assert_array_equal(moved_mask, moved > 128)
        seen[known[moved.shape, np.ascontiguousarray(moved).tobytes()]] += 1
    return seen


@pytest.mark.parametrize(
    ("turns", "flip", "expected"),
    [
        (0, False, [[1, 2], [3, 4]]),
        (1, False, [[2, 4], [1, 3]]),
        (2, False, [[4, 3], [2, 1]]),
        (3, False, [[3, 1], [4, 2]]),
        (0, True, [[2, 1], [4, 3]]),
        (1, True, [[1, 3], [2, 4]]),
        (2, True, [[3, 4], [1, 2]]),
        (3, True, [[4, 2], [3, 1]]),
    ],
)
def test_dihedral_by_hand(turns: int, flip: bool, expected: list[list[int]]) -> None:
    """Would catch: a move that is missing or counted twice, such as a 270° turn that is never made; a copy of the image
    where a view is enough."""
    square = np.array([[1, 2], [3, 4]])
    turn = Move(turns, flip, 0.0, (0.0, 0.0)).turn
    assert turn(square).tolist() == expected
    assert np.shares_memory(turn(square), square)
    # Channels behind the two image axes stay where they are.
    both = np.stack([square, 10 * square], axis=-1)
    assert turn(both)[..., 1].tolist() == [[10 * v for v in row] for row in expected]


def test_all_eight_moves_occur_about_equally() -> None:
    """Would catch: integers(3) for integers(4), so that 270° never comes; a flip that always or never happens."""
    seen = moves_of(AugmentConfig(), (24, 24), 400)
    assert set(seen) == set(ALL_MOVES)
    assert seen[3, False] > 0
    # 50 each are expected; three standard deviations are 20.
    assert all(30 <= count <= 70 for count in seen.values())


@pytest.mark.parametrize(
    ("config", "size", "moves"),
    [
        (AugmentConfig(flip=False), (24, 24), {(0, False), (1, False), (2, False), (3, False)}),
        (AugmentConfig(rotate90=False), (24, 24), {(0, False), (0, True)}),
        (OFF, (24, 24), {(0, False)}),
        (AugmentConfig(), (16, 40), {(0, False), (2, False), (0, True), (2, True)}),
    ],
)
def test_options_and_oblong_images_switch_their_own_moves_off(
    config: AugmentConfig, size: tuple[int, int], moves: set[tuple[int, bool]]
) -> None:
    """Would catch: an option that is not read, or that switches the other one off as well; oblong images turned by 90°,
    or no longer by 180°."""
    assert set(moves_of(config, size, 80)) == moves


def test_one_option_leaves_the_other_ones_draws_alone() -> None:
    """Would catch: draws made only if needed, so that switching flips off changes the rotations of a seed."""
    image, mask = drawn()
    for seed in range(20):
        both, _ = augment(image, mask, AugmentConfig(), np.random.default_rng(seed))
        turned, _ = augment(image, mask, AugmentConfig(flip=False), np.random.default_rng(seed))
        flipped, _ = augment(image, mask, AugmentConfig(rotate90=False), np.random.default_rng(seed))
        turns = next(k for k in range(4) if np.array_equal(turned, np.rot90(image, k)))
        np.testing.assert_array_equal(both, np.rot90(flipped, turns))


@pytest.mark.parametrize("seed", range(10))
def test_mask_follows_image_under_small_angles_and_shifts(seed: int) -> None:
    """Would catch: another sign of the angle, another centre or another shift for the mask than for the image."""
    image, mask = drawn()
    config = AugmentConfig(max_angle_deg=25, max_shift_px=6)
    moved, moved_mask = augment(image, mask, config, np.random.default_rng(seed))
    assert moved.shape == moved_mask.shape == (64, 64)
    assert (moved.dtype, moved_mask.dtype) == (np.uint8, bool)
    bright = moved > 125
    # Interpolation and the nearest pixel may differ beside the border of the shape, nowhere else.
    border = ndimage.binary_dilation(moved_mask) & ~ndimage.binary_erosion(moved_mask, border_value=1)
    np.testing.assert_array_equal(bright[~border], moved_mask[~border])
    assert 0.8 * mask.sum() < moved_mask.sum() < 1.5 * mask.sum()


def test_angles_and_shifts_stay_within_their_bounds() -> None:
    """Would catch: degrees taken as radians, or a share of the image taken as px. A dot 24 px off the centre shows
    both: a turn by at most 10° moves it by at most 2·24·sin(5°) = 4.2 px, a shift by at most 3 px each way."""
    image = np.zeros((65, 65), np.uint8)
    image[30:35, 54:59] = 255  # centred on (32, 56)
    mask = image > 0

    def farthest(config: AugmentConfig) -> tuple[float, float]:
        centers = []
        for seed in range(60):
            moved, _ = augment(image, mask, config, np.random.default_rng(seed))
            centers.append(np.array(ndimage.center_of_mass(moved)) - (32, 56))
        distance = np.abs(centers)
        return float(distance[:, 0].max()), float(distance[:, 1].max())

    rows, columns = farthest(AugmentConfig(False, False, max_angle_deg=10))
    assert 3 < rows < 4.5
    assert columns < 0.7
    assert all(2.5 < d < 3.2 for d in farthest(AugmentConfig(False, False, max_shift_px=3)))


def test_a_quarter_turn_by_angle_is_a_quarter_turn() -> None:
    """Would catch: a centre that is half a pixel off, and opposite signs for image and mask."""
    image, mask = drawn()
    turned, turned_mask = Move(0, False, 90.0, (0.0, 0.0))(image, mask)
    np.testing.assert_array_equal(turned_mask, np.rot90(mask, 3))
    np.testing.assert_allclose(turned.astype(int), np.rot90(image, 3), atol=1)
    half, half_mask = Move(0, False, 180.0, (0.0, 0.0))(image, mask)
    np.testing.assert_array_equal(half_mask, mask[::-1, ::-1])
    np.testing.assert_allclose(half.astype(int), image[::-1, ::-1], atol=1)


def test_a_shift_moves_rows_by_its_first_number_and_mirrors_the_border() -> None:
    """Would catch: exchanged axes, a mask shifted against the image, a border that repeats its last pixel in stripes
    instead of reflecting the texture, and black wedges, which a network learns as "turned, so from training"."""
    image, mask = drawn((64, 48))
    moved, moved_mask = Move(0, False, 0.0, (3.0, -5.0))(image, mask)
    np.testing.assert_array_equal(moved[3:, :-5], image[:-3, 5:])
    np.testing.assert_array_equal(moved_mask[3:, :-5], mask[:-3, 5:])
    ramp = np.broadcast_to(np.arange(0, 160, 5, np.uint8), (32, 32)).copy()
    moved, _ = Move(0, False, 0.0, (0.0, 6.0))(ramp, np.zeros(ramp.shape, bool))
    assert moved[10, :13].tolist() == [30, 25, 20, 15, 10, 5, 0, 5, 10, 15, 20, 25, 30]
    light = np.random.default_rng(3).integers(60, 200, (40, 56), np.uint8)
    for angle_deg in (-45, 3, 30):
        moved, full = Move(0, False, angle_deg, (20.0, -15.0))(light, np.ones(light.shape, bool))
        assert 60 <= moved.min() <= moved.max() < 200 and full.all()


def test_same_generator_same_move_and_the_input_stays() -> None:
    """Would catch: a hidden generator, and moves made in place, in the shared memory map."""
    image, mask = drawn()
    before = image.copy(), mask.copy()
    image.flags.writeable = mask.flags.writeable = False
    config = AugmentConfig(max_angle_deg=10, max_shift_px=4)
    results = [augment(image, mask, config, np.random.default_rng(s)) for s in (7, 7, 8)]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert not np.array_equal(results[0][0], results[2][0])
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("quarter_turns", range(4))
def test_line_sums_move_with_the_array(quarter_turns: int, flip: bool) -> None:
    """Would catch: a turn to the wrong side, rows and columns exchanged, an order not reversed."""
    mask = np.random.default_rng(0).random((5, 5)) < 0.4
    move = Move(quarter_turns, flip, 0.0, (0.0, 0.0))
    assert move.is_dihedral
    _, moved = move(np.zeros((5, 5), np.uint8), mask)
    down, across = move.line_sums(mask.sum(0), mask.sum(1))
    np.testing.assert_array_equal(down, moved.sum(0))
    np.testing.assert_array_equal(across, moved.sum(1))
    others = Move(quarter_turns, flip, 3.0, (0.0, 0.0)), Move(quarter_turns, flip, 0.0, (0.0, -2.0))
    assert not any(other.is_dihedral for other in others)

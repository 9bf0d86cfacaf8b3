"""Tests of synthetic defects: they can be seen, their masks are where they can be seen, and a seed gives them again."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dagm_jax.data.cache import ImageCache, build_cache
from dagm_jax.data.synthetic import draw
from dagm_jax.data.synthetic.contents import CONTENTS, ContentFunction
from dagm_jax.data.synthetic.shapes import SHAPES, ShapeFunction
from dagm_jax.types import Manifest, Photo, Sample


def texture(seed: int, shape: tuple[int, int] = (96, 64)) -> np.ndarray:
    """Smooth grey noise, uint8."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    return np.clip(120 + 150 * noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda one: one.__name__)
def test_shapes_are_opacities_somewhere_in_the_picture(shape: ShapeFunction) -> None:
    """Would catch: rows and columns exchanged, opacities beyond [0, 1], and a shape that never or always covers all."""
    shares = []
    middles = np.zeros((40, 20))
    for seed in range(400):
        opacity = shape((40, 20), np.random.default_rng(seed))
        assert opacity.shape == (40, 20) and opacity.dtype == np.float32
        assert opacity.min() >= 0 and opacity.max() <= 1
        shares.append(opacity.mean())
        middles += opacity
    assert 0.001 < np.mean(shares) < 0.7 and np.std(shares) > 0
    assert middles.min() > 0


@pytest.mark.parametrize("content", CONTENTS, ids=lambda one: one.__name__)
def test_contents_differ_from_the_image_and_leave_it_alone(content: ContentFunction) -> None:
    """Would catch: a family that gives the image back, changes it in place, or is not finite on a flat one."""
    image, other = (texture(seed).astype(np.float32) for seed in (0, 1))
    before = image.copy()
    drawn = content(image, other, np.random.default_rng(0))
    np.testing.assert_array_equal(image, before)
    assert drawn.shape == image.shape and np.abs(drawn - image).mean() > 1
    flat = np.full_like(image, 7)
    assert np.isfinite(content(flat, flat, np.random.default_rng(0))).all()


def test_the_mask_is_where_the_change_can_be_seen() -> None:
    """Would catch: a mask of the shape where nothing has changed, and changes that the mask leaves out."""
    image, other, shares = texture(0), texture(1), []
    for seed in range(100):
        found = draw.add_defect(image, other, np.random.default_rng(seed))
        if found is None:
            continue
        drawn, mask = found
        changed = drawn != image
        assert drawn.dtype == np.uint8 and mask.dtype == bool and mask.sum() >= draw.LEAST_PX
        change = np.abs(drawn.astype(int) - image)
        assert change[mask].mean() > 3 * change[~mask].mean()
        # Smoothing lets the mask reach over a change by a pixel or two, no more.
        shares.append(changed[mask].mean())
    assert len(shares) > 85 and np.mean(shares) > 0.9


def test_a_seed_gives_the_same_defect_again_and_the_input_stays() -> None:
    """Would catch: a hidden generator, and drawing in place, in the shared memory map."""
    image, other = texture(0), texture(1)
    image.flags.writeable = other.flags.writeable = False
    first, again, another = (draw.add_defect(image, other, np.random.default_rng(s)) for s in (3, 3, 4))
    assert first is not None and again is not None and another is not None
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], another[0])


def test_what_cannot_be_seen_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a slice that is called defective without a change, which teaches a network to guess."""
    monkeypatch.setattr(draw, "CONTENTS", (lambda image, other, rng: image + 1,))
    assert draw.add_defect(texture(0), texture(1), np.random.default_rng(0)) is None


def cache_of(folder: Path, number: int, shapes: Sequence[tuple[int, int]] = ()) -> ImageCache:
    """The cache of so many good textures, numbered by their seeds."""
    samples = tuple(Sample(f"{i}.png", 1, 0, None, Photo(folder / f"{i}.png"), None) for i in range(number))
    for i in range(number):
        Image.fromarray(texture(i, *shapes[i : i + 1])).save(folder / f"{i}.png")
    return build_cache(Manifest(samples, (), ""), folder / "cache", None)[1]


def test_images_to_evaluate_by_have_one_defect_each(tmp_path: Path) -> None:
    """Would catch: real images that are drawn into; a defect that another order of calls, or another process, draws
    another way; a mask that is not where the image has changed; one drawing for all images."""
    shapes = [(96, 64), (40, 120), (96, 64)]
    cache = cache_of(tmp_path, 3, shapes)
    images = draw.WithSynthetic(cache, [0, 1, 2], seed=5)
    numbers = images.synthetic([0, 1, 2])
    assert numbers == [3, 4, 5] and [images.is_synthetic(i) for i in range(6)] == [False] * 3 + [True] * 3
    drawn = {i: images[i] for i in reversed(numbers)}
    for i, shape in enumerate(shapes):
        np.testing.assert_array_equal(images[i][0], texture(i, shape))
        assert not images[i][1].any()
        image, mask = drawn[3 + i]
        assert image.shape == mask.shape == shape and mask.any()
        assert (image != texture(i, shape))[mask].mean() > 0.5
        again = pickle.loads(pickle.dumps(images))[3 + i]
        for array, expected in zip(again, (image, mask), strict=True):
            np.testing.assert_array_equal(array, expected)
    assert (drawn[3][1] != drawn[5][1]).any()
    assert (draw.WithSynthetic(cache, [0, 1, 2], seed=6)[3][0] != drawn[3][0]).any()


def test_each_image_has_a_drawing_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: one shape in one place for all images, or for one image at every try."""
    numbers: list[float] = []
    monkeypatch.setattr(draw, "add_defect", lambda image, other, rng: numbers.append(rng.random()))
    images = draw.WithSynthetic(cache_of(tmp_path, 2), [0, 1], seed=0)
    assert all(not images[i][1].any() for i in (2, 3))
    assert len(set(numbers)) == 2 * draw.TRIES


def test_a_defect_that_cannot_be_seen_makes_no_defective_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a good image that counts as a missed defect."""
    monkeypatch.setattr(draw, "LEAST_CHANGE", 1e9)
    image, mask = draw.WithSynthetic(cache_of(tmp_path, 1), [0], seed=0)[1]
    np.testing.assert_array_equal(image, texture(0))
    assert not mask.any()

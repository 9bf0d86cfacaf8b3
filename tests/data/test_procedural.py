"""The procedural look-alikes: reproducible, rightly labelled, and statistically like the real classes."""

import subprocess
import sys
import zlib

import numpy as np
import pytest

from dagm_jax.data.ellipse import rasterise
from dagm_jax.data.procedural import CLASSES, Drawing, _draw_with_twin, draw
from dagm_jax.types import UserError

LAGS = (1, 4, 16, 64)
# Measured on real images: mean, std, autocorrelation at LAGS along a row, then along a column.
REAL = {
    1: (70, 28, (0.20, 0.17, 0.12, 0.06), (0.23, 0.18, 0.13, 0.09)),
    8: (110, 37, (0.96, 0.87, 0.45, -0.08), (0.96, 0.83, 0.69, 0.61)),
}


def _pair(class_id: int, index: int) -> list[Drawing]:
    return [draw(class_id, index, seed=5, defective=d, size_px=256) for d in (False, True)]


def _checksum(drawing: Drawing) -> int:
    return zlib.crc32(drawing.image.tobytes() + drawing.mask.tobytes())


def _autocorrelation(image: np.ndarray, lag: int) -> float:
    """Along a row, about the image's own mean."""
    x = image - image.mean()
    return float((x[:, lag:] * x[:, :-lag]).mean() / (x * x).mean())


def _block_means(image: np.ndarray) -> np.ndarray:
    n = image.shape[0] // 16
    return image.reshape(n, 16, n, 16).mean(axis=(1, 3)).ravel()


@pytest.mark.parametrize("class_id", CLASSES)
def test_same_numbers_same_pixels(class_id: int) -> None:
    """Catches global random state, hidden counters and a cache that an earlier draw spoils."""
    first = [_checksum(d) for d in _pair(class_id, 3)]
    draw(class_id, 4, seed=6, defective=True)
    assert [_checksum(d) for d in _pair(class_id, 3)] == first


def test_same_pixels_in_a_fresh_process() -> None:
    """Catches seeding by hash() or by process, where each worker draws another set; and an import of jax."""
    code = (
        "import sys, zlib\n"
        "from dagm_jax.data.procedural import CLASSES, draw\n"
        "for c in CLASSES[::-1]:\n"
        "    d = draw(c, 3, seed=5, defective=True, size_px=256)\n"
        "    print(c, zlib.crc32(d.image.tobytes() + d.mask.tobytes()))\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there = {int(c): int(crc) for c, crc in map(str.split, done.stdout.splitlines())}
    assert there == {c: _checksum(_pair(c, 3)[1]) for c in CLASSES}


@pytest.mark.parametrize("class_id", CLASSES)
def test_other_numbers_other_pixels(class_id: int) -> None:
    """Catches an argument that never reaches the generator, and a defective image's clean twin in the set."""
    a = draw(class_id, 3, seed=5, defective=False, size_px=256).image
    others = [
        draw(class_id, 4, seed=5, defective=False, size_px=256).image,
        draw(class_id, 3, seed=6, defective=False, size_px=256).image,
        draw(class_id, 3, seed=5, defective=True, size_px=256).image,
    ]
    for other in others:
        assert (a == other).mean() < 0.2


@pytest.mark.parametrize("size_px", [128, 256, 384, 512])
@pytest.mark.parametrize("class_id", CLASSES)
def test_mask_follows_label(class_id: int, size_px: int) -> None:
    """Catches a mask on a good image, an empty one on a defective image, a wrong dtype, and a fixed size."""
    good = draw(class_id, 0, seed=1, defective=False, size_px=size_px)
    bad = draw(class_id, 0, seed=1, defective=True, size_px=size_px)
    for drawing in (good, bad):
        assert drawing.image.dtype == np.uint8 and drawing.mask.dtype == bool
        assert drawing.image.shape == drawing.mask.shape == (size_px, size_px)
    assert good.ellipse is None and not good.mask.any()
    assert bad.ellipse is not None and bad.mask.any()
    np.testing.assert_array_equal(bad.mask, rasterise(bad.ellipse, (size_px, size_px)))


@pytest.mark.parametrize("class_id", CLASSES)
def test_ellipse_holds_the_defect(class_id: int) -> None:
    """Catches swapped centre coordinates, a flipped angle, too tight an ellipse, and a missing defect."""
    shares = []
    for index in range(20):
        image, clean, ellipse = _draw_with_twin(class_id, index, 2, True, 512)
        changed = image != clean
        assert ellipse is not None
        mask = rasterise(ellipse, image.shape)
        assert changed.sum() >= 15
        assert not (changed & ~mask).any()
        shares.append(changed.sum() / mask.sum())
    assert max(shares) < 0.8
    assert np.median(shares) < 0.5


@pytest.mark.parametrize("class_id", CLASSES)
def test_defect_can_be_seen(class_id: int) -> None:
    """Catches a defect that drowns in the texture: class 1 loses its grain, class 8 gains black and white."""
    for index in range(10):
        image, clean, _ = _draw_with_twin(class_id, index, 3, True, 512)
        changed = image != clean
        if class_id == 1:
            assert image[changed].std() < 0.7 * clean[changed].std()
            assert abs(image[changed].mean() - clean[changed].mean()) < 3
        else:
            assert np.ptp(image[changed]) > 120
            assert np.abs(image[changed].astype(int) - clean[changed]).mean() > 30


@pytest.mark.parametrize("class_id", CLASSES)
def test_texture_statistics(class_id: int) -> None:
    """Catches a texture that drifts from the real class in brightness, contrast, grain or stripe width."""
    images = [draw(class_id, i, seed=0, defective=False).image.astype(np.float32) for i in range(12)]
    mean, std, along_row, along_column = REAL[class_id]
    assert np.mean([x.mean() for x in images]) == pytest.approx(mean, abs=3)
    assert 1 < np.std([x.mean() for x in images]) < 6
    assert np.mean([x.std() for x in images]) == pytest.approx(std, abs=2)
    rows = [np.mean([_autocorrelation(x, lag) for x in images]) for lag in LAGS]
    columns = [np.mean([_autocorrelation(x.T, lag) for x in images]) for lag in LAGS]
    np.testing.assert_allclose(rows, along_row, atol=0.08)
    np.testing.assert_allclose(columns, along_column, atol=0.08)


@pytest.mark.parametrize("class_id", CLASSES)
def test_mean_does_not_give_the_label_away(class_id: int) -> None:
    """Catches a defect, or a random stream, that shifts the brightness: AUROC of the mean is near 0.5."""
    good, bad = (
        np.array([draw(class_id, i, seed=0, defective=d, size_px=256).image.mean() for i in range(40)])
        for d in (False, True)
    )
    assert 0.3 < (bad[:, None] > good[None, :]).mean() < 0.7


def test_class_8_shares_its_background() -> None:
    """Catches stripes drawn anew for each image, or the same stripes for every seed."""
    blocks = [_block_means(draw(8, i, seed=0, defective=False).image) for i in range(6)]
    pairs = np.corrcoef(blocks)[np.triu_indices(6, 1)]
    assert pairs.mean() == pytest.approx(0.88, abs=0.04)
    other = _block_means(draw(8, 0, seed=1, defective=False).image)
    assert np.corrcoef(blocks[0], other)[0, 1] < 0.7


def test_ellipse_sizes() -> None:
    """Catches weak labels out of the real ranges, which would change how many slices count as defective."""
    one, eight = ([draw(c, i, seed=4, defective=True) for i in range(60)] for c in (1, 8))
    semi_a = np.array([d.ellipse.semi_a for d in one if d.ellipse])
    semi_b = np.array([d.ellipse.semi_b for d in one if d.ellipse])
    assert semi_a.min() >= 33 and semi_b.min() >= 23
    assert np.median(semi_a) == pytest.approx(60, abs=8)
    assert np.median(semi_b) == pytest.approx(45, abs=8)
    area = np.array([d.mask.mean() for d in eight])
    assert area.max() < 0.07
    assert np.median(area) == pytest.approx(0.0035, rel=0.4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"class_id": 2}, r"class_id=2: only the classes 1, 8 can be drawn; choose one of them"),
        ({"index": -1}, r"index=-1: must be at least 0"),
        ({"seed": -3}, r"seed=-3: must be at least 0"),
        ({"size_px": 64}, r"size_px=64: must be at least 128"),
    ],
)
def test_bad_argument(arguments: dict[str, int], message: str) -> None:
    """Catches a bare KeyError or ValueError in place of a line that the user can act on."""
    given = {"class_id": 1, "index": 0, "seed": 0, "size_px": 256} | arguments
    with pytest.raises(UserError, match=message) as caught:
        draw(given["class_id"], given["index"], seed=given["seed"], defective=False, size_px=given["size_px"])
    assert "\n" not in str(caught.value)

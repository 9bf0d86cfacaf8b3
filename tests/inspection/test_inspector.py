"""The inspector gives an image the score that its run gave it, however the image is given."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import png_files
import pytest
import small_run
from bright import Bright
from numpy.typing import NDArray
from PIL import Image
from shell import run_python

import dagm_jax
from dagm_jax.config import from_config_dict
from dagm_jax.data.config import SlicingConfig
from dagm_jax.data.dataset import find_images
from dagm_jax.data.images.decode import BadImage
from dagm_jax.data.images.load import load
from dagm_jax.distributed.devices import make_devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import EvalConfig
from dagm_jax.evaluation.predictor import NonFiniteOutput
from dagm_jax.evaluation.programs import SlicedImages
from dagm_jax.experiment.tiling import make_tiling
from dagm_jax.experiment.trained_model import load_trained_model
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.inspection.trained_backend import TrainedModelBackend


@pytest.fixture(scope="module")
def inspector(own: Path) -> Inspector:
    return Inspector.load(own)


def test_strict_files_get_the_scores_of_their_run(built_in: Path, tmp_path: Path) -> None:
    """Would catch: images of a fixed size read as photos are, and a model of them that takes other sizes or depths; the
    last weights in place of the tested ones, another cut, another mean, a rule not read back."""
    config = from_config_dict(json.loads((built_in / "config.json").read_text()))
    samples = {sample.image_id: sample for sample in find_images(config.data, config.seed)[0].samples}
    inspector = Inspector.load(built_in)
    rows = list(csv.DictReader((built_in / "predictions.csv").read_text().splitlines()))
    for row in rows:
        image, _ = load(samples[row["image"]], (512, 512))
        Image.fromarray(image).save(tmp_path / "a.png")
        verdict = inspector.inspect(str(tmp_path / "a.png"))
        assert verdict.score == pytest.approx(float(row["score"]), rel=1e-5)
        assert verdict.defective == (row["defective"] == "1")
    Image.fromarray(image[:500]).save(tmp_path / "small.png")
    with pytest.raises(BadImage, match=r"expected 512x512"):
        inspector.inspect(tmp_path / "small.png")
    with pytest.raises(UserError, match=r"expected 512x512, the size"):
        inspector.inspect(image[:500])
    with pytest.raises(UserError, match=r"uint16.* must be uint8"):
        inspector.inspect(image.astype(np.uint16))
    Image.fromarray(image).save(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match="not a PNG image"):
        inspector.inspect(tmp_path / "a.jpg")


def test_any_way_to_give_an_image_gives_the_same(inspector: Inspector, tmp_path: Path) -> None:
    """Would catch: an array scaled otherwise than its file, channels in another order, a stack taken for an image."""
    values = small_run.picture(900, True)
    Image.fromarray(values).save(tmp_path / "a.png")
    grey = np.clip(np.rint(values * (255 / small_run.WHITE)), 0, 255).astype(np.uint8)
    colour = np.random.default_rng(0).integers(0, 256, (*small_run.LARGEST, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    for given, file in ((values, "a"), (grey, "a"), (grey[..., None], "a"), (colour, "colour")):
        assert inspector.inspect(given).score == inspector.inspect(tmp_path / f"{file}.png").score
    several = [np.stack([grey, grey]), np.stack([colour] * 2), [grey, tmp_path / "a.png"]]
    assert [len(inspector.inspect(images)) for images in several] == [2, 2, 2]


def test_a_verdict_is_of_its_own_image(inspector: Inspector) -> None:
    """Would catch: a map or mask of the padded size or of a neighbour in the batch, a decision by another threshold;
    verdicts in the order of the programs that give them, images of one size first."""
    shapes = [(48, 80), (100, 150), (17, 33), (48, 20)]
    images = [
        np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8) for i, shape in enumerate(shapes)
    ]
    for image, verdict in zip(images, inspector.predict(images, 4), strict=True):
        assert verdict.map.shape == verdict.mask.shape == image.shape
        assert verdict.map.dtype == np.float32 and verdict.mask.dtype == bool
        np.testing.assert_array_equal(verdict.mask, verdict.map >= inspector.rule.pixel_threshold)
        assert verdict.defective == (verdict.score >= verdict.threshold)
        assert verdict.score == pytest.approx(float(verdict.map.max()))
        alone = inspector.inspect(image)
        assert alone.score == pytest.approx(verdict.score, rel=1e-5)
        np.testing.assert_allclose(alone.map, verdict.map, atol=1e-5)


def test_an_output_that_is_not_finite_has_the_place_of_its_image(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: the place among images of one size, which share a program, in place of that among all."""

    finite = np.isfinite

    def is_finite(x: Any) -> Any:
        return np.full(np.shape(x), False) if np.shape(x) == (150, 80) else finite(x)

    monkeypatch.setattr("dagm_jax.evaluation.predictor.np.isfinite", is_finite)
    images = [np.zeros(shape, np.uint8) for shape in ((8, 8), (48, 80), (8, 8), (150, 80))]
    with pytest.raises(NonFiniteOutput, match="image 4 of those given, 150x80 px") as caught:
        inspector.backend.predict(images, 4)
    assert caught.value.place == 3


def test_the_mask_is_cut_at_the_pixel_threshold() -> None:
    """Would catch: the map cut at the threshold of image scores, where the two differ."""
    image = np.array([[50, 100, 200]], np.uint8)
    backend = Bright()
    backend.rule = replace(backend.rule, threshold=0.9, pixel_threshold=0.3)
    verdict = Inspector.of_backend(backend).inspect(image)
    assert not verdict.defective
    assert verdict.mask.tolist() == [[False, True, True]]


def test_larger_images_are_predicted_in_place(inspector: Inspector) -> None:
    """Would catch: a large image squeezed, cut off or refused."""
    empty = np.full((100, 150), 90, np.uint8)
    large = empty.copy()
    large[70:82, 120:132] = 250
    # The network has learnt little, but what it says changes at the square, not somewhere else.
    change = np.abs(inspector.inspect(large).map - inspector.inspect(empty).map)
    top, left = np.unravel_index(int(change.argmax()), change.shape)
    assert 60 <= top < 92 and 110 <= left < 142


def test_sizes_beyond_those_of_training_share_programs_of_slices(own: Path) -> None:
    """Would catch: a compilation for every size, and fewer views of each pixel in a wide image than the threshold was
    calibrated with."""
    model = load_trained_model(own)
    config = replace(model.config, eval=EvalConfig("slices"))
    tiling = make_tiling(config, model.shape, ())
    assert isinstance(tiling, SlicedImages)
    sizes = [(h, w) for h in range(1, 193, 3) for w in range(1, 321, 3)]
    shapes = {size: tiling.shape_for(size) for size in sizes}
    assert len(set(shapes.values())) <= 25
    assert all(shape[0] >= max(48, h) and shape[1] >= max(80, w) for (h, w), shape in shapes.items())
    assert tiling.shape_for((48, 80)) == tiling.shape_for((30, 80)) == (48, 80)
    # Heights are multiples of 16.
    assert make_tiling(config, (64, 64), ()).shape_for((65, 10)) == (96, 91)
    usual = tiling.slicer_for((48, 80)).num_slices
    for shape, times in (((96, 80), 1), ((48, 160), 2)):
        assert tiling.slicer_for(shape).num_slices == times * usual


def test_images_beyond_the_limit_of_slices_are_refused(own: Path, tmp_path: Path) -> None:
    """Would catch: a gigabyte of pixels decoded from a small file, only to be refused; squeezed images at another scale
    than in training."""
    model = load_trained_model(own)
    sliced = replace(model, config=replace(model.config, eval=EvalConfig("slices")))
    devices = make_devices(model.config.parallel)
    inspector = Inspector.of_backend(TrainedModelBackend(sliced, devices))
    with pytest.raises(UserError, match=r"193x80 .* beyond 192x320 px"):
        inspector.inspect(np.zeros((193, 80), np.uint8))
    # Without pixels: its header alone is read.
    (tmp_path / "wide.png").write_bytes(png_files.png(321, 40, 8, 0, b""))
    with pytest.raises(BadImage, match=r"wide\.png: size 40x321 .* beyond 192x320 px"):
        inspector.inspect(tmp_path / "wide.png")
    squeezed = replace(sliced, config=replace(sliced.config, slicing=SlicingConfig(mode="squeeze")))
    assert TrainedModelBackend(squeezed, devices).reading.largest == small_run.LARGEST


def test_a_stream_is_held_a_batch_at_a_time() -> None:
    """Would catch: a generator read to its end before the first verdict, batches of other sizes than compiled for."""
    backend, taken = Bright(), []

    def images() -> Iterator[NDArray[np.uint8]]:
        for i in range(8):
            taken.append(i)
            yield np.full((4, 5), 30 * i, np.uint8)

    verdicts = Inspector.of_backend(backend).inspect_all(images())
    assert taken == []
    first = next(verdicts)
    assert taken == [0, 1, 2]
    assert [first.score, *(verdict.score for verdict in verdicts)] == [30 * i / 255 for i in range(8)]
    assert backend.calls == [(3, 3), (3, 3), (2, 3)]


def test_a_batch_is_as_large_as_its_images() -> None:
    """Would catch: a single image that costs as much as a batch, an empty batch handed to a compiled program."""
    backend = Bright()
    Inspector.of_backend(backend).inspect(np.zeros((4, 5), np.uint8))
    assert Inspector.of_backend(backend).inspect([]) == []
    assert backend.calls == [(1, 1)]
    with pytest.raises(UserError, match=r"`batch_size` \(=0\) must be at least 1"):
        list(Inspector.of_backend(backend).inspect_all([], batch_size=0))


def test_a_threshold_of_ones_own_decides_and_shows_in_the_id() -> None:
    """Would catch: a threshold that is taken and not used, and an id that is the rule's."""
    image = np.full((4, 5), 153, np.uint8)
    usual = Inspector.of_backend(Bright())
    strict = Inspector.of_backend(Bright(), 0.7)
    of_usual, of_strict = usual.inspect(image), strict.inspect(image)
    assert (of_usual.defective, of_strict.defective) == (True, False)
    assert of_strict.threshold == 0.7
    assert len(of_strict.model_id) == 12
    assert len({usual.model_id, strict.model_id, Inspector.of_backend(Bright(), 0.6).model_id}) == 3
    with pytest.raises(UserError, match=r"`threshold` \(=nan\) must be a finite number"):
        Inspector.of_backend(Bright(), float("nan"))


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (np.zeros((4, 5), np.float32), r"`image` \(float32 \(4, 5\)\) must be uint8"),
        (np.zeros((4, 5, 3), np.uint16), "must be uint8; 16 bits are taken in grey"),
        (np.zeros((0, 5), np.uint8), "must be of shape"),
        (np.zeros(5, np.uint8), "must be of shape"),
        ([np.zeros((4, 5, 2, 2), np.uint8)], "must be of shape"),
        ([[1, 2], [3, 4]], r"`image` \(a list\) must be a numpy array or a path"),
    ],
)
def test_what_is_no_image_is_refused(given: Any, match: str) -> None:
    """Would catch: floats in [0, 1] taken for black, a traceback from inside numpy."""
    with pytest.raises(UserError, match=match) as caught:
        Inspector.of_backend(Bright()).inspect(given)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    """Would catch: a traceback where an exported file, or nothing, is named."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UserError, match=r"has no contract model\.onnx\.json"):
        Inspector.load(tmp_path / "model.onnx")
    with pytest.raises(UserError, match="has no report"):
        Inspector.load(tmp_path / "nothing")
    with pytest.raises(AttributeError, match="no attribute 'Inspektor'"):
        _ = dagm_jax.Inspektor


ALLOWED = ("dagm_jax", "numpy", "scipy", "PIL", "onnxruntime")
# For a process in which imports of every other package fail.
INSPECT_WITHOUT_JAX = """
import sys
allowed = sys.argv[1].split(",")
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in allowed or top in sys.stdlib_module_names or top.startswith("_sysconfig"):
            return None
        raise ModuleNotFoundError(f"refused: {name}", name=top)
sys.meta_path.insert(0, Refuse())
import numpy as np
import dagm_jax
from dagm_jax.exporting import runners
def fake(path):
    def program(images):
        maps = (images / 255).astype(np.float32)
        score = maps.max((1, 2))
        return score, score >= 0.5, maps, maps >= 0.5
    return program
runners.RUNTIMES["onnxruntime"] = fake
verdict = dagm_jax.Inspector.load(sys.argv[2]).inspect(sys.argv[3])
print(verdict.score, verdict.defective)
assert not {name for name in sys.modules if name.startswith("dagm_jax.data.procedural")}
"""


def test_an_onnx_file_needs_no_jax(tmp_path: Path) -> None:
    """Would catch: an import of jax, absl, rich, grain or the textures at the top of anything the inspector needs."""
    (tmp_path / "a.onnx").write_bytes(b"x")
    small_run.write_contract(tmp_path / "a.onnx", white=255)
    Image.fromarray(np.full((16, 16), 204, np.uint8)).save(tmp_path / "a.png")
    done = run_python("-c", INSPECT_WITHOUT_JAX, ",".join(ALLOWED), tmp_path / "a.onnx", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    score, defective = done.stdout.split()
    assert float(score) == pytest.approx(0.8) and defective == "True"

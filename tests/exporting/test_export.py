"""A run as one file: the same scores, maps and decisions as the run's own, from a process that knows the file alone."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export as jax_export
from PIL import Image
from random_weights import numbers, randomised
from shell import run_python

from dagm_jax import export as command
from dagm_jax.config import RunConfig
from dagm_jax.data.config import AugmentConfig, SlicingConfig
from dagm_jax.distributed.devices import make_devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import EvalConfig, VerdictConfig
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.experiment.trained_model import TrainedModel, build_network, load_trained_model
from dagm_jax.exporting import check, inference_fn, runners, to_onnx
from dagm_jax.exporting.exported_model import contract_path, load_exported_model
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from dagm_jax.models.network import STANDARD, Network
from dagm_jax.tasks.classification import ClassificationConfig
from dagm_jax.tasks.reconstruction import ReconstructionConfig
from dagm_jax.tasks.segmentation import SegmentationConfig

TASKS = {task.name: task for task in (SegmentationConfig(), ReconstructionConfig(), ClassificationConfig())}
# Segmentation by a network whose guided module looks at windows of the image.
GUIDED = "guided"
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "jax2onnx"))),
    reason="needs the extra `onnx` and jax2onnx",
)


@pytest.fixture(scope="module")
def stablehlo(built_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(built_in, tmp_path_factory.mktemp("exported") / "inspector.stablehlo")


def write(workdir: Path, file: Path, format: str = "stablehlo", *flags: str) -> Path:
    argv = ["export", f"--model={workdir}", f"--format={format}", f"--output={file}", "--num_checked=3"]
    assert command.main([*argv, *flags]) == 0
    return file


def untrained(
    task: str, shape: tuple[int, int], tiling: Any = "whole"
) -> tuple[TrainedModel, list[float], list[np.ndarray]]:
    """A detector of random weights and norm statistics, and its scores and maps of `noise`, which its rule splits."""
    config = RunConfig(
        model=UNet3PlusConfig(base_channels=1) if task == GUIDED else CustomUNetConfig(base_channels=1),
        task=TASKS.get(task, SegmentationConfig()),
        slicing=SlicingConfig(num_slices=4, slice_px=32),
        augment=AugmentConfig(),
        eval=EvalConfig(tiling),
        # Maxima of unsmoothed noise hardly differ.
        verdict=VerdictConfig(smoothing_px=2.0),
    )
    network, params, stats = build_network(config, mean=90.0, std=40.0)
    keys = iter(jax.random.split(jax.random.key(0), 1000))
    stats = jax.tree.map(lambda x: x + 0.3 * jax.random.uniform(next(keys), x.shape), stats)
    # Biases that keep most of the few channels from dying behind their ReLU, where the image would not matter.
    params = jax.tree.map(lambda x: x + 0.3 if x.ndim == 1 else x, params)
    detector = TrainedModel(config, network, params, stats, shape, (), None, Thresholds(0, 0, "f1"), "0" * 12)
    devices = make_devices(config.parallel)
    predictor = detector.make_predictor(devices, devices.num_devices)
    prediction = list(predictor((image, np.zeros(shape, bool)) for image in noise(shape)))
    scores = [one.score for one in prediction]
    middle = sum(sorted(scores)[1:3]) / 2
    return replace(detector, rule=Thresholds(middle, middle, "f1")), scores, [one.map for one in prediction]


def noise(shape: tuple[int, int]) -> np.ndarray:
    """Five images of different contrast, uint8 [5 h w]."""
    rng = np.random.default_rng(0)
    return np.stack([rng.normal(100, 10 * k + 5, shape).clip(0, 255).astype(np.uint8) for k in range(5)])


def test_a_threshold_between_float32_numbers_decides_as_in_float64() -> None:
    """Would catch: a threshold rounded down, which a score below it then reaches."""
    below = np.float32(0.7)
    assert float(below) < 0.7
    for threshold in (0.7, float(below), float(np.nextafter(below, np.float32(1)))):
        for score in (np.nextafter(below, np.float32(0)), below, np.nextafter(below, np.float32(1))):
            assert (score >= inference_fn.float32_at_least(threshold)) == (float(score) >= threshold)


@pytest.mark.parametrize(
    ("task", "tiling"), [*((task, "whole") for task in (*TASKS, GUIDED)), ("segmentation", "slices")]
)
def test_the_program_judges_as_the_run_does_from_any_batch(task: str, tiling: Any) -> None:
    """Would catch: another padding, another cut, a map where slices count, a batch size that is fixed, one platform."""
    detector, scores, their_maps = untrained(task, (60, 75) if task == "segmentation" else (128, 128), tiling)
    images = noise(detector.shape)
    exported = jax_export.deserialize(bytearray(inference_fn.to_stablehlo(detector)))
    assert set(exported.platforms) == {"cpu", "cuda", "tpu"}
    outputs = [exported.call(batch) for batch in (images[:1], images[1:3], images[3:])]
    score, defective, maps, mask = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    np.testing.assert_allclose(score, scores, rtol=3e-5)
    np.testing.assert_allclose(maps, their_maps, atol=1e-5)
    np.testing.assert_array_equal(defective, detector.rule.decide(scores))
    assert set(defective) == {False, True}
    np.testing.assert_array_equal(mask, maps >= detector.rule.pixel_threshold)


def test_the_file_is_an_inspector_like_its_run(built_in: Path, stablehlo: Path) -> None:
    """Would catch: other verdicts or another id from the file, thresholds lost on the way, images of another size
    padded otherwise or in the score, and verdicts in the order of their sizes."""
    run, file = Inspector.load(built_in), Inspector.load(stablehlo)
    assert (file.model_id, file.rule) == (run.model_id, run.rule)
    images = [noise((512, 512))[0], noise((130, 200))[1], noise((512, 512))[2], noise((130, 200))[3]]
    found = [run.predict(images, 4), file.predict(images, 4)]
    for ours, theirs in zip(*found, strict=True):
        assert theirs.map.shape == ours.map.shape
        assert theirs.score == pytest.approx(ours.score, rel=1e-4)
        assert theirs.defective == ours.defective
        np.testing.assert_allclose(theirs.map, ours.map, atol=1e-5)
    assert list(file.backend.normal_scores) == list(run.backend.normal_scores) != []


def test_the_contract_says_what_the_file_takes_and_gives(built_in: Path, stablehlo: Path) -> None:
    """Would catch: a contract that other programs cannot follow, or that speaks of another file."""
    contract = json.loads(contract_path(stablehlo).read_text())
    file = load_exported_model(stablehlo)
    out = dict(zip(runners.OUTPUTS, file.program(np.zeros((2, 512, 512), np.uint8)), strict=True))
    assert contract["input"]["shape"] == ["b", "h", "w"] and contract["input"]["dtype"] == "uint8"
    lengths = {"b": 2, "h": 512, "w": 512}
    for told in contract["outputs"]:
        array = out[told["name"]]
        assert str(array.dtype) == told["dtype"]
        assert list(array.shape) == [lengths[length] for length in told["shape"]]
    assert contract["threshold"] == load_trained_model(built_in).rule.threshold
    assert contract["checked"]["num_images"] == 3
    assert contract["licence"]["training_images"].startswith("Apache-2.0")
    card = stablehlo.with_name("inspector.stablehlo.md").read_text()
    assert contract["model_id"] in card and "| score |" in card
    assert not list(stablehlo.parent.glob("*.partial"))


def of_this_machine(content: bytes) -> list[bytes]:
    """Folders of this machine, and names of source files, in a written program."""
    package = str(Path(inference_fn.__file__).parent).encode()
    return [text for text in (package, sys.prefix.encode(), b"site-packages", b".py") if text in content]


def test_the_file_says_nothing_of_the_machine_that_made_it(stablehlo: Path) -> None:
    """Would catch: the folder of the package, with the name of its user, in a file that is given away."""
    assert not of_this_machine(stablehlo.read_bytes())
    again = jax_export.export(jax.jit(lambda x: x + 1))(jnp.ones(3))
    assert of_this_machine(again.serialize()), "elsewhere JAX still names sources, as its errors need"


def test_a_file_that_is_not_the_contracts_is_refused(stablehlo: Path, tmp_path: Path) -> None:
    """Would catch: a damaged or exchanged file that judges parts, or one whose threshold nobody knows."""
    file = tmp_path / stablehlo.name
    shutil.copy(stablehlo, file)
    with pytest.raises(UserError, match="no contract"):
        load_exported_model(file)
    shutil.copy(contract_path(stablehlo), contract_path(file))
    load_exported_model(file)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="SHA-256"):
        load_exported_model(file)
    contract_path(file).write_text("{}")
    with pytest.raises(UserError, match="is no contract"):
        load_exported_model(file)


@pytest.mark.parametrize("wrong", ["threshold", "broken"])
def test_a_file_that_judges_otherwise_is_not_kept(
    wrong: str, built_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: success reported for a file with another threshold, or for one that does not run."""
    if wrong == "broken":
        monkeypatch.setattr(inference_fn, "to_stablehlo", lambda detector: b"nothing")
    else:
        monkeypatch.setattr(
            inference_fn, "float32_at_least", lambda value: np.float32(2.0 if value < 0.5 else 0.0)
        )
    with pytest.raises(UserError, match={"threshold": "decides", "broken": "does not run"}[wrong]):
        write(built_in, tmp_path / "inspector.stablehlo")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda out: out | {"score": out["score"] * np.float32(np.nan)}, "scores nan"),
        (lambda out: out | {"score": out["score"] - np.float32(2e-4)}, "scores"),
        (lambda out: out | {"defective": ~out["defective"]}, "decides"),
        (lambda out: out | {"mask": ~out["mask"]}, "mask"),
        (lambda out: out | {"score": out["score"] + np.float32(1e-5)}, None),
    ],
    ids=["no number", "a shift", "decisions", "mask", "rounding"],
)
def test_the_check_sees_every_output(
    change: Any, named: str | None, built_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a NaN or a difference that the comparison lets pass, or rounding taken for one."""
    model = load_trained_model(built_in)
    run = check.expected(model, built_in, 4, None)
    maps = np.zeros((len(run.images), *run.images[0].shape), np.float32)
    right = {
        "score": run.scores.astype(np.float32),
        "defective": model.rule.decide(run.scores),
        "map": maps,
        "mask": maps >= model.rule.pixel_threshold,
    }
    monkeypatch.setattr(
        check, "run_apart", lambda *_: ({name: list(array) for name, array in change(right).items()}, 0.1)
    )
    arguments = (model, built_in, "stablehlo", Path("unused"), 4)
    if named is None:
        assert check.check(*arguments)["num_images"] == 4
        return
    with pytest.raises(UserError, match=named):
        check.check(*arguments)


@pytest.mark.parametrize(
    ("shift", "extra", "named"),
    [
        (0.003, 0, None),
        (0.003, 400, "has Dice 0.[0-9]{4} on defective images, the run 1.0"),
        (9.0, 0, "scores"),
    ],
    ids=["other scores", "worse outlines", "a decision"],
)
def test_a_file_of_8_bits_decides_alike_and_outlines_as_well(
    shift: float, extra: int, named: str | None, built_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: 8 bits that cost a decision or the outlines, written as if nothing had happened."""
    model = load_trained_model(built_in)
    mask = np.zeros((64, 64), bool)
    mask[:20, :20] = True
    predicted = [mask, np.zeros_like(mask)]
    run = check.Expected(["a", "b"], predicted, predicted, np.array([0.9, 0.1]), predicted)
    model = replace(model, rule=Thresholds(0.5, 0.5, "f1"))
    maps = [one.astype(np.float32) for one in predicted]
    maps[0].ravel()[64 * 30 : 64 * 30 + extra] = 1
    out = {
        "score": [one + np.float32(shift) for one in run.scores],
        "defective": [0.9 + shift >= 0.5, 0.1 + shift >= 0.5],
        "map": maps,
        "mask": [one >= 0.5 for one in maps],
    }
    monkeypatch.setattr(check, "expected", lambda *_, **__: run)
    monkeypatch.setattr(check, "run_apart", lambda *_: (out, 0.1))
    arguments = (model, built_in, "onnx", Path("unused"), 2, True)
    if named is None:
        found = check.check(*arguments)
        assert found["dice_defective"] == found["dice_defective_of_run"] == 1.0
        assert found["largest_difference"] == pytest.approx(shift, rel=1e-3)
        return
    with pytest.raises(UserError, match=named):
        check.check(*arguments)


def test_ranges_of_8_bits_are_those_of_validation_images_of_both_labels(
    built_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: test images that a file is fitted to, or good ones alone, whose maps are empty."""
    monkeypatch.setattr(check, "NUM_CALIBRATION", 2)
    chosen: list[str] = []
    read = check._read_images

    def note(model: TrainedModel, workdir: Path, names: list[str]) -> Any:
        chosen.extend(names)
        return read(model, workdir, names)

    monkeypatch.setattr(check, "_read_images", note)
    (first, _) = check.calibration_images(load_trained_model(built_in), built_in)
    assert first.shape == (512, 512)
    with (built_in / "validation_scores.csv").open(newline="") as stream:
        labels = {row["image"]: row["label"] for row in csv.DictReader(stream)}
    assert {labels[name] for name in chosen} == {"0", "1"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model={built_in}", "--format=onnx", "--output={tmp}/none/file"), "no folder"),
        (("--model={built_in}", "--format=onnx", "--output={tmp}"), "is a folder"),
        (("--model={tmp}", "--format=stablehlo", "--output={tmp}/file"), "report.json"),
        (("--model={built_in}", "--format=onnx", "--output={tmp}/file", "--opset=99"), "at most 23"),
        (
            ("--model={built_in}", "--format=stablehlo", "--output={tmp}/file", "--int8"),
            "holds with --format=onnx",
        ),
        (
            ("--model={built_in}", "--format=stablehlo", "--output={tmp}/file", "--opset=21"),
            r"`--opset` \(=21\) is of --format=onnx",
        ),
    ],
)
def test_mistakes_are_named(arguments: tuple[str, ...], named: str, built_in: Path, tmp_path: Path) -> None:
    """Would catch: a traceback, or an hour's export that ends at a folder which is not there."""
    argv = [argument.format(built_in=built_in, tmp=tmp_path) for argument in arguments]
    with pytest.raises(UserError, match=named):
        command.main(["export", *argv])


@pytest.mark.parametrize("config", [CustomUNetConfig(4), ConvAutoencoderConfig(4), UNet3PlusConfig(4)])
def test_the_operations_of_onnx_compute_what_the_layers_do(config: Any) -> None:
    """Catches turned taps of a transposed convolution, windows of another size, and forms that no layer takes."""
    build = partial(config.build, in_channels=1, out_channels=1)
    structure, params, stats = randomised(nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0))))
    network = Network(structure, 1, 0.0, 1.0)
    x = jnp.asarray(numbers(2, 48, 32, 1))

    def logits(network: Network) -> Any:
        return jax.jit(lambda x: network.apply(params, stats, train=False)[0](x, None).logits)

    plain, of_onnx = logits(network), logits(replace(network, forms=STANDARD))
    np.testing.assert_allclose(of_onnx(x), plain(x), atol=1e-4)
    text = str(jax.make_jaxpr(of_onnx)(x))
    assert text.count("reduce_window_max") == (10 if isinstance(config, UNet3PlusConfig) else 4)
    assert text.count("lhs_dilation=(2, 2)") == (0 if isinstance(config, UNet3PlusConfig) else 4)


def test_openvino_runs_once_for_all_outputs_of_an_image() -> None:
    """Catches a program that runs the network anew for each of its outputs, in four times the time, and images in
    another order."""
    calls = []

    def compiled(images: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(images)
        return {name: images[:, 0, 0] + place for place, name in enumerate(runners.OUTPUTS)}

    found = runners.openvino_program(compiled)(np.arange(0, 24, 8, dtype=np.uint8).reshape(3, 1, 1))
    assert np.transpose(found).tolist() == [[k, k + 1, k + 2, k + 3] for k in (0, 8, 16)]
    assert [images.shape for images in calls] == [(1, 1, 1)] * 3


@pytest.mark.onnx
@needs_onnx
@pytest.mark.filterwarnings("ignore:os.fork")
@pytest.mark.parametrize("task", [*TASKS, GUIDED])
def test_the_onnx_program_judges_as_the_run_does_from_any_batch(task: str, tmp_path: Path) -> None:
    """Would catch: an operation that is converted to another, a batch size that is fixed."""
    detector, scores, their_maps = untrained(task, (60, 75) if task == "segmentation" else (128, 128))
    images = noise(detector.shape)
    (tmp_path / "file").write_bytes(to_onnx.to_onnx(detector))
    for name in filter(importlib.util.find_spec, runners.RUNTIMES_OF["onnx"]):
        run = runners.RUNTIMES[name](tmp_path / "file")
        outputs = [run(batch) for batch in (images[:1], images[1:3], images[3:])]
        score, defective, maps, _ = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        np.testing.assert_allclose(score, scores, atol=1e-5)
        np.testing.assert_allclose(maps, their_maps, atol=1e-5)
        np.testing.assert_array_equal(defective, detector.rule.decide(scores))


@pytest.mark.onnx
@needs_onnx
def test_the_onnx_file_is_an_inspector_like_its_run(built_in: Path, tmp_path: Path) -> None:
    """Would catch: an ONNX file that the command refuses, or that the inspector or an older runtime cannot load."""
    written = write(built_in, tmp_path / "inspector.onnx", "onnx")
    small = write(built_in, tmp_path / "small.onnx", "onnx", "--int8")
    assert small.stat().st_size != written.stat().st_size
    content = small.read_bytes()
    assert b"QuantizeLinear" in content and not of_this_machine(content)
    onnx = importlib.import_module("onnx")
    for file in (written, small):
        assert [(opset.domain, opset.version) for opset in onnx.load(file).opset_import] == [("", 18)]
    assert "MB" in small.with_name("small.onnx.md").read_text()
    assert not of_this_machine(written.read_bytes())
    inspector = Inspector.load(written)
    images = list(noise((512, 512)))[:2]
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    script = Path(__file__).parents[2] / "docs" / "run_onnx.py"
    named = [str(tmp_path / name) for name in ("inspector.onnx", "0.png", "1.png", "none.png")]
    done = run_python("-I", script, *named)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 2 and "none.png" in told[2]["error"]
    for one, verdict in zip(told, inspector.inspect(images), strict=False):
        assert one["score"] == pytest.approx(verdict.score, rel=1e-5)
        assert one["defective"] == verdict.defective and (one["box"] is not None) == verdict.mask.any()
    for ours, theirs in zip(Inspector.load(built_in).inspect(images), inspector.inspect(images), strict=True):
        assert theirs.score == pytest.approx(ours.score, rel=1e-4)
        assert theirs.defective == ours.defective


@pytest.mark.skipif(importlib.util.find_spec("jax2onnx") is not None, reason="jax2onnx is installed")
def test_without_the_converter_its_command_is_named(tmp_path: Path) -> None:
    """Would catch: a traceback of an import in place of the command that mends it."""
    with pytest.raises(UserError, match="pip install"):
        to_onnx.to_onnx(untrained("segmentation", (64, 64))[0])

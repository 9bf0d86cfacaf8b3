"""Figures of a finished run: one image in each runtime, and its test images judged in each way, both in turn."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from dagm_jax import export
from dagm_jax.command_line import one_line
from dagm_jax.data.slicing import pad
from dagm_jax.distributed.devices import make_devices
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import EvalConfig
from dagm_jax.evaluation.evaluate import is_marked
from dagm_jax.evaluation.metrics import auroc, dice_curve
from dagm_jax.evaluation.predictor import Prediction
from dagm_jax.evaluation.programs import choose_shapes, padded
from dagm_jax.experiment.trained_model import TrainedModel, load_trained_model
from dagm_jax.exporting.check import expected
from dagm_jax.exporting.exported_model import load_exported_model
from dagm_jax.exporting.runners import compile_openvino, openvino_program
from dagm_jax.inspection.inspector import Inspector
from dagm_jax.inspection.trained_backend import TrainedModelBackend
from launch.bench.measure import ERROR, Options, Values
from launch.bench.timing import Run, repeat, seconds_of, time_alternately

TILINGS = {
    "slices": EvalConfig(tiling="slices"),
    "whole": EvalConfig(),
    "whole, mean of four mirror images": EvalConfig(flips=True),
}
# Limit of images that one way predicts before the next takes its turn.
TURN = 10
# Type: an image uint8 [h w] → its map float32 [h w] (logits of the network alone), once all outputs are there.
Judge = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def compare_tilings(workdir: Path, options: Options) -> Values:
    """Seconds, AUROC and Dice of whole images, their mirror images and slices: the same weights, on test images."""
    model = load_trained_model(workdir)
    test = expected(model, workdir, options.request.num_images, None)
    pixels = list(zip(test.images, test.masks, strict=True))
    if len({bool(mask.any()) for mask in test.masks}) < 2:
        raise UserError(f"`--num_images` (={len(pixels)}): the test images taken are of one label; take more")
    model = replace(model, padded=choose_shapes((image.shape[0], image.shape[1]) for image in test.images))
    devices = make_devices(model.config.parallel, os.environ.get("XLA_FLAGS", ""))
    batch_size = model.config.train.judge_batch_size
    models = {name: replace(model, config=replace(model.config, eval=way)) for name, way in TILINGS.items()}
    predictors = {name: each.make_predictor(devices, batch_size) for name, each in models.items()}
    found: dict[str, list[Prediction]] = {name: [] for name in TILINGS}
    seconds: dict[str, list[float]] = {name: [] for name in TILINGS}
    for predictor in predictors.values():
        list(predictor(pixels[:TURN]))
    for start in range(0, len(pixels), TURN):
        chosen = pixels[start : start + TURN]
        for name, predictor in predictors.items():
            predict = partial(found[name].extend, predictor(chosen))
            seconds[name].append(seconds_of(predict) / len(chosen))
    rows = {}
    for name, predictions in found.items():
        labels = np.array([one.mask.any() for one in predictions])
        scores = np.array([one.score for one in predictions])
        marked = [one for one in predictions if one.mask.any() and is_marked(one.mask)]
        curves = [dice_curve(one.map, one.mask) for one in marked]
        rows[name] = {
            "image_median_s": float(np.median(seconds[name])),
            "auroc": auroc(labels, scores),
            "best_dice_defective": float(np.mean(curves, axis=0).max()),
            "lowest_of_defective": float(scores[labels].min()),
            "highest_of_good": float(scores[~labels].max()),
        }
    return {"num_images": len(pixels), "rows": rows}


def compare_runtimes(workdir: Path, options: Options) -> Values:
    """50th and 95th percentile of the seconds of one image, from pixels to score, decision, map and mask.

    over_network_ratio: seconds over those of the network alone, without padding and post-processing.
    map_difference: the largest to XLA's map; U-Net 3+ of PyTorch guides itself by maxima over the image, not windows.
    A runtime that is not installed, and a file that export refuses, is a row with the reason.
    """
    model = load_trained_model(workdir)
    # ONNX files take images of the model's size alone.
    image = expected(model, workdir, 1, model.shape).images[0]
    rows: dict[str, Values] = {}
    runs: dict[str, Run] = {}
    maps: dict[str, Any] = {}
    for name, (make, arguments) in RUNTIMES.items():
        try:
            judge, rows[name] = make(model, options, **arguments)
            maps[name] = judge(image)
            runs[name] = repeat(partial(judge, image))
        except Exception as error:  # whatever a runtime that is absent or refuses the file raises
            if name in (NETWORK, XLA):
                raise
            rows[name] = {ERROR: one_line(error)}
    blocks = time_alternately(runs, options.request.repetitions, singly=True)
    for name, each in blocks.items():
        rows[name] |= {f"p{p}_s": each.percentile(p) for p in (50, 95)}
        rows[name]["over_network_ratio"] = each.median_s / blocks[NETWORK].median_s
        if name != NETWORK:
            rows[name]["map_difference"] = float(np.abs(maps[name] - maps[XLA]).max())
    return {"image_px": "x".join(map(str, image.shape)), "rows": rows}


def open_network(model: TrainedModel, options: Options) -> tuple[Judge, Values]:
    """The network alone on a padded image, compiled for the devices of a run."""
    devices = make_devices(model.config.parallel, os.environ.get("XLA_FLAGS", ""))
    network = model.network.for_platform(devices.platform)
    weights = devices.replicate((model.params, model.stats))
    none = jnp.zeros(1, jnp.int32)

    def logits(params: Any, stats: Any, image: Any) -> Any:
        forward, _ = network.apply(params, stats, train=False)
        return forward(network.preprocess(image[None, ..., None], none, none, none)["x"], None).logits

    compiled = jax.jit(logits, compiler_options=devices.compiler_options)
    return lambda image: jax.block_until_ready(compiled(*weights, frame(image))), {}


def open_xla(model: TrainedModel, options: Options) -> tuple[Judge, Values]:
    """The inspector of the run, whose network JAX compiles."""
    devices = make_devices(model.config.parallel, os.environ.get("XLA_FLAGS", ""))
    return judge_of(Inspector.of_backend(TrainedModelBackend(model, devices))), {
        "precision": model.config.model.compute_dtype,
        "threads": len(os.sched_getaffinity(0)),
    }


def open_file(
    model: TrainedModel, options: Options, runtime: str, int8: bool = False, precision: str = ""
) -> tuple[Judge, Values]:
    """The inspector of an ONNX file of the run, which is exported unless it is there already.

    precision: in which OpenVINO is asked to compute. Raises UserError where export refuses the file.
    """
    folder = options.request.output / "exported"
    file = folder / f"{model.model_id}{'_int8' if int8 else ''}.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        command = ["export", f"--model={options.request.model}", "--format=onnx", f"--output={file}"]
        export.main([*command, "--int8"] if int8 else command)
    exported = load_exported_model(file, runtime)
    if runtime == "onnxruntime":
        # onnxruntime tells neither; convolutions compute in the type that they have in the file.
        return judge_of(Inspector.of_backend(exported)), {"precision": "int8" if int8 else "float32"}
    compiled = compile_openvino(file, precision)
    operations = [operation.get_rt_info() for operation in compiled.get_runtime_model().get_ops()]
    computed = {
        each["runtimePrecision"].astype(str)
        for each in operations
        if each["layerType"].astype(str) == "Convolution"
    }
    exported.program = openvino_program(compiled)
    return judge_of(Inspector.of_backend(exported)), {
        "precision": ", ".join(sorted(computed)),
        "threads": compiled.get_property("INFERENCE_NUM_THREADS"),
    }


def open_torch(model: TrainedModel, options: Options, compiled: bool) -> tuple[Judge, Values]:
    """PyTorch's twin of the network with the run's weights, and the same post-processing in PyTorch."""
    # PyTorch is an extra.
    import torch

    from launch.bench.peer_step import make_judge

    judge = make_judge(model, compiled)
    facts = {"precision": model.config.model.compute_dtype, "threads": torch.get_num_threads()}
    return lambda image: judge(frame(image), *image.shape), facts


def frame(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image continued by its edge to the size that is judged."""
    return pad(image, padded((image.shape[0], image.shape[1])), "edge")


def judge_of(inspector: Inspector) -> Judge:
    """The inspector's verdict on one image."""
    return lambda image: inspector.predict([image], 1)[0].map


NETWORK, XLA = "XLA, the network alone", "XLA"
RUNTIMES: dict[str, tuple[Callable[..., tuple[Judge, Values]], dict[str, Any]]] = {
    NETWORK: (open_network, {}),
    XLA: (open_xla, {}),
    "onnxruntime": (open_file, {"runtime": "onnxruntime"}),
    "onnxruntime, 8 bits": (open_file, {"runtime": "onnxruntime", "int8": True}),
    "OpenVINO": (open_file, {"runtime": "openvino", "precision": "f32"}),
    "OpenVINO, 8 bits": (open_file, {"runtime": "openvino", "int8": True, "precision": "f32"}),
    "OpenVINO, bfloat16": (open_file, {"runtime": "openvino", "precision": "bf16"}),
    "PyTorch eager": (open_torch, {"compiled": False}),
    "PyTorch compiled": (open_torch, {"compiled": True}),
}
KINDS = {"latency": compare_runtimes, "tiling": compare_tilings}

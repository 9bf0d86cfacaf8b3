"""Latency of an exported file beside PyTorch eager: one image at a time, the same network on the same slices.

``python -m launch.export_latency --model=WORKDIR --exported=FILE [--repetitions=10]``

The file does all between pixels and verdict; the peer, on the CPU, runs the network alone: slices lie ready cut, and
nothing is stitched or scored. Images are test images of the run, which must still be where ``data.root`` says.
Times are medians over alternating blocks; both may use all of the CPU's cores, and neither anything else. For runs of
the task segmentation. Needs PyTorch: ``pip install -e '.[peer]'``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dagm_jax import export
from dagm_jax.command_line import flag, parse_request
from dagm_jax.data.slicing import Slicer, pad
from dagm_jax.detector import Detector, load_detector, make_slicers
from dagm_jax.exported import Exported, load_exported
from dagm_jax.main import guarded
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.types import UserError
from dagm_jax.verdict import smooth_map
from launch.bench.timing import Blocks, repeat, time_alternately

NUM_IMAGES = 4


@dataclass(frozen=True)
class Request:
    """The flags of this program."""

    model: Path = flag("The workdir of a finished run.", example="runs/mine")
    exported: Path = flag("The file that dagm_jax.export wrote of it.", example="inspector.onnx")
    repetitions: int = flag("Timed blocks of each.", 10, least=1)


def make_peer(detector: Detector) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """uint8 slices ``[n h w 1]`` → defect probabilities ``[n h w 1]`` by the detector's network in PyTorch, on the CPU.

    Raises UserError.
    """
    try:
        import torch

        from launch.bench import peer_step
    except ModuleNotFoundError as error:
        raise UserError(f"the comparison needs the package {error.name}: pip install -e '.[peer]'") from error
    network = detector.network
    model = nnx.merge(network.graphdef, detector.params, detector.stats, copy=True)
    twin = peer_step.make_twin(detector.config, model, network.mean, network.std, device="cpu")
    predict = peer_step.make_predict(twin, compiled=False)

    def maps_of(slices: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(predict(torch.from_numpy(slices)).permute(0, 2, 3, 1).numpy(), np.float32)

    return maps_of


def image_map(detector: Detector, slicer: Slicer, maps: NDArray[np.float32]) -> NDArray[Any]:
    """The map ``[h w]`` of an image from those of its slices, as the file makes it."""
    height, width = detector.shape
    stitched = np.clip(slicer.stitch(maps)[:height, :width, 0], 0.0, 1.0)
    return smooth_map(stitched, detector.config.verdict.smoothing_px)


def measure(
    detector: Detector, exported: Exported, images: NDArray[np.uint8], repetitions: int
) -> tuple[dict[str, Blocks], float]:
    """(times of the file and then of the peer, how far their maps are apart in a pixel); images uint8 [n h w]."""
    peer, slicer = make_peer(detector), make_slicers(detector.config, *detector.shape)[1]
    padded = (pad(image, (slicer.height_px, slicer.width_px)) for image in images)
    slices = [np.ascontiguousarray(slicer.cut(image[..., None])) for image in padded]
    apart = max(
        float(np.abs(exported(image[None])["map"][0] - image_map(detector, slicer, peer(cut))).max())
        for image, cut in zip(images, slices, strict=True)
    )
    image_turns, slice_turns = cycle(images), cycle(slices)
    runs = {
        export.RUNTIME_NAMES[exported.contract["format"]]: repeat(lambda: exported(next(image_turns)[None])),
        "PyTorch eager": repeat(lambda: peer(next(slice_turns))),
    }
    return time_alternately(runs, repetitions), apart


def make_table(title: str, blocks: dict[str, Blocks]) -> Table:
    """A row for each side; the last is what the others are compared with."""
    table = Table(
        "predicted by", "median ms an image", "p90 of blocks", "times PyTorch's latency", title=title
    )
    peer_s = list(blocks.values())[-1].median_s
    for name, times in blocks.items():
        ratio = f"{times.median_s / peer_s:.2f}x"
        table.add_row(name, f"{times.median_s * 1e3:.0f}", f"{times.p90_s * 1e3:.0f}", ratio)
    return table


def check(detector: Detector, exported: Exported, request: Request) -> None:
    """Raises UserError for what cannot be compared: another model, another task, another device."""
    if exported.model_id != detector.model_id:
        raise UserError(
            f"`--exported` (={request.exported}) was not written of `--model` (={request.model}, model "
            f"{detector.model_id}); export it again"
        )
    if not isinstance(detector.config.task, SegmentationConfig):
        raise UserError(
            f"`--model` (={request.model}) is a run of {detector.config.task.name}; PyTorch's side knows segmentation"
        )
    if exported.contract["format"] == "stablehlo" and jax.default_backend() != "cpu":
        raise UserError(
            f"`--exported` (={request.exported}) would run on this machine's {jax.default_backend()}, and PyTorch on "
            "its CPU; set JAX_PLATFORMS=cpu in the environment"
        )


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    request = parse_request(Request, argv, __doc__)
    detector, exported = load_detector(request.model), load_exported(request.exported)
    check(detector, exported, request)
    checked = export.Request(request.model, "", request.exported, NUM_IMAGES)
    images = export.expected(checked, detector)[1]
    blocks, apart = measure(detector, exported, images, request.repetitions)
    height, width = detector.shape
    title = f"{detector.config.model.name}, {width}x{height} px, one image at a time; maps at most {apart:.0e} apart"
    Console().print(make_table(title, blocks))


if __name__ == "__main__":
    guarded(main, sys.argv)

"""Latency of an exported file beside PyTorch eager: one image at a time, the same network on the same slices.

``python -m launch.export_latency --model=WORKDIR --exported=FILE [--repetitions=10]``

The file does all between pixels and verdict; the peer, on the CPU, what is the network's alone: slices lie ready
cut, and nothing is stitched or scored. Images are test images of the run, which must still be where ``data.root`` says.
Times are medians over alternating blocks; both may use all of the CPU's cores, and neither anything else. For runs of
the task segmentation. Needs PyTorch: ``pip install -e '.[peer]'``.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from dagm_jax import command_line
from dagm_jax.data.slicing import Slicer, pad
from dagm_jax.evaluation.postprocess import smooth
from dagm_jax.exporting.check import RUNTIME_NAMES
from dagm_jax.exporting.exported_model import ExportedModel, load_exported_model
from dagm_jax.main import guarded
from dagm_jax.tasks.segmentation import SegmentationConfig
from dagm_jax.trained_model import TrainedModel, load_trained_model, make_slicers
from dagm_jax.types import UserError
from launch.bench.timing import Blocks, Run, time_alternately

NUM_IMAGES = 4


class Peer:
    """The detector's network in PyTorch on the CPU, in evaluation mode, with the same weights. Raises UserError."""

    def __init__(self, detector: TrainedModel) -> None:
        try:
            import torch

            from launch.bench import peer_step
        except ModuleNotFoundError as error:
            raise UserError(
                f"the comparison needs the package {error.name}: pip install -e '.[peer]'"
            ) from error
        network = detector.network
        model = nnx.merge(network.graphdef, detector.params, detector.stats, copy=True)
        twin = peer_step.make_twin(detector.config, model, network.mean, network.std, device="cpu")
        self._predict = peer_step.make_predict(twin, compiled=False)
        self._tensor = torch.from_numpy

    def __call__(self, slices: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Defect probabilities ``[n h w 1]`` of uint8 slices ``[n h w 1]``."""
        maps = self._predict(self._tensor(slices))
        return np.asarray(maps.permute(0, 2, 3, 1).numpy(), np.float32)


def image_map(detector: TrainedModel, slicer: Slicer, maps: NDArray[np.float32]) -> NDArray[Any]:
    """The map ``[h w]`` of an image from those of its slices, as the file makes it."""
    height, width = detector.shape
    stitched = np.clip(slicer.stitch(maps)[:height, :width, 0], 0.0, 1.0)
    return np.asarray(smooth(stitched[None], None, detector.config.verdict.smoothing_px)[0])


def in_turn(judge: Callable[[Any], object], inputs: Iterable[Any]) -> Run:
    """Calls ``judge`` with one of the inputs after the other."""
    turns = itertools.cycle(inputs)

    def run(number: int) -> None:
        for _ in range(number):
            judge(next(turns))

    return run


def measure(
    detector: TrainedModel, exported: ExportedModel, images: NDArray[np.uint8], repetitions: int
) -> tuple[dict[str, Blocks], float]:
    """(times of the file and then of the peer, how far their maps are apart in a pixel); images uint8 [n h w]."""
    peer, slicer = Peer(detector), make_slicers(detector.config, *detector.shape)[1]
    padded = (pad(image, (slicer.height_px, slicer.width_px)) for image in images)
    slices = [np.ascontiguousarray(slicer.cut(image[..., None])) for image in padded]
    apart = max(
        float(np.abs(exported(image[None])["map"][0] - image_map(detector, slicer, peer(cut))).max())
        for image, cut in zip(images, slices, strict=True)
    )
    runs = {
        RUNTIME_NAMES[exported.contract["format"]]: in_turn(lambda image: exported(image[None]), images),
        "PyTorch eager": in_turn(peer, slices),
    }
    return time_alternately(runs, repetitions), apart


def make_table(title: str, blocks: dict[str, Blocks]) -> Table:
    """A row for each side; the last is what the others are compared with."""
    table = Table("judged by", "median ms an image", "p90 of blocks", "times PyTorch's latency", title=title)
    peer_s = list(blocks.values())[-1].median_s
    for name, times in blocks.items():
        ratio = f"{times.median_s / peer_s:.2f}x"
        table.add_row(name, f"{times.median_s * 1e3:.0f}", f"{times.p90_s * 1e3:.0f}", ratio)
    return table


def check(detector: TrainedModel, exported: ExportedModel, given: Any) -> None:
    """Raises UserError for what cannot be compared: another model, another task, another device."""
    if exported.model_id != detector.model_id:
        raise UserError(
            f"`--exported` (={given.exported}) was not written of `--model` (={given.model}, model "
            f"{detector.model_id}); export it again"
        )
    if not isinstance(detector.config.task, SegmentationConfig):
        raise UserError(
            f"`--model` (={given.model}) is a run of {detector.config.task.name}; PyTorch's side knows segmentation"
        )
    if exported.contract["format"] == "stablehlo" and jax.default_backend() != "cpu":
        raise UserError(
            f"`--exported` (={given.exported}) would run on this machine's {jax.default_backend()}, and PyTorch on its "
            "CPU; set JAX_PLATFORMS=cpu in the environment"
        )


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    values = command_line.make_flags()
    flags.DEFINE_string("model", None, "The workdir of a finished run.", flag_values=values)
    flags.DEFINE_string("exported", None, "What dagm_jax.export wrote of it.", flag_values=values)
    flags.DEFINE_integer("repetitions", 10, "Timed blocks of each.", lower_bound=1, flag_values=values)
    given = command_line.parse(values, argv, __doc__)
    for name in ("model", "exported"):
        if not getattr(given, name):
            raise UserError(f"`--{name}` is missing; name a workdir with --model and a file with --exported")
    workdir, file = (Path(path).expanduser() for path in (given.model, given.exported))
    detector, exported = load_trained_model(workdir), load_exported_model(file)
    check(detector, exported, given)
    request = export.Request(workdir, "", file, NUM_IMAGES)
    images = export.expected(request, detector)[1]
    blocks, apart = measure(detector, exported, images, given.repetitions)
    height, width = detector.shape
    title = f"{detector.config.model.name}, {width}x{height} px, one image at a time; maps at most {apart:.0e} apart"
    Console().print(make_table(title, blocks))


if __name__ == "__main__":
    guarded(main, sys.argv)

"""Writes a finished run as one file for other runtimes, once its scores of test images equal those of the run.

``python -m dagm_jax.export --model=WORKDIR --format=stablehlo|onnx --output=FILE [--opset=18] [--int8]
    [--num_checked=32]``

The file takes uint8 images and gives score, decision, map and mask; FILE.json beside it is its contract, FILE.md its
model card; docs/export.md says how to run it. Before the file gets its name, a process that cannot import this package
scores test images with it; where a score differs from the run's by more than 1e-4, or a decision differs, no file
stays.

Exit status: 0 the file is written; 2 a mistake or a difference, which the one-line message explains.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagm_jax.command_line import flag, guarded, parse_request
from dagm_jax.errors import UserError
from dagm_jax.exporting.runners import FORMATS, NEWEST_OPSET, OPSET

if TYPE_CHECKING:
    from dagm_jax.experiment.trained_model import TrainedModel


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: Path = flag("The workdir of a finished run.", example="runs/mine")
    format: str = flag("The runtime that executes the file.", example="stablehlo", choices=FORMATS)
    output: Path = flag("The file to write.", example="inspector.stablehlo")
    opset: int = flag("Version of ONNX operators; the lowest runs in most runtimes.", OPSET, least=OPSET)
    int8: bool = flag("Convolutions of an ONNX file in 8 bits, if no decision changes.", False)
    num_checked: int = flag("Test images that the file must score as the run did.", 32, least=1)

    def __post_init__(self) -> None:
        folder = self.output.parent
        if not folder.is_dir():
            raise UserError(f"`--output` (={self.output}): there is no folder {folder}; make it first")
        if self.int8 and self.format != "onnx":
            raise UserError(f"`--int8` holds with --format=onnx, not {self.format}; leave it out")
        if self.opset != OPSET and self.format != "onnx":
            raise UserError(f"`--opset` (={self.opset}) is of --format=onnx, not {self.format}; leave it out")
        if self.opset > NEWEST_OPSET:
            raise UserError(
                f"`--opset` (={self.opset}) must be at most {NEWEST_OPSET}, the newest of the converter"
            )
        if self.output.is_dir():
            raise UserError(f"`--output` (={self.output}) is a folder; name a file in it")


def main(argv: Sequence[str]) -> int:
    """Writes the file that the command line requests; the exit status."""
    request = parse_request(Request, argv, __doc__)
    from dagm_jax.console import console
    from dagm_jax.experiment.trained_model import load_trained_model
    from dagm_jax.exporting.check import calibration_images, check
    from dagm_jax.exporting.inference_fn import to_stablehlo
    from dagm_jax.exporting.to_onnx import to_int8, to_onnx
    from dagm_jax.storage import replacing

    model = load_trained_model(request.model)
    console.print(f"model {model.model_id}: writing {request.format}")
    content = to_stablehlo(model) if request.format == "stablehlo" else to_onnx(model, request.opset)
    if request.int8:
        content = to_int8(content, calibration_images(model, request.model))
    try:
        with replacing(request.output, "xb") as stream:
            stream.write(content)
            stream.flush()
            file = Path(stream.name)
            checked = check(model, request.model, request.format, file, request.num_checked, request.int8)
            write_beside(request, model, checked, content)
    except OSError as error:
        raise UserError(f"`--output` (={request.output}) cannot be written ({error.strerror})") from error
    console.print(
        f"{request.output} ({len(content) / 1e6:.1f} MB): {checked['num_images']} test images decided alike by "
        f"{checked['runtime']}, scores equal to {checked['largest_difference']:.1e}, "
        f"{1000 * checked['seconds_an_image']:.0f} ms an image"
    )
    return 0


def write_beside(request: Request, model: TrainedModel, checked: dict[str, Any], content: bytes) -> None:
    """Writes the contract and the model card of the file ``request.output``, which will have this content."""
    from dagm_jax.experiment.workdir import Workdir
    from dagm_jax.exporting.exported_model import contract_path
    from dagm_jax.exporting.inference_fn import PLATFORMS
    from dagm_jax.exporting.model_card import make_card, make_contract
    from dagm_jax.storage import write_atomically, write_json

    workdir = Workdir(request.model, "model")
    report = workdir.read_report()
    of_onnx = {"opset": request.opset, "int8": request.int8}
    contract = {
        "format": request.format,
        "file": request.output.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "size_bytes": len(content),
        **(of_onnx if request.format == "onnx" else {"platforms": list(PLATFORMS)}),
        **make_contract(model, request.format, report, workdir.read_normal_scores()),
        "checked": checked,
    }
    write_json(contract_path(request.output), contract)
    card = request.output.with_name(f"{request.output.name}.md")
    write_atomically(card, make_card(contract, request.output.name))


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

"""Exported files read back: the program, and the contract that lies beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagm_jax import schema
from dagm_jax.data.images.decode import ImageReader
from dagm_jax.data.slicing import pad
from dagm_jax.errors import UserError
from dagm_jax.evaluation.threshold import THRESHOLDS_SCHEMA, Thresholds
from dagm_jax.exporting.runners import FORMATS, OUTPUTS, RUNTIMES, RUNTIMES_OF, Program
from dagm_jax.storage import load_json
from dagm_jax.types import DAGM_SHAPE, MAX_PIXELS
from dagm_jax.versions import written_by

CONTRACT_SCHEMA: schema.Schema = {
    "format": schema.Rule(f"one of {', '.join(FORMATS)}", lambda x: isinstance(x, str) and x in FORMATS),
    "sha256": schema.SHA256,
    "model_id": schema.MODEL_ID,
    "input": {"shape": schema.BATCH_SHAPE, "white": schema.WHITE_LEVEL},
    "outputs": schema.Rule(
        f"a list of {', '.join(OUTPUTS)}",
        lambda x: (
            isinstance(x, list) and [one.get("name") for one in x if isinstance(one, dict)] == list(OUTPUTS)
        ),
    ),
    "rule": THRESHOLDS_SCHEMA,
    "validation_normal_scores": schema.FINITE_LIST,
}


def contract_path(path: Path) -> Path:
    """The path of the contract of an exported file: FILE.json."""
    return path.with_name(f"{path.name}.json")


class ExportedModel:
    """An exported file as a backend of `inspector.Inspector`. contract: the content of FILE.json.

    shape: (h, w) in px of the program's input, None where it takes any. Images smaller than it are padded; the score is
    then of the padded image, the map is cropped.
    """

    # Slices of one image fill a CPU's cores, and two images a small accelerator.
    batch_size = 2

    def __init__(self, program: Program, contract: dict[str, Any]) -> None:
        self.program, self.contract = program, contract
        self.model_id: str = contract["model_id"]
        self.rule = Thresholds.from_values(contract["rule"])
        self.normal_scores: Sequence[float] = contract["validation_normal_scores"]
        (_, height, width), white = contract["input"]["shape"], contract["input"]["white"]
        self.shape: tuple[int, int] | None = None if height == "h" else (height, width)
        self.reading = ImageReader(DAGM_SHAPE if white is None else None, self.shape or MAX_PIXELS, white)

    def predict(
        self, images: Sequence[NDArray[np.uint8]], batch_size: int
    ) -> list[tuple[float, NDArray[np.float32]]]:
        """(score, map float32 [h w]) of each image; see `inspector.Backend.predict`."""
        found: dict[int, tuple[float, NDArray[np.float32]]] = {}
        for shape in {self.shape or image.shape for image in images}:
            places = [i for i, image in enumerate(images) if self.shape or image.shape == shape]
            mode = self.contract["input"]["padding"]
            batch = np.stack([pad(images[i], (shape[0], shape[1]), mode) for i in places])
            if self.contract["format"] == "stablehlo":  # compiled for each number of images
                batch = np.pad(batch, ((0, batch_size - len(batch)), (0, 0), (0, 0)))
            scores, _, maps, _ = self.program(batch)
            for i, score, map_ in zip(places, scores, maps, strict=False):
                height, width = images[i].shape
                found[i] = float(score), map_[:height, :width]
        return [found[i] for i in range(len(images))]


def load_exported_model(path: Path, runtime: str | None = None) -> ExportedModel:
    """The exported file ``path``, whose contract is in FILE.json beside it; ``runtime``: None for the format's first.

    Raises UserError where either is missing, they do not belong together, or the runtime is not installed.
    """
    contract = read_contract(path)
    format = contract["format"]
    runtimes = RUNTIMES_OF[format]
    if runtime is not None and runtime not in runtimes:
        raise UserError(f"`runtime` (={runtime}) must be one of {', '.join(runtimes)} for a file of {format}")
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"`model` (={path}) cannot be read ({error.strerror}); export it again") from error
    if found != contract["sha256"]:
        raise UserError(
            f"`model` (={path}) has SHA-256 {found[:12]}…, and {contract_path(path).name} speaks of one with "
            f"{contract['sha256'][:12]}…; export again or restore both from a copy"
        )
    try:
        program = RUNTIMES[runtime or runtimes[0]](path)
    except ModuleNotFoundError as error:
        raise UserError(
            f"`model` (={path}) needs the package {error.name}: pip install {error.name}"
        ) from error
    except Exception as error:  # the runtimes' errors for damaged files have no common type
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"`model` (={path}) is no {format} program for what is installed here ({reason}); written by "
            f"{written_by(contract)}; export it again"
        ) from error
    return ExportedModel(program, contract)


def read_contract(path: Path) -> dict[str, Any]:
    """The content of FILE.json beside the exported file ``path``; raises UserError."""
    beside = contract_path(path)
    try:
        contract: dict[str, Any] = load_json(beside)
    except OSError as error:
        raise UserError(
            f"`model` (={path}) has no contract {beside.name} beside it ({error.strerror}); copy both, or name the "
            "workdir of a finished run"
        ) from error
    except ValueError as error:
        raise UserError(f"`model` (={path}): {beside.name} is not JSON ({error}); export again") from error
    fault = schema.find_fault(contract, CONTRACT_SCHEMA)
    if not fault:
        # Files of earlier releases say no mode.
        contract["input"].setdefault("padding", "symmetric")
        fault = schema.find_fault(contract, {"input": {"padding": schema.PAD_MODE}})
    if fault:
        raise UserError(
            f"`model` (={path}): {beside.name} is no contract of an exported file: {fault}; export again"
        )
    return contract

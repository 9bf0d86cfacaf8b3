"""The batch of a step that training stopped at, in one file with all that the step depends on; plain arrays only."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dagm_jax.data.replacing import replacing
from dagm_jax.train.step import TrainState
from dagm_jax.types import UserError

# Arrays of a batch, beside those of the state, whose names begin with these words.
BATCH = ("image", "mask", "label", "valid", "image_index")
PARAMS, STATS = "params", "stats"


@dataclass(frozen=True)
class KeptBatch:
    """What the file holds. config: of the run, as JSON values; batch: as `types.Batch`; image_ids: one for each slice.

    step: the number of steps before this one; arrays: parameters and norm statistics by the name in the file.
    """

    step: int
    cooldown: np.ndarray
    batch: dict[str, np.ndarray]
    image_ids: tuple[str, ...]
    config: dict[str, Any]
    mean: float
    std: float
    arrays: dict[str, np.ndarray]

    def fill(self, name: str, shapes: Any) -> Any:
        """The pytree of ``shapes`` (arrays or their shapes and types) with the arrays of the file; raises UserError."""

        def find(path: Any, like: Any) -> np.ndarray:
            key = _key(name, path)
            found = self.arrays.get(key)
            if found is None or found.shape != like.shape or found.dtype != like.dtype:
                there = "is not there" if found is None else f"is {found.dtype} {found.shape}"
                raise UserError(
                    f"`batch`: {key} {there}, and its configuration has {like.dtype} {like.shape}; "
                    "repeat it with the version that wrote it"
                )
            return found

        return jax.tree_util.tree_map_with_path(find, shapes)


def save(
    path: Path,
    state: TrainState,
    batch: Mapping[str, np.ndarray],
    ids: Sequence[str],
    meta: Mapping[str, Any],
) -> None:
    """Writes the file ``path``, which appears when it is whole.

    state: as it was before the step. meta: config, mean and std of the run. Raises OSError.
    """
    arrays: dict[str, Any] = {name: np.asarray(batch[name]) for name in BATCH}
    arrays |= {"image_ids": np.array(ids), "step": state.step, "cooldown": state.cooldown}
    arrays |= {"config": np.array(json.dumps(meta["config"])), "mean": meta["mean"], "std": meta["std"]}
    for name, tree in ((PARAMS, state.params), (STATS, state.stats)):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        arrays |= {_key(name, place): np.asarray(leaf) for place, leaf in leaves}
    with replacing(path, "xb") as stream:
        np.savez(stream, **arrays)


def load(path: Path) -> KeptBatch:
    """The file's content; raises UserError where it is no such file. Its memory is at most the size of the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.file_size > entry.compress_size for entry in entries):
            raise ValueError("its arrays are packed, which those of training are not")
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        # NumPy hands out the bytes of a member that is no array.
        if others := [name for name, value in found.items() if not isinstance(value, np.ndarray)]:
            raise ValueError(f"{others[0]!r} in it is no array")
        config = json.loads(str(found["config"]))
        if not isinstance(config, dict):
            raise ValueError("its configuration is none")
        return KeptBatch(
            step=int(found["step"]),
            cooldown=found["cooldown"],
            batch={name: found[name] for name in BATCH},
            image_ids=tuple(str(name) for name in found["image_ids"]),
            config=config,
            mean=float(found["mean"]),
            std=float(found["std"]),
            arrays={name: array for name, array in found.items() if name.startswith((PARAMS, STATS))},
        )
    except OSError as error:
        raise UserError(
            f"`batch` (={path}) cannot be read ({error.strerror or error}); name a file non_finite_step_N.npz of a "
            "workdir"
        ) from error
    except (
        zipfile.BadZipFile,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        NotImplementedError,
        MemoryError,
        OverflowError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"`batch` (={path}) is no batch that training has left ({type(error).__name__}: {reason}); name a file "
            "non_finite_step_N.npz of a workdir"
        ) from error


def _key(name: str, path: Any) -> str:
    """The name of an array in the file: params and the keys that lead to it."""
    return name + jax.tree_util.keystr(path)

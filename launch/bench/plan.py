"""The flags of a benchmark and its cells: one measurement or comparison each, in the order of measurement."""

# Free of jax, as launch.benchmark is.
from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from dagm_jax.command_line import flag
from dagm_jax.errors import UserError
from launch.flag_lists import check_list

SETTINGS = ("modes", "precisions", "batch_sizes", "devices")
# Kind of cell → the flags that it is measured over.
AXES: dict[str, tuple[str, ...]] = {
    "command": ("precisions",),
    "step": SETTINGS,
    "whole": SETTINGS,
    "peer_step": ("precisions", "batch_sizes"),
    "inference": ("precisions", "inference_batches"),
    "peer_inference": ("precisions", "inference_batches"),
    "pipeline": ("batch_sizes",),
    "peer_pipeline": ("batch_sizes",),
    "peer_epoch": ("precisions", "batch_sizes"),
    "latency": (),
    "tiling": (),
}
# Flag → field of Cell.
FIELDS = {
    "modes": "mode",
    "precisions": "precision",
    "batch_sizes": "batch_size",
    "inference_batches": "batch_size",
    "devices": "num_devices",
}
WORDS = {"what": tuple(AXES), "modes": ("jit", "pmap"), "precisions": ("float32", "bfloat16")}
# Kinds that read PNG files.
ON_FILES = ("command", "peer_pipeline", "peer_epoch")
# Kinds that look at the finished run of --model; the others at --configs.
OF_MODEL = ("latency", "tiling")
PEER = "peer_"
TINY_UNET = "tiny_unet"


@dataclass(frozen=True)
class Cell:
    """One measurement. kind: a key of AXES; config: as on the command line, or the workdir of a finished run.

    batch_size: slices, over all devices.
    """

    kind: str
    config: str
    mode: str = "jit"
    precision: str = "float32"
    batch_size: int = 1
    num_devices: int = 1

    @property
    def title(self) -> str:
        """``step, configs/custom_unet.py, jit, float32, batch 16, 1 device``, for messages."""
        devices = "1 device" if self.num_devices == 1 else f"{self.num_devices} devices"
        words = (self.kind, self.config, self.mode, self.precision, f"batch {self.batch_size}", devices)
        return ", ".join(words)

    @property
    def name(self) -> str:
        """The title as a file name."""
        return re.sub(r"\W+", "_", self.title)


@dataclass(frozen=True)
class Request:
    """The flags of ``launch.benchmark``."""

    configs: tuple[str, ...] = flag(
        "FILE[:OPTIONS] as of dagm_jax.main, or tiny_unet, NVIDIA's TinyUNet.", ("configs/custom_unet.py",)
    )
    what: tuple[str, ...] = flag(
        "step, whole (data and step), inference, pipeline (data alone); beside PyTorch peer_step, peer_inference, "
        "peer_pipeline, peer_epoch; command (the main job, first configuration); latency and tiling of --model.",
        ("step", "whole", "inference", "pipeline"),
    )
    modes: tuple[str, ...] = flag("jit, pmap.", ("jit",))
    precisions: tuple[str, ...] = flag("float32, bfloat16.", ("float32",))
    batch_sizes: tuple[int, ...] = flag("Slices of a step, over all devices.", (16,))
    inference_batches: tuple[int, ...] = flag("Slices of an inference batch.", (1, 16))
    devices: tuple[int, ...] = flag("Numbers of local devices.", (1,))
    repetitions: int = flag("Timed blocks of each program.", 10, least=1)
    epoch_slices: int = flag(
        "Slices of each training image in an epoch; 0: as many as it is cut into.", 0, least=0
    )
    peer_workers: int = flag("Worker processes of PyTorch's DataLoader in epochs.", 0, least=0)
    model: Path | None = flag("The workdir of a finished run, for latency and tiling.", None)
    num_images: int = flag("Limit of test images of `tiling`.", 100, least=1)
    time_limit_s: int = flag(
        "Cells for which no time is left are listed, not measured; 0: no limit.", 0, least=0
    )
    peer_compiles: bool = flag("Whether torch.compile is tried too.", True)
    profile: bool = flag("Write a trace of each cell `step` and `whole`.", False)
    preset: str = flag("Values of other flags.", "", choices=("gpu", "gpu_judging", "cpu"))
    output: Path = flag("Where results are written.", Path("runs/benchmark"))

    def __post_init__(self) -> None:
        """Raises UserError for lists that `check_list` refuses, and for a profile of nothing."""
        object.__setattr__(self, "configs", split_configs(self.configs))
        for name in ("configs", "what", *FIELDS):
            check_list(name, getattr(self, name), WORDS.get(name, ()))
        if bool(self.model) != bool({*OF_MODEL} & {*self.what}):
            raise UserError(
                f"`--model` (={self.model or ''}) goes with --what={'|'.join(OF_MODEL)}; give both or neither"
            )
        if self.profile and not {"step", "whole"} & set(self.what):
            raise UserError(
                "`--profile` (=True) traces the cells `step` and `whole`, which `--what` leaves out; add one"
            )

    def cells(self) -> list[Cell]:
        """All cells, network by network; those of the same settings, which share compiled programs, stand together.

        Commands run the first configuration alone. TinyUNet has no twin, and the main job cannot train it.
        """
        found = []
        for config, (kind, axes) in product(self.configs, AXES.items()):
            is_left_out = kind in OF_MODEL or (
                config == TINY_UNET and (kind == "command" or kind.startswith(PEER))
            )
            if kind not in self.what or is_left_out or (kind == "command" and config != self.configs[0]):
                continue
            for values in product(*(getattr(self, axis) for axis in axes)):
                fields = dict(zip((FIELDS[axis] for axis in axes), values, strict=True))
                found.append(Cell(kind, config, **fields))
        place = self.configs.index
        found.sort(key=lambda c: (place(c.config), c.mode, c.precision, c.batch_size, c.num_devices))
        return found + [Cell(kind, str(self.model)) for kind in OF_MODEL if kind in self.what]


def split_configs(words: Sequence[str]) -> tuple[str, ...]:
    """FILE[:OPTIONS] and names of a comma list, OPTIONS with their commas."""
    configs: list[str] = []
    for word in words:
        is_option = bool(configs) and ":" in configs[-1] and ".py" not in word and word != TINY_UNET
        configs[-1:] = [f"{configs[-1]},{word}"] if is_option else [*configs[-1:], word]
    return tuple(configs)

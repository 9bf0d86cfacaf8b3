"""What training and judging cost on this machine, alone and beside the same networks in PyTorch.

``python -m launch.benchmark --configs=configs/custom_unet.py,configs/unet3plus.py --precisions=float32,bfloat16
--batch_sizes=8,16 --devices=1,2 --output=DIR [--what=step,peer_step] [--preset=NAME] [--config.x.y=value …]``

Writes DIR/benchmark.json, benchmark.md and pictures, anew after each cell. A cell that fails (out of memory, no
compiler) is a line of the table. ``--config.…`` holds for every cell. What is measured and what the columns mean is
in docs/benchmark.md. Exit status as of ``dagm_jax.main``.
"""

# Free of jax at import, like dagm_jax.main: worker processes of grain and of PyTorch import this module again.
from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging

from dagm_jax import command_line
from dagm_jax.main import guarded
from dagm_jax.types import UserError, nearest

if TYPE_CHECKING:
    from launch.bench.plan import Request

OVERRIDE = "--config."
NETWORKS = "configs/custom_unet.py,configs/conv_autoencoder.py,configs/unet3plus.py"
LISTS = {
    "configs": (
        "configs/custom_unet.py",
        "FILE[:OPTIONS] as of dagm_jax.main, or tiny_unet, NVIDIA's TinyUNet.",
    ),
    "what": (
        "step,whole,inference,pipeline",
        "step, whole (data and step), inference, pipeline (data alone); beside PyTorch peer_step, peer_inference, "
        "peer_pipeline, peer_epoch; command (the main job, first configuration).",
    ),
    "modes": ("jit", "jit, pmap."),
    "precisions": ("float32", "float32, bfloat16."),
    "batch_sizes": ("16", "Slices of a step, over all devices."),
    "inference_batches": ("1,16", "Slices that are judged at a time."),
    "devices": ("1", "Numbers of local devices."),
}
NUMBERS = {
    "repetitions": (10, 1, "Timed blocks of each program."),
    "epoch_slices": (0, 0, "Slices of each training image in an epoch; 0: as many as it is cut into."),
    "peer_workers": (0, 0, "Worker processes of PyTorch's DataLoader in epochs."),
    "time_limit_s": (0, 0, "Cells for which no time is left are listed, not measured; 0: no limit."),
}
# As many images as a class of DAGM has.
LIKE_A_CLASS = ("--config.data.procedural_defective=150", "--config.data.procedural_good=1000")
# Name → values of flags that are not given, and overrides that those given come after.
PRESETS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    # U-Net 3+ last: on an H200 compiling its step took 82 s, and torch.compile of its twin's 63 s.
    "gpu": (
        {
            "configs": "configs/custom_unet.py,configs/conv_autoencoder.py,tiny_unet,configs/unet3plus.py",
            "what": "command,step,whole,peer_step",
            "precisions": "bfloat16",
            "repetitions": "6",
            "profile": "true",
            "time_limit_s": "470",
        },
        LIKE_A_CLASS,
    ),
    "gpu_judging": (
        {
            "configs": f"{NETWORKS},tiny_unet",
            "what": "inference,peer_inference,peer_pipeline,peer_epoch",
            "precisions": "bfloat16",
            "repetitions": "6",
            "epoch_slices": "2",
            "peer_workers": "8",
            "time_limit_s": "470",
        },
        LIKE_A_CLASS,
    ),
    "cpu": (
        {
            "configs": ",".join(f"{name}:segmentation,equal_width" for name in NETWORKS.split(",")),
            "what": "step,peer_step,inference,peer_inference,peer_pipeline,peer_epoch",
            "batch_sizes": "8",
            "repetitions": "5",
            "epoch_slices": "1",
        },
        ("--config.data.procedural_defective=40", "--config.data.procedural_good=60"),
    ),
}


def make_flags() -> flags.FlagValues:
    """The flags of this program."""
    values = command_line.make_flags()
    for name, (default, meaning) in LISTS.items():
        flags.DEFINE_list(name, default, meaning, flag_values=values)
    for name, (number, least, meaning) in NUMBERS.items():
        flags.DEFINE_integer(name, number, meaning, lower_bound=least, flag_values=values)
    flags.DEFINE_bool("peer_compiles", True, "Whether torch.compile is tried too.", flag_values=values)
    flags.DEFINE_bool("profile", False, "Write a trace of each cell `step` and `whole`.", flag_values=values)
    flags.DEFINE_string("preset", "", f"Values of other flags: {', '.join(PRESETS)}.", flag_values=values)
    flags.DEFINE_string("output", "runs/benchmark", "Where results are written.", flag_values=values)
    return values


def parse_flags(argv: Sequence[str]) -> Request:
    """What the command line asks for; every mistake in it becomes a UserError of one line."""
    given = [argument for argument in argv[1:] if argument.startswith(OVERRIDE)]
    # The process's own flags count as read: grain's workers are handed them.
    flags.FLAGS(argv[:1])
    values = command_line.parse(make_flags(), [a for a in argv if a not in given], __doc__)
    overrides = (*apply_preset(values), *given)
    from launch.bench.plan import Plan, Request, split_configs
    from launch.cells import whole_numbers

    numbers = {
        name: whole_numbers(name, values[name].value, least=1)
        for name in ("batch_sizes", "inference_batches", "devices")
    }
    plan = Plan(
        kinds=tuple(values.what),
        configs=split_configs(values.configs),
        modes=tuple(values.modes),
        precisions=tuple(values.precisions),
        **numbers,
    )
    if values.profile and not {"step", "whole"} & set(plan.kinds):
        raise UserError(
            "`--profile` (=True) traces the cells `step` and `whole`, which `--what` leaves out; add one"
        )
    names = ("preset", *LISTS, *NUMBERS, "peer_compiles", "profile")
    shown = {name: values[name].value for name in names} | {"overrides": " ".join(overrides)}
    return Request(
        plan=plan,
        output=Path(values.output),
        repetitions=values.repetitions,
        epoch_slices=values.epoch_slices,
        peer_workers=values.peer_workers,
        peer_compiles=values.peer_compiles,
        time_limit_s=values.time_limit_s or None,
        profile=values.profile,
        overrides=overrides,
        command=f"python -m launch.benchmark {shlex.join(argv[1:])}".strip(),
        flags={name: ",".join(value) if isinstance(value, list) else value for name, value in shown.items()},
    )


def apply_preset(values: Any) -> tuple[str, ...]:
    """Sets the flags of the preset that are not on the command line; gives its overrides."""
    if not values.preset:
        return ()
    if values.preset not in PRESETS:
        close = nearest(values.preset, PRESETS)
        raise UserError(f"`--preset` (={values.preset}) must be of {', '.join(PRESETS)}{close}")
    own, overrides = PRESETS[values.preset]
    for name, text in own.items():
        if not values[name].present:
            values[name].parse(text)
    return overrides


def main(request: Request) -> int:
    """Measures everything and writes it; the exit status."""
    logging.set_verbosity(logging.WARNING)
    # PyTorch and the commands share the device; JAX would take three quarters of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from launch.bench import session

    session.run(request, os.environ.get("XLA_FLAGS", ""))
    return 0


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_flags, argv))

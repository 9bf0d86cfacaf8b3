"""The speed of training and inference on this machine, alone and beside the same networks in PyTorch.

``python -m launch.benchmark --configs=configs/custom_unet.py,configs/unet3plus.py --precisions=float32,bfloat16
--batch_sizes=8,16 --devices=1,2 --output=DIR [--what=step,peer_step] [--preset=NAME] [--config.x.y=value …]``

Writes DIR/benchmark.json and benchmark.md, anew after each cell. A cell that fails (out of memory, no compiler) is a
line of the table. ``--config.…`` holds for every cell. The columns are explained in docs/benchmark.md. Exit status as
of ``dagm_jax.main``.
"""

# Free of jax at import, like dagm_jax.main: worker processes of grain and of PyTorch import this module again.
from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from absl import flags, logging

from dagm_jax.command_line import guarded, parse_request
from launch.bench.plan import Request
from launch.flag_lists import split_overrides

NETWORKS = ("configs/custom_unet.py", "configs/conv_autoencoder.py", "configs/unet3plus.py")
# Images of a class of DAGM 2007.
LIKE_A_CLASS = ("--config.data.procedural_defective=150", "--config.data.procedural_good=1000")
# Name → arguments that those on the command line come after.
PRESETS: dict[str, tuple[str, ...]] = {
    # U-Net 3+ last: on an H200 compiling its step took 82 s, and torch.compile of its twin's 63 s.
    "gpu": (
        f"--configs={NETWORKS[0]},{NETWORKS[1]},tiny_unet,{NETWORKS[2]}",
        "--what=command,step,whole,peer_step",
        *("--precisions=bfloat16", "--repetitions=6", "--profile", "--time_limit_s=470", *LIKE_A_CLASS),
    ),
    "gpu_judging": (
        f"--configs={','.join(NETWORKS)},tiny_unet",
        "--what=inference,peer_inference,peer_pipeline,peer_epoch",
        *("--precisions=bfloat16", "--repetitions=6", "--epoch_slices=2", "--peer_workers=8"),
        *("--time_limit_s=470", *LIKE_A_CLASS),
    ),
    "cpu": (
        f"--configs={','.join(f'{name}:segmentation,equal_width' for name in NETWORKS)}",
        "--what=step,peer_step,inference,peer_inference,peer_pipeline,peer_epoch",
        *("--batch_sizes=8", "--repetitions=5", "--epoch_slices=1"),
        *("--config.data.procedural_defective=40", "--config.data.procedural_good=60"),
    ),
}


def parse(argv: Sequence[str]) -> tuple[Request, tuple[str, ...]]:
    """(request, ``--config.x.y=value`` overrides) of the command line; raises UserError for every mistake in it."""
    name, *given = argv
    preset = parse_request(Request, [name, *split_overrides(given)[0]], __doc__).preset
    arguments, overrides = split_overrides([*PRESETS.get(preset, ()), *given])
    return parse_request(Request, [name, *arguments], __doc__), tuple(overrides)


def main(argv: Sequence[str]) -> int:
    """Measures the request and writes its files; returns the exit status 0."""
    # The process's own flags count as read: grain's workers are handed them.
    flags.FLAGS(argv[:1])
    request, overrides = parse(argv)
    logging.set_verbosity(logging.WARNING)
    # PyTorch and the commands share the device; JAX would take three quarters of its memory at the start.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from launch.bench import session

    command = f"python -m launch.benchmark {shlex.join(argv[1:])}".strip()
    session.run(request, overrides, command, os.environ.get("XLA_FLAGS", ""))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv))

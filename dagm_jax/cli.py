"""The script ``dagm-jax VERB …``: each verb is a command of the package, with that command's flags.

train      train and test a detector: --config=custom_unet --config.data.root=DIR --workdir=DIR
predict    inspect images by a trained model: --model=WORKDIR --images=DIR --output=DIR
calibrate  choose another threshold: --model=WORKDIR --rule=escape_rate --target=0.05
export     write one file for other runtimes: --model=WORKDIR --format=onnx --output=FILE
prepare    download and verify DAGM 2007: --classes=8 --output=DIR
checks     print versions, devices and settings, for a bug report
benchmark  needs a checkout: python -m launch.benchmark
"""

from __future__ import annotations

import os
import platform
import runpy
import sys

from dagm_jax.command_line import guarded
from dagm_jax.errors import UserError, nearest
from dagm_jax.versions import OPTIONAL_PACKAGES, PACKAGES, package_versions

COMMANDS = {
    "train": "dagm_jax.main",
    "predict": "dagm_jax.predict",
    "calibrate": "dagm_jax.calibrate",
    "export": "dagm_jax.export",
    "prepare": "dagm_jax.data.prepare",
}
VERBS = (*COMMANDS, "checks", "benchmark")
# Environment variables that jax and XLA read, beside those that begin with JAX_.
SETTINGS = ("XLA_FLAGS", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "TF_CPP_MIN_LOG_LEVEL")


def main() -> None:
    """Runs the verb that the command line names; ends the process with the command's exit status."""
    sys.exit(guarded(run, sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit status of the verb ``arguments[0]``; raises UserError for an unknown one."""
    verb, *rest = arguments or ["--help"]
    if verb in ("help", "--help", "-h"):
        print(__doc__)
        return 0
    if verb not in VERBS:
        raise UserError(f"command line: {verb!r} must be one of {', '.join(VERBS)}{nearest(verb, VERBS)}")
    if verb == "benchmark":
        raise UserError(
            "`dagm-jax benchmark` needs a checkout of the repository; there run python -m launch.benchmark"
        )
    if verb == "checks":
        print(checks())
        return 0
    sys.argv[1:] = rest
    # As __main__: --help shows the command's flags, and grain's workers import the command again.
    runpy.run_module(COMMANDS[verb], run_name="__main__", alter_sys=True)
    return 0


def checks() -> str:
    """Versions, devices and environment variables, a line each."""
    import jax

    rows = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **package_versions((*PACKAGES, *OPTIONAL_PACKAGES)),
        "devices": ", ".join(f"{device.device_kind} ({device.platform})" for device in jax.devices()),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
    }
    chosen = {
        name: os.environ[name] for name in sorted(os.environ) if name in SETTINGS or name.startswith("JAX_")
    }
    return "\n".join(f"{name:20} {value}" for name, value in (rows | chosen).items())


if __name__ == "__main__":
    main()

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

import inspect
import os
import platform
import runpy
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from dagm_jax.command_line import flag, guarded, parse_request
from dagm_jax.errors import UserError, nearest
from dagm_jax.versions import OPTIONAL_PACKAGES, PACKAGES, package_versions

COMMANDS = {
    "train": "dagm_jax.main",
    "predict": "dagm_jax.predict",
    "calibrate": "dagm_jax.calibrate",
    "export": "dagm_jax.export",
}
VERBS = (*COMMANDS, "prepare", "checks", "benchmark")
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
    elif verb == "prepare":
        prepare(rest)
    else:
        sys.argv[1:] = rest
        # As __main__: --help shows the command's flags, and grain's workers import the command again.
        runpy.run_module(COMMANDS[verb], run_name="__main__", alter_sys=True)
    return 0


@dataclass(frozen=True)
class PrepareRequest:
    """DAGM 2007, downloaded or taken from a folder, checked, and written as TFDS sets: dagm-jax prepare --output=DIR.

    Each class is compared with the published set (names, labels, size, depth, masks) and written to
    DIR/dagm2007/classN, which appears when it is whole. The same command goes on after a kill, and writes damaged sets
    anew. Downloads stay in DIR/downloads. Training takes DIR as --config.data.root.
    """

    output: Path = flag("The folder for the sets; a TFDS data_dir.", example="data")
    source: Path | None = flag(
        "A folder with the ClassN folders of DAGM 2007; without it they are downloaded.", None
    )
    classes: tuple[int, ...] = flag("Classes; all of them by default.", ())

    def checked(self, drawn: Collection[int] = ()) -> Self:
        """The request with its classes rising, all where none is named; raises UserError for one that does not exist.

        drawn: the classes of the built-in images, where these are asked for.
        """
        from dagm_jax.data.verify import read_truth

        known, images = (drawn, "built-in images show") if drawn else (read_truth(), "data set has")
        for class_id in self.classes:
            if class_id not in known:
                choices = ", ".join(map(str, known))
                raise UserError(
                    f"`--classes` (={class_id}): the {images} the classes {choices}; choose among these"
                )
        return replace(self, classes=tuple(sorted(set(self.classes or known))))


def prepare(arguments: list[str]) -> None:
    """Writes the classes that are missing or damaged, and prints a table. Raises UserError."""
    request = parse_request(PrepareRequest, ["dagm-jax prepare", *arguments], inspect.getdoc(PrepareRequest))
    classes, output = request.checked().classes, request.output
    from dagm_jax.data.prepare import prepare_class, show_prepared
    from dagm_jax.storage import locked

    with locked(output, "--output"):
        show_prepared(
            output, {class_id: prepare_class(class_id, output, request.source) for class_id in classes}
        )


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

"""The script ``dagm-jax VERB …``: each verb is a command of the package, with that command's flags.

train      train and test a detector: --config=custom_unet --config.data.root=DIR --workdir=DIR
predict    inspect images by a trained model: --model=WORKDIR --images=DIR --output=DIR
calibrate  choose another threshold: --model=WORKDIR --rule=escape_rate --target=0.05
export     write one file for other runtimes: --model=WORKDIR --format=onnx --output=FILE
prepare    download and verify DAGM 2007: --classes=8 --output=DIR
data       read a folder as training would, and say what is there: --check=DIR
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
VERBS = (*COMMANDS, "prepare", "data", "checks", "benchmark")
# Limit of the files left out that the check of a folder names; edge in px of an image of its sheet.
MAX_SHOWN, SHEET_CELL_PX = 20, 256
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
    elif verb == "data":
        check_data(rest)
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


@dataclass(frozen=True)
class DataRequest:
    """A folder or table of images, read as training would, without training: dagm-jax data --check=DIR.

    Prints which layout it is, the images by label, kind and size, and what is left out and why; writes a contact sheet
    of eight images with the outlines of their masks.
    """

    check: Path = flag("What --config.data.root would be.", example="parts")
    sheet: Path = flag("The contact sheet, a PNG file.", Path("contact_sheet.png"))
    good: str = flag("The folder of good images, as data.good has it.", "")
    defect: str = flag("The folder of defective images, as data.defect has it.", "")
    flat: str = flag("What images without folders show, as data.flat has it.", "", choices=("good",))


def check_data(arguments: list[str]) -> None:
    """Prints what is in a folder of images, and writes its contact sheet. Raises UserError."""
    request = parse_request(DataRequest, ["dagm-jax data", *arguments], inspect.getdoc(DataRequest))
    from rich.table import Table

    from dagm_jax.config import from_config_dict
    from dagm_jax.console import console, show
    from dagm_jax.data.check import check_images
    from dagm_jax.data.dataset import find_images
    from dagm_jax.data.formats.dagm_layouts import class_numbers
    from dagm_jax.data.images.load import find_white, with_white
    from dagm_jax.storage import plain_disk_errors
    from dagm_jax.types import Photo
    from dagm_jax.visualization.contact_sheet import write_sheet

    fields = {name: getattr(request, name) for name in ("good", "defect", "flat")}
    classes = class_numbers(request.check) if request.check.is_dir() else ()
    values = {"root": str(request.check), **fields} | ({"classes": classes} if classes else {})
    manifest, shape = find_images(from_config_dict({"data": values}).data, 0)
    photos = [sample.image for sample in manifest.samples if isinstance(sample.image, Photo)]
    samples = with_white(manifest.samples, find_white(photos) if photos else None)
    with show("reading images", len(samples)) as bar:
        found = check_images(manifest, samples, shape, bar.advance)
    table = Table("what", "found", title=manifest.description, title_justify="left")
    for row in found.rows():
        table.add_row(*row)
    console.print(table)
    for skip in found.skipped[:MAX_SHOWN]:
        console.print(f"left out: {skip.what}: {skip.reason}")
    if (rest := len(found.skipped) - MAX_SHOWN) > 0:
        console.print(f"… and {rest} more")
    if not found.samples:
        raise UserError(f"`--check` (={request.check}): no image can be used; see what was left out")
    with plain_disk_errors(request.sheet.parent, "--sheet"):
        write_sheet({str(request.check): found.samples}, request.sheet, SHEET_CELL_PX)


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

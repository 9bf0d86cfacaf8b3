"""The main job: ``python -m dagm_jax.main --config=configs/custom_unet.py [--workdir=DIR] [--config.x.y=value]``.

Short on purpose, and free of jax at import: grain's worker processes import this module again.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from absl import app, flags, logging
from ml_collections import config_flags

from dagm_jax.types import UserError

if TYPE_CHECKING:
    from dagm_jax.config import RunConfig

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config(), as FILE or FILE:TASK.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run keeps everything; default: runs/ and a name made from the configuration."
)


def find_config(path: str) -> str:
    """``path`` (FILE or FILE:TASK) with FILE found from the current folder or, if relative, beside this package."""
    name, colon, task = path.partition(":")
    candidates = [Path(name), Path(__file__).resolve().parent.parent / name]
    for candidate in candidates:
        if candidate.is_file():
            return f"{candidate.resolve()}{colon}{task}"
    raise UserError(
        f"`--config` (={name}) is no file, here or beside the package; shipped ones are configs/custom_unet.py, "
        "configs/conv_autoencoder.py, configs/unet3plus.py and configs/smoke.py"
    )


def read_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of ``path`` (FILE or FILE:OPTIONS) with ``--config.x.y=value`` overrides, as `main` reads it.

    Raises UserError for every mistake in them.
    """
    from dagm_jax.config import from_config_dict

    values = flags.FlagValues()
    argv = ["read_config", f"--config={path}", *overrides]
    config = config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=argv)
    parse_flags(argv, values)
    return from_config_dict(config.value)


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the flags into ``values``; every mistake in them becomes a UserError of one line."""
    resolved = list(argv)
    for i, argument in enumerate(argv):
        for start in ("--config=", "-config="):
            if argument.startswith(start):
                resolved[i] = start + find_config(argument.removeprefix(start))
        if argument in ("--config", "-config") and i + 1 < len(argv):
            resolved[i + 1] = find_config(argv[i + 1])
    try:
        rest: list[str] = values(resolved)
    except flags.Error as error:
        raise UserError(f"command line: {one_line(error)}") from error
    except (AttributeError, KeyError) as error:
        # config_flags looks an overridden field up in the locked ConfigDict, which answers with a suggestion.
        raise UserError(f"command line: {unknown_field(resolved, error)}") from error
    if len(rest) > 1:
        raise UserError(f"command line: {rest[1]!r} is not a flag; values are given as --name=value")
    if values["config"].value is None:
        raise UserError("`--config` is missing; --config=configs/custom_unet.py is the usual one")
    return rest


def one_line(error: BaseException) -> str:
    """The text of an error on one line."""
    return " ".join(str(error.args[0] if error.args else error).replace('"', "").split())


def unknown_field(argv: Sequence[str], error: BaseException) -> str:
    """Which ``--config.x.y`` of the command line is no field, and the nearest that is."""
    from dagm_jax.config import describe_unknown

    for argument in argv:
        if argument.startswith("--config."):
            message = describe_unknown(argument.removeprefix("--config.").partition("=")[0])
            if message:
                return message
    return one_line(error)


def default_workdir(config_json: str) -> Path:
    """``runs/`` and a name that any change of the configuration changes, so that one command finds its own run."""
    file, _, options = str(config_flags.get_config_filename(flags.FLAGS["config"])).partition(":")
    digest = hashlib.sha256(config_json.encode()).hexdigest()[:8]
    return Path("runs") / "-".join(part for part in (Path(file).stem, *options.split(","), digest) if part)


def main(argv: Sequence[str]) -> int:
    """Runs the experiment of the parsed flags; the exit status."""
    del argv
    logging.set_verbosity(logging.WARNING)
    from dagm_jax import experiment
    from dagm_jax.config import from_config_dict, to_json

    config = from_config_dict(_CONFIG.value)
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(to_json(config))
    experiment.run(config, workdir, os.environ.get("XLA_FLAGS", ""))
    return 0


def guarded(function: Any, argv: Sequence[str]) -> Any:
    """``function(argv)``; a user's mistake or an interruption becomes one line and an exit status."""
    from dagm_jax.types import Interrupted

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted("terminated; the same command goes on from what was saved last")

    # The training loop has a handler of its own, which saves first.
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return function(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except (Interrupted, KeyboardInterrupt) as error:
        print(f"stopped: {error or 'interrupted'}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_flags, argv))

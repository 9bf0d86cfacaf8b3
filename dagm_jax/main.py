"""The main job: ``python -m dagm_jax.main --config=configs/custom_unet.py [--workdir=DIR] [--config.x.y=value]``.

Short on purpose, and free of jax at import: grain's worker processes import this module again.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from dagm_jax.types import DiskError, UserError

if TYPE_CHECKING:
    from dagm_jax.config import RunConfig
    from dagm_jax.processes import Processes

EXIT_USER_ERROR = 2
EXIT_PEER_LOST = 75
EXIT_INTERRUPTED = 130
# Seconds that process 0, with which jax's service ends, waits before it leaves a failed job of several.
LAST_WORDS_S = 3.0

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Python file with get_config(), as FILE or FILE:TASK.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run keeps everything; default: runs/ and a name made from the configuration."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "One of several processes of a cluster that jax detects: SLURM, Cloud TPU, GKE, MPI.",
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, elsewhere.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes the job has.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0.", lower_bound=0)
_PEER_TIMEOUT_S = flags.DEFINE_integer(
    "peer_timeout_s", 600, "Without progress for so long, a job of several processes ends.", lower_bound=1
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
    """Error text for the ``--config.x.y`` of the command line that is no field, with the nearest that is."""
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
    from dagm_jax.config import from_config_dict, to_json
    from dagm_jax.experiment.run import run

    config = from_config_dict(_CONFIG.value)
    workdir = Path(_WORKDIR.value) if _WORKDIR.value else default_workdir(to_json(config))
    processes = join_processes()
    try:
        run(config, workdir, os.environ.get("XLA_FLAGS", ""), processes)
    except BaseException as error:
        # On a disk that refused a checkpoint threads of orbax's wait on.
        if processes.count > 1 or isinstance(error, DiskError):
            leave(error, processes)
        raise
    return 0


def join_processes() -> Processes:
    """The job's processes as the flags name them; the others than the first say nothing but errors."""
    import jax

    from dagm_jax.processes import ALONE, connect
    from dagm_jax.train.progress import console

    given: dict[str, Any] = {f.name: f.value for f in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given) and not _DISTRIBUTED.value:
        return ALONE
    if missing and len(missing) < len(given):
        raise UserError(
            f"`--{missing[0]}` is missing; give --coordinator_address, --num_processes and --process_id together, or "
            "--distributed alone on a cluster that jax detects"
        )
    if not missing and int(given["process_id"]) >= int(given["num_processes"]):
        raise UserError(
            f"`--process_id` (={_PROCESS_ID.value}) must be below `--num_processes` (={_NUM_PROCESSES.value}); "
            "the first is 0"
        )
    # Its handler of SIGTERM would take the place of ours, by which the processes agree on the step to stop at.
    jax.config.update("jax_enable_preemption_service", False)
    processes = connect(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, _PEER_TIMEOUT_S.value, on_silence
    )
    console.quiet = not processes.is_first
    return processes


def on_silence(seconds: float) -> None:
    """Ends this process, which has waited too long for another, from whichever thread."""
    end_at_once(
        f"stopped: no progress for {seconds:.0f} s (--peer_timeout_s): a process of the job, maybe this one, is stuck "
        "or dead; the same command goes on from what was saved last",
        EXIT_PEER_LOST,
    )


def leave(error: BaseException, processes: Processes) -> NoReturn:
    """Says why, and ends this process at once.

    An orderly end would wait for the others, who may be waiting for this one; and jax aborts where one does not come.
    """
    from dagm_jax.processes import speaks_of_a_lost_process

    if (known := explain(error)) is not None:
        line, status = known
    elif speaks_of_a_lost_process(error):
        first_line = (str(error).splitlines() or [""])[0]
        line = f"stopped: another process of the job is gone ({first_line}); the same command goes on from what was "
        line, status = f"{line}saved last", EXIT_PEER_LOST
    else:
        line, status = "".join(traceback.format_exception(error)).rstrip(), 1
    end_at_once(line, status, LAST_WORDS_S if processes.is_first and processes.count > 1 else 0.0)


def end_at_once(line: str, status: int, after_s: float = 0.0) -> NoReturn:
    """Prints the line and ends the process and its workers, whatever its other threads wait for."""
    print(line, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep(after_s)
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(status)


def explain(error: BaseException) -> tuple[str, int] | None:
    """(line, exit status) of a user's mistake, a lost process or an interruption; None for any other error."""
    from dagm_jax.types import Interrupted, ProcessLost

    if isinstance(error, UserError):
        return f"error: {error}", EXIT_USER_ERROR
    if isinstance(error, ProcessLost):
        return f"stopped: {error}", EXIT_PEER_LOST
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return f"stopped: {str(error) or 'interrupted'}", EXIT_INTERRUPTED
    return None


def ignore_late_futures(unraisable: Any) -> None:
    """As Python's own hook, less the traces of tensorstore's futures that come when orbax has failed, and said so."""
    if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def guarded(function: Any, argv: Sequence[str]) -> Any:
    """``function(argv)``; a user's mistake or an interruption becomes one line and an exit status."""
    from dagm_jax.types import Interrupted

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted("terminated; the same command goes on from what was saved last")

    # The training loop has a handler of its own, which saves first.
    signal.signal(signal.SIGTERM, interrupt)
    sys.unraisablehook = ignore_late_futures
    try:
        return function(argv)
    except BaseException as error:
        if (known := explain(error)) is None:
            raise
        print(known[0], file=sys.stderr)
        sys.exit(known[1])


if __name__ == "__main__":
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_flags, argv))

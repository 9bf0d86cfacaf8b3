"""Command lines: flags as dataclasses, configurations by name, mistakes as one line with an exit status."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from types import FrameType, UnionType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from absl import flags
from ml_collections import config_flags

from dagm_jax.errors import Interrupted, ProcessLost, UserError, nearest

if TYPE_CHECKING:
    from dagm_jax.config import RunConfig
    from dagm_jax.distributed.processes import Processes

T = TypeVar("T")

EXIT_USER_ERROR = 2
EXIT_PEER_LOST = 75
EXIT_INTERRUPTED = 130
# Seconds that process 0, which hosts jax's coordination service, waits before it leaves a failed job of several.
LAST_WORDS_S = 3.0


def flag(
    meaning: str,
    default: Any = MISSING,
    *,
    example: str = "",
    least: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that `parse_request` reads from the flag of its name.

    A flag without a default is required; ``example`` is the value that the error message suggests. least: lower bound
    of numbers. choices: the words allowed; a default of None or "" is allowed beside them.
    """
    how = {"meaning": meaning, "example": example, "least": least, "choices": tuple(choices)}
    return field(default=default, metadata=how)


def parse_request(request: type[T], argv: Sequence[str], text: str | None) -> T:
    """The dataclass ``request`` filled from the command line; ``--help`` prints ``text`` and ends the process.

    Field types: str, Path (``~`` expanded), int, float, bool, and tuples of str or int (comma lists), or one of these
    | None. Raises UserError for unknown flags, values of another type, missing flags, and words that are no flags.
    """
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    flags.DEFINE_bool("help", False, "Show this text.", flag_values=values)
    kinds = {
        name: get_args(hint)[0] if isinstance(hint, UnionType) else hint
        for name, hint in get_type_hints(request).items()
    }
    items = fields(request)  # type: ignore[arg-type]
    for item in items:
        _define(item, kinds[item.name], values)
    _parse(argv, values)
    if values.help:
        print(text, values.get_help(), sep="\n")
        sys.exit(0)
    return request(**{item.name: _value(item, kinds[item.name], values[item.name].value) for item in items})


def _define(item: Any, kind: Any, values: flags.FlagValues) -> None:
    name, how = item.name, item.metadata
    default, meaning = None if item.default is MISSING else item.default, how["meaning"]
    if how["choices"]:
        meaning = f"{meaning} One of {', '.join(how['choices'])}."
    if get_origin(kind) is tuple:
        flags.DEFINE_list(name, [*map(str, default or ())], meaning, flag_values=values)
    elif kind in (int, float):
        define = flags.DEFINE_integer if kind is int else flags.DEFINE_float
        define(name, default, meaning, lower_bound=how["least"], flag_values=values)
    elif kind is bool:
        flags.DEFINE_bool(name, default, meaning, flag_values=values)
    else:
        flags.DEFINE_string(name, None if default is None else str(default), meaning, flag_values=values)


def _value(item: Any, kind: Any, value: Any) -> Any:
    """The flag's value in the type of its field; raises UserError."""
    choices = item.metadata["choices"]
    if item.default is MISSING and value in (None, "", []):
        raise UserError(f"`--{item.name}` is missing; such as --{item.name}={item.metadata['example']}")
    if value is None:
        return None
    if choices and value != item.default and value not in choices:
        close = nearest(str(value), choices)
        raise UserError(f"`--{item.name}` (={value}) must be one of {', '.join(choices)}{close}")
    if get_origin(kind) is tuple:
        try:
            return tuple(map(get_args(kind)[0], value))
        except ValueError:
            numbers = f"must be whole numbers, such as --{item.name}=1,2"
            raise UserError(f"`--{item.name}` (={','.join(value)}) {numbers}") from None
    return Path(value).expanduser() if kind is Path else value


def find_config(path: str) -> str:
    """``path`` (FILE or FILE:TASK, or the name of a shipped configuration) with FILE as an absolute path.

    FILE is looked for here, then beside this package (a checkout), then in it (a wheel). Raises UserError.
    """
    name, colon, task = path.partition(":")
    package = Path(__file__).resolve().parent
    for folder in (Path(), package.parent, package):
        for candidate in (folder / name, folder / "configs" / f"{name}.py"):
            if candidate.is_file():
                return f"{candidate.resolve()}{colon}{task}"
    known = ("custom_unet", "conv_autoencoder", "unet3plus", "smoke")
    raise UserError(
        f"`--config` (={name}) is neither a file nor a shipped configuration: {', '.join(known)}{nearest(name, known)}"
    )


def read_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration that `main` reads from ``--config=path`` (FILE or FILE:OPTIONS) and the overrides.

    overrides: ``--config.x.y=value``. Raises UserError for every mistake in either.
    """
    from dagm_jax.config import from_config_dict

    values = flags.FlagValues()
    argv = ["read_config", f"--config={path}", *overrides]
    config = config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=argv)
    parse_config_flags(argv, values)
    return from_config_dict(config.value)


def parse_config_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Parses the flags into ``values``; every mistake in them becomes a UserError of one line."""
    resolved = list(argv)
    for i, argument in enumerate(argv):
        start, equals, path = argument.partition("=")
        if start.lstrip("-") == "config" and equals:
            resolved[i] = f"{start}={find_config(path)}"
        elif argument in ("--config", "-config") and i + 1 < len(argv):
            resolved[i + 1] = find_config(argv[i + 1])
    try:
        rest = _parse(resolved, values)
    except (AttributeError, KeyError) as error:
        # config_flags looks an overridden field up in the locked ConfigDict.
        from dagm_jax.config import describe_unknown

        paths = (a.removeprefix("--config.").partition("=")[0] for a in argv if a.startswith("--config."))
        problem = next(filter(None, map(describe_unknown, paths)), one_line(error))
        raise UserError(f"command line: {problem}") from error
    if values["config"].value is None:
        raise UserError("`--config` is missing; --config=configs/custom_unet.py is the usual one")
    return rest


def _parse(argv: Sequence[str], values: flags.FlagValues) -> list[str]:
    """The command's name; the flags are in ``values``. Raises UserError for their mistakes, and for other words."""
    try:
        rest: list[str] = values(list(argv))
    except flags.Error as error:
        raise UserError(f"command line: {one_line(error)}") from error
    if len(rest) > 1:
        raise UserError(f"command line: {rest[1]!r} is not a flag; values are given as --name=value")
    return rest


def one_line(error: BaseException) -> str:
    """The text of an error on one line."""
    return " ".join(str(error.args[0] if error.args else error).replace('"', "").split())


def leave(error: BaseException, processes: Processes) -> NoReturn:
    """Prints the reason and ends this process at once.

    An orderly end would wait for the other processes, which may be waiting for this one; jax aborts where one is lost.
    """
    from dagm_jax.distributed.processes import SIGNS_OF_LOSS

    if (known := explain(error)) is not None:
        line, status = known
    elif SIGNS_OF_LOSS.search(str(error)):
        lost = f"another process of the job is gone ({(str(error).splitlines() or [''])[0]})"
        line, status = f"stopped: {lost}; the same command goes on from what was saved last", EXIT_PEER_LOST
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
    if isinstance(error, UserError):
        return f"error: {error}", EXIT_USER_ERROR
    if isinstance(error, ProcessLost):
        return f"stopped: {error}", EXIT_PEER_LOST
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return f"stopped: {str(error) or 'interrupted'}", EXIT_INTERRUPTED
    return None


def guarded(function: Any, argv: Sequence[str]) -> Any:
    """``function(argv)``; a user's mistake or an interruption becomes one line and an exit status."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted("terminated; the same command goes on from what was saved last")

    def ignore_late_futures(unraisable: Any) -> None:
        """Python's own hook without the traces of tensorstore's futures after a failure that orbax has reported."""
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

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

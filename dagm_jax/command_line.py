"""Command lines as dataclasses: a field is a flag; mistakes are one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from absl import flags

from dagm_jax.main import one_line
from dagm_jax.types import UserError, nearest

T = TypeVar("T")


def flag(
    meaning: str,
    default: Any = MISSING,
    *,
    example: str = "",
    least: float | None = None,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field that is the flag of its name.

    A flag without a default is required; ``example`` is the value that the error message then suggests. least: lower
    bound of numbers. choices: the words allowed; a default of None or "" is allowed beside them.
    """
    return field(
        default=default,
        metadata={"meaning": meaning, "example": example, "least": least, "choices": tuple(choices)},
    )


def parse_request(request: type[T], argv: Sequence[str], text: str | None) -> T:
    """The dataclass ``request`` filled from the command line; ``--help`` prints ``text`` and ends the process.

    Field types: str, Path (``~`` expanded), int, float, bool, and tuples of str or int (comma lists), or one of these
    | None. Raises UserError for unknown flags, values of another type, missing flags, and words that are no flags.
    """
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    flags.DEFINE_bool("help", False, "Show this text.", flag_values=values)
    hints, items = get_type_hints(request), fields(request)  # type: ignore[arg-type]
    for item in items:
        default = None if item.default is MISSING else item.default
        _define(item.name, hints[item.name], default, item.metadata, values)
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise UserError(f"command line: {one_line(error)}") from error
    if values.help:
        print(text, values.get_help(), sep="\n")
        sys.exit(0)
    if len(rest) > 1:
        raise UserError(f"command line: {rest[1]!r} is not a flag; values are given as --name=value")
    given = {item.name: _value(item, hints[item.name], values[item.name].value) for item in items}
    return request(**given)


def _plain(hint: Any) -> Any:
    """The type without ``| None``."""
    return (
        next(kind for kind in get_args(hint) if kind is not type(None))
        if isinstance(hint, UnionType)
        else hint
    )


def _define(name: str, hint: Any, default: Any, how: Any, values: flags.FlagValues) -> None:
    kind, meaning = _plain(hint), how["meaning"]
    if how["choices"]:
        meaning = f"{meaning} One of {', '.join(how['choices'])}."
    if get_origin(kind) is tuple:
        flags.DEFINE_list(
            name, None if default is None else list(map(str, default)), meaning, flag_values=values
        )
    elif kind in (int, float):
        define = flags.DEFINE_integer if kind is int else flags.DEFINE_float
        define(name, default, meaning, lower_bound=how["least"], flag_values=values)
    elif kind is bool:
        flags.DEFINE_bool(name, default, meaning, flag_values=values)
    else:
        flags.DEFINE_string(name, None if default is None else str(default), meaning, flag_values=values)


def _value(item: Any, hint: Any, value: Any) -> Any:
    """The flag's value in the type of its field; raises UserError."""
    kind, choices = _plain(hint), item.metadata["choices"]
    if item.default is MISSING and value in (None, "", []):
        raise UserError(f"`--{item.name}` is missing; such as --{item.name}={item.metadata['example']}")
    if value is None:
        return None
    if choices and value != item.default and value not in choices:
        close = nearest(str(value), choices)
        raise UserError(f"`--{item.name}` (={value}) must be one of {', '.join(choices)}{close}")
    if get_origin(kind) is tuple:
        return tuple(_whole(item.name, text) for text in value) if get_args(kind)[0] is int else tuple(value)
    return Path(value).expanduser() if kind is Path else value


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"`--{name}` (={text}) must be whole numbers, such as --{name}=1,2") from None


# Until the last command has become a dataclass.


def make_flags() -> flags.FlagValues:
    """An empty set of flags with ``--help``; a set of its own, because dagm_jax.main has flags too."""
    values = flags.FlagValues()  # type: ignore[no-untyped-call]
    flags.DEFINE_bool("help", False, "Show this text.", flag_values=values)
    return values


def parse(values: flags.FlagValues, argv: Sequence[str], text: str | None) -> Any:
    """``values`` with what the command line says; ``--help`` prints ``text`` and ends the process.

    Raises UserError for an unknown flag, a value that it does not take, and words that are no flags.
    """
    try:
        rest = values(list(argv))
    except flags.Error as error:
        raise UserError(f"command line: {one_line(error)}") from error
    if values.help:
        print(text, values.get_help(), sep="\n")
        sys.exit(0)
    if len(rest) > 1:
        raise UserError(f"command line: {rest[1]!r} is not a flag; values are given as --name=value")
    return values

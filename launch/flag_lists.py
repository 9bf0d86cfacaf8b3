"""Command lines that are lists of values, beside ``--config.x.y=value`` overrides that hold for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dagm_jax.errors import UserError, nearest

OVERRIDE = "--config."


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(other arguments, overrides) of a command line, each in its order."""
    overrides = [argument for argument in arguments if argument.startswith(OVERRIDE)]
    return [argument for argument in arguments if argument not in overrides], overrides


def check_list(name: str, values: Sequence[Any], known: Sequence[str] = (), least: int = 1) -> None:
    """Raises UserError for an empty list, repeated values, words that are not ``known``, numbers below ``least``."""
    shown = f"`--{name}` (={','.join(map(str, values))})"
    if not values or len(set(values)) < len(values):
        raise UserError(f"{shown} must name at least one value, and each once")
    for value in values:
        if isinstance(value, int) and value < least:
            raise UserError(f"{shown} must be whole numbers from {least} on")
        if known and value not in known:
            raise UserError(f"`--{name}` (={value}) must be of {', '.join(known)}{nearest(value, known)}")

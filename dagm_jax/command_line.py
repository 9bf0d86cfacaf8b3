"""What the commands beside the main job share: flags of their own, and mistakes in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from dagm_jax.main import one_line
from dagm_jax.types import UserError


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

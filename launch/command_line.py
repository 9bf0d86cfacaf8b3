"""What the programs of this package share on the command line with the commands of `dagm_jax`."""

from dagm_jax.command_line import make_flags, parse

__all__ = ["make_flags", "parse"]

"""Writes docs/configuration.md from the dataclasses of the configuration: ``python -m launch.configuration_page``."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dagm_jax.config import ModelConfig, RunConfig, TaskConfig

PAGE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

`--config=FILE.py[:TASK]` names a Python file with `get_config()`, `--config=NAME` a shipped one; `--config.x.y=value`
changes a field. Each field has one home, a frozen dataclass that documents and checks it; unknown fields are refused
with the nearest known name. `python -m launch.configuration_page` writes this page.
"""


def page() -> str:
    """The page in Markdown: a table for each group of fields, in the order of `RunConfig`."""
    parts = [HEAD, section("the run", RunConfig, "")]
    for group in dataclasses.fields(RunConfig):
        unions = {"model": get_args(ModelConfig), "task": get_args(TaskConfig)}
        default = getattr(RunConfig(), group.name)
        if dataclasses.is_dataclass(default):
            for kind in unions.get(group.name, (type(default),)):
                named = f" (`{group.name}.name={kind.name}`)" if group.name in unions else ""
                parts.append(section(f"{group.name}{named}", kind, f"{group.name}."))
    return "\n".join(parts)


def section(title: str, kind: Any, prefix: str) -> str:
    """The heading, the docstring and the table of a dataclass's own fields; groups are left out."""
    hints, default = get_type_hints(kind), kind()
    rows = [
        f"| `{prefix}{field.name}` | `{getattr(default, field.name)!r}` | {type_name(hints[field.name])} |"
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(getattr(default, field.name))
    ]
    text = inspect.cleandoc(kind.__doc__ or "").replace("``", "`")
    return "\n".join(
        [f"## {title}\n", f"{text}\n", "| field | default | values |", "|---|---|---|", *rows, ""]
    )


def type_name(hint: Any) -> str:
    """The type in words: the choices of a Literal, else its name."""
    if get_origin(hint) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(hint))
    return f"`{getattr(hint, '__name__', hint) if get_origin(hint) is None else hint}`"


if __name__ == "__main__":
    PAGE.write_text(page())

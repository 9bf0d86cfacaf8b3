"""Command lines as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dagm_jax.command_line import flag, parse_request
from dagm_jax.errors import UserError


@dataclass(frozen=True)
class Request:
    """A command line."""

    model: Path = flag("The workdir.", example="runs/mine")
    rule: str = flag("The rule.", "f1", choices=("f1", "normals"))
    number: int | None = flag("How many.", None, least=1)
    classes: tuple[int, ...] = flag("Classes.", ())
    watch: bool = flag("Go on.", False)


def test_a_command_line_is_its_dataclass() -> None:
    """Would catch: a value left as text, a home folder taken for a name, a default that is not the field's."""
    request = parse_request(Request, ["x", "--model=~/m", "--classes=1,2", "--watch", "--number=3"], "text")
    assert request == Request(Path.home() / "m", "f1", 3, (1, 2), True)
    assert parse_request(Request, ["x", "--model=m"], "text") == Request(Path("m"), "f1", None, (), False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"`--model` is missing; such as --model=runs/mine"),
        (["--model=m", "--number=0"], r"command line: flag --number=0: 0 is not a positive integer"),
        (["--model=m", "--rule=f2"], r"`--rule` \(=f2\) must be one of f1, normals; did you mean f1\?"),
        (["--model=m", "--classes=a"], r"`--classes` \(=a\) must be whole numbers"),
        (["--model=m", "runs"], r"'runs' is not a flag; values are given as --name=value"),
        (["--modl=m"], r"Unknown command line flag 'modl'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    """Would catch: a mistake taken for a default, or a traceback for it."""
    with pytest.raises(UserError, match=message) as caught:
        parse_request(Request, ["x", *arguments], "text")
    assert "\n" not in str(caught.value)


def test_help_shows_the_text_and_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch: help without what a flag means or may be."""
    with pytest.raises(SystemExit) as caught:
        parse_request(Request, ["x", "--help"], "What it does.")
    out = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 0
    assert "What it does." in out and "One of f1, normals." in out and "How many." in out

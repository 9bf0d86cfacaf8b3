"""Command lines as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from dagm_jax.command_line import find_config, flag, parse_request, read_config
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


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["smoke", "smoke:reconstruction", "configs/smoke.py:reconstruction"])
def test_a_shipped_configuration_is_found_by_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a configuration that is found in the checkout's folder alone, or a task lost with the name."""
    monkeypatch.chdir(tmp_path)
    _, colon, task = name.partition(":")
    assert find_config(name) == f"{ROOT / 'configs' / 'smoke.py'}{colon}{task}"
    config = read_config(name, ["--config.seed=3"])
    assert (config.task.name, config.seed) == (task or "segmentation", 3)


def test_a_file_of_ones_own_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: the shipped configuration read in place of the file that the path names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "smoke.py"
    own.write_text((ROOT / "configs" / "smoke.py").read_text())
    assert find_config("configs/smoke.py") == str(own)


@pytest.mark.parametrize(
    ("path", "overrides", "message"),
    [
        ("smok", [], r"`--config` \(=smok\) is neither a file nor .*did you mean smoke\?"),
        ("smoke:segmentaton", [], r"the task must be of .*did you mean segmentation\?"),
        ("smoke", ["--config.train.num_step=1"], r"`config\.train\.num_step` is not a field.*num_steps\?"),
        ("smoke", ["--config.train.num_steps=x"], r"command line: .*num_steps"),
        ("smoke", ["--workdri=x"], "workdri"),
    ],
)
def test_mistakes_in_a_configuration_are_named(path: str, overrides: list[str], message: str) -> None:
    """Would catch: an AttributeError of ml_collections, or a misspelt override that changes nothing."""
    with pytest.raises(UserError, match=message) as caught:
        read_config(path, overrides)
    assert "\n" not in str(caught.value)

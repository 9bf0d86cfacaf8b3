"""The script ``dagm-jax``: each verb reaches its command, and a mistake is one line."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from shell import run_python

from dagm_jax import cli
from dagm_jax.errors import UserError

FLAGS = {"train": "--workdir", "predict": "--images", "calibrate": "--rule", "export": "--format"}


@pytest.mark.parametrize(("verb", "flag"), FLAGS.items())
def test_help_of_a_verb_is_that_of_its_command(verb: str, flag: str) -> None:
    """Would catch: a verb without its module, a module that does nothing as __main__, help without its flags."""
    done = run_python("-m", "dagm_jax.cli", verb, "--help")
    docstring = importlib.import_module(cli.COMMANDS[verb]).__doc__
    assert docstring is not None and docstring.splitlines()[0] in done.stdout
    assert f"{flag}:" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("dagm_jax.cli train --config=smok", "`--config` (=smok) is neither"),
        ("dagm_jax.cli prepare --source=nowhere --classes=1 --output={out}", "`--source` (=nowhere)"),
        ("launch.prepare_data --source=nowhere --classes=1 --output={out}", "`--source` (=nowhere)"),
        ("launch.reproduce_tables --models=unet3pls", "`--models` (=unet3pls)"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(command: str, message: str, tmp_path: Path) -> None:
    """Would catch: a traceback, also through the script, or a shell script that goes on because the status was 0."""
    done = run_python("-m", *command.format(out=tmp_path / "out").split())
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("verb", "message"),
    [("trian", r"'trian' must be one of .*did you mean train\?"), ("benchmark", "needs a checkout")],
)
def test_unknown_verbs_are_named(verb: str, message: str) -> None:
    """Would catch: a misspelt verb that ends in KeyError, or is taken for another."""
    with pytest.raises(UserError, match=message):
        cli.run([verb])


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_help_lists_every_verb(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch: a verb that nobody can find."""
    assert cli.run(arguments) == 0
    told = capsys.readouterr().out
    assert all(f"\n{verb} " in told for verb in cli.VERBS)


def test_checks_say_what_a_bug_report_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: versions, devices or settings that are missing; a package of an extra that ends the verb."""
    monkeypatch.setenv("JAX_TEST_SETTING", "1")
    assert cli.run(["checks"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"python", "dagm-jax", "jax", "torch", "devices", "cores"} <= rows.keys()
    assert rows["JAX_TEST_SETTING"] == "1" and "cpu" in rows["devices"]

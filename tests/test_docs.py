"""Documents and the code that they describe."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags

from dagm_jax import cli
from dagm_jax.command_line import parse_request, read_config
from launch import configuration_page

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()


def test_every_promise_s_test_is_there() -> None:
    """Would catch: a promise under faults whose test was renamed or deleted, and is held by nothing."""
    defined: dict[Path, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text())
        defined[path] = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    everywhere = {name for names in defined.values() for name in names}
    files = set(re.findall(r"`([\w/]*test_\w+\.py)", RELIABILITY))
    tests = set(re.findall(r"[`:](test_\w+)(?=[`\[])", RELIABILITY))
    assert len(files) > 10 and len(tests) > 40
    assert [name for name in files if not (ROOT / "tests" / name).is_file()] == []
    assert sorted(tests - everywhere) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_documents_is_python(path: Path) -> None:
    """Would catch: an example that lost its line breaks."""
    for code in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
        ast.parse(code)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    """Would catch: a file that was moved, and a picture that is missing."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command in the bash blocks of a document; commands with shell variables are left out."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if "$" not in line:
                words = shlex.split(line, comments=True)
                while "&&" in words:
                    yield words[: words.index("&&")]
                    words = words[words.index("&&") + 1 :]
                yield words


def parse(module: str, arguments: list[str]) -> None:
    """The arguments through the parser of the command ``module``, which raises UserError."""
    found = importlib.import_module(module)
    if module == "dagm_jax.main":
        overrides = [word for word in arguments if word.startswith("--config.")]
        (config,) = (word.partition("=")[2] for word in arguments if word.startswith("--config="))
        read_config(config, overrides)
        others = {word.partition("=")[0].removeprefix("--") for word in arguments} - {"config"}
        assert {name for name in others if not name.startswith("config.")} <= set(flags.FLAGS)
    elif parser := getattr(found, "parse_flags", None) or getattr(found, "parse", None):
        parser([module, *arguments])
    else:
        parse_request(found.Request, [module, *arguments], "")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_are_known_to_their_parsers(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a documented flag, verb, module or configuration that was renamed; nothing is run."""
    monkeypatch.chdir(tmp_path)
    for words in commands(path.read_text()):
        match words:
            case ["python", "-m", module, *arguments] if module.startswith(("dagm_jax.", "launch.")):
                parse(module, arguments)
            case ["python", "-m", module, *_]:
                assert importlib.util.find_spec(module), module
            case ["dagm-jax", verb, *arguments]:
                assert verb in cli.VERBS
                if verb in cli.COMMANDS:
                    parse(cli.COMMANDS[verb], arguments)


def test_the_readme_has_commands() -> None:
    """Would catch: the test above passing because it finds no command."""
    assert len(list(commands((ROOT / "README.md").read_text()))) >= 8


def test_the_configuration_page_is_that_of_the_code() -> None:
    """Would catch: a field or a default that was changed without `python -m launch.configuration_page`."""
    assert configuration_page.PAGE.read_text() == configuration_page.page()


def test_no_comment_or_docstring_begins_with_a_headless_clause() -> None:
    """Would catch: "Of the images read …" and "What a run …", which a reader has to parse twice."""
    found = [
        f"{path.relative_to(ROOT)}: {match.strip()}"
        for folder in ("dagm_jax", "launch", "configs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for match in re.findall(r'^\s*(?:"""|# )(?:Of|What)\b.*', path.read_text(), re.MULTILINE)
    ]
    assert found == []

"""Documents and the code that they speak of."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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

"""Tests of the latency of an exported file beside PyTorch: both judge the same, and each is in the table."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest
import small_run

from dagm_jax import export
from dagm_jax.types import UserError
from launch import export_latency
from launch.bench.timing import Blocks


@pytest.fixture(scope="module")
def run_and_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("latency")
    # A copy, whose rule a test changes.
    shutil.copytree(small_run.built_in_run(tmp_path_factory), folder / "run")
    file = folder / "inspector.stablehlo"
    argv = [
        "export",
        f"--model={folder / 'run'}",
        "--format=stablehlo",
        f"--output={file}",
        "--num_checked=3",
    ]
    assert export.main(argv) == 0
    return folder / "run", file


@pytest.mark.peer
@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "pytorch_msssim"))), reason="needs the extra `peer`"
)
def test_both_sides_make_the_same_maps_and_have_a_row(
    run_and_file: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a ratio between different work, such as other weights, another standardisation, other slices."""
    monkeypatch.setenv("COLUMNS", "200")
    workdir, file = run_and_file
    export_latency.main(["latency", f"--model={workdir}", f"--exported={file}", "--repetitions=1"])
    printed = capsys.readouterr().out
    apart = re.search(r"at most (\S+) apart", printed)
    assert apart and float(apart[1]) < 1e-4
    rows = [row for row in printed.splitlines() if re.search(r"\d\.\d\dx", row)]
    assert [row.split("│")[1].strip() for row in rows] == ["jax", "PyTorch eager"]


def test_the_ratio_is_of_the_medians() -> None:
    """Would catch: PyTorch's share of our time, means, milliseconds that are seconds."""
    table = export_latency.make_table(
        "", {"file": Blocks((0.1, 0.2, 0.9), 1), "PyTorch eager": Blocks((0.4, 0.4, 0.5), 1)}
    )
    cells = [list(column.cells) for column in table.columns]
    assert cells[1] == ["200", "400"]
    assert cells[3] == ["0.50x", "1.00x"]


def test_mistakes_are_named(run_and_file: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a traceback of an import, and a file of another run compared with this one."""
    workdir, file = run_and_file
    argv = ["latency", f"--model={workdir}", f"--exported={file}"]
    with pytest.raises(UserError, match="`--exported` is missing"):
        export_latency.main(argv[:2])
    monkeypatch.delitem(sys.modules, "launch.bench.peer_step", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="needs the package torch: pip install"):
        export_latency.main(argv)
    rule = workdir / "decision_rule.json"
    before = rule.read_text()
    rule.write_text(before.replace('"threshold": ', '"threshold": 1'))
    try:
        with pytest.raises(UserError, match="was not written of"):
            export_latency.main(argv)
    finally:
        rule.write_text(before)

"""Cells of a finished run: its image in each runtime, and its test images judged whole and in slices."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from dagm_jax.errors import UserError
from launch import benchmark
from launch.bench import session, timing, trained


def measured(output: Path, workdir: Path, what: str) -> tuple[dict[str, Any], str]:
    """(the cell's values, the Markdown)."""
    flags = [f"--what={what}", f"--model={workdir}", "--repetitions=1", f"--output={output}"]
    session.run(*benchmark.parse(["benchmark", *flags]), "a command", "")
    (cell,) = json.loads((output / "benchmark.json").read_text())["cells"]
    assert not cell["error"], cell["error"]
    return cell["values"], (output / "benchmark.md").read_text()


@pytest.mark.filterwarnings("ignore:os.fork", "ignore:Exception ignored in")
def test_runtimes_of_a_run_agree_and_those_that_are_absent_say_so(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch: a runtime with other weights, padding or smoothing than the run's, one that is dropped in silence,
    a row that is timed and not of the image."""
    monkeypatch.setattr(timing, "LEAST_BLOCK_S", 1e-3)
    values, text = measured(tmp_path, own, "latency")
    rows = values["rows"]
    assert list(rows) == list(trained.RUNTIMES)
    needed = {"onnxruntime": ["jax2onnx"], "OpenVINO": ["jax2onnx", "openvino"], "PyTorch": ["torch"]}
    for name, row in rows.items():
        packages = next((needed[key] for key in needed if name.startswith(key)), [])
        if not all(map(importlib.util.find_spec, packages)):
            assert f"* {name}: {row['not_measured']}" in text
            continue
        assert "not_measured" not in row, (name, row)
        assert 0 < row["p50_s"] <= row["p95_s"], name
        # Fewer bits round the map.
        if name != trained.NETWORK and not name.endswith(("8 bits", "bfloat16")):
            assert row["map_difference"] < 1e-4, name
    assert rows[trained.XLA]["map_difference"] == 0 and "| XLA |" in text


def test_ways_of_judging_are_compared_on_the_run_s_test_images(own: Path, tmp_path: Path) -> None:
    """Would catch: one way under another's name, images left out at the end of a turn."""
    values, text = measured(tmp_path, own, "tiling")
    report = json.loads((own / "report.json").read_text())["test"]
    assert values["num_images"] == report["num_images"]
    whole = values["rows"]["whole"]
    assert whole["auroc"] == pytest.approx(report["auroc"])
    # The best for these images is at least that of the run's own threshold.
    assert whole["best_dice_defective"] >= report["dice_defective"] - 1e-3
    assert values["rows"]["slices"]["highest_of_good"] != whole["highest_of_good"]
    assert "| whole, mean of four mirror images |" in text


def test_a_run_is_named_where_it_is_looked_at() -> None:
    """Would catch: latencies of no run, a run that nothing looks at."""
    for flags in (["--what=latency"], ["--model=runs/mine"]):
        with pytest.raises(UserError, match="--model"):
            benchmark.parse(["benchmark", *flags])

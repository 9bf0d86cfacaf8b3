"""The history of a run: what is kept, dropped and survives damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from dagm_jax.train.history import MetricLogger, read_history


def rows_of(logger: MetricLogger, steps: range, kind: str = "train") -> None:
    for step in steps:
        logger.write(kind, step, {"loss": step / 2})


def test_history_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    """Would catch: rows that are there twice after a resume, rows of the kept steps that are lost, rows that wait in a
    buffer and go with a kill, and rows of an abandoned run before its first checkpoint."""
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == []
    logger = MetricLogger(tmp_path, 0)
    rows_of(logger, range(1, 6))
    assert read_history(path)[-1] == {"step": 5, "kind": "train", "loss": 2.5}
    logger.write("validation", 4, {"quality": 0.5})
    logger.close()
    logger = MetricLogger(tmp_path, 4)
    rows_of(logger, range(5, 7))
    logger.close()
    rows = [(row["kind"], row["step"]) for row in read_history(path)]
    assert rows == [*[("train", k) for k in (1, 2, 3, 4)], ("validation", 4), ("train", 5), ("train", 6)]
    MetricLogger(tmp_path, 0).close()
    assert read_history(path) == []


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"step": 2, "ki',
        b'{"step": 2, "kind": "\xff"}',
        b"[1]",
        b'{"step": "2", "kind": "train"}',
        b"[" * 200_000,
    ],
    ids=["cut", "no text", "no row", "no step", "nested"],
)
def test_history_loses_a_damaged_line_alone_and_says_so(
    tmp_path: Path, damaged: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: all rows after a damaged line lost when a run goes on, a trace of a byte that is no text, and a word
    about a last line that a kill cut short."""
    path = tmp_path / "metrics.jsonl"
    first, third = b'{"step": 1, "kind": "train"}\n', b'{"step": 3, "kind": "train"}\n'
    path.write_bytes(first + damaged + b"\n" + third + damaged)
    MetricLogger(tmp_path, 3).close()
    out = " ".join(capsys.readouterr().out.split())
    assert out.endswith("1 of 3 lines are damaged, such as line 2; the other lines are kept")
    assert path.read_bytes() == first + third
    assert [row["step"] for row in read_history(path)] == [1, 3]
    assert capsys.readouterr().out == ""
    assert list(tmp_path.glob("*.partial")) == []

"""Seconds of stages add up to those of the command."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dagm_jax.experiment import timings
from dagm_jax.experiment.timings import Timings


def test_stages_count_for_themselves_and_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: seconds counted twice in a stage and the one around it, a second visit that replaces the first, and
    seconds that no stage has and nobody sees."""
    now = [100.0]
    monkeypatch.setattr(timings, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    seen = Timings(begun_s=97.0)
    for _ in range(2):
        with seen.stage("training"):
            now[0] += 5
            with seen.stage("validation"):
                now[0] += 2
    now[0] += 1
    expected = {"start": 3.0, "validation": 4.0, "training": 10.0, "other": 1.0, "total": 18.0}
    assert seen.to_report() == expected

"""Tests of the sampler: epochs in orders of their own, and slices of the kind that is asked for."""

from __future__ import annotations

import numpy as np
import pytest

from dagm_jax.data.sampling import SliceKind, pick_slice


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (SliceKind.POSITIVE, [1, 1, 4, 4]),
        (SliceKind.NOT_POSITIVE, [0, 2, 3, 3]),
        (SliceKind.ANY, [0, 1, 3, 4]),
    ],
)
def test_every_number_picks_a_slice_of_its_kind(kind: SliceKind, expected: list[int]) -> None:
    """Would catch: a slice that holds a little of the defect drawn as positive, a last slice that is never drawn, and a
    number just below 1 that falls beyond it."""
    labels = np.array([0, 1, -1, 0, 1], np.int32)
    numbers = [0.0, 0.34, 0.7, np.nextafter(1.0, 0.0)]
    assert [pick_slice(labels, kind, u) for u in numbers] == expected
    assert [pick_slice(np.ones(2, np.int32), SliceKind.NOT_POSITIVE, u) for u in (0.0, 0.9)] == [0, 1]

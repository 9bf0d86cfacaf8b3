"""Ratios of measurements, where None is unknown, and bytes that a compiled program sends."""

from __future__ import annotations

import math
import re

Number = float | None

# All-reduces in HLO text, ``%name = (f32[3,4]{1,0}, f32[]) all-reduce(…)``; on GPUs a start and a done, counted once.
_ALL_REDUCE = re.compile(r" = (?P<shape>.*?) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d+)?\w*\[(?P<shape>[\d,]*)\]")


def over(part: Number, whole: Number) -> Number:
    """part / whole; None where either is unknown or ``whole`` is 0."""
    return None if part is None or not whole else part / whole


def all_reduce_bytes(hlo: str) -> int:
    """Bytes that a device gives to all-reduces in one run of a compiled program, from its HLO text.

    The traffic depends on the algorithm: a ring moves 2 (n - 1) / n times that per device.
    """
    total = 0
    for match in _ALL_REDUCE.finditer(hlo):
        for array in _ARRAY.finditer(match["shape"]):
            shape = [int(size) for size in array["shape"].split(",") if size]
            # pred is the one kind without a number of bits.
            total += math.prod(shape) * int(array["bits"] or 8) // 8
    return total

"""The benchmark's arithmetic, on plain numbers; None is a value that nobody could tell."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Number = float | None

# On GPUs an all-reduce is a start and a done, of which one counts: ``%name = (f32[3,4]{1,0}, f32[]) all-reduce(…)``.
_ALL_REDUCE = re.compile(r" = (?P<shape>.*?) all-reduce(?:-start)?\(")
_ARRAY = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d+)?\w*\[(?P<sides>[\d,]*)\]")


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which ``percent`` of the sorted values lie, linear between neighbours; of one value, that."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def median(values: Sequence[float]) -> float:
    """The 50th percentile."""
    return percentile(values, 50)


def over(part: Number, whole: Number) -> Number:
    """part / whole; None where either is unknown or ``whole`` is 0. A rate is work over seconds."""
    return None if part is None or not whole else part / whole


def speed_ratio(ours_s: Number, peer_s: Number) -> Number:
    """How many times as fast as the peer we are: the peer's seconds over ours; above 1 we are faster."""
    return over(peer_s, ours_s)


def fastest(seconds: Iterable[Number]) -> Number:
    """The least of the known times."""
    return min((s for s in seconds if s is not None), default=None)


def efficiencies(step: Mapping[str, Any], steps: Iterable[Mapping[str, Any]]) -> dict[str, Number]:
    """How well a step's devices are used: its slices/s per device over that of the same step on the fewest devices.

    strong_scaling: of the steps of the same batch; weak_scaling: of those with as many slices per device. A step is
    its cell's fields and ``slices_per_s``. None where that step alone is its own measure, or there is none.
    """

    def comparable(other: Mapping[str, Any], share: bool) -> bool:
        same = all(other[name] == step[name] for name in ("config", "mode", "precision"))
        ours, theirs = step["batch_size"], other["batch_size"]
        if share:
            return same and ours * other["num_devices"] == theirs * step["num_devices"]
        return same and ours == theirs

    found: dict[str, Number] = {}
    for name, share in (("strong_scaling", False), ("weak_scaling", True)):
        fewest = min(
            (s for s in steps if comparable(s, share)), key=lambda s: int(s["num_devices"]), default=None
        )
        if fewest is None or fewest["num_devices"] >= step["num_devices"]:
            found[name] = None
        else:
            per_device = step["slices_per_s"] / step["num_devices"]
            found[name] = per_device * fewest["num_devices"] / fewest["slices_per_s"]
    return found


def all_reduce_bytes(hlo: str) -> int:
    """Bytes that a device gives to all-reduces in one run of a compiled program, from its HLO text.

    What crosses the wires depends on the algorithm: a ring moves 2 (n - 1) / n times that per device.
    """
    return sum(_shape_bytes(match["shape"]) for match in _ALL_REDUCE.finditer(hlo))


def _shape_bytes(shape: str) -> int:
    total = 0
    for array in _ARRAY.finditer(shape):
        sides = [int(side) for side in array["sides"].split(",") if side]
        # pred is the one kind without a number of bits.
        total += math.prod(sides) * int(array["bits"] or 8) // 8
    return total

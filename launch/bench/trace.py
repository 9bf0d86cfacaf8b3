"""The work of the devices in a trace: the share of the time that they computed, and the kernels that took it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.profiler import ProfileData

from launch.bench.arithmetic import over

MOST_KERNELS = 20
DEVICE_PLANES = "/device:"
# Computing lines of a device's plane: of a GPU one for each stream, of a TPU one for all.
COMPUTING_LINES = ("Stream", "XLA Ops")
# Kernels that move memory only.
COPIES = ("Memcpy", "Memset")


class Kernel(NamedTuple):
    """One execution on a device. begin_ns, end_ns: of the trace's clock."""

    name: str
    begin_ns: float
    end_ns: float


def traced(run: Callable[[], None], folder: Path) -> dict[str, Any]:
    """Runs ``run`` under JAX's profiler, which writes to ``folder``: ``device_busy`` and ``kernels``.

    The least `busy_share` of the devices and their `longest` kernels; of a CPU, which has no kernels, None and none.
    """
    options = jax.profiler.ProfileOptions()
    # Writing down each call of Python would take longer than a short step does.
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        run()
    devices = [kernels for path in sorted(folder.rglob("*.xplane.pb")) for kernels in read_kernels(path)]
    shares = [share for share in map(busy_share, devices) if share is not None]
    return {
        "device_busy": min(shares, default=None),
        "kernels": longest(kernel for kernels in devices for kernel in kernels),
    }


def read_kernels(path: Path) -> Iterator[list[Kernel]]:
    """The kernels of each device of a trace."""
    for plane in ProfileData.from_file(str(path)).planes:
        if plane.name.startswith(DEVICE_PLANES):
            yield [
                Kernel(event.name, event.start_ns, event.start_ns + event.duration_ns)
                for line in plane.lines
                if line.name.startswith(COMPUTING_LINES)
                for event in line.events
                if not event.name.startswith(COPIES)
            ]


def busy_share(kernels: Iterable[Kernel]) -> float | None:
    """Share of the time from the first kernel's begin to the last one's end in which at least one runs."""
    in_order = sorted(kernels, key=lambda kernel: kernel.begin_ns)
    if not in_order:
        return None
    busy_ns, end_ns = 0.0, in_order[0].begin_ns
    for kernel in in_order:
        busy_ns += max(0.0, kernel.end_ns - max(end_ns, kernel.begin_ns))
        end_ns = max(end_ns, kernel.end_ns)
    return over(busy_ns, end_ns - in_order[0].begin_ns)


def longest(kernels: Iterable[Kernel]) -> list[dict[str, Any]]:
    """``{name, seconds, calls}`` of the kernels with the greatest sums, at most MOST_KERNELS, longest first."""
    found: dict[str, dict[str, Any]] = {}
    for kernel in kernels:
        entry = found.setdefault(kernel.name, {"name": kernel.name, "seconds": 0.0, "calls": 0})
        entry["seconds"] += (kernel.end_ns - kernel.begin_ns) / 1e9
        entry["calls"] += 1
    return sorted(found.values(), key=lambda entry: -entry["seconds"])[:MOST_KERNELS]

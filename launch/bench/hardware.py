"""The machine: description, versions, measured peaks and those that the vendor prints."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from launch.bench.timing import repeat, time_blocks

VENDOR_SOURCE = "NVIDIA's data sheets, dense, float32 as TF32"
# FLOP/s of dense tensor cores by precision, from the data sheets "NVIDIA A100 Tensor Core GPU" (June 2021) and of H100
# and H200 (SXM), where dense is half of the printed rate "with sparsity"; JAX runs float32 in TF32 there by default.
A100 = {"bfloat16": 312e12, "float32": 156e12}
H100 = {"bfloat16": 989.5e12, "float32": 494.5e12}
VENDOR_PEAKS = {
    "NVIDIA A100-SXM4-40GB": A100,
    "NVIDIA A100-SXM4-80GB": A100,
    "NVIDIA H100 80GB HBM3": H100,
    "NVIDIA H200": H100,
}


def describe() -> dict[str, Any]:
    """The machine in JSON values: devices, processor, cores that this process may use."""
    device = jax.local_devices()[0]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "num_local_devices": jax.local_device_count(),
        "processor": next(names, platform.machine()),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**30,
        "system": f"{platform.system()} {platform.machine()}",
    }


def measure_peaks(precisions: Sequence[str], repetitions: int = 5) -> dict[str, float]:
    """Precision → FLOP/s of a square matrix product on one device, 2·n³ over the seconds of the fastest block."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    multiply = jax.jit(lambda a: a @ a)
    found = {}
    for dtype in precisions:
        # Random numbers: with constants the chip switches less and clocks higher.
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        run = repeat(partial(multiply, a), jax.block_until_ready)
        found[dtype] = 2 * n**3 / min(time_blocks(run, repetitions).seconds)
    return found

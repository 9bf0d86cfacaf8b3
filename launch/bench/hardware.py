"""The machine: its description, its measured and its printed peaks."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dagm_jax.experiment import package_versions
from launch.bench.arithmetic import Number
from launch.bench.timing import repeat, time_blocks

# Dense tensor-core rates and memory bandwidth of NVIDIA's data sheets (A100: "NVIDIA A100 Tensor Core GPU", June 2021;
# H100 SXM: "NVIDIA H100 Tensor Core GPU"; H200 SXM: "NVIDIA H200 Tensor Core GPU", where dense is half of the printed
# rate "with sparsity"). float32 runs in TF32 there, JAX's default.
VENDOR_SOURCE = "NVIDIA's data sheets, dense, float32 as TF32"
# Kind of device → FLOP/s in each precision, and bytes/s of its memory.
VENDOR_PEAKS = {
    "NVIDIA A100-SXM4-40GB": {"bfloat16": 312e12, "float32": 156e12, "bytes": 1.555e12},
    "NVIDIA A100-SXM4-80GB": {"bfloat16": 312e12, "float32": 156e12, "bytes": 2.039e12},
    "NVIDIA H100 80GB HBM3": {"bfloat16": 989.5e12, "float32": 494.5e12, "bytes": 3.35e12},
    "NVIDIA H200": {"bfloat16": 989.5e12, "float32": 494.5e12, "bytes": 4.8e12},
}


def describe() -> dict[str, Any]:
    """The machine in JSON values: devices, processor, cores that this process may use."""
    device = jax.local_devices()[0]
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "num_local_devices": jax.local_device_count(),
        "processor": _processor(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    return {
        "python": platform.python_version(),
        **package_versions(),
        **package_versions(("torch", "pillow")),
    }


def measure_peaks(precisions: Sequence[str], repetitions: int = 5) -> dict[str, Number]:
    """FLOP/s of a square matrix product in each precision and ``bytes``/s of a copy, on one device in this run.

    The product has 2·n³ FLOPs; a copy reads and writes its array.
    """
    is_cpu = jax.default_backend() == "cpu"
    side = 2048 if is_cpu else 8192
    found: dict[str, Number] = {}
    for dtype in precisions:
        # Random numbers, because a chip that has little to switch clocks higher.
        a = jax.random.normal(jax.random.key(0), (side, side), dtype)
        found[dtype] = 2 * side**3 / _fastest(jax.jit(lambda a: a @ a), a, repetitions)
    x = jnp.ones((64 if is_cpu else 512) * 2**20, jnp.float32)
    found["bytes"] = 2 * x.nbytes / _fastest(jax.jit(lambda x: x + 1), x, repetitions)
    return found


def _fastest(function: Callable[[Any], Any], argument: Any, repetitions: int) -> float:
    """Seconds of the fastest block: a peak is possible, not usual."""
    run = repeat(lambda: function(argument), jax.block_until_ready)
    return min(time_blocks(run, repetitions).seconds)


def vendor_peaks(precision: str) -> tuple[Number, Number]:
    """(FLOP/s, bytes/s) that the vendor prints for this kind of device; None where VENDOR_PEAKS has no entry."""
    peaks = VENDOR_PEAKS.get(jax.local_devices()[0].device_kind, {})
    return peaks.get(precision), peaks.get("bytes")

"""What the machine is and can do: its description, its measured and its printed peaks."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from dagm_jax.experiment.report import package_versions
from launch.bench.arithmetic import Number
from launch.bench.timing import time_blocks

PACKAGES = ("torch", "matplotlib", "pillow")


@dataclass(frozen=True)
class Peak:
    """A device's greatest FLOP/s in each precision and bytes/s of its memory."""

    flop_per_s: Mapping[str, float]
    bytes_per_s: float


# Dense tensor-core rates and memory bandwidth of NVIDIA's data sheets (A100: "NVIDIA A100 Tensor Core GPU", June 2021;
# H100 SXM: "NVIDIA H100 Tensor Core GPU"; H200 SXM: "NVIDIA H200 Tensor Core GPU", where dense is half of the printed
# rate "with sparsity"). float32 runs in TF32 there, JAX's default.
VENDOR_SOURCE = "NVIDIA's data sheets, dense, float32 as TF32"
VENDOR_PEAKS = {
    "NVIDIA A100-SXM4-40GB": Peak({"bfloat16": 312e12, "float32": 156e12}, 1.555e12),
    "NVIDIA A100-SXM4-80GB": Peak({"bfloat16": 312e12, "float32": 156e12}, 2.039e12),
    "NVIDIA H100 80GB HBM3": Peak({"bfloat16": 989.5e12, "float32": 494.5e12}, 3.35e12),
    "NVIDIA H200": Peak({"bfloat16": 989.5e12, "float32": 494.5e12}, 4.8e12),
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
    try:
        with open("/proc/cpuinfo") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the figures depend on."""
    return {"python": platform.python_version(), **package_versions(), **package_versions(PACKAGES)}


def measure_peaks(precisions: Sequence[str], repetitions: int = 5) -> dict[str, Number]:
    """What one device reaches in this run: FLOP/s of a square matrix product in each precision, bytes/s of a copy.

    Names: the precisions, and ``bytes``. The product has 2·n³ FLOPs; a copy reads and writes its array.
    """
    is_cpu = jax.default_backend() == "cpu"
    side = 2048 if is_cpu else 8192
    found: dict[str, Number] = {}
    for dtype in precisions:
        # Not ones: a chip that has little to switch clocks higher.
        a = jax.random.normal(jax.random.key(0), (side, side), dtype)
        found[dtype] = 2 * side**3 / _fastest(jax.jit(jnp.matmul), a, a, repetitions=repetitions)
    x = jnp.ones((64 if is_cpu else 512) * 2**20, jnp.float32)
    found["bytes"] = 2 * x.nbytes / _fastest(jax.jit(lambda x: x + 1), x, repetitions=repetitions)
    return found


def _fastest(function: Any, *arguments: Any, repetitions: int) -> float:
    """Seconds of the fastest block: a peak is what is possible, not what is usual."""

    def run(number: int, function: Any, arguments: Any) -> None:
        for _ in range(number):
            result = function(*arguments)
        jax.block_until_ready(result)

    return min(time_blocks(partial(run, function=function, arguments=arguments), repetitions).seconds)


def vendor_peaks(precision: str) -> tuple[Number, Number]:
    """(FLOP/s, bytes/s) that the vendor prints for this kind of device; None where VENDOR_PEAKS has no entry."""
    peak = VENDOR_PEAKS.get(jax.local_devices()[0].device_kind)
    return (None, None) if peak is None else (peak.flop_per_s[precision], peak.bytes_per_s)

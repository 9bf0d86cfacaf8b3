"""How tests have programs compiled: most of a test's time is compilation, which XLA's first level makes shorter.

Level 0 is shorter still, and wrong: under it the gradients of these networks are not finite (jaxlib 0.10.2). Without
the emitters of fusions a network compiles in three quarters of the time.
"""

from __future__ import annotations

XLA_FLAGS = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"


def xla_flags(num_devices: int) -> str:
    """The flags of a process that sees this many CPU devices."""
    return f"{XLA_FLAGS} --xla_force_host_platform_device_count={num_devices}"

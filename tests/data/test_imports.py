"""Tests of the modules that reading an image, a slice or a configuration imports."""

from __future__ import annotations

import subprocess
import sys


def run_script(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_our_data_modules_start_no_backend_and_import_no_network() -> None:
    """Would catch: a jax or flax import in data/: each worker process would pay its seconds, and claim the device.

    grain itself imports jax. So grain is imported first, and what our modules add to it must hold no jax, flax,
    optax, orbax or tensorflow; and no backend may have been started.
    """
    run_script("""
import sys
import grain
before = set(sys.modules)
import dagm_jax.data.cache, dagm_jax.data.dataset, dagm_jax.data.pipeline, dagm_jax.data.split
heavy = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorflow")
added = sorted(m for m in set(sys.modules) - before if m.partition(".")[0] in heavy)
assert not added, added
bridge = sys.modules.get("jax._src.xla_bridge")
assert bridge is None or not bridge.backends_are_initialized()
""")


def test_reading_and_slicing_need_numpy_scipy_and_pillow_alone() -> None:
    """Would catch: an inspector of ONNX files that needs jax or grain; configurations that are slow to read."""
    run_script("""
import sys
for name in ("jax", "flax", "optax", "orbax", "grain", "absl", "rich", "ml_collections", "jaxtyping", "tensorflow"):
    sys.modules[name] = None
import dagm_jax.data.config
assert not {"scipy", "PIL"} & sys.modules.keys()
import dagm_jax.data.images.image_reader, dagm_jax.data.slicing
assert "scipy" not in sys.modules
import dagm_jax.data.cache, dagm_jax.data.dataset, dagm_jax.data.sampling, dagm_jax.data.augment, dagm_jax.data.split
""")

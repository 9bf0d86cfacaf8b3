"""What all tests share: one cache of compiled programs for a whole run of the suite.

Most of a test's time is compilation, above all of the draws of initial weights, one for each shape of a kernel; many
tests build the same networks. The cache begins empty, so that what is tested is compiled by this code.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import jax
import pytest

CACHE = "DAGM_JAX_TEST_CACHE"


def pytest_configure(config: pytest.Config) -> None:
    """The first process makes the folder; workers of pytest-xdist find it in their environment."""
    if CACHE not in os.environ:
        os.environ[CACHE] = tempfile.mkdtemp(prefix="dagm_jax_tests_")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", str(Path(os.environ[CACHE])))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

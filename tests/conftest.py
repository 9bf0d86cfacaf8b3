"""What all tests share: quick compilation, one cache of compiled programs for a run of the suite, longest files first.

The cache begins empty, so that what is tested is compiled by this code.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import quick
from shell import Shell, make_shell

CACHE = "DAGM_JAX_TEST_CACHE"
# Files that take minutes, longest first: with one of them begun last, a worker waits for the other.
LONGEST = (
    "experiment/test_main.py",
    "experiment/test_recipe.py",
    "distributed/test_layouts.py",
    "train/test_step.py",
    "train/test_learning.py",
    "distributed/test_distributed.py",
    "models/test_custom_unet.py",
    "exporting/test_export.py",
    "models/test_unet3plus.py",
    "faults/test_long_runs.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """The first process makes the folder; workers of pytest-xdist find it in their environment."""
    if CACHE not in os.environ:
        # Of options given twice the last counts: the user's.
        os.environ["XLA_FLAGS"] = f"{quick.XLA_FLAGS} {os.environ.get('XLA_FLAGS', '')}".strip()
        # One thread of XLA's for each of the test processes, which then do not get in each other's way.
        os.environ.setdefault("NPROC", "1")
        os.environ[CACHE] = tempfile.mkdtemp(prefix="dagm_jax_tests_")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(CACHE), ignore_errors=True))
    jax.config.update("jax_compilation_cache_dir", str(Path(os.environ[CACHE])))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others as they were."""
    place = {Path(__file__).parent / name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Commands in processes of their own, which share one cache of compiled programs."""
    return make_shell(tmp_path_factory)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """What has been compiled since."""
    seen: list[str] = []

    def note(event: str, duration: float, **_: object) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seen
    jax.monitoring.unregister_event_duration_listener(note)


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of the real images."""
    if not os.environ.get("DAGM_ROOT"):
        pytest.skip("DAGM_ROOT is not set: no real images here")
    return Path(os.environ["DAGM_ROOT"])


@pytest.fixture(scope="session")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of `small_run.own_run`."""
    import small_run

    return small_run.own_run(tmp_path_factory)


@pytest.fixture(scope="session")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of `small_run.built_in_run`."""
    import small_run

    return small_run.built_in_run(tmp_path_factory)

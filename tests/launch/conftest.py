"""Fixtures of the tests of launch/: quick compilation, one PyTorch thread, pictures that are not drawn."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def quick_compiles() -> Iterator[None]:
    """Compilation without most optimisations: it is most of a benchmark's time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch with one thread: its threads wait in busy loops, and on shared cores small maps then take minutes."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures of the paper as empty files: drawing takes most of a grid's time here."""
    monkeypatch.setattr("launch.paper.pages.write_figure", lambda figure, path: path.touch())

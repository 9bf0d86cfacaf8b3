"""``python victim.py MOMENT ARGUMENTS…``: the main job, which kills itself (SIGKILL) at the named moment."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def replace(owner: Any, name: str, make: Callable[[Any], Callable[..., Any]]) -> None:
    """Puts ``make(function)`` in the place of a function."""
    plain = getattr(owner, name)
    setattr(owner, name, wraps(plain)(make(plain)))


def during_data() -> None:
    """In the middle of decoding: some images are in the cache's unfinished file."""
    from dagm_jax.data import cache

    def make(plain: Any) -> Any:
        def loaded(*arguments: Any) -> Any:
            for place, one in enumerate(plain(*arguments)):
                if place == 9:
                    die()
                yield one

        return loaded

    replace(cache, "load_all", make)


def during_compilation() -> None:
    """While the training step is being compiled."""
    from dagm_jax.distributed.devices import Devices

    def make(plain: Any) -> Any:
        def compile_step(*arguments: Any) -> Any:
            threading.Timer(0.2, die).start()
            return plain(*arguments)

        return compile_step

    replace(Devices, "compile_step", make)


def during_a_step() -> None:
    """When the fifth step has been started and its result is not there."""
    from dagm_jax.distributed.devices import Devices

    def make(plain: Any) -> Any:
        def compile_step(*arguments: Any) -> Any:
            step, calls = plain(*arguments), iter(range(99))

            def stepped(*given: Any) -> Any:
                out = step(*given)
                if next(calls) == 4:
                    die()
                return out

            return stepped

        return compile_step

    replace(Devices, "compile_step", make)


def during_a_save() -> None:
    """When the second checkpoint's arrays are copied and being written."""
    from dagm_jax.train.checkpoint import Checkpoints

    calls = iter(range(99))

    def make(plain: Any) -> Any:
        def save(*arguments: Any) -> None:
            plain(*arguments)
            if next(calls) == 1:
                die()

        return save

    replace(Checkpoints, "save", make)


def during_a_deletion() -> None:
    """When a part of an old checkpoint is deleted."""
    from dagm_jax.train import checkpoint

    def make(plain: Any) -> Any:
        def rmtree(path: Any, *rest: Any, **options: Any) -> None:
            files = [file for file in Path(path).rglob("*") if file.is_file()]
            for file in files[: len(files) // 2]:
                file.unlink()
            die()

        return rmtree

    # The module's own, not everybody's.
    checkpoint.shutil = type("Shutil", (), {"rmtree": staticmethod(shutil.rmtree)})  # type: ignore[attr-defined]
    replace(checkpoint.shutil, "rmtree", make)


def writing(name: str) -> Callable[[], None]:
    """When half of that file is on the disk, under whatever name it is being written."""

    def hook() -> None:
        def make(plain: Any) -> Any:
            def fsync(descriptor: int) -> None:
                if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(name):
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                    die()
                plain(descriptor)

            return fsync

        replace(os, "fsync", make)

    return hook


def during_the_figures() -> None:
    """When the second figure is drawn."""
    from dagm_jax.visualization import figures

    def make(plain: Any) -> Any:
        def plot(*arguments: Any) -> None:
            plain(*arguments)
            die()

        return plot

    replace(figures, "plot_confusion", make)


MOMENTS: dict[str, Callable[[], None]] = {
    "data": during_data,
    "compilation": during_compilation,
    "step": during_a_step,
    "save": during_a_save,
    "deletion": during_a_deletion,
    "rule": writing("decision_rule.json"),
    "figures": during_the_figures,
    "predictions": writing("predictions.csv"),
    "report": writing("report.json"),
}

if __name__ == "__main__":
    from absl import app

    from dagm_jax.command_line import guarded, parse_config_flags
    from dagm_jax.main import main

    MOMENTS[sys.argv.pop(1)]()
    app.run(lambda argv: guarded(main, argv), flags_parser=lambda argv: guarded(parse_config_flags, argv))

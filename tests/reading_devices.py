"""Devices that read a program instead of compiling it, to see which form a platform gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from dagm_jax.distributed.devices import Devices


@dataclass(frozen=True)
class ReadingDevices(Devices):
    """Devices of the platform that is ``asked`` for; what they compile is the text of the program."""

    asked: str = "cpu"

    @property
    def platform(self) -> str:
        return self.asked

    def compile_step(self, step: Any, *example: Any) -> Any:
        return str(jax.make_jaxpr(step)(*example))

    compile_eval_step = compile_step

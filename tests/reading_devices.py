"""Devices that read a program instead of compiling it, to see which form a platform gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from dagm_jax.distributed.devices import Devices


class Text(str):
    """The text of a program, with the shapes of its outputs as compiled programs have them."""

    out_info: Any


@dataclass(frozen=True)
class ReadingDevices(Devices):
    """Devices of the platform that is ``asked`` for; what they compile is the text of the program."""

    asked: str = "cpu"

    @property
    def platform(self) -> str:
        return self.asked

    def compile_step(self, step: Any, *example: Any) -> Any:
        return str(jax.make_jaxpr(step)(*example))

    def compile_eval_step(self, eval_step: Any, *example: Any) -> Any:
        text = Text(self.compile_step(eval_step, *example))
        text.out_info = jax.eval_shape(eval_step, *example)
        return text

"""The training loop: evaluate → save → next batch → step → log.

The order is what makes a restart exact. A checkpoint of step s holds the state after s steps and the judgement that
the loop passed on it; whoever restores it goes on with batch s, which the stream gives for that number alone.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import grain
import jax
import numpy as np
from absl import logging

from dagm_jax.data.pipeline import iterate
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.parallel import Devices
from dagm_jax.train.progress import Bar, Record, show
from dagm_jax.train.step import TrainState
from dagm_jax.types import Interrupted, UserError


@dataclass(frozen=True)
class TrainConfig:
    """Length and rhythm of training. ``num_steps`` is an upper bound: early stopping usually ends it before.

    Validation happens every ``validate_every`` steps on at most ``max_validation_images`` of each label. Training
    ends when validation quality (the mean of image AUROC and pixel Dice on defective images) has reached
    ``target_quality``, or has not risen by ``min_rise`` in ``patience`` validations.
    balance: half of the slices of a batch hold defect. judge_batch_size: images per device that are judged at a time.
    """

    batch_size: int = 8
    num_steps: int = 800
    balance: bool = True
    validate_every: int = 25
    max_validation_images: int = 32
    judge_batch_size: int = 2
    patience: int = 10
    min_rise: float = 0.002
    target_quality: float = 0.9
    log_every: int = 5

    def __post_init__(self) -> None:
        for name in ("num_steps", "validate_every", "max_validation_images", "judge_batch_size", "patience", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"`train.{name}` (={getattr(self, name)}) must be at least 1")
        if not 0 < self.target_quality <= 1:
            raise UserError(
                f"`train.target_quality` (={self.target_quality}) must lie in (0, 1]; 1 trains to the end"
            )


@dataclass(frozen=True)
class EarlyStopping:
    """The best validation quality so far, and how many validations have not risen above it by enough."""

    best_quality: float = 0.0
    num_without_rise: int = 0

    def update(self, quality: float, min_rise: float) -> EarlyStopping:
        has_risen = quality > self.best_quality + min_rise
        return EarlyStopping(max(quality, self.best_quality), 0 if has_risen else self.num_without_rise + 1)

    def reason_to_stop(self, config: TrainConfig) -> str | None:
        if self.best_quality >= config.target_quality:
            return f"validation quality reached {self.best_quality:.3f}, target {config.target_quality}"
        if self.num_without_rise >= config.patience:
            return f"validation quality has not risen in {self.num_without_rise} validations"
        return None


@dataclass(frozen=True)
class Position:
    """Where a run stands, as its checkpoint keeps it beside the state."""

    step: int = 0
    validated: bool = False
    stopping: EarlyStopping = EarlyStopping()
    train_seconds: float = 0.0

    def to_meta(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> Position:
        return cls(**{**meta, "stopping": EarlyStopping(**meta["stopping"])})


class NonFinite(UserError):
    """The loss or the gradient is not a number."""


@dataclass(frozen=True)
class Loop:
    """All that training needs besides the state and its position."""

    config: TrainConfig
    devices: Devices
    step: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
    stream: grain.MapDataset
    num_workers: int
    validate: Callable[[TrainState], dict[str, float]]
    checkpoints: Checkpoints
    record: Record
    learning_rate: Callable[[int], Any]
    image_ids: Sequence[str]
    meta: dict[str, Any]

    def run(self, state: TrainState, position: Position) -> Position:
        """The position after the last step; state and position are saved along the way.

        Raises Interrupted after saving, and NonFinite (before any state that it would harm is saved).
        """
        stopping_requested: list[int] = []
        batches = iterate(self.stream, position.step, self.num_workers)
        with on_signals(stopping_requested), show("training", self.config.num_steps, position.step) as bar:
            while True:
                due = position.step % self.config.validate_every == 0 or position.step == self.config.num_steps
                if due and position.step > 0 and not position.validated:
                    position = self._validate_and_save(state, position)
                reason = position.stopping.reason_to_stop(self.config)
                if reason or position.step >= self.config.num_steps:
                    logging.info("training ends at step %d: %s", position.step, reason or "all steps are done")
                    return position
                if stopping_requested:
                    if not position.validated and position.step > 0:
                        self._save(state, position, None)
                    raise Interrupted(f"interrupted at step {position.step}; the same command goes on from there")
                state, position = self._advance(state, position, batches, bar)

    def _advance(
        self, state: TrainState, position: Position, batches: Iterator[Any], bar: Bar
    ) -> tuple[TrainState, Position]:
        """Steps up to the next line of the log. The host waits for the device once, at the end."""
        start_s = time.monotonic()
        pending = []
        end = min(
            self.config.num_steps,
            *(
                (position.step // every + 1) * every
                for every in (self.config.log_every, self.config.validate_every)
            ),
        )
        for step in range(position.step + 1, end + 1):
            batch = next(batches)
            state, metrics = self.step(state, self.devices.shard_batch(batch))
            pending.append((step, metrics, batch["image_index"]))
        for step, metrics, image_index in pending:
            values = {name: float(value) for name, value in metrics.items()}
            if not all(math.isfinite(value) for value in values.values()):
                raise self._non_finite(step, values, image_index)
        elapsed_s = time.monotonic() - start_s
        values["learning_rate"] = float(self.learning_rate(end - 1))
        values["slices_per_s"] = len(pending) * self.config.batch_size / elapsed_s
        self.record.write("train", end, values)
        best = position.stopping.best_quality
        figures = f"loss {values['loss']:.3f}, {values['slices_per_s']:.1f} slices/s"
        bar.advance(len(pending), figures + (f", quality {best:.3f}" if best else ""))
        return state, Position(end, False, position.stopping, position.train_seconds + elapsed_s)

    def _validate_and_save(self, state: TrainState, position: Position) -> Position:
        values = self.validate(state)
        self.record.write("validation", position.step, values)
        stopping = position.stopping.update(values["quality"], self.config.min_rise)
        position = replace(position, validated=True, stopping=stopping)
        self._save(state, position, values["quality"])
        return position

    def _save(self, state: TrainState, position: Position, quality: float | None) -> None:
        self.checkpoints.save(position.step, state, {**self.meta, "position": position.to_meta()}, quality)

    def _non_finite(self, step: int, values: dict[str, float], image_index: np.ndarray) -> NonFinite:
        names = sorted({self.image_ids[int(i)] for i in image_index})
        bad = ", ".join(f"{name} {value}" for name, value in values.items() if not math.isfinite(value))
        return NonFinite(
            f"training stopped at step {step}: {bad}; learning rate {float(self.learning_rate(step - 1)):.2e}, "
            f"images of the batch: {', '.join(names)}; lower `optim.learning_rate` or look at these images"
        )


@contextmanager
def on_signals(received: list[int]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT are noted in ``received`` instead of ending the process."""

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        if received:
            raise KeyboardInterrupt("asked twice to stop")
        received.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""The training loop: evaluate → save → next batch → step → log.

The order is what makes a restart exact. A checkpoint of step s holds the state after s steps and the judgement that
the loop passed on it; whoever restores it goes on with batch s, which the stream gives for that number alone.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any

import grain
import jax
import numpy as np

from dagm_jax.console import Bar, console, show
from dagm_jax.data.pipeline import iterate
from dagm_jax.distributed.devices import Devices
from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.errors import Interrupted, UserError
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.history import MetricLogger
from dagm_jax.train.schedule import TrainConfig, TrainProgress
from dagm_jax.train.step import Carry, TrainState


class NonFinite(UserError):
    """The loss or the gradient is not a number."""


@dataclass(frozen=True)
class Trainer:
    """All that training needs besides the state and its position. logger: None on all processes but one."""

    config: TrainConfig
    devices: Devices
    step: Callable[[Carry, Any], tuple[Carry, dict[str, jax.Array]]]
    stream: grain.MapDataset
    num_workers: int
    validate: Callable[[TrainState], dict[str, float]]
    checkpoints: Checkpoints
    logger: MetricLogger | None
    image_ids: Sequence[str]
    meta: dict[str, Any]
    processes: Processes = ALONE

    def fit(self, state: TrainState, progress: TrainProgress) -> TrainProgress:
        """The position after the last step; state and position are saved along the way.

        Raises Interrupted after saving, NonFinite (before any state that it would harm is saved), and ProcessLost.
        """
        stopping_requested: list[int] = []
        first_step = progress.step
        total = progress.end_step or self.config.num_steps
        with (
            on_signals(stopping_requested),
            closing(iterate(self.stream, progress.step, self.num_workers)) as host_batches,
            show("training", total, progress.step) as bar,
        ):
            batches = self.devices.prefetch(host_batches)
            while True:
                if self._is_validation_due(progress):
                    state, progress = self._validate_and_save(state, progress)
                    bar.set_total(progress.end_step or self.config.num_steps)
                # All processes stop at the same step, whichever was asked to; at the last one too, before judging.
                if self.processes.any(bool(stopping_requested)):
                    if not progress.validated and progress.step > first_step:
                        self._save(state, progress, None)
                    raise Interrupted(f"at step {progress.step}; the same command goes on from there")
                if progress.is_end(self.config):
                    return progress
                state, progress = self._advance(state, progress, batches, bar, stopping_requested)

    def _validation_steps(self, progress: TrainProgress) -> list[int]:
        """The next steps after which validation is due: the regular one and the ones that the schedule needs."""
        every = self.config.validate_every
        fixed = (self.config.last_cooldown_begin, progress.end_step or self.config.num_steps)
        return [(progress.step // every + 1) * every, *(step for step in fixed if step > progress.step)]

    def _is_validation_due(self, progress: TrainProgress) -> bool:
        before = replace(progress, step=progress.step - 1)
        return (
            progress.step > 0 and not progress.validated and progress.step in self._validation_steps(before)
        )

    def _advance(
        self,
        state: TrainState,
        progress: TrainProgress,
        batches: Iterator[Any],
        bar: Bar,
        stopping: list[int],
    ) -> tuple[TrainState, TrainProgress]:
        """Steps up to the next line of the log, whose figures are means over them; fewer once ``stopping`` is filled.

        Several processes always go up to the line, so that all stop at the same step without asking at each.
        """
        start_s = time.monotonic()
        pending = []
        log_step = (progress.step // self.config.log_every + 1) * self.config.log_every
        end = min(log_step, *self._validation_steps(progress))
        carry = Carry(state, self.devices.replicate(np.int32(progress.num_skipped)))
        for step in range(progress.step + 1, end + 1):
            batch, on_devices = next(batches)
            carry, metrics = self.step(carry, on_devices)
            pending.append((step, metrics, batch["image_index"]))
            if len(pending) > 1:
                # One step ahead of the device is enough to keep it busy, and a signal need not wait for more.
                jax.block_until_ready(pending[-2][1])
                self.processes.heartbeat()
            if stopping and self.processes.count == 1:
                break
        rows, num_skipped = list(progress.unlogged), progress.num_skipped
        for step, metrics, image_index in pending:
            row = {name: float(value) for name, value in metrics.items()}
            self.processes.heartbeat()
            if row.pop("non_finite"):
                num_skipped += 1
                self._on_non_finite(step, row, image_index, num_skipped)
            else:
                rows.append(row)
        elapsed_s = time.monotonic() - start_s
        progress = replace(
            progress,
            step=step,
            validated=False,
            train_seconds=progress.train_seconds + elapsed_s,
            num_skipped=num_skipped,
            unlogged=rows if step < end else [],
        )
        if step < end:
            return carry.state, progress
        values = {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}
        values |= {
            "slices_per_s": len(pending) * self.config.batch_size / elapsed_s,
            "skipped_steps": num_skipped,
        }
        self._log("train", end, values)
        best = progress.best_quality
        loss = f"loss {values['loss']:.3f}" if rows else "no step with a finite loss"
        figures = f"{loss}, {values['slices_per_s']:.1f} slices/s"
        bar.advance(len(pending), figures + (f", quality {best:.3f}" if best else ""))
        return carry.state, progress

    def _validate_and_save(
        self, state: TrainState, progress: TrainProgress
    ) -> tuple[TrainState, TrainProgress]:
        values = self.validate(state)
        self._log("validation", progress.step, values)
        was_cooling = progress.end_step is not None
        progress = progress.after_validation(values["quality"], self.config)
        if progress.end_step is not None and not was_cooling:
            reason = progress.reason_to_cool_down(self.config)
            console.print(f"training cools down from step {progress.step} to {progress.end_step}: {reason}")
            span = np.array([progress.step, progress.end_step], np.int32)
            state = replace(state, cooldown=self.devices.replicate(span))
        self._save(state, progress, values["quality"])
        return state, progress

    def _log(self, kind: str, step: int, values: dict[str, float]) -> None:
        if self.logger is not None:
            self.logger.write(kind, step, values)

    def _save(self, state: TrainState, progress: TrainProgress, quality: float | None) -> None:
        self.checkpoints.save(progress.step, state, {**self.meta, "position": asdict(progress)}, quality)

    def _on_non_finite(
        self, step: int, row: dict[str, float], image_index: np.ndarray, num_skipped: int
    ) -> None:
        """Reports a skipped step; raises NonFinite where it is one too many."""
        parts = self.processes.gather(image_index)
        names = sorted({self.image_ids[int(i)] for part in parts for i in part})
        # Statistics of activations may overflow where the loss, of which they are no part, does not.
        bad = [f"{name} {value}" for name, value in row.items() if not math.isfinite(value)]
        what = (
            f"at step {step}: {', '.join(bad) or 'norm statistics not finite'}; learning rate "
            f"{row['learning_rate']:.2e}, images of the batch: {', '.join(names)}"
        )
        if num_skipped <= self.config.skip_non_finite:
            console.print(f"training skipped a step ({num_skipped} so far) {what}")
            return
        raise NonFinite(
            f"training stopped {what}; lower `optim.learning_rate`, look at these images, or let "
            f"`train.skip_non_finite` (={self.config.skip_non_finite}) allow for more such steps"
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

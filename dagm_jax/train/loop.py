"""The training loop: evaluate → save → next batch → step → log.

The order makes a restart exact. A checkpoint of step s holds the state after s steps and the result of its validation;
a run that restores it goes on with batch s, which the stream gives for that number alone.
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
from dagm_jax.train.step import Carry, TrainState
from dagm_jax.train.stopping import TIMED_STEPS, UNKNOWN, TrainConfig, TrainProgress


class NonFinite(UserError):
    """The loss or the gradient is not a number."""


@dataclass(frozen=True)
class Trainer:
    """All that training needs besides the state and its progress.

    logger: None on all processes but the first. num_images: those that are trained on. steps_a_validation: the time of
    a validation in steps.
    """

    config: TrainConfig
    devices: Devices
    step: Callable[[Carry, Any], tuple[Carry, dict[str, jax.Array]]]
    stream: grain.MapDataset
    num_workers: int
    validate: Callable[[TrainState], dict[str, float]]
    checkpoints: Checkpoints
    logger: MetricLogger | None
    image_ids: Sequence[str]
    num_images: int
    steps_a_validation: float
    meta: dict[str, Any]
    processes: Processes = ALONE

    def fit(self, state: TrainState, progress: TrainProgress) -> TrainProgress:
        """Progress after the last step; state and progress are saved along the way.

        Raises Interrupted after saving, NonFinite (before any state that it would harm is saved), and ProcessLost.
        """
        stopping: list[int] = []
        first_step = progress.step
        total = progress.last_step(progress.bounded(self.config))
        with (
            on_signals(stopping),
            closing(iterate(self.stream, progress.step, self.num_workers)) as host_batches,
            show("training", None if total == UNKNOWN else total, progress.step) as bar,
        ):
            batches = self.devices.prefetch(host_batches)
            while True:
                config = progress.bounded(self.config)
                before = replace(progress, step=progress.step - 1)
                if not progress.validated and 0 < progress.step == before.next_validation(config):
                    progress = self._find_bound(progress)
                    state, progress = self._validate_and_save(state, progress)
                    bar.set_total(progress.last_step(progress.bounded(self.config)))
                # All processes stop at the same step, whichever got the signal; also at the last, before the test.
                if self.processes.any(bool(stopping)):
                    if not progress.validated and progress.step > first_step:
                        self._save(state, progress, None)
                    raise Interrupted(f"at step {progress.step}; the same command goes on from there")
                if progress.is_end(config):
                    return progress
                state, progress = self._advance(state, progress, batches, bar, stopping)

    def _advance(
        self,
        state: TrainState,
        progress: TrainProgress,
        batches: Iterator[Any],
        bar: Bar,
        stopping: list[int],
    ) -> tuple[TrainState, TrainProgress]:
        """Takes the steps up to the next line of the log, which has their mean metrics; fewer once ``stopping``.

        Several processes always go up to the line, so that all stop at the same step without communicating at each.
        """
        start_s = time.monotonic()
        pending = []
        log_step = (progress.step // self.config.log_every + 1) * self.config.log_every
        end = min(log_step, progress.next_validation(progress.bounded(self.config)))
        carry = Carry(state, self.devices.replicate(np.int32(progress.num_skipped)))
        for step in range(progress.step + 1, end + 1):
            batch, on_devices = next(batches)
            carry, metrics = self.step(carry, on_devices)
            pending.append((step, metrics, batch["image_index"]))
            if len(pending) > 1:
                # One step ahead of the device keeps it busy; with more, a signal would wait for them.
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
            step_seconds=elapsed_s / len(pending),
            num_skipped=num_skipped,
            unlogged=rows if step < end else [],
        )
        if step == end:
            values = {name: sum(row[name] for row in rows) / len(rows) for name in (rows[0] if rows else ())}
            rate = len(pending) * self.config.batch_size / elapsed_s
            self._log("train", end, {**values, "slices_per_s": rate, "skipped_steps": num_skipped})
            loss = f"loss {values['loss']:.3f}" if rows else "no step with a finite loss"
            quality = f", quality {progress.best_quality:.3f}" if progress.best_quality else ""
            bar.advance(len(pending), f"{loss}, {rate:.1f} slices/s{quality}")
        return carry.state, progress

    def _find_bound(self, progress: TrainProgress) -> TrainProgress:
        """Progress with its bound on steps: the same for the whole run, whoever goes on with it."""
        if self.config.num_steps or progress.num_steps or progress.step < TIMED_STEPS:
            return progress
        step_s, is_cpu = progress.step_seconds, self.devices.platform == "cpu"
        number = self.config.steps_in_time(step_s, self.steps_a_validation, is_cpu)
        number = self.processes.broadcast(number)
        a_sample = number * self.config.batch_size / self.num_images
        console.print(
            f"training takes at most {number} steps, {a_sample:.0f} slices an image (`train.max_minutes`)"
        )
        return replace(progress, num_steps=number)

    def _validate_and_save(
        self, state: TrainState, progress: TrainProgress
    ) -> tuple[TrainState, TrainProgress]:
        values = self.validate(state)
        self._log("validation", progress.step, values)
        config = progress.bounded(self.config)
        before = progress
        progress = progress.after_validation(values, config)
        if progress.end_step != before.end_step:
            reason = progress.reason_to_cool_down(config)
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
        # Norm statistics, which are in no row, may overflow where the loss does not.
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
    """Appends SIGTERM and SIGINT to ``received`` within the block instead of ending the process; the second ends it."""

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

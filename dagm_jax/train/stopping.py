"""The length of training: validation rhythm, early stopping, and the cool-down of the learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dagm_jax.errors import require

# Limits of training in minutes, unless the configuration has its own.
CPU_MINUTES, ACCELERATOR_MINUTES = 30.0, 10.0
# Step after which the number of steps in so many minutes is found, once for the run: programs are compiled by then.
TIMED_STEPS = 20
# Bound on steps that no run reaches.
UNKNOWN = 2**30


@dataclass(frozen=True)
class TrainConfig:
    """Length and rhythm of training: an upper bound, before which early stopping usually ends it.

    max_minutes: the bound, as the number of steps that fit in by the time of those before step `TIMED_STEPS`; 0: 30 on
    CPUs, 10 on accelerators. num_steps: the bound itself where it is not 0.
    Validation takes place every ``validate_every`` steps on at most ``max_validation_images`` of each label. Once its
    quality (see ``evaluate.summarise``) has reached ``target_quality`` with all defective images ``target_margin``
    above the good ones on the logit scale, or has not risen by ``min_rise`` in ``patience`` validations since the
    network has learnt anything, the learning rate cools down over ``cooldown_share`` times the steps so far (at the
    target, which shows an easy task, ``cooldown_share_at_target``), and training ends.
    init_from: the workdir of a finished run, whose tested weights training begins with; empty: new ones.
    accumulate: parts that a batch is split into, computed one after the other to save memory; see ``train.step``.
    balance: half of the slices of a batch hold defects, where the task learns from defects.
    judge_batch_size: images per device in a batch of evaluation.
    skip_non_finite: number of steps with a non-finite loss or gradient that are skipped, leaving the weights as they
    are; the next one stops training.
    """

    batch_size: int = 16
    accumulate: int = 1
    max_minutes: float = 0.0
    num_steps: int = 0
    balance: bool = True
    validate_every: int = 40
    max_validation_images: int = 20
    judge_batch_size: int = 2
    patience: int = 10
    min_rise: float = 0.001
    target_quality: float = 0.935
    target_margin: float = 2.0
    cooldown_share: float = 1.0
    cooldown_share_at_target: float = 0.25
    log_every: int = 5
    skip_non_finite: int = 0
    init_from: str = ""

    def __post_init__(self) -> None:
        counts = "batch_size accumulate validate_every max_validation_images judge_batch_size"
        require("train", self, f"{counts} patience log_every", lambda x: x >= 1, "be at least 1")
        minutes = "be at least 0 and finite; 0 leaves it to the device"
        require("train", self, "max_minutes", lambda x: 0 <= x < math.inf, minutes)
        require("train", self, "num_steps", lambda x: x >= 0, "be at least 0; 0 leaves it to `max_minutes`")
        apart = "be at least 0 and finite; 0 asks for the order alone"
        require("train", self, "target_margin", lambda x: 0 <= x < math.inf, apart)
        none = "be at least 0; 0 stops at the first such step"
        require("train", self, "skip_non_finite", lambda x: x >= 0, none)
        shares = "target_quality min_rise cooldown_share cooldown_share_at_target"
        require("train", self, shares, lambda x: 0 <= x <= 1, "lie in [0, 1]")

    @property
    def last_cooldown_begin(self) -> int:
        """Last step at which the cool-down can begin so that it ends by ``num_steps``."""
        return int(self.num_steps / (1 + self.cooldown_share))

    def steps_in_time(self, step_s: float, steps_a_validation: float, is_cpu: bool) -> int:
        """The number of steps of ``step_s`` seconds in ``max_minutes``, with validations as long as so many steps."""
        minutes = self.max_minutes or (CPU_MINUTES if is_cpu else ACCELERATOR_MINUTES)
        share = self.validate_every / (self.validate_every + steps_a_validation)
        return max(TIMED_STEPS, int(60 * minutes / step_s * share))


@dataclass(frozen=True)
class TrainProgress:
    """Progress of a run, kept in its checkpoint beside the state.

    validated: whether the state of ``step`` has been. is_good: whether a validation has reached the target.
    num_without_rise: validations since one rose by enough. num_steps: the bound, once it is known where the
    configuration gives minutes. end_step: last step, known once the cool-down has begun. step_seconds: of each of the
    latest steps. unlogged: metrics of the steps since the last line of the log.
    """

    step: int = 0
    validated: bool = False
    best_quality: float = 0.0
    is_good: bool = False
    num_without_rise: int = 0
    num_steps: int = 0
    end_step: int | None = None
    train_seconds: float = 0.0
    step_seconds: float = 0.0
    num_skipped: int = 0
    unlogged: list[dict[str, float]] = field(default_factory=list)

    def bounded(self, config: TrainConfig) -> TrainConfig:
        """``config`` with the bound on steps, `UNKNOWN` before it is timed; the other functions take this one."""
        return config if config.num_steps else replace(config, num_steps=self.num_steps or UNKNOWN)

    def after_validation(self, figures: Mapping[str, float], config: TrainConfig) -> TrainProgress:
        """Progress with this validation's figures counted, and with the end set if it is time to cool down."""
        quality = figures["quality"]
        is_good = quality >= config.target_quality and figures.get("margin", math.inf) >= config.target_margin
        has_risen = quality > self.best_quality + config.min_rise
        counted = replace(
            self,
            validated=True,
            best_quality=max(quality, self.best_quality),
            is_good=self.is_good or is_good,
            # A network that has not begun to learn is on no plateau, however long its figures go up and down.
            num_without_rise=0 if has_risen or not figures.get("learnt", True) else self.num_without_rise + 1,
        )
        if counted.end_step is not None or not counted.reason_to_cool_down(config):
            return counted
        share = config.cooldown_share_at_target if counted.is_good else config.cooldown_share
        return replace(counted, end_step=min(self.step + math.ceil(share * self.step), config.num_steps))

    def is_end(self, config: TrainConfig) -> bool:
        """Whether all steps are done and the last one is validated."""
        return self.validated and self.step >= self.last_step(config)

    def last_step(self, config: TrainConfig) -> int:
        """The step at which training ends, or its upper bound."""
        return self.end_step or config.num_steps

    def next_validation(self, config: TrainConfig) -> int:
        """The step after which the next validation is due: the regular one, or one that the schedule needs."""
        regular = (self.step // config.validate_every + 1) * config.validate_every
        begin = TIMED_STEPS if config.num_steps == UNKNOWN else config.last_cooldown_begin
        fixed = (begin, self.last_step(config))
        return min([regular, *(step for step in fixed if step > self.step)])

    def reason_to_cool_down(self, config: TrainConfig) -> str | None:
        """Text for the terminal; None before it is time."""
        if self.is_good:
            return f"validation quality reached {self.best_quality:.3f}, target {config.target_quality}"
        if self.num_without_rise >= config.patience:
            return f"validation quality has not risen in {self.num_without_rise} validations"
        if self.step >= config.last_cooldown_begin:
            return f"the upper bound of {config.num_steps} steps is near"
        return None

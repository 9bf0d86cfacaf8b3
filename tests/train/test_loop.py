"""The loop with a step and a validation made of numbers: its order, where it ends, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grain
import jax.numpy as jnp
import numpy as np
import pytest
from fake_processes import run_as_processes

from dagm_jax.distributed.processes import Processes
from dagm_jax.errors import Interrupted, UserError
from dagm_jax.storage import write_atomically
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.history import MetricLogger, read_history
from dagm_jax.train.loop import NonFinite, Trainer
from dagm_jax.train.schedule import TrainConfig, TrainProgress
from dagm_jax.train.step import NEVER, TrainState, skip_non_finite

Event = tuple[Any, ...]


class MakeBatch(grain.transforms.Map):
    """Batch number i, of two images that the number names."""

    def map(self, element: int) -> dict[str, np.ndarray]:
        return {
            "number": np.array(element),
            "image_index": np.array([element % 5, (element + 1) % 5]),
        }


def start() -> TrainState:
    return TrainState(jnp.int32(0), jnp.full((2,), NEVER, jnp.int32), {"seen": jnp.float32(0)}, {}, ())


class World:
    """Everything around the loop; ``events`` is what the loop did to it."""

    def __init__(
        self,
        config: TrainConfig,
        quality: Callable[[int], float] = lambda step: 0.1,
    ) -> None:
        self.config, self.quality = config, quality
        self.events: list[Event] = []
        self.rows: list[Event] = []
        self.on_step: Callable[[int], dict[str, float]] = lambda number: {}
        self.on_validation: Callable[[int], None] = lambda step: None
        self.saved: dict[int, tuple[TrainState, dict[str, Any]]] = {}

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Any]]:
        number = int(batch["number"])
        self.events.append(("step", number))
        metrics = {"loss": float(number), "grad_norm": 1.0, "learning_rate": 1e-3} | self.on_step(number)
        return replace(state, step=state.step + 1, params={"seen": state.params["seen"] + number}), metrics

    def validate(self, state: TrainState) -> dict[str, float]:
        self.events.append(("validate", int(state.step)))
        self.on_validation(int(state.step))
        return {"quality": self.quality(int(state.step)), "loss": 1.0}

    def save(self, step: int, state: TrainState, meta: dict[str, Any], quality: float | None) -> None:
        assert step == int(state.step)
        self.events.append(("save", step, quality))
        self.saved[step] = state, json.loads(json.dumps(meta))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.rows.append((kind, step, values))

    def loop(self, **changes: Any) -> Trainer:
        parts: dict[str, Any] = {
            "config": self.config,
            "devices": SimpleNamespace(
                prefetch=lambda batches: ((b, b) for b in batches), replicate=jnp.asarray
            ),
            "step": skip_non_finite(self.step, self.config.skip_non_finite),
            "stream": grain.MapDataset.range(self.config.num_steps).map(MakeBatch()),
            "num_workers": 0,
            "validate": self.validate,
            "checkpoints": self,
            "logger": self,
            "image_ids": [f"image{i}" for i in range(5)],
            "meta": {"config": {"seed": 7}},
        }
        return Trainer(**(parts | changes))

    def resume(self, step: int) -> tuple[TrainState, TrainProgress]:
        """(state, position) of the checkpoint of that step."""
        state, meta = self.saved[step]
        return state, TrainProgress(**meta["position"])

    def of_kind(self, kind: str) -> list[int]:
        return [event[1] for event in self.events if event[0] == kind]


# --- when to stop -------------------------------------------------------------------------------------------


def after(qualities: list[float], config: TrainConfig, every: int = 10) -> TrainProgress:
    """The position after validations with these qualities, every ten steps."""
    progress = TrainProgress()
    for i, quality in enumerate(qualities, start=1):
        progress = replace(progress, step=i * every, validated=False).after_validation(quality, config)
    return progress


FAR = TrainConfig(
    num_steps=1000,
    patience=3,
    min_rise=0.01,
    target_quality=0.8,
    cooldown_share=0.5,
    cooldown_share_at_target=0.25,
)


def test_patience_counts_validations_that_do_not_rise_enough() -> None:
    """Catches a rise by rounding that resets the count, and a best that a worse validation lowers."""
    progress = after([0.3, 0.305, 0.2], FAR)
    assert (progress.best_quality, progress.num_without_rise, progress.end_step) == (0.305, 2, None)
    progress = after([0.3, 0.305, 0.2, 0.33], FAR)
    assert (progress.best_quality, progress.num_without_rise, progress.end_step) == (0.33, 0, None)
    progress = after([0.3, 0.305, 0.2, 0.305], FAR)
    assert progress.num_without_rise == 3
    assert "has not risen in 3 validations" in str(progress.reason_to_cool_down(FAR))
    assert progress.end_step == 40 + 20


def test_a_creeping_rise_is_measured_from_the_best() -> None:
    """Catches a comparison with the last validation: 0.3, 0.306, 0.312 creeps along for ever."""
    assert after([0.3, 0.306, 0.312], FAR).num_without_rise == 2


def test_target_starts_the_cool_down_once() -> None:
    """Catches a target that must be exceeded, the share of hard tasks, and an end that later validations push away."""
    progress = after([0.5, 0.8], FAR)
    assert progress.end_step == 20 + 5
    assert "reached 0.800, target 0.8" in str(progress.reason_to_cool_down(FAR))
    later = replace(progress, step=22, validated=False).after_validation(0.9, FAR)
    assert later.end_step == 25
    assert later.best_quality == 0.9


def test_end_never_lies_beyond_the_upper_bound() -> None:
    """Catches a cool-down that runs out of batches."""
    config = replace(FAR, num_steps=25)
    assert after([0.9], replace(config, cooldown_share_at_target=1.0), every=20).end_step == 25
    assert config.last_cooldown_begin == 16
    assert after([0.1], config, every=16).end_step == 24


@pytest.mark.parametrize("num_steps", range(1, 60))
def test_last_cool_down_ends_within_the_bound(num_steps: int) -> None:
    """Catches a rounding by which the last cool-down would need one step more than there is."""
    config = TrainConfig(num_steps=num_steps, cooldown_share=0.5)
    begin = config.last_cooldown_begin
    assert 0 <= begin <= num_steps
    assert begin + 0.5 * begin <= num_steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, r"`train.num_steps` \(=0\) must be at least 1"),
        ({"batch_size": -1}, r"`train.batch_size` \(=-1\) must be at least 1"),
        ({"validate_every": 0}, r"`train.validate_every` \(=0\) must be at least 1"),
        ({"target_quality": 1.5}, r"`train.target_quality` \(=1.5\) must lie in \[0, 1\]"),
        ({"min_rise": -0.1}, r"`train.min_rise` \(=-0.1\) must lie in \[0, 1\]"),
        ({"cooldown_share": 2.0}, r"`train.cooldown_share` \(=2.0\) must lie in \[0, 1\]"),
        (
            {"cooldown_share_at_target": -1.0},
            r"`train.cooldown_share_at_target` \(=-1.0\) must lie in \[0, 1\]",
        ),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    """Catches a loop that never validates, never ends, or ends before it began."""
    with pytest.raises(UserError, match=message):
        TrainConfig(**options)


# --- the order ----------------------------------------------------------------------------------------------

SHORT = TrainConfig(
    batch_size=2,
    num_steps=6,
    validate_every=2,
    log_every=1,
    patience=99,
    target_quality=1.0,
    cooldown_share=0.5,
)


def test_order_of_a_whole_run() -> None:
    """Catches a validation after the next step, a save before the validation, and a batch that is left out.

    The last cool-down begins at 4 of 6 steps: int(6 / 1.5).
    """
    world = World(SHORT, quality=lambda step: step / 100)
    progress = world.loop().fit(start(), TrainProgress())
    expected: list[Event] = []
    for step in (2, 4, 6):
        expected += [("step", step - 2), ("step", step - 1), ("validate", step), ("save", step, step / 100)]
    assert world.events == expected
    assert (progress.step, progress.validated, progress.end_step) == (6, True, 6)
    assert progress.best_quality == 0.06


def test_validation_falls_on_the_steps_that_the_schedule_needs() -> None:
    """Catches an end without validation, so that the annealed weights could not be the best ones."""
    world = World(replace(SHORT, num_steps=7, validate_every=3))  # the last cool-down begins at 4, ends at 6
    progress = world.loop().fit(start(), TrainProgress())
    assert world.of_kind("validate") == [3, 4, 6]
    assert world.of_kind("step") == list(range(6))
    assert progress.end_step == 6


def test_target_ends_the_run_early() -> None:
    """Catches training on after the target, and an end without cooling down."""
    config = replace(
        SHORT, num_steps=100, target_quality=0.5, cooldown_share_at_target=0.5, cooldown_share=0.1
    )
    world = World(config, quality=lambda step: 0.6 if step >= 4 else 0.1)
    progress = world.loop().fit(start(), TrainProgress())
    assert progress.step == progress.end_step == 6
    assert world.of_kind("validate") == [2, 4, 6]


def test_patience_ends_the_run_early() -> None:
    """Catches a patience that counts steps, and one that the run ignores."""
    config = replace(SHORT, num_steps=100, patience=3, cooldown_share=0.25)
    world = World(config, quality=lambda step: 0.5)
    progress = world.loop().fit(start(), TrainProgress())
    # Quality rises at 2, then not at 4, 6 and 8; a quarter of 8 steps follows.
    assert progress.step == 10
    assert world.of_kind("validate") == [2, 4, 6, 8, 10]


def test_the_step_is_told_where_the_cool_down_lies() -> None:
    """Catches a learning rate that stays on its plateau, also after a restart."""
    spans: dict[int, list[int]] = {}
    config = replace(
        SHORT, num_steps=100, target_quality=0.5, cooldown_share_at_target=0.5, cooldown_share=0.1
    )
    world = World(config, quality=lambda step: 0.6 if step >= 4 else 0.1)
    plain_step = world.step

    def step(state: TrainState, batch: Any) -> Any:
        spans[int(state.step)] = np.asarray(state.cooldown).tolist()
        return plain_step(state, batch)

    world.loop(step=skip_non_finite(step, 0)).run(start(), TrainProgress())
    assert spans == {s: [NEVER, NEVER] for s in range(4)} | {4: [4, 6], 5: [4, 6]}
    spans.clear()
    state, progress = world.resume(4)
    assert np.asarray(state.cooldown).tolist() == [4, 6]
    world.loop(step=skip_non_finite(step, 0)).run(state, progress)
    assert spans == {4: [4, 6], 5: [4, 6]}


def test_cool_down_of_no_length_ends_at_once() -> None:
    """Catches a run that goes on for ever or divides by zero with `train.cooldown_share_at_target` = 0."""
    config = replace(SHORT, num_steps=100, target_quality=0.5, cooldown_share_at_target=0.0)
    world = World(config, quality=lambda step: 0.6)
    assert world.loop().fit(start(), TrainProgress()).step == 2


def test_history_holds_means_between_its_rows() -> None:
    """Catches a row that shows the last step's figures only, or counts a step twice."""
    world = World(replace(SHORT, num_steps=12, validate_every=5, log_every=3, cooldown_share=0.0))
    world.loop().fit(start(), TrainProgress())
    losses = {step: values["loss"] for kind, step, values in world.rows if kind == "train"}
    # Batch i has loss i; validation after 5, 10 and 12 cuts the rows short.
    assert losses == {3: 1.0, 5: 3.5, 6: 5.0, 9: 7.0, 10: 9.0, 12: 10.5}
    assert [step for kind, step, _ in world.rows if kind == "validation"] == [5, 10, 12]


# --- going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_run_takes_the_next_batch_and_does_not_validate_twice(step: int) -> None:
    """Catches a batch that is repeated or left out, and a validation that counts twice for the patience."""
    world = World(SHORT)
    whole = world.loop().fit(start(), TrainProgress())
    first = list(world.events)
    world.events.clear()
    state, progress = world.resume(step)
    assert progress.validated
    again = world.loop().fit(state, progress)
    assert world.events == first[first.index(("save", step, 0.1)) + 1 :]
    assert replace(again, train_seconds=0.0) == replace(whole, train_seconds=0.0)


def test_meta_keeps_the_position_and_what_it_was_given() -> None:
    """Catches a position that does not survive JSON."""
    world = World(SHORT)
    progress = world.loop().fit(start(), TrainProgress())
    _, meta = world.saved[6]
    assert meta["config"] == {"seed": 7}
    assert TrainProgress(**meta["position"]) == progress
    assert asdict(progress) == meta["position"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_a_second_loop_goes_on(number: signal.Signals) -> None:
    """Catches work that a preemption costs, a step cut short, and a state saved under the wrong number."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    world = World(SHORT)
    whole = world.loop().fit(start(), TrainProgress())
    expected, final = world.of_kind("step"), world.saved[6][0].params["seen"]
    world.events.clear()

    def interrupt(batch: int) -> dict[str, float]:
        if batch == 2:
            os.kill(os.getpid(), number)
        return {}

    world.on_step = interrupt
    with pytest.raises(Interrupted, match="at step 3; the same command goes on from there"):
        world.loop().fit(start(), TrainProgress())
    assert world.events[-1] == ("save", 3, None)
    assert {n: signal.getsignal(n) for n in before} == before
    world.on_step = lambda batch: {}
    state, progress = world.resume(3)
    assert not progress.validated
    again = world.loop().fit(state, progress)
    assert world.of_kind("step") == expected
    assert world.of_kind("validate") == [2, 4, 6]
    assert replace(again, train_seconds=0.0) == replace(whole, train_seconds=0.0)
    assert world.saved[6][0].params["seen"] == final


def test_signal_between_lines_of_the_log_costs_no_line_and_no_figure_of_one() -> None:
    """Would catch: a stop that waits for the next line, and a line that forgets the steps before the stop."""
    config = TrainConfig(num_steps=8, validate_every=8, log_every=4, cooldown_share=0.0)

    def logged(world: World) -> list[Event]:
        return [(k, s, {n: v for n, v in row.items() if n != "slices_per_s"}) for k, s, row in world.rows]

    whole, world = World(config), World(config)
    whole.loop().fit(start(), TrainProgress())
    world.on_step = lambda batch: os.kill(os.getpid(), signal.SIGTERM) or {} if batch == 5 else {}
    with pytest.raises(Interrupted, match="at step 6;"):
        world.loop().fit(start(), TrainProgress())
    assert world.events[-1] == ("save", 6, None)
    world.on_step = lambda batch: {}
    world.loop().fit(*world.resume(6))
    assert world.of_kind("step") == whole.of_kind("step")
    assert logged(world) == logged(whole)
    assert [step for kind, step, _ in logged(whole) if kind == "train"] == [4, 8]


def test_every_step_is_a_heartbeat() -> None:
    """Would catch: a healthy job that is ended as stuck because a line of the log takes longer than its patience."""
    config = TrainConfig(num_steps=6, validate_every=6, log_every=6, cooldown_share=0.0)
    world, heartbeats, seen = World(config), [], []

    class Counted:
        count = 1

        def any(self, flag: bool) -> bool:
            return flag

        def heartbeat(self) -> None:
            heartbeats.append(1)

    world.on_step = lambda batch: seen.append(len(heartbeats)) or {}  # type: ignore[func-returns-value]
    world.loop(processes=Counted()).run(start(), TrainProgress())
    assert seen == [0, 0, 1, 2, 3, 4]


def test_a_stop_before_the_first_step_saves_nothing_twice() -> None:
    """Would catch: a checkpoint that is written again, which orbax refuses."""
    world = World(SHORT)
    world.on_step = lambda batch: os.kill(os.getpid(), signal.SIGTERM) or {} if batch == 2 else {}
    with pytest.raises(Interrupted):
        world.loop().fit(start(), TrainProgress())
    world.events.clear()
    state, progress = world.resume(3)

    @dataclass(frozen=True)
    class Stopped:
        """Asked to stop before anything is done."""

        count = 1

        def any(self, flag: bool) -> bool:
            return True

    with pytest.raises(Interrupted, match="at step 3"):
        world.loop(processes=Stopped()).run(state, progress)
    assert world.events == []


def test_signal_during_validation_saves_once() -> None:
    """Catches a validated state that a second save without quality would replace."""
    world = World(SHORT)
    world.on_validation = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None
    with pytest.raises(Interrupted, match="at step 4"):
        world.loop().fit(start(), TrainProgress())
    assert [event for event in world.events if event[0] == "save"] == [("save", 2, 0.1), ("save", 4, 0.1)]


@pytest.mark.parametrize("during", ["step", "validation"])
def test_signal_in_the_last_step_saves_and_the_next_command_goes_on_to_judging(during: str) -> None:
    """Would catch: a stop that is swallowed, so that judging goes on; and a finished training that is thrown away."""
    world = World(SHORT)
    if during == "step":
        world.on_step = lambda batch: os.kill(os.getpid(), signal.SIGTERM) or {} if batch == 5 else {}
    else:
        world.on_validation = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 6 else None
    with pytest.raises(Interrupted, match="at step 6; the same command goes on from there"):
        world.loop().fit(start(), TrainProgress())
    assert world.events[-1] == ("save", 6, 0.1)
    _, progress = world.resume(6)
    assert progress.is_end(SHORT)


def test_all_processes_stop_at_the_step_at_which_one_was_asked_to() -> None:
    """Would catch: a process that stops alone, and one that only some of the others follow."""

    def work(processes: Processes) -> tuple[str, list[Event]]:
        world = World(SHORT)

        @dataclass(frozen=True)
        class Asked:
            """Process 1 is asked to stop after its second step; a thread has no signals of its own."""

            def any(self, flag: bool) -> bool:
                return processes.any(processes.index == 1 and len(world.of_kind("step")) >= 3)

            def heartbeat(self) -> None: ...

            count = 3

        with pytest.raises(Interrupted) as stopped:
            world.loop(processes=Asked()).run(start(), TrainProgress())
        return str(stopped.value), world.events

    # Only the main thread may set handlers.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda number, handler: handler)
        ends = run_as_processes(3, work)
    assert [message for message, _ in ends] == ["at step 3; the same command goes on from there"] * 3
    assert [events[-1] for _, events in ends] == [("save", 3, None)] * 3


def test_second_signal_stops_at_once() -> None:
    """Catches a process that cannot be stopped while a long step runs."""
    world = World(SHORT)

    def interrupt_twice(batch: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    world.on_step = interrupt_twice
    with pytest.raises(KeyboardInterrupt, match="asked twice"):
        world.loop().fit(start(), TrainProgress())
    assert world.of_kind("save") == []


@pytest.mark.parametrize(
    ("bad", "shown"), [({"loss": float("nan")}, "loss nan"), ({"grad_norm": float("inf")}, "grad_norm inf")]
)
@pytest.mark.parametrize("log_every", [1, 4])
def test_non_finite_stops_and_says_where(bad: dict[str, float], shown: str, log_every: int) -> None:
    """Catches a run that trains on NaN, names the step of the log instead, or saves what is broken."""
    world = World(replace(SHORT, log_every=log_every, validate_every=5))
    world.on_step = lambda batch: bad if batch == 2 else {}
    with pytest.raises(NonFinite) as caught:
        world.loop().fit(start(), TrainProgress())
    assert str(caught.value) == (
        f"training stopped at step 3: {shown}; learning rate 1.00e-03, images of the batch: image2, image3; lower "
        "`optim.learning_rate`, look at these images, or let `train.skip_non_finite` (=0) allow for more such steps"
    )
    assert world.of_kind("save") == []
    assert isinstance(caught.value, UserError)


def test_skipped_steps_are_counted_and_move_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Catches a skipped step that moves the weights, repeats a step's number, or whose NaN gets into the history."""
    world = World(replace(SHORT, log_every=2, skip_non_finite=3))
    world.on_step = lambda batch: {"loss": float("nan")} if batch in (1, 2, 3) else {}
    progress = world.loop().fit(start(), TrainProgress())
    assert (progress.step, progress.num_skipped) == (6, 3)
    assert world.of_kind("step") == list(range(6))
    assert [float(world.saved[step][0].params["seen"]) for step in (2, 4, 6)] == [0, 0, 0 + 4 + 5]
    history = {step: values for kind, step, values in world.rows if kind == "train"}
    assert [history[step]["skipped_steps"] for step in (2, 4, 6)] == [1, 3, 3]
    assert history[2]["loss"] == 0.0 and "loss" not in history[4] and history[6]["loss"] == 4.5
    out = " ".join(capsys.readouterr().out.split())
    assert "training skipped a step (3 so far) at step 4: loss nan" in out


def test_the_bound_on_skipped_steps_outlasts_a_restart() -> None:
    """Catches a count that begins again with every restart, and one step more or less than was allowed."""
    world = World(replace(SHORT, skip_non_finite=2))
    world.on_step = lambda batch: {"loss": float("inf")} if batch in (0, 2, 5) else {}
    with pytest.raises(NonFinite, match=r"at step 6: loss inf"):
        world.loop().fit(start(), TrainProgress())
    state, progress = world.resume(2)
    assert progress.num_skipped == 1
    with pytest.raises(NonFinite, match=r"at step 6: loss inf"):
        world.loop().fit(state, progress)
    world.config = replace(world.config, skip_non_finite=3)
    assert world.loop().fit(state, progress).num_skipped == 3


def test_all_processes_stop_at_a_step_that_is_not_finite() -> None:
    """Catches processes that stop for different reasons or wait for one another."""

    def work(processes: Processes) -> str:
        world = World(SHORT)
        world.on_step = lambda batch: {"loss": float("nan")} if batch == 2 else {}
        with pytest.raises(NonFinite) as stopped:
            world.loop(processes=processes).run(start(), TrainProgress())
        return str(stopped.value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda number, handler: handler)
        messages = run_as_processes(2, work)
    assert messages[0] == messages[1]
    assert "images of the batch: image2, image3;" in messages[0]


def test_with_real_checkpoints(tmp_path: Path) -> None:
    """Catches a meta or a state that orbax cannot write, and a resumed state with other numbers."""
    world = World(SHORT, quality=lambda step: step / 10)
    with Checkpoints(tmp_path) as checkpoints:
        world.loop(checkpoints=checkpoints).run(start(), TrainProgress())
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 6
        state, meta = checkpoints.restore(4, start())
    assert int(state.step) == 4
    assert float(state.params["seen"]) == 0 + 1 + 2 + 3
    assert np.asarray(state.cooldown).tolist() == [4, 6]
    progress = TrainProgress(**meta["position"])
    assert (progress.step, progress.validated, progress.end_step) == (4, True, 6)


# --- the history --------------------------------------------------------------------------------------------


def rows_of(logger: MetricLogger, steps: range, kind: str = "train") -> None:
    for step in steps:
        logger.write(kind, step, {"loss": step / 2})


def test_history_forgets_what_will_be_done_again(tmp_path: Path) -> None:
    """Catches rows that stand twice after a resume, and rows of the kept steps that are lost."""
    logger = MetricLogger(tmp_path, 0)
    rows_of(logger, range(1, 6))
    logger.write("validation", 4, {"quality": 0.5})
    logger.close()
    logger = MetricLogger(tmp_path, 4)
    rows_of(logger, range(5, 7))
    logger.close()
    rows = [(row["kind"], row["step"]) for row in read_history(tmp_path / "metrics.jsonl")]
    assert rows == [
        ("train", 1),
        ("train", 2),
        ("train", 3),
        ("train", 4),
        ("validation", 4),
        ("train", 5),
        ("train", 6),
    ]


def test_history_of_a_new_run_is_empty(tmp_path: Path) -> None:
    """Catches rows of an abandoned run before its first checkpoint."""
    logger = MetricLogger(tmp_path, 0)
    rows_of(logger, range(1, 4))
    logger.close()
    MetricLogger(tmp_path, 0).close()
    assert read_history(tmp_path / "metrics.jsonl") == []
    assert read_history(tmp_path / "none.jsonl") == []


def test_history_survives_a_line_cut_short(tmp_path: Path) -> None:
    """Catches a workdir that a kill in the middle of a line makes useless."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train", "loss": 0.25}\n{"step": 2, "ki')
    assert read_history(path) == [{"step": 1, "kind": "train", "loss": 0.25}]
    logger = MetricLogger(tmp_path, 1)
    rows_of(logger, range(2, 3))
    logger.close()
    assert [row["step"] for row in read_history(path)] == [1, 2]
    assert list(tmp_path.glob("*.partial")) == []


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"step": 2, "ki',
        b'{"step": 2, "kind": "\xff"}',
        b"[1]",
        b'{"step": "2", "kind": "train"}',
        b"[" * 200_000,
    ],
    ids=["cut", "no text", "no row", "no step", "nested"],
)
def test_history_loses_a_damaged_line_alone_and_says_so(
    tmp_path: Path, damaged: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: all figures after a damaged line lost when a run goes on, and a trace of a byte that is no text."""
    path = tmp_path / "metrics.jsonl"
    first, third = b'{"step": 1, "kind": "train"}\n', b'{"step": 3, "kind": "train"}\n'
    path.write_bytes(first + damaged + b"\n" + third + damaged)
    logger = MetricLogger(tmp_path, 3)
    logger.close()
    told = " ".join(capsys.readouterr().out.split())
    assert told.endswith("damaged are 1 of 3 lines, such as line 2; the figures of the others are kept")
    assert path.read_bytes() == first + third
    assert [row["step"] for row in read_history(path)] == [1, 3]
    assert capsys.readouterr().out == ""


def test_history_can_be_read_while_it_is_written(tmp_path: Path) -> None:
    """Catches rows that wait in a buffer until the end and go with a kill."""
    logger = MetricLogger(tmp_path, 0)
    logger.write("train", 1, {"loss": 0.5})
    assert read_history(tmp_path / "metrics.jsonl") == [{"step": 1, "kind": "train", "loss": 0.5}]
    logger.close()


def test_atomic_write_replaces_and_leaves_nothing(tmp_path: Path) -> None:
    """Catches half a file under the final name, and temporary files left behind."""
    path = tmp_path / "report.json"
    path.write_text("old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(TypeError):
        write_atomically(path, cast(str, 3))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]

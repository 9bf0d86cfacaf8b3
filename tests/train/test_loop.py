"""The loop with a step and a validation made of numbers: its order, where it ends, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np
import pytest
from fake_processes import run_as_processes

from dagm_jax.distributed.processes import Processes
from dagm_jax.errors import Interrupted, UserError
from dagm_jax.train.loop import NonFinite, Trainer
from dagm_jax.train.step import NEVER, TrainState, skip_non_finite
from dagm_jax.train.stopping import TIMED_STEPS, TrainConfig, TrainProgress

Event = tuple[Any, ...]


class MakeBatch(grain.transforms.Map):
    """Batch number i, of two images that the number names."""

    def map(self, element: int) -> dict[str, np.ndarray]:
        return {
            "number": np.array(element),
            "image_index": np.array([element % 5, (element + 1) % 5]),
        }


def stop_at(batch: int, number: signal.Signals = signal.SIGTERM) -> Callable[[int], dict[str, float]]:
    """For ``World.on_step``: the signal comes in the step of that batch."""
    return lambda now: os.kill(os.getpid(), number) or {} if now == batch else {}


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
        return {"quality": self.quality(int(state.step)), "loss": 1.0, "learnt": 1.0}

    def save(self, step: int, state: TrainState, meta: dict[str, Any], quality: float | None) -> None:
        assert step == int(state.step)
        self.events.append(("save", step, quality))
        self.saved[step] = state, json.loads(json.dumps(meta))

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.rows.append((kind, step, values))

    def trainer(self, **changes: Any) -> Trainer:
        parts: dict[str, Any] = {
            "config": self.config,
            "devices": SimpleNamespace(
                prefetch=lambda batches: ((b, b) for b in batches), replicate=jnp.asarray, platform="cpu"
            ),
            "step": skip_non_finite(self.step, self.config.skip_non_finite),
            "stream": grain.MapDataset.range(self.config.num_steps).map(MakeBatch()),
            "num_workers": 0,
            "validate": self.validate,
            "checkpoints": self,
            "logger": self,
            "image_ids": [f"image{i}" for i in range(5)],
            "num_images": 5,
            "steps_a_validation": 0.0,
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
    """Progress after validations with these qualities, every ten steps."""
    progress = TrainProgress()
    for i, quality in enumerate(qualities, start=1):
        progress = replace(progress, step=i * every, validated=False).after_validation(
            {"quality": quality, "learnt": 1.0}, config
        )
    return progress


FAR = TrainConfig(
    num_steps=1000,
    patience=3,
    min_rise=0.01,
    target_quality=0.8,
    cooldown_share=0.5,
    cooldown_share_at_target=0.25,
)


@pytest.mark.parametrize(
    ("qualities", "best", "num_without_rise", "end"),
    [
        ([0.3, 0.305, 0.2], 0.305, 2, None),
        ([0.3, 0.305, 0.2, 0.33], 0.33, 0, None),
        ([0.3, 0.305, 0.2, 0.305], 0.305, 3, 40 + 20),
        ([0.3, 0.306, 0.312], 0.312, 2, None),
        ([0.5, 0.8], 0.8, 0, 20 + 5),
        ([0.5, 0.8, 0.9], 0.9, 0, 20 + 5),
    ],
)
def test_patience_and_target_start_the_cool_down_once(
    qualities: list[float], best: float, num_without_rise: int, end: int | None
) -> None:
    """Would catch: a rise by rounding that resets the count, a best that a worse validation lowers, a comparison with
    the last validation instead of the best; a target that must be exceeded; an end that later validations push away."""
    progress = after(qualities, FAR)
    assert (progress.best_quality, progress.num_without_rise, progress.end_step) == (
        best,
        num_without_rise,
        end,
    )


def test_the_reason_to_cool_down_is_named() -> None:
    """Would catch: the target named as the reason where patience ended the run, or the other way round."""
    for qualities, reason in (
        ([0.3] * 4, "validation quality has not risen in 3 validations"),
        ([0.5, 0.8], "validation quality reached 0.800, target 0.8"),
    ):
        assert after(qualities, FAR).reason_to_cool_down(FAR) == reason


def test_end_never_lies_beyond_the_upper_bound() -> None:
    """Would catch: a cool-down that runs out of batches, also by a rounding."""
    config = replace(FAR, num_steps=25)
    assert after([0.9], replace(config, cooldown_share_at_target=1.0), every=20).end_step == 25
    assert config.last_cooldown_begin == 16
    assert after([0.1], config, every=16).end_step == 24
    for num_steps in range(1, 60):
        begin = TrainConfig(num_steps=num_steps, cooldown_share=0.5).last_cooldown_begin
        assert 0 <= begin <= begin + 0.5 * begin <= num_steps


def test_what_has_not_learnt_is_on_no_plateau() -> None:
    """Would catch: a run that ends while it still predicts nothing, as its AUROC goes up and down by chance."""
    progress = TrainProgress()
    for step in range(10, 200, 10):
        progress = replace(progress, step=step).after_validation({"quality": 0.3, "learnt": 0.0}, FAR)
        assert progress.num_without_rise == 0 and progress.end_step is None
    for step in range(200, 230, 10):
        progress = replace(progress, step=step).after_validation({"quality": 0.3, "learnt": 1.0}, FAR)
    assert progress.end_step is not None


def test_good_enough_asks_for_a_margin() -> None:
    """Would catch: an early end where the order is right by a breath, and a margin that outlives its validation."""
    touching = {"quality": 0.9, "learnt": 1.0, "margin": 1.9}
    progress = replace(TrainProgress(), step=10).after_validation(touching, FAR)
    assert progress.end_step is None
    assert progress.after_validation({"quality": 0.7, "learnt": 1.0, "margin": 3.0}, FAR).end_step is None
    assert progress.after_validation(touching | {"margin": 2.0}, FAR).end_step == 13
    assert progress.after_validation(touching, replace(FAR, target_margin=1.0)).end_step == 13


@pytest.mark.parametrize(("is_cpu", "minutes"), [(True, 30), (False, 10)])
def test_minutes_are_as_many_steps_as_fit(is_cpu: bool, minutes: int) -> None:
    """Would catch: seconds taken for minutes, validations that are not counted, and a bound below the timed steps."""
    config = TrainConfig(validate_every=20)
    assert config.steps_in_time(0.5, 0.0, is_cpu) == minutes * 120
    assert config.steps_in_time(0.5, 20.0, is_cpu) == minutes * 60
    assert replace(config, max_minutes=1.5).steps_in_time(0.5, 0.0, is_cpu) == 180
    assert config.steps_in_time(1e6, 0.0, is_cpu) == TIMED_STEPS


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
    """Would catch: a validation after the next step, a save before the validation, and a batch that is left out.

    The last cool-down begins at 4 of 6 steps: int(6 / 1.5).
    """
    world = World(SHORT, quality=lambda step: step / 100)
    progress = world.trainer().fit(start(), TrainProgress())
    expected: list[Event] = []
    for step in (2, 4, 6):
        expected += [("step", step - 2), ("step", step - 1), ("validate", step), ("save", step, step / 100)]
    assert world.events == expected
    assert (progress.step, progress.validated, progress.end_step) == (6, True, 6)
    assert progress.best_quality == 0.06


AT_TARGET: dict[str, Any] = {"target_quality": 0.5, "cooldown_share_at_target": 0.5, "cooldown_share": 0.1}
EARLY = AT_TARGET | {"num_steps": 100}


@pytest.mark.parametrize(
    ("changes", "quality", "validations"),
    [
        # The last cool-down begins at 4, ends at 6.
        ({"num_steps": 7, "validate_every": 3}, lambda step: 0.1, [3, 4, 6]),
        (EARLY, lambda step: 0.6 if step >= 4 else 0.1, [2, 4, 6]),
        (EARLY | {"cooldown_share_at_target": 0.0}, lambda step: 0.6, [2]),
        # Quality rises at 2, then not at 4, 6 and 8; a quarter of 8 steps follows.
        ({"num_steps": 100, "patience": 3, "cooldown_share": 0.25}, lambda step: 0.5, [2, 4, 6, 8, 10]),
    ],
    ids=["bound", "target", "no cool-down", "patience"],
)
def test_training_ends_where_the_schedule_says_and_is_validated_there(
    changes: dict[str, Any], quality: Callable[[int], float], validations: list[int]
) -> None:
    """Would catch: an end without validation, so that the annealed weights could not be the best ones; training on
    after the target; a patience that counts steps or is ignored; a division by zero for a cool-down of no length."""
    world = World(replace(SHORT, **changes), quality)
    progress = world.trainer().fit(start(), TrainProgress())
    assert world.of_kind("validate") == validations
    assert world.of_kind("step") == list(range(validations[-1]))
    assert progress.step == progress.end_step == validations[-1]


def test_the_bound_is_found_once_and_saved_before_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch: a resumed run with a bound of its own, a bound that is not saved where it is found, a bound in spite
    of ``num_steps``, and validations between the regular ones in runs that have a bound."""
    config = replace(SHORT, num_steps=0, max_minutes=1.0, validate_every=50)
    number = TIMED_STEPS + 13
    monkeypatch.setattr(TrainConfig, "steps_in_time", lambda *arguments: number)
    world = World(config, quality=lambda step: 0.1)
    stream = grain.MapDataset.range(100).map(MakeBatch())
    progress = world.trainer(stream=stream).fit(start(), TrainProgress())
    assert (progress.step, progress.num_steps) == (number, number)
    begin = int(number / 1.5)
    assert world.of_kind("validate") == [TIMED_STEPS, begin, number]
    state, saved = world.resume(TIMED_STEPS)
    assert saved.num_steps == number
    monkeypatch.setattr(TrainConfig, "steps_in_time", lambda *arguments: 1000)
    again = World(config, quality=lambda step: 0.1)
    assert again.trainer(stream=stream).fit(state, saved).step == number
    world = World(replace(config, num_steps=40), quality=lambda step: 0.1)
    assert world.trainer(stream=stream).fit(start(), TrainProgress()).step == 39
    assert world.of_kind("validate") == [26, 39]
    # However often it is validated, the bound is found at step 20; a run that is good before has its end.
    monkeypatch.setattr(TrainConfig, "steps_in_time", lambda *arguments: number)
    often = World(replace(config, validate_every=6), quality=lambda step: 0.1)
    often.trainer(stream=stream).fit(start(), TrainProgress())
    assert [often.resume(step)[1].num_steps for step in (6, 12, 18, 20)] == [0, 0, 0, number]
    good = World(replace(config, validate_every=6, **AT_TARGET), quality=lambda step: 0.6)
    assert good.trainer(stream=stream).fit(start(), TrainProgress()).step == 9


def test_the_step_is_told_where_the_cool_down_lies() -> None:
    """Would catch: a learning rate that stays on its plateau, also after a restart."""
    spans: dict[int, list[int]] = {}
    world = World(replace(SHORT, **EARLY), quality=lambda step: 0.6 if step >= 4 else 0.1)
    plain_step = world.step

    def step(state: TrainState, batch: Any) -> Any:
        spans[int(state.step)] = np.asarray(state.cooldown).tolist()
        return plain_step(state, batch)

    world.trainer(step=skip_non_finite(step, 0)).fit(start(), TrainProgress())
    assert spans == {s: [NEVER, NEVER] for s in range(4)} | {4: [4, 6], 5: [4, 6]}
    spans.clear()
    state, progress = world.resume(4)
    assert np.asarray(state.cooldown).tolist() == [4, 6]
    world.trainer(step=skip_non_finite(step, 0)).fit(state, progress)
    assert spans == {4: [4, 6], 5: [4, 6]}


def test_history_holds_means_between_its_rows() -> None:
    """Would catch: a row that shows the last step's figures only, or counts a step twice."""
    world = World(replace(SHORT, num_steps=12, validate_every=5, log_every=3, cooldown_share=0.0))
    world.trainer().fit(start(), TrainProgress())
    losses = {step: values["loss"] for kind, step, values in world.rows if kind == "train"}
    # Batch i has loss i; validation after 5, 10 and 12 cuts the rows short.
    assert losses == {3: 1.0, 5: 3.5, 6: 5.0, 9: 7.0, 10: 9.0, 12: 10.5}
    assert [step for kind, step, _ in world.rows if kind == "validation"] == [5, 10, 12]


# --- going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [2, 4])
def test_resumed_run_takes_the_next_batch_and_does_not_validate_twice(step: int) -> None:
    """Would catch: a batch that is repeated or left out, a validation that counts twice for the patience, a position
    that does not survive JSON, and what else the checkpoint was to keep lost."""
    world = World(SHORT)
    whole = world.trainer().fit(start(), TrainProgress())
    first = list(world.events)
    world.events.clear()
    state, progress = world.resume(step)
    assert progress.validated
    again = world.trainer().fit(state, progress)
    assert world.events == first[first.index(("save", step, 0.1)) + 1 :]
    times = dict(train_seconds=0.0, step_seconds=0.0)
    assert replace(again, **times) == replace(whole, **times)
    assert world.saved[6][1]["config"] == {"seed": 7}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_a_second_loop_goes_on(number: signal.Signals) -> None:
    """Would catch: work that a preemption costs, a step cut short, and a state saved under the wrong number."""
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    world = World(SHORT)
    whole = world.trainer().fit(start(), TrainProgress())
    expected, final = world.of_kind("step"), world.saved[6][0].params["seen"]
    world.events.clear()
    world.on_step = stop_at(2, number)
    with pytest.raises(Interrupted, match="at step 3; the same command goes on from there"):
        world.trainer().fit(start(), TrainProgress())
    assert world.events[-1] == ("save", 3, None)
    assert {n: signal.getsignal(n) for n in before} == before
    world.on_step = lambda batch: {}
    state, progress = world.resume(3)
    assert not progress.validated
    again = world.trainer().fit(state, progress)
    assert world.of_kind("step") == expected
    assert world.of_kind("validate") == [2, 4, 6]
    times = dict(train_seconds=0.0, step_seconds=0.0)
    assert replace(again, **times) == replace(whole, **times)
    assert world.saved[6][0].params["seen"] == final


def test_signal_between_lines_of_the_log_costs_no_line_and_no_figure_of_one() -> None:
    """Would catch: a stop that waits for the next line, and a line that forgets the steps before the stop."""
    config = TrainConfig(num_steps=8, validate_every=8, log_every=4, cooldown_share=0.0)

    def logged(world: World) -> list[Event]:
        return [(k, s, {n: v for n, v in row.items() if n != "slices_per_s"}) for k, s, row in world.rows]

    whole, world = World(config), World(config)
    whole.trainer().fit(start(), TrainProgress())
    world.on_step = stop_at(5)
    with pytest.raises(Interrupted, match="at step 6;"):
        world.trainer().fit(start(), TrainProgress())
    assert world.events[-1] == ("save", 6, None)
    world.on_step = lambda batch: {}
    world.trainer().fit(*world.resume(6))
    assert world.of_kind("step") == whole.of_kind("step")
    assert logged(world) == logged(whole)
    assert [step for kind, step, _ in logged(whole) if kind == "train"] == [4, 8]


def test_every_step_is_a_heartbeat() -> None:
    """Would catch: a healthy job that is ended as stuck because a line of the log takes longer than its patience."""
    config = TrainConfig(num_steps=6, validate_every=6, log_every=6, cooldown_share=0.0)
    world, heartbeats, seen = World(config), [], []

    counted: Any = SimpleNamespace(count=1, any=lambda flag: flag, heartbeat=lambda: heartbeats.append(1))
    world.on_step = lambda batch: seen.append(len(heartbeats)) or {}  # type: ignore[func-returns-value]
    world.trainer(processes=counted).fit(start(), TrainProgress())
    assert seen == [0, 0, 1, 2, 3, 4]


def test_a_stop_before_the_first_step_saves_nothing_twice() -> None:
    """Would catch: a checkpoint that is written again, which orbax refuses."""
    world = World(SHORT)
    world.on_step = stop_at(2)
    with pytest.raises(Interrupted):
        world.trainer().fit(start(), TrainProgress())
    world.events.clear()
    asked_at_once: Any = SimpleNamespace(count=1, any=lambda flag: True)
    with pytest.raises(Interrupted, match="at step 3"):
        world.trainer(processes=asked_at_once).fit(*world.resume(3))
    assert world.events == []


def test_signal_during_validation_saves_once() -> None:
    """Would catch: a validated state that a second save without quality would replace."""
    world = World(SHORT)
    world.on_validation = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 4 else None
    with pytest.raises(Interrupted, match="at step 4"):
        world.trainer().fit(start(), TrainProgress())
    assert [event for event in world.events if event[0] == "save"] == [("save", 2, 0.1), ("save", 4, 0.1)]


@pytest.mark.parametrize("during", ["step", "validation"])
def test_signal_in_the_last_step_saves_and_the_next_command_goes_on_to_the_test(during: str) -> None:
    """Would catch: a stop that is swallowed, so that the test goes on; and a finished training that is thrown away."""
    world = World(SHORT)
    if during == "step":
        world.on_step = stop_at(5)
    else:
        world.on_validation = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 6 else None
    with pytest.raises(Interrupted, match="at step 6; the same command goes on from there"):
        world.trainer().fit(start(), TrainProgress())
    assert world.events[-1] == ("save", 6, 0.1)
    _, progress = world.resume(6)
    assert progress.is_end(SHORT)


def test_all_processes_stop_at_the_step_at_which_one_was_asked_to() -> None:
    """Would catch: a process that stops alone, and one that only some of the others follow."""

    def work(processes: Processes) -> tuple[str, list[Event]]:
        world = World(SHORT)

        def is_asked(flag: bool) -> bool:
            """Process 1 gets the signal after its second step; a thread has no signals of its own."""
            return processes.any(processes.index == 1 and len(world.of_kind("step")) >= 3)

        asked = SimpleNamespace(count=3, any=is_asked, heartbeat=lambda: None)
        with pytest.raises(Interrupted) as stopped:
            world.trainer(processes=asked).fit(start(), TrainProgress())
        return str(stopped.value), world.events

    # Only the main thread may set handlers.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda number, handler: handler)
        ends = run_as_processes(3, work)
    assert [message for message, _ in ends] == ["at step 3; the same command goes on from there"] * 3
    assert [events[-1] for _, events in ends] == [("save", 3, None)] * 3


def test_second_signal_stops_at_once() -> None:
    """Would catch: a process that cannot be stopped while a long step runs."""
    world = World(SHORT)

    def interrupt_twice(batch: int) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    world.on_step = interrupt_twice
    with pytest.raises(KeyboardInterrupt, match="asked twice"):
        world.trainer().fit(start(), TrainProgress())
    assert world.of_kind("save") == []


@pytest.mark.parametrize(
    ("bad", "shown"), [({"loss": float("nan")}, "loss nan"), ({"grad_norm": float("inf")}, "grad_norm inf")]
)
@pytest.mark.parametrize("log_every", [1, 4])
def test_non_finite_stops_and_says_where(bad: dict[str, float], shown: str, log_every: int) -> None:
    """Would catch: a run that trains on NaN, names the step of the log instead, or saves what is broken."""
    world = World(replace(SHORT, log_every=log_every, validate_every=5))
    world.on_step = lambda batch: bad if batch == 2 else {}
    with pytest.raises(NonFinite) as caught:
        world.trainer().fit(start(), TrainProgress())
    assert str(caught.value) == (
        f"training stopped at step 3: {shown}; learning rate 1.00e-03, images of the batch: image2, image3; lower "
        "`optim.learning_rate`, look at these images, or let `train.skip_non_finite` (=0) allow for more such steps"
    )
    assert world.of_kind("save") == []
    assert isinstance(caught.value, UserError)


def test_skipped_steps_are_counted_and_move_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Would catch: a skipped step that moves weights, repeats a step's number, or whose NaN gets into the history."""
    world = World(replace(SHORT, log_every=2, skip_non_finite=3))
    world.on_step = lambda batch: {"loss": float("nan")} if batch in (1, 2, 3) else {}
    progress = world.trainer().fit(start(), TrainProgress())
    assert (progress.step, progress.num_skipped) == (6, 3)
    assert world.of_kind("step") == list(range(6))
    assert [float(world.saved[step][0].params["seen"]) for step in (2, 4, 6)] == [0, 0, 0 + 4 + 5]
    history = {step: values for kind, step, values in world.rows if kind == "train"}
    assert [history[step]["skipped_steps"] for step in (2, 4, 6)] == [1, 3, 3]
    assert history[2]["loss"] == 0.0 and "loss" not in history[4] and history[6]["loss"] == 4.5
    out = " ".join(capsys.readouterr().out.split())
    assert "training skipped a step (3 so far) at step 4: loss nan" in out


def test_the_bound_on_skipped_steps_outlasts_a_restart() -> None:
    """Would catch: a count that begins again with every restart, and one step more or less than was allowed."""
    world = World(replace(SHORT, skip_non_finite=2))
    world.on_step = lambda batch: {"loss": float("inf")} if batch in (0, 2, 5) else {}
    with pytest.raises(NonFinite, match=r"at step 6: loss inf"):
        world.trainer().fit(start(), TrainProgress())
    state, progress = world.resume(2)
    assert progress.num_skipped == 1
    with pytest.raises(NonFinite, match=r"at step 6: loss inf"):
        world.trainer().fit(state, progress)
    world.config = replace(world.config, skip_non_finite=3)
    assert world.trainer().fit(state, progress).num_skipped == 3


def test_all_processes_stop_at_a_step_that_is_not_finite() -> None:
    """Would catch: processes that stop for different reasons or wait for one another."""

    def work(processes: Processes) -> str:
        world = World(SHORT)
        world.on_step = lambda batch: {"loss": float("nan")} if batch == 2 else {}
        with pytest.raises(NonFinite) as stopped:
            world.trainer(processes=processes).fit(start(), TrainProgress())
        return str(stopped.value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda number, handler: handler)
        messages = run_as_processes(2, work)
    assert messages[0] == messages[1]
    assert "images of the batch: image2, image3;" in messages[0]

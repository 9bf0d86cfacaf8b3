"""The threshold chosen anew: formulas against scipy and simulation, and the command against brute force."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dagm_jax import calibrate
from dagm_jax.config import RunConfig, to_json
from dagm_jax.errors import UserError
from dagm_jax.evaluation.config import VerdictConfig
from dagm_jax.evaluation.threshold import (
    Thresholds,
    escape_bound,
    fit_escape_rate,
    fit_threshold,
    images_to_promise,
)
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.storage import write_csv

OLD = Thresholds(0.3, 0.25, "f1", {"tp": 1})


@pytest.mark.parametrize(("missed", "total"), [(0, 1), (0, 30), (1, 30), (7, 30), (29, 30), (3, 500)])
def test_bound_is_clopper_and_pearsons(missed: int, total: int) -> None:
    """Would catch: the two-sided bound, the lower one, a Beta with its parameters exchanged or off by one,
    a division by zero without a defective image or a hit."""
    # One side at 95 % is the upper end of the two-sided interval at 90 %.
    expected = stats.binomtest(missed, total).proportion_ci(0.9, method="exact").high
    assert escape_bound(missed, total) == pytest.approx(expected, rel=1e-9)
    assert escape_bound(0, 0) == escape_bound(total, total) == 1.0


@pytest.mark.parametrize("target", [0.5, 0.1, 0.05, 0.01, 0.001])
def test_images_to_promise_are_the_fewest(target: float) -> None:
    """Would catch: a number that is one too small to promise, or larger than need be."""
    number = images_to_promise(target)
    assert number == math.ceil(math.log(0.05) / math.log(1 - target))
    assert escape_bound(0, number) <= target < escape_bound(0, number - 1)


SCORES = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0])


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    st.lists(SCORES, min_size=1, max_size=20),
    st.lists(SCORES, min_size=10, max_size=60),
    st.sampled_from([0.1, 0.2, 0.3]),
)
def test_escape_rate_by_brute_force(good: list[float], defective: list[float], target: float) -> None:
    """Would catch: a threshold whose bound is over the target, and one that gives away good images for nothing."""
    labels, scores = [0] * len(good) + [1] * len(defective), [*good, *defective]

    def keeps(threshold: float) -> bool:
        missed = sum(score < threshold for score in defective)
        return escape_bound(missed, len(defective)) <= target

    if len(defective) < images_to_promise(target):
        with pytest.raises(
            UserError, match=f"it takes {images_to_promise(target)} defective validation images"
        ):
            fit_escape_rate(labels, scores, target)
        return
    threshold, evidence = fit_escape_rate(labels, scores, target)
    assert keeps(threshold)
    higher = [score for score in set(scores) if score > threshold and keeps(score)]
    # No other split of the images into good and defective that keeps the promise calls fewer defective.
    called = sum(score >= threshold for score in scores)
    assert all(sum(score >= other for score in scores) >= called for other in higher)
    assert evidence["escape_bound_95"] == escape_bound(evidence["fn"], len(defective))
    assert evidence["fp"] == sum(score >= threshold for score in good)


def test_the_promise_is_kept_nineteen_times_of_twenty() -> None:
    """Would catch: a bound that holds for a threshold fixed beforehand alone, not for one that the images choose."""
    rng = np.random.default_rng(0)
    target, kept, rounds = 0.1, 0, 400
    for _ in range(rounds):
        # Uniform scores: the true escape rate of a threshold is the threshold itself.
        defective, good = rng.uniform(0, 1, 60), rng.uniform(0, 1, 5)
        threshold, _ = fit_escape_rate([1] * 60 + [0] * 5, [*defective, *good], target)
        kept += threshold <= target
    assert kept / rounds >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / rounds)


def test_a_target_that_cannot_be_promised_says_what_it_takes() -> None:
    """Would catch: a promise from too few images, or a refusal that does not say how many would do."""
    labels, scores = [0] * 20 + [1] * 30, [0.1] * 20 + [0.9] * 30
    with pytest.raises(
        UserError, match=r"`target` \(=0.01\).*none of 30 .* 0\.095 .*it takes 299 "
    ) as caught:
        fit_escape_rate(labels, scores, 0.01)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="none of 0 defective"):
        fit_escape_rate([0, 0], [0.1, 0.2], 0.5)
    for target in (0.0, 1.0, math.nan):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            fit_escape_rate(labels, scores, target)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A finished run as far as the command reads it: 100 good and 80 defective validation images that overlap."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "report.json").write_text("{}")
    (folder / "config.json").write_text(to_json(RunConfig()))
    (folder / "decision_rule.json").write_text(OLD.to_json())
    rng = np.random.default_rng(2)
    labels = [0] * 100 + [1] * 80
    scores = [float(rng.beta(5, 2) if label else rng.beta(2, 5)) for label in labels]
    names = [f"im,age\n{i}" for i in range(180)]
    rows = zip(names, labels, scores, strict=True)
    write_csv(folder / "validation_scores.csv", ["image", "label", "score"], rows)
    return folder


def run(model: Path, *arguments: str) -> dict[str, Any]:
    assert calibrate.main(["calibrate", f"--model={model}", *arguments]) == 0
    rule: dict[str, Any] = json.loads((model / "decision_rule.json").read_text())
    return rule


@pytest.mark.parametrize(
    ("arguments", "config"),
    [
        (["--rule=f1"], VerdictConfig(calibration="f1")),
        (["--rule=false_alarm_rate"], VerdictConfig(calibration="false_alarm_rate")),
        (
            ["--rule=false_alarm_rate", "--target=0.05"],
            VerdictConfig(calibration="false_alarm_rate", max_false_alarm_rate=0.05),
        ),
        (["--rule=expected_cost"], VerdictConfig(calibration="expected_cost")),
        (["--rule=expected_cost", "--target=3"], VerdictConfig(calibration="expected_cost", fn_cost=3.0)),
        (["--rule=normals", "--target=0.2"], VerdictConfig(calibration="normals", max_false_alarm_rate=0.2)),
    ],
)
def test_rules_are_those_of_training(model: Path, arguments: list[str], config: VerdictConfig) -> None:
    """Would catch: a target that changes nothing, or another rule than in training under the same name."""
    rule = run(model, *arguments)
    threshold, evidence = fit_threshold(*Workdir(model).read_validation_scores(), config)
    assert rule["threshold"] == threshold
    assert rule["pixel_threshold"] == OLD.pixel_threshold
    assert rule["calibration"] == rule["evidence"]["rule"] == config.calibration
    assert {name: rule["evidence"][name] for name in evidence} == evidence


def test_escape_rate_is_stored_with_its_evidence_and_shown(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Would catch: a promise without what it rests on, and a change without its price."""
    rule = run(model, "--rule=escape_rate", "--target=0.05")
    labels, scores = Workdir(model).read_validation_scores()
    missed = sum(label and score < rule["threshold"] for label, score in zip(labels, scores, strict=True))
    evidence = rule["evidence"]
    assert (evidence["target"], evidence["fn"], evidence["num_defective"]) == (0.05, missed, 80)
    assert evidence["escape_bound_95"] == escape_bound(missed, 80) <= 0.05
    assert Thresholds.from_values(rule).threshold == rule["threshold"]
    text = capsys.readouterr().out
    old_missed = sum(label and score < OLD.threshold for label, score in zip(labels, scores, strict=True))
    for shown in ("before", "now", "0.300000", f"{rule['threshold']:.6f}", f"{old_missed} of 80"):
        assert shown in text


def test_old_rules_are_kept(model: Path) -> None:
    """Would catch: the way back lost, and a history that grows where nothing has changed."""
    first = run(model, "--rule=f1")
    run(model, "--rule=false_alarm_rate")
    run(model, "--rule=false_alarm_rate")
    history = json.loads((model / "decision_rule_history.json").read_text())
    assert history == [json.loads(OLD.to_json()), first]
    assert not list(model.glob("*.partial"))


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", "x"])
def test_a_history_that_is_none_is_one_line(model: Path, text: str) -> None:
    """Would catch: RecursionError, or AttributeError of an object where a list should be."""
    (model / "decision_rule_history.json").write_text(text)
    with pytest.raises(UserError, match=r"decision_rule_history.json") as caught:
        run(model, "--rule=f1")
    assert "\n" not in str(caught.value)


def test_a_refused_target_changes_nothing(model: Path) -> None:
    """Would catch: a rule half stored, or stored before it is known to be one."""
    before = {path.name: path.read_bytes() for path in model.glob("*.json")}
    with pytest.raises(UserError, match="cannot be promised"):
        run(model, "--rule=escape_rate", "--target=0.001")
    assert {path.name: path.read_bytes() for path in model.glob("*.json")} == before


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ("--model=a --rule=f1 --target=0.1", r"`--target` \(=0.1\) means nothing to --rule=f1"),
        ("--model=a --rule=escape_rate", "`--target` is missing"),
        ("--model=/nowhere --rule=f1", r"`model` \(=/nowhere\) has no report\.json"),
    ],
)
def test_mistakes_are_one_line(arguments: str, match: str) -> None:
    """Would catch: a target that is silently ignored, a folder made where a model was misspelt."""
    with pytest.raises(UserError, match=match):
        calibrate.main(["calibrate", *arguments.split()])
    assert not Path("/nowhere").exists()

"""A run: from a configuration and a folder to a trained, calibrated model with its report.

Stages (data, training, calibration, report) find what is finished in the workdir: the same command resumes.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dagm_jax.config import RunConfig, to_dict, to_json
from dagm_jax.console import console, show
from dagm_jax.distributed.devices import make_devices
from dagm_jax.distributed.processes import ALONE, Processes
from dagm_jax.errors import UserError
from dagm_jax.evaluation import evaluate
from dagm_jax.evaluation.predictor import Predictor
from dagm_jax.evaluation.threshold import Thresholds, lone_outlier, rule_for
from dagm_jax.experiment.data import Data, prepare_data
from dagm_jax.experiment.pictures import PictureMaker, TestPictures
from dagm_jax.experiment.report import print_report, write_report
from dagm_jax.experiment.resume import check_length, check_same_run, read_progress
from dagm_jax.experiment.setup import Setup
from dagm_jax.experiment.timings import Timings
from dagm_jax.experiment.workdir import Workdir
from dagm_jax.storage import plain_disk_errors, write_atomically, write_csv
from dagm_jax.train.checkpoint import Checkpoints
from dagm_jax.train.history import MetricLogger
from dagm_jax.train.loop import Trainer
from dagm_jax.train.step import TrainState
from dagm_jax.train.stopping import TrainProgress
from dagm_jax.types import Batch
from dagm_jax.versions import package_versions
from dagm_jax.visualization.overlay import write_batch


def run(
    config: RunConfig,
    path: Path,
    xla_flags: str = "",
    processes: Processes = ALONE,
    timings: Timings | None = None,
) -> dict[str, Any]:
    """The report of the run; all its files are in the folder ``path``.

    In a finished workdir nothing is done again. All ``processes`` call this and share the workdir, in which the first
    one writes. Raises UserError, Interrupted.
    """
    workdir = Workdir(path)
    # Process 0 alone holds the lock, but all processes write: each its part of a checkpoint.
    with plain_disk_errors(path, workdir.option), ExitStack() as holding:

        def open_workdir() -> tuple[RunConfig, dict[str, Any] | None]:
            holding.enter_context(workdir.locked())
            same = check_same_run(config, workdir)
            return same, workdir.read_report() if workdir.is_finished else None

        processes.check_same("the configuration", to_json(config))
        config, report = processes.on_process_0(open_workdir)
        if report is not None:
            console.print(f"{workdir} holds a finished run; its report:")
        else:
            report = _run_stages(config, workdir, xla_flags, processes, timings or Timings())
        print_report(report, workdir)
    return report


def _run_stages(
    config: RunConfig, workdir: Workdir, xla_flags: str, processes: Processes, timings: Timings
) -> dict[str, Any]:
    """The report of an unfinished run: data, training, choice of the checkpoint, evaluation."""
    with timings.stage("data"):
        data = prepare_data(config, workdir, processes)
    config = replace(config, slicing=data.slicing, data=replace(config.data, split=data.rule))
    setup = Setup(config, data, make_devices(config.parallel, xla_flags), processes, timings)
    with closing(setup):
        with Checkpoints(workdir.checkpoints, processes) as checkpoints:
            progress = train(setup, checkpoints, workdir)
            chosen = choose_state(setup, checkpoints, progress.step, workdir)
        report = evaluate_model(setup, chosen, progress, workdir)
    if not config.data.cache_dir and processes.is_first:
        shutil.rmtree(workdir.cache, ignore_errors=True)
    return report


def train(setup: Setup, checkpoints: Checkpoints, workdir: Workdir) -> TrainProgress:
    """Progress after the last step; training resumes from the newest whole checkpoint of the workdir."""
    config, data, progress = setup.config, setup.data, TrainProgress()
    with setup.timings.stage("initial weights"):
        state = setup.initial_state()
    restored = checkpoints.restore_latest(lambda: state)
    if restored is not None:
        step, state, meta = restored
        progress = read_progress(meta, data, config.train, workdir)
        stored = meta["config"]["train"]["num_steps"]
        check_length(config.train, progress, stored, workdir)
        progress = replace(progress, num_steps=progress.num_steps or stored)
        console.print(f"resuming from the checkpoint of step {step}")
    elif config.train.init_from:
        console.print(f"training begins with the weights of {config.train.init_from}")
    # Only now does the workdir belong to this run: after a mistake up to here the same one may be named again.
    setup.processes.on_process_0(lambda: write_atomically(workdir.config, to_json(config) + "\n"))
    if progress.is_end(progress.bounded(config.train)):
        return progress
    stream = setup.stream()
    setup.begin_to_compile_predictors()
    with setup.timings.stage("compilation of the step"):
        step_function = setup.compile_step(state, stream[0])
        setup.processes.on_process_0(lambda: draw_batch(stream[0], workdir))
    logger = MetricLogger(workdir.path, progress.step) if setup.processes.is_first else None
    with closing(logger) if logger else nullcontext():
        trainer = Trainer(
            config=config.train,
            devices=setup.devices,
            step=step_function,
            stream=stream,
            num_workers=config.data.num_workers,
            validate=setup.validate,
            checkpoints=checkpoints,
            logger=logger,
            image_ids=[r.image_id for r in data.manifest.samples],
            num_images=len(data.split.train),
            steps_a_validation=setup.steps_a_validation,
            meta=dict(config=to_dict(config), mean=data.mean, std=data.std, versions=package_versions()),
            processes=setup.processes,
        )
        with setup.timings.stage("training"):
            return trainer.fit(state, progress)


def draw_batch(batch: Batch, workdir: Workdir) -> None:
    """Writes figures/batch.png, where data that no network could learn from shows."""
    workdir.figures.mkdir(exist_ok=True)
    inside = batch["inside"][..., 0] if "inside" in batch else None
    write_batch(workdir.batch, batch["image"][..., 0], batch["mask"][..., 0] == 1, inside)


class Chosen(NamedTuple):
    """The checkpoint to test, and its results on the whole validation split."""

    step: int
    state: TrainState
    validation: list[evaluate.ValidationResult]


def choose_state(setup: Setup, checkpoints: Checkpoints, last_step: int, workdir: Workdir) -> Chosen:
    """The better of two checkpoints on the whole validation split.

    The two are the best by the quick validations of training, which see few images and whose highest of many is partly
    luck, and the last, whose learning rate has cooled down. A damaged checkpoint is named in the log and not
    considered. Raises UserError without a validated checkpoint that is whole.
    """
    best_step = checkpoints.best_step()
    if best_step is None:
        raise UserError(f"`workdir` (={workdir}) holds no validated checkpoint; start in a new workdir")
    steps = sorted({best_step, last_step})
    restored = {step: checkpoints.restore_or_warn(step, setup.initial_state) for step in steps}
    states = {step: found[0] for step, found in restored.items() if found is not None}
    if not states:
        raise UserError(
            f"`workdir` (={workdir}): none of the checkpoints of steps {steps} can be read; restore them from a copy "
            "or start in a new workdir"
        )
    data, quality, results = setup.data, {}, {}
    for step, state in states.items():
        predictor = setup.make_predictor(state)
        # Training has just validated the last weights, on all of these images where they are few.
        results[step] = list(setup.last_results) if step == last_step else []
        if not results[step]:
            number = len(setup.processes.share(setup.validation_images))
            with setup.timings.stage("validation"), show(f"validation of step {step}", number) as bar:
                results[step] = evaluate.predict_validation(
                    predictor, data.images, setup.validation_images, bar.advance
                )
        figures = evaluate.summarise(results[step], setup.config.task.score_kind)
        # Machines of several kinds may round differently, and all choose alike.
        quality[step] = setup.processes.broadcast(figures["quality"])
    chosen = max(quality, key=quality.__getitem__)
    shown = ", ".join(f"{value:.4f} at step {step}" for step, value in quality.items())
    console.print(f"tested checkpoint: step {chosen}; quality {shown}")
    return Chosen(chosen, states[chosen], results[chosen])


def evaluate_model(setup: Setup, chosen: Chosen, progress: TrainProgress, workdir: Workdir) -> dict[str, Any]:
    """The report of the chosen state: thresholds from the validation split, then the test split once."""
    data, processes, config = setup.data, setup.processes, setup.config
    predictor = setup.make_predictor(chosen.state)
    samples = [data.manifest.samples[i] for i in data.split.validation]
    labels = [sample.label for sample in samples]
    rule = processes.broadcast(
        evaluate.fit_thresholds(chosen.validation, labels, config.verdict, config.task.score_kind)
    )
    validation = evaluate.of_real(chosen.validation)
    verdict = rule_for(labels, config.verdict, setup.uses_synthetic)
    outlier = lone_outlier(labels, [one.score for one in validation], rule.threshold, verdict)
    if outlier is not None:
        place, without = outlier
        console.print(
            f"threshold {rule.threshold:.4f}: one good validation image sets it, {samples[place].image_id} (score "
            f"{validation[place].score:.4f}); without it {without:.4f}: look at this image and its label"
        )
    rows = [
        (sample.image_id, sample.label, repr(float(one.score)))
        for sample, one in zip(samples, validation, strict=True)
    ]
    header = ("image", "label", "score")
    processes.on_process_0(lambda: write_csv(workdir.validation_scores, header, rows))
    processes.on_process_0(lambda: write_atomically(workdir.rule, rule.to_json()))
    with setup.timings.stage("test"):
        result, pictures = evaluate_test_split(predictor, data, rule, workdir, setup.timings)
        synthetic = None
        if setup.uses_synthetic:
            good = data.images.synthetic(data.of_label(data.split.test, 0))
            scored = evaluate.predict_validation(predictor, data.images, good)
            good_scores = [image.score for image in result.images if not image.label]
            synthetic = evaluate.describe_synthetic(good_scores, scored, rule)
    return processes.on_process_0(
        lambda: write_report(
            setup, chosen.state, chosen.step, progress, rule, result, synthetic, pictures, workdir
        )
    )


def evaluate_test_split(
    predictor: Predictor, data: Data, rule: Thresholds, workdir: Workdir, timings: Timings
) -> tuple[evaluate.TestResult, TestPictures]:
    """Figures and pictures of the test split, the same on all processes; pictures of images lie in the workdir."""
    processes = predictor.processes
    samples = [data.manifest.samples[i] for i in data.split.test]
    result, pictures = evaluate.TestResult(), PictureMaker(rule, workdir, processes)

    def predict_share() -> None:
        largest_px = data.cache.largest[0] * data.cache.largest[1]
        for chunk in evaluate.evaluate_test_split(predictor, samples, data.cache.shape, largest_px, rule):
            result.add(chunk, rule)
            with timings.stage("pictures"):
                pictures.add(chunk)

    processes.all_or_raise(predict_share)
    return result.gathered(processes), pictures.gathered()

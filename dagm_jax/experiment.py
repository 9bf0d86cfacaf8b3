"""The composition root: a configuration and a folder in, a trained and calibrated detector with its report out.

A run is a sequence of stages (data, training, calibration, report), each of which finds in the workdir what an
earlier try has finished, so that the same command resumes after any interruption.
"""

from __future__ import annotations

import csv
import errno
import fcntl
import importlib.metadata
import io
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from rich.table import Table

from dagm_jax import evaluate
from dagm_jax.config import RunConfig, differences, to_dict, to_json
from dagm_jax.data.augment import augment
from dagm_jax.data.cache import ImageCache, build_cache
from dagm_jax.data.files import MAX_PIXELS
from dagm_jax.data.layouts import printable
from dagm_jax.data.pipeline import make_training_stream
from dagm_jax.data.slicing import Slicer, pad
from dagm_jax.data.sources import find_images
from dagm_jax.data.split import Split, split_records
from dagm_jax.evaluation.metrics import ImageCounts
from dagm_jax.evaluation.threshold import Thresholds
from dagm_jax.page import (
    PICTURE_QUALITY,
    PICTURE_SIDE_PX,
    PageEntry,
    draw_pictures,
    write_page,
)
from dagm_jax.processes import ALONE, Processes
from dagm_jax.train.checkpoint import PASSING_ERRORS, Checkpoints
from dagm_jax.train.loop import Loop, Position, TrainConfig
from dagm_jax.train.optim import learning_rate, make_optimizer
from dagm_jax.train.parallel import Devices, count_flop, make_devices
from dagm_jax.train.progress import NoRecord, Record, console, read_history, show, write_atomically
from dagm_jax.train.step import Carry, Network, TrainState, make_state, make_train_step, skip_non_finite
from dagm_jax.trained_model import (
    CHECKPOINTS,
    CONFIG,
    MOST_JUDGED_PIXELS,
    REPORT,
    RULE,
    VALIDATION_SCORES,
    build_network,
    compile_predictor,
    make_slicers,
    read_config,
    read_json,
)
from dagm_jax.types import DISK_ERRORS, DiskError, Manifest, Photo, UserError, written_by
from dagm_jax.types import Record as ImageRecord

# Fields whose change does not make another run of a workdir's run.
FREE_FIELDS = frozenset(
    {
        "data.num_workers",
        "data.cache_dir",
        "train.log_every",
        "train.skip_non_finite",
        "parallel.cpu_convolutions",
        "parallel.mode",
    }
)
# Free until the cool-down begins, whose place and length follow from it; see `check_length`.
LENGTH = "train.num_steps"
# What to do about a disk that is not full.
REMEDIES = {errno.EROFS: "make it writable", errno.EIO: "check the disk"}
PAGE, PICTURES = "index.html", "images"
# Of the test images judged right, and of those judged wrong, so many at most lie in PICTURES.
MAX_PICTURES = 250
PACKAGES = ("dagm-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run(
    config: RunConfig, workdir: Path, xla_flags: str = "", processes: Processes = ALONE
) -> dict[str, Any]:
    """The report of the run, which is also in ``workdir`` with all that it made.

    In a finished workdir nothing is done again. Of several ``processes``, which share the workdir, all call this; the
    first writes. Raises UserError, Interrupted.
    """
    # The first process alone holds the lock, but every one writes its part of a checkpoint.
    with plain_disk_errors(workdir, "workdir"), ExitStack() as holding:

        def open_workdir() -> dict[str, Any] | None:
            holding.enter_context(locked(workdir))
            path = workdir / REPORT
            check_same_run(config, workdir)
            report: dict[str, Any] | None = (
                read_json(workdir, REPORT, "restore it from a copy", "workdir") if path.exists() else None
            )
            return report

        report = processes.by_the_first(open_workdir)
        if report is not None:
            console.print(f"{workdir} holds a finished run; its report:")
        else:
            report = _run_stages(config, workdir, xla_flags, processes)
        print_report(report, workdir)
    return report


def _run_stages(config: RunConfig, workdir: Path, xla_flags: str, processes: Processes) -> dict[str, Any]:
    data = prepare_data(config, workdir, processes)
    setup = Setup(config, data, make_devices(config.parallel, xla_flags), processes)
    with Checkpoints(workdir / CHECKPOINTS, processes) as checkpoints:
        position = train(setup, checkpoints, workdir)
        best_step, state = choose_state(setup, checkpoints, position.step, workdir)
    report = judge(setup, state, best_step, position, workdir)
    if not config.data.cache_dir and processes.is_first:
        shutil.rmtree(workdir / "cache", ignore_errors=True)
    return report


@dataclass(frozen=True)
class Data:
    """The images of a run: manifest, decoded cache, split, slicers, and the training side's grey-level moments.

    slicer: how images are cut in training; judging_slicer: how those are whose verdict counts.
    """

    manifest: Manifest
    cache: ImageCache
    split: Split
    slicer: Slicer
    judging_slicer: Slicer
    mean: float
    std: float

    @cached_property
    def labels(self) -> list[int]:
        return [record.label for record in self.manifest.records]

    def of_label(self, indices: Sequence[int], label: int) -> list[int]:
        """Those of ``indices`` whose image has this label."""
        return [i for i in indices if self.labels[i] == label]


def prepare_data(config: RunConfig, workdir: Path, processes: Processes = ALONE) -> Data:
    """The images that ``config.data`` names, decoded, checked and split.

    Raises UserError where they do not suffice, and where the processes find different ones.
    """
    found, shape = find_images(config.data, config.seed, processes.beat)
    console.print(f"data: {found.description}")
    masks_for = config.task.name if config.task.learns_from_masks else ""
    if masks_for:
        check_masks(found, masks_for)
    directory = Path(config.data.cache_dir).expanduser() if config.data.cache_dir else workdir / "cache"
    with show("decoding images", len(found.records)) as bar:

        def on_image() -> None:
            processes.beat()
            bar.advance()

        manifest, cache = processes.in_turns(
            lambda: build_cache(found, directory, shape, on_image, masks_for)
        )
    ids = [[record.image_id, record.label] for record in manifest.records]
    processes.check_same("the configuration", to_json(config))
    processes.check_same("the images in `data.root`", json.dumps([ids, cache.shapes]))
    check_size(cache.largest, config)
    if manifest.skipped:
        shown = "; ".join(f"{skip.what}: {skip.reason}" for skip in manifest.skipped[:3])
        rest = ", …" if len(manifest.skipped) > 3 else ""
        console.print(f"data: {len(manifest.skipped)} left out ({shown}{rest}); all are listed in {REPORT}")
    if leaked := [skip for skip in manifest.skipped if skip.leaks]:
        console.print(
            f"data: leakage: {len(leaked)} images are in both halves, train and test, such as {leaked[0].what}; one "
            "copy of each is left out, so that no image is tested on that was trained on"
        )
    mask_px = [cache.mask_px(i) for i in range(len(cache))]
    split = split_records(
        manifest.records,
        config.data.split,
        config.data.validation_share,
        config.seed,
        mask_px,
        config.task.learns_from_defects,
    )
    seen = [i for i in split.train if config.task.learns_from_defects or not manifest.records[i].label]
    mean, std = cache.intensity_moments(seen)
    slicer, judging_slicer = make_slicers(config, *cache.largest)
    data = Data(manifest, cache, split, slicer, judging_slicer, mean, std)
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    sizes = ", ".join(
        f"{name} {len(side)} ({len(data.of_label(side, 1))} defective)" for name, side in sides.items()
    )
    console.print(f"data: {sizes}; split {config.data.split}")
    if config.data.split != "official" and {record.half for record in manifest.records} >= {"train", "test"}:
        console.print("data: the set's own halves are mixed; --config.data.split=official keeps them")
    if not config.task.learns_from_defects:
        console.print(f"data: {config.task.name} trains on the defect-free images alone")
    for name, side in sides.items():
        for label, kind in ((1, "defective"), (0, "defect-free")):
            is_needed = label == 0 or name == "test" or config.task.learns_from_defects
            if is_needed and not data.of_label(side, label):
                raise UserError(
                    f"`data`: the {name} side has no {kind} image, which {config.task.name} needs there; "
                    "add some or change `data.split`"
                )
    return data


def check_size(largest: tuple[int, int], config: RunConfig) -> None:
    """Raises UserError where the (h, w) in px that holds every image is one that `load_trained_model` refuses."""
    height, width = largest
    size = f"{height}x{width} (height x width)"
    if height * width > MAX_PIXELS:
        raise UserError(
            f"`data.root` (={config.data.root}): the tallest and the widest image give a common size of {size}, to "
            f"which all are padded: {height * width} pixels, more than the limit of {MAX_PIXELS}; crop or turn the "
            "images so that their sizes differ less"
        )
    batch_size = config.train.judge_batch_size
    if batch_size * height * width > MOST_JUDGED_PIXELS:
        raise UserError(
            f"`train.judge_batch_size` (={batch_size}) images of {size}, the common size of all, are "
            f"{batch_size * height * width} pixels at a time, more than the limit of {MOST_JUDGED_PIXELS}; use at most "
            f"{MOST_JUDGED_PIXELS // (height * width)}"
        )


def check_masks(manifest: Manifest, task: str) -> None:
    """Raises UserError where no defective image has a mask, of which ``task`` needs some."""
    defective = [record for record in manifest.records if record.label]
    if defective and all(record.mask is None for record in defective):
        raise UserError(
            f"`task` (={task}) learns from masks, and no defective image has one; add masks, or choose classification "
            "or reconstruction, such as --config=configs/custom_unet.py:classification"
        )


@dataclass(frozen=True)
class Setup:
    """What a configuration and its data determine: network, optimiser, stream; compiled functions are made here."""

    config: RunConfig
    data: Data
    devices: Devices
    processes: Processes = ALONE

    def __post_init__(self) -> None:
        train = self.config.train
        self.devices.check_batch_size("train.batch_size", train.batch_size, train.accumulate)

    @cached_property
    def _network_and_arrays(self) -> tuple[Network, Any, Any]:
        return build_network(self.config, self.data.mean, self.data.std, self.devices.axis_name)

    @property
    def network(self) -> Network:
        return self._network_and_arrays[0]

    @cached_property
    def _make_state(self) -> Callable[[Any, Any], TrainState]:
        """(parameters, statistics) → a fresh state; one program for all arrays, each of which would else be its own."""
        optimizer, averaged = make_optimizer(self.config.optim), self.config.optim.average_decay > 0

        def make(params: Any, stats: Any) -> TrainState:
            # Copies: the step donates its state, and the initial arrays may be asked for again.
            copied: TrainState = jax.tree.map(
                jnp.copy, make_state(params, stats, optimizer, averaged=averaged)
            )
            return copied

        return jax.jit(make)

    def initial_state(self) -> TrainState:
        """A fresh state, replicated over the devices."""
        _, params, stats = self._network_and_arrays
        return self.devices.replicate(self._make_state(params, stats))  # type: ignore[no-any-return]

    def stream(self) -> grain.MapDataset:
        """The training batches of the whole run, of each this process's part."""
        train, config = self.data.split.train, self.config
        learns = config.task.learns_from_defects
        return make_training_stream(
            self.data.cache,
            self.data.of_label(train, 1) if learns else [],
            self.data.of_label(train, 0),
            self.data.slicer,
            config.augment,
            batch_size=config.train.batch_size,
            num_batches=config.train.num_steps,
            balance=config.train.balance and learns,
            seed=config.seed,
            part=(self.processes.index, self.processes.count),
        )

    def compile_step(self, state: TrainState, batch: Any) -> jax.stages.Compiled:
        """The step from `step.Carry` to `step.Carry`, compiled for the shapes of the state and the host batch."""
        optimizer = make_optimizer(self.config.optim)
        schedule = partial(learning_rate, self.config.optim)
        step = make_train_step(
            self.network.on(self.devices.platform),
            self.config.task,
            optimizer,
            schedule,
            self.config.seed,
            self.devices.axis_name,
            accumulate=self.config.train.accumulate,
            num_shards=self.devices.num_shards,
            average_decay=self.config.optim.average_decay,
        )
        guarded = skip_non_finite(step, self.config.train.skip_non_finite, self.devices.axis_name)
        return self.devices.compile_step(
            guarded, self.first_carry(state), self.devices.shard_training_batch(batch)
        )

    def first_carry(self, state: TrainState) -> Carry:
        """What the first step is given: the state, and that no step was skipped."""
        return Carry(state, self.devices.replicate(np.int32(0)))

    @cached_property
    def _judges(self) -> dict[Slicer, Future[tuple[evaluate.Predictor, float]]]:
        return {}

    @cached_property
    def _compiling(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(thread_name_prefix="compile")

    def begin_to_compile_judge(self, state: TrainState, slicer: Slicer) -> None:
        """Has `compile_judge` done its work by the time that it is called, in another thread."""
        if slicer in self._judges:
            return
        # The arrays themselves may be gone before the thread has looked at them: the step takes its state over.
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
            self.devices.localize(state.judged),
        )
        self._judges[slicer] = self._compiling.submit(self._compile_judge, like, slicer)

    def compile_judge(self, state: TrainState, slicer: Slicer) -> tuple[evaluate.Predictor, float]:
        """(compiled for this process's devices, with the state's weights; seconds that compiling took).

        Each slicer is compiled for once. Of several processes each judges its share of the images.
        """
        self.begin_to_compile_judge(state, slicer)
        judge, seconds = self._judges[slicer].result()
        return judge.with_weights(*self.devices.localize(state.judged)), seconds

    def _compile_judge(self, like: tuple[Any, Any], slicer: Slicer) -> tuple[evaluate.Predictor, float]:
        start_s = time.perf_counter()
        devices = self.devices.local()
        judge = compile_predictor(self.config, self.network, *like, slicer, devices, self.judge_batch_size)
        return replace(judge, processes=self.processes), time.perf_counter() - start_s

    def validate(
        self, judge: evaluate.Predictor, state: TrainState, indices: Sequence[int]
    ) -> dict[str, float]:
        """The figures of the state's weights on these images, the same on all processes."""
        params, stats = self.devices.localize(state.judged)
        figures = evaluate.validate(judge.with_weights(params, stats), self.data.cache, indices)
        return self.processes.of_the_first(figures)

    @property
    def judge_batch_size(self) -> int:
        return self.config.train.judge_batch_size * self.devices.local().num_devices

    def validation_sample(self) -> list[int]:
        """The validation images that training is watched on: evenly from each label, at most so many of each."""
        chosen: list[int] = []
        for label in (0, 1):
            members = self.data.of_label(self.data.split.validation, label)
            number = min(len(members), self.config.train.max_validation_images)
            chosen += [members[k * len(members) // number] for k in range(number)]
        return sorted(chosen)


def train(setup: Setup, checkpoints: Checkpoints, workdir: Path) -> Position:
    """The position after the last step; goes on from the newest whole checkpoint of the workdir."""
    config, position, state = setup.config, Position(), setup.initial_state()
    restored = checkpoints.restore_latest(lambda: state)
    if restored is not None:
        step, state, meta = restored
        position = read_position(meta, workdir)
        check_images(setup.data, meta, workdir)
        check_length(config.train, position, meta["config"]["train"]["num_steps"], workdir)
        check_skips(config.train, position, workdir)
        console.print(f"resuming from the checkpoint of step {step}")
    # Only now is the workdir this run's: a mistake up to here may be mended and the same workdir named again.
    setup.processes.by_the_first(lambda: write_atomically(workdir / CONFIG, to_json(config) + "\n"))
    if position.is_end(config.train):
        return position
    stream = setup.stream()
    start_s = time.perf_counter()
    for slicer in (setup.data.slicer.disjoint(), setup.data.judging_slicer):
        setup.begin_to_compile_judge(state, slicer)
    step_function = setup.compile_step(state, stream[0])
    watch, _ = setup.compile_judge(state, setup.data.slicer.disjoint())
    logging.info("compiled in %.1f s", time.perf_counter() - start_s)
    sample = setup.validation_sample()
    record = Record(workdir, position.step) if setup.processes.is_first else NoRecord()
    try:
        loop = Loop(
            config=config.train,
            devices=setup.devices,
            step=step_function,
            stream=stream,
            num_workers=config.data.num_workers,
            validate=lambda state: setup.validate(watch, state, sample),
            checkpoints=checkpoints,
            record=record,
            image_ids=[r.image_id for r in setup.data.manifest.records],
            meta={
                "config": json.loads(to_json(config)),
                "mean": setup.data.mean,
                "std": setup.data.std,
                "versions": package_versions(),
            },
            workdir=workdir,
            processes=setup.processes,
        )
        return loop.run(state, position)
    finally:
        record.close()


def choose_state(
    setup: Setup, checkpoints: Checkpoints, last_step: int, workdir: Path
) -> tuple[int, TrainState]:
    """(step, state) of the weights that are judged: the better of two on the whole validation side.

    The two are the best by the quick validations of training, which look at few strips and whose highest of many is
    partly luck, and the last, whose learning rate has cooled down. Here they are cut as the test side will be. One that
    is damaged is named in the log and not considered. Raises UserError without a validated checkpoint that is whole.
    """
    best_step = checkpoints.best_step()
    if best_step is None:
        raise UserError(f"`workdir` (={workdir}) holds no validated checkpoint; start in a new workdir")
    states = {}
    for step in sorted({best_step, last_step}):
        restored = checkpoints.restore_or_warn(step, setup.initial_state)
        if restored is not None:
            states[step] = restored[0]
    if not states:
        raise UserError(
            f"`workdir` (={workdir}): none of the checkpoints of steps {sorted({best_step, last_step})} can be read; "
            "restore them from a copy or start in a new workdir"
        )
    if len(states) == 1:
        return next(iter(states.items()))
    data = setup.data
    judge, _ = setup.compile_judge(states[best_step], data.judging_slicer)
    quality = {}
    for step, state in states.items():
        console.print(f"comparing checkpoints on {len(data.split.validation)} validation images: step {step}")
        quality[step] = setup.validate(judge, state, data.split.validation)["quality"]
    chosen = max(quality, key=quality.__getitem__)
    shown = ", ".join(f"{value:.4f} at step {step}" for step, value in quality.items())
    console.print(f"judged is step {chosen}; quality {shown}")
    return chosen, states[chosen]


def judge(
    setup: Setup, state: TrainState, best_step: int, position: Position, workdir: Path
) -> dict[str, Any]:
    """The report of the best state: calibrated on validation, then the test side once; files in the workdir."""
    data, processes = setup.data, setup.processes
    judge, compile_s = setup.compile_judge(state, data.judging_slicer)
    validation = data.split.validation
    labels = [data.labels[i] for i in validation]
    rule, scores = processes.of_the_first(evaluate.calibrate(judge, data.cache, validation, labels))
    names = [data.manifest.records[i].image_id for i in validation]
    table = scores_csv(names, labels, scores)
    processes.by_the_first(lambda: write_atomically(workdir / VALIDATION_SCORES, table))
    processes.by_the_first(lambda: write_atomically(workdir / RULE, rule.to_json()))
    records = [data.manifest.records[i] for i in data.split.test]
    processes.by_the_first(lambda: clear_folder(workdir / PICTURES))
    draw = TestPictures(rule, workdir, processes)
    result = evaluate.judge_test_side(judge, records, data.cache.shape, rule, draw)
    return processes.by_the_first(
        lambda: write_report(setup, state, best_step, position, rule, result, compile_s, workdir)
    )


def write_report(
    setup: Setup,
    state: TrainState,
    best_step: int,
    position: Position,
    rule: Thresholds,
    result: evaluate.TestResult,
    compile_s: float,
    workdir: Path,
) -> dict[str, Any]:
    """The report of a judged test side, written into the workdir after all that belongs to it."""
    data, config = setup.data, setup.config
    report = {
        "model": config.model.name,
        "task": config.task.name,
        "test": result.to_report(config.verdict),
        "decision_rule": {
            "threshold": rule.threshold,
            "pixel_threshold": rule.pixel_threshold,
            "calibration": rule.calibration,
            **{f"validation_{name}": value for name, value in rule.evidence.items()},
        },
        "cost_of_running": {
            "executing_time_s": result.executing_time_s,
            "images_per_s": len(result.labels) / result.executing_time_s,
            "compile_time_s": compile_s,
            "num_parameters": sum(int(p.size) for p in jax.tree.leaves(state.params)),
            "gflop_per_slice": forward_gflop(setup, state),
        },
        "training": {
            "best_step": best_step,
            "last_step": position.step,
            "skipped_steps": position.num_skipped,
            "train_time_s": position.train_seconds,
            "seconds_per_1000_slices": 1000
            * position.train_seconds
            / (position.step * config.train.batch_size),
        },
        "baselines": evaluate.judge_baselines(
            data.cache,
            data.split.validation,
            data.split.test,
            data.labels,
            config.verdict,
            # The others wait for as long as it takes; this process's own watchdog does not.
            setup.processes.beat,
        ),
        "data": describe_data(data, config),
        "seed": config.seed,
        "device": setup.devices.kind,
        "versions": {"python": platform.python_version(), **package_versions()},
        "config": to_dict(config),
    }
    draw_figures(result, rule.threshold, read_history(workdir / "metrics.jsonl"), workdir)
    draw_pipeline(result.example, rule, data.slicer, config, workdir)
    draw_page(result, rule, data, config, workdir)
    write_atomically(workdir / "predictions.csv", predictions_csv(result))
    # The report comes last: a workdir that has one is finished.
    text = json.dumps(evaluate.finite_or_none(report), indent=2, allow_nan=False)
    write_atomically(workdir / REPORT, text + "\n")
    return json.loads(text)  # type: ignore[no-any-return]


class TestPictures:
    """What the report page shows of the test images: thumbnails of all, of the first of either outcome files beside it.

    Of several processes each draws the images that it judges.
    """

    def __init__(self, rule: Thresholds, workdir: Path, processes: Processes) -> None:
        self._rule, self._workdir, self._processes = rule, workdir, processes
        self._num_written = {True: 0, False: 0}

    def __call__(self, record: ImageRecord, judged: evaluate.Prediction) -> Callable[[], PageEntry]:
        is_right = bool(self._rule.decide([judged.score])[0]) == bool(record.label)
        if self._num_written[is_right] >= MAX_PICTURES // self._processes.count:
            return partial(self._draw, record, judged, None)
        name = f"{PICTURES}/{self._processes.index}_{sum(self._num_written.values()):04d}"
        self._num_written[is_right] += 1
        return partial(self._draw, record, judged, name)

    def _draw(self, record: ImageRecord, judged: evaluate.Prediction, name: str | None) -> PageEntry:
        """The image's entry, with thumbnails; ``name``: of its files, less their endings, None for none."""
        mask = judged.mask if evaluate.is_marked(judged.mask) else None
        draw = partial(draw_pictures, judged.image, judged.map, self._rule.pixel_threshold, mask)
        entry = PageEntry(record.image_id, record.label, judged.score, draw())
        if name is None:
            return entry
        pictures = draw(side_px=PICTURE_SIDE_PX, quality=PICTURE_QUALITY)
        picture, overlay = f"{name}.webp", f"{name}_map.webp"
        (self._workdir / picture).write_bytes(pictures.image)
        (self._workdir / overlay).write_bytes(pictures.overlay)
        return replace(entry, picture=picture, picture_overlay=overlay)


def clear_folder(folder: Path) -> None:
    """Makes the folder, empty: what an interrupted try left may belong to other images."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def draw_page(
    result: evaluate.TestResult, rule: Thresholds, data: Data, config: RunConfig, workdir: Path
) -> None:
    """Writes the report page of the test side; what was left out of the data is listed on it."""
    summary = {
        "model": config.model.name,
        "task": config.task.name,
        "data": data.manifest.description,
        "threshold chosen by": f"{rule.calibration} on {len(data.split.validation)} validation images",
    }
    left_out = [
        PageEntry(skip.what, None, None, error=f"left out: {skip.reason}") for skip in data.manifest.skipped
    ]
    write_page(
        workdir / PAGE,
        [*left_out, *result.drawn],
        title=f"{config.model.name}, {config.task.name}: test images",
        threshold=rule.threshold,
        pixel_threshold=rule.pixel_threshold,
        summary=summary,
    )


def forward_gflop(setup: Setup, state: TrainState) -> float:
    """GFLOP of one slice's forward pass, as XLA counts them before optimisation (2 per multiply-add)."""
    shape = (1, *setup.data.slicer.slice_shape, setup.config.in_channels)

    def forward(params: Any, stats: Any, x: Any) -> Any:
        return setup.network.bind(params, stats, train=False)[0](x, None).logits

    x = jax.ShapeDtypeStruct(shape, np.float32)
    flop = count_flop(forward, state.params, state.stats, x)
    return math.nan if flop is None else flop / 1e9


def describe_data(data: Data, config: RunConfig) -> dict[str, Any]:
    """Source, split sizes, and everything that was left out, as JSON values."""
    split = data.split
    sides = {"train": split.train, "validation": split.validation, "test": split.test}
    return {
        "source": data.manifest.description,
        "classes": list(config.data.classes),
        "split": config.data.split,
        "sides": {
            name: {"images": len(side), "defective_images": len(data.of_label(side, 1))}
            for name, side in sides.items()
        },
        "largest_px": list(data.cache.largest),
        "white": white_level(data.manifest),
        "num_skipped": len(data.manifest.skipped),
        "num_leaked": sum(skip.leaks for skip in data.manifest.skipped),
        "skipped": [{"what": skip.what, "reason": skip.reason} for skip in data.manifest.skipped],
    }


def white_level(manifest: Manifest) -> int | None:
    """The value that was white in images of 16 bits; None where none of the images could have been of 16 bits."""
    whites = {record.image.white for record in manifest.records if isinstance(record.image, Photo)}
    return max(whites, default=None)


def draw_figures(
    result: evaluate.TestResult, threshold: float, history: list[dict[str, Any]], workdir: Path
) -> None:
    """Writes the figures of a run as PNG files into ``workdir/figures``."""
    # Here and below late: matplotlib takes half a second, which every command and every mistake would wait for.
    from dagm_jax import figures

    folder = workdir / "figures"
    folder.mkdir(exist_ok=True)
    counts = ImageCounts.from_decisions(result.labels, result.decisions)
    figures.plot_curves(history, folder / "curves.png")
    figures.plot_confusion(counts, folder / "confusion.png", "Test images")
    figures.plot_roc_pr(result.labels, result.scores, folder / "roc_pr.png")
    figures.plot_score_histogram(result.labels, result.scores, threshold, folder / "scores.png")
    figures.plot_gallery(result.hardest, folder / "hardest.png")


def draw_pipeline(
    example: evaluate.Prediction | None, rule: Thresholds, slicer: Slicer, config: RunConfig, workdir: Path
) -> None:
    """Writes what is done to one defective image as ``figures/pipeline.png``; there is one wherever figures are."""
    from dagm_jax.pipeline_figure import ImagePath, plot_pipeline

    assert example is not None, "every test side has defective images"
    rng = np.random.default_rng(config.seed)
    image, mask = (pad(a, (slicer.height_px, slicer.width_px)) for a in (example.image, example.mask))
    turned, _ = augment(image, mask, config.augment, rng)
    shown = ImagePath(
        source=example.image,
        turned=turned,
        # Mirror images of strips are for judging; no training step sees them.
        strips=replace(slicer, mirrored=False).cut(turned[..., None])[..., 0],
        map=example.map,
        mask=example.mask,
        score=example.score,
        threshold=rule.threshold,
        defective=bool(rule.decide([example.score])[0]),
    )
    title = f"{config.model.name}, {config.task.name}"
    plot_pipeline(shown, workdir / "figures" / "pipeline.png", title)


def predictions_csv(result: evaluate.TestResult) -> str:
    """``image,label,score,defective`` of every test image; scores with all their digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "label", "score", "defective"])
    for row in zip(result.image_ids, result.labels, result.scores, result.decisions, strict=True):
        writer.writerow([row[0], row[1], repr(float(row[2])), int(row[3])])
    return stream.getvalue()


def scores_csv(names: Sequence[str], labels: Sequence[int], scores: Sequence[float]) -> str:
    """``image,label,score`` of every validation image; scores with all their digits."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", "label", "score"])
    writer.writerows((n, label, repr(float(s))) for n, label, s in zip(names, labels, scores, strict=True))
    return stream.getvalue()


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The installed versions of these packages, by default of those that a result depends on."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return versions


@contextmanager
def locked(workdir: Path, option: str = "workdir") -> Iterator[None]:
    """Holds the folder, which the user named by ``option``, for this process; the lock ends with the process.

    Raises UserError where another holds it, and where the disk refuses what is written into it within the block.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A workdir may come from a stranger, and this file in it may be a link to one of ours.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        stream = os.fdopen(os.open(workdir / ".lock", flags, 0o666), "w")
    except OSError as error:
        raise UserError(
            f"`{option}` (={workdir}) cannot be written ({error.strerror}); name another"
        ) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"`{option}` (={workdir}) is in use by another run; wait for it or name another"
            ) from None
        with plain_disk_errors(workdir, option):
            yield


@contextmanager
def plain_disk_errors(folder: Path, option: str) -> Iterator[None]:
    """Within the block what the disk of ``folder`` refuses becomes a DiskError, and what may pass a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in PASSING_ERRORS:
            where = f": {printable(error.filename)}" if error.filename else ""
            raise UserError(
                f"work in `{option}` (={folder}) met an error of the machine ({error.strerror}{where}); mend it, or "
                "wait, and run the same command again, which goes on from what was saved last"
            ) from error
        if error.errno not in DISK_ERRORS:
            raise
        remedy = REMEDIES.get(error.errno or 0, "make room")
        raise DiskError(
            f"`{option}` (={folder}) cannot be written ({error.strerror}); {remedy} and run the same command again, "
            "which goes on from what was saved last"
        ) from error


def check_same_run(config: RunConfig, workdir: Path) -> None:
    """Raises UserError where the workdir is another run's: one whose configuration differs in what matters.

    What else differs is told. A length that differs is left to `check_length` where the run is not finished.
    """
    if not (workdir / CONFIG).exists():
        return
    changed = differences(read_config(workdir, "workdir"), config)
    free = FREE_FIELDS if (workdir / REPORT).exists() else FREE_FIELDS | {LENGTH}
    # Another network or task differs in many fields, of which its name says most.
    refused = sorted(changed.keys() - free, key=lambda name: (not name.endswith(".name"), name))
    if refused:
        old, new = changed[refused[0]]
        raise UserError(
            f"`workdir` (={workdir}) holds a run with {refused[0]}={old}, not {new} ({len(refused)} fields differ); "
            "use its configuration or another workdir"
        )
    for name, (old, new) in changed.items():
        console.print(f"{workdir} holds a run with {name}={old}; it goes on with {new}")


def check_images(data: Data, meta: dict[str, Any], workdir: Path) -> None:
    """Raises UserError where a checkpoint is of a run on other images, as far as the training side's greys tell."""
    for name, now in (("mean", data.mean), ("std", data.std)):
        if not math.isclose(meta[name], now, rel_tol=1e-9):
            raise UserError(
                f"`workdir` (={workdir}) holds a run on other images: the {name} of its training side is "
                f"{meta[name]:.6g}, and of the images found now {now:.6g}; put its images back, or use another workdir"
            )


def check_length(config: TrainConfig, position: Position, num_steps: int, workdir: Path) -> None:
    """Raises UserError where a run of ``num_steps`` that has come so far would have gone another way with ``config``.

    Until the cool-down has begun, a run with another upper bound has taken the same steps, as long as it would not have
    begun to cool down either.
    """
    if config.num_steps == num_steps:
        return
    if position.end_step is not None:
        raise UserError(
            f"`{LENGTH}` (={config.num_steps}): `workdir` (={workdir}) holds a run with {LENGTH}={num_steps} that "
            f"cools down towards its end at step {position.end_step}, which can no longer move; use {num_steps}, or "
            "another workdir"
        )
    # At that step too: it has been validated as one that trains on, or is about to be saved a second time.
    if position.step >= config.last_cooldown_begin:
        raise UserError(
            f"`{LENGTH}` (={config.num_steps}): `workdir` (={workdir}) holds a run with {LENGTH}={num_steps} at step "
            f"{position.step}, at or past the {config.last_cooldown_begin} at which so short a one cools down; use "
            f"{num_steps}, or another workdir"
        )


def check_skips(config: TrainConfig, position: Position, workdir: Path) -> None:
    """Raises UserError where a run has skipped more steps than ``config`` allows for: none would move it any more."""
    if position.num_skipped > config.skip_non_finite:
        raise UserError(
            f"`train.skip_non_finite` (={config.skip_non_finite}): `workdir` (={workdir}) holds a run that has skipped "
            f"{position.num_skipped} steps that were not finite; use at least {position.num_skipped}, or another "
            "workdir"
        )


def read_position(meta: dict[str, Any], workdir: Path) -> Position:
    """Where a checkpoint's run stands; raises UserError where another release has put it in other words."""
    try:
        return Position(**meta["position"])
    except TypeError as error:
        raise UserError(
            f"`workdir` (={workdir}) holds an unfinished run written by {written_by(meta)}, whose position this "
            f"release does not know ({error}); finish it with that one, or use another workdir"
        ) from error


def print_report(report: dict[str, Any], workdir: Path) -> None:
    """The main figures as a short table on the terminal."""
    test, rule, cost = report["test"], report["decision_rule"], report["cost_of_running"]

    def share(name: str) -> str:
        value, interval = test[name], test.get(f"{name}_interval_95")
        if value is None:
            return "undefined"
        return f"{value:.4f}" + (f"  ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")

    table = Table(
        title=f"{report['model']}, {report['task']}: {test['num_images']} test images", title_justify="left"
    )
    table.add_column("figure")
    table.add_column("value (95 % interval)")
    names = (
        "accuracy",
        "precision",
        "recall",
        "f1",
        "auroc",
        "average_precision",
        "dice_defective",
        "nvidia_dice",
    )
    for name in names:
        table.add_row(name, share(name))
    table.add_row("tp fp fn tn", " ".join(str(test[name]) for name in ("tp", "fp", "fn", "tn")))
    table.add_row("threshold", f"{rule['threshold']:.4f} ({rule['calibration']} on validation)")
    table.add_row("executing time", f"{cost['executing_time_s']:.1f} s, {cost['images_per_s']:.1f} images/s")
    baselines = report["baselines"]
    table.add_row(
        "baselines",
        f"majority accuracy {baselines['majority_accuracy']:.4f}, "
        f"local energy AUROC {baselines['local_energy_auroc']:.4f}",
    )
    console.print(table)
    console.print(f"report, predictions and figures: {workdir}")

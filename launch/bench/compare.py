"""The figures of each kind of cell beside PyTorch: both sides in turn, in one process, on the same batches."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import jax
import torch
from flax import nnx
from torch.utils.data import DataLoader

from dagm_jax.data.slicing import POSITIVE_MASK_PX, POSITIVE_MASK_SHARE
from dagm_jax.types import UserError
from launch.bench import peer_data
from launch.bench.arithmetic import fastest, median, over, speed_ratio
from launch.bench.measure import CoreSeconds, Options, Values, latencies, run_pipeline
from launch.bench.ours import Subject, Subjects
from launch.bench.peer_step import (
    Twin,
    make_adamw_step,
    make_predict,
    make_twin,
    run_answers,
    run_predictions,
    run_steps,
    run_training,
)
from launch.bench.plan import Cell
from launch.bench.timing import SETTLE_S, Run, calls_per_block, seconds_of, time_alternately

OURS, PEER, EAGER, COMPILED = "ours", "peer", "eager", "compiled"
EPOCH_ROUNDS = 2
WARM_UP_BATCHES = 16
MESSAGE_LENGTH = 200


def twin_of(subject: Subject) -> Twin:
    """A new twin with our initial weights."""
    setup, state = subject.setup, subject.setup.initial_state()
    model = nnx.merge(setup.network.graphdef, state.params, state.stats)
    return make_twin(setup.config, model, setup.network.mean, setup.network.std)


def peer_runs(make: Callable[[bool], Run], compiles: bool) -> tuple[dict[str, Run], Values]:
    """(runs of the peer, called once each; seconds that the first call of each took, or why there is none).

    ``make(compiled)`` gives a run. The eager one must work; torch.compile may fail for lack of a C++ compiler.
    """
    runs: dict[str, Run] = {}
    notes: Values = {}
    for name in (EAGER, COMPILED) if compiles else (EAGER,):
        try:
            run = make(name == COMPILED)
            notes[f"{name}_first_call_s"] = seconds_of(partial(run, 1))
        except Exception as error:  # torch.compile raises whatever a compiler's absence leads to
            if name == EAGER:
                raise
            notes["compiled_error"] = one_line(error)
        else:
            runs[name] = run
    return runs, notes


def one_line(error: BaseException) -> str:
    """Kind and beginning of an error's text."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= MESSAGE_LENGTH else f"{text[:MESSAGE_LENGTH]}…"


def beside(seconds: Mapping[str, float], name: str) -> Values:
    """Seconds of both sides and the ratios, above 1 where ours is the faster one; ``name`` begins each."""
    eager, compiled = seconds.get(EAGER), seconds.get(COMPILED)
    return {
        f"{name}_ours_s": seconds[OURS],
        f"{name}_eager_s": eager,
        f"{name}_compiled_s": compiled,
        f"{name}_ratio_eager": speed_ratio(seconds[OURS], eager),
        f"{name}_ratio_compiled": speed_ratio(seconds[OURS], compiled),
        f"{name}_ratio": speed_ratio(seconds[OURS], fastest((eager, compiled))),
    }


def compare_steps(subject: Subject, options: Options) -> Values:
    """The training step on batches that lie on the device."""

    def make(compiled: bool) -> Run:
        twin = twin_of(subject)
        return run_steps(twin, make_adamw_step(twin, compiled), subject.batches)

    theirs, notes = peer_runs(make, options.peer_compiles)
    blocks = time_alternately({OURS: subject.run_steps(), **theirs}, options.repetitions)
    seconds = {name: each.median_s for name, each in blocks.items()}
    return {**beside(seconds, "step"), **notes}


def compare_inference(subject: Subject, options: Options) -> Values:
    """Maps of slices: batches on the device one after the other; and from host to host, each waited for."""
    batch = subject.batches[0]

    def make(compiled: bool) -> Run:
        twin = twin_of(subject)
        predict = make_predict(twin, compiled)
        runs[compiled] = run_answers(twin, predict, batch)
        return run_predictions(twin, predict, batch)

    runs: dict[bool, Run] = {}
    theirs, notes = peer_runs(make, options.peer_compiles)
    blocks = time_alternately({OURS: subject.run_predictions(), **theirs}, options.repetitions)
    seconds = {name: each.median_s for name, each in blocks.items()}
    answers = {OURS: subject.run_answers(), **{name: runs[name == COMPILED] for name in theirs}}
    waited = answer_alternately(answers, options.repetitions)
    answer_s = {name: median(each) for name, each in waited.items()}
    tails = [latencies(each, f"{name}_") for name, each in waited.items()]
    values = {**beside(seconds, "batch"), **beside(answer_s, "latency"), **notes}
    return {**values, **{name: value for each in tails for name, value in each.items()}}


def answer_alternately(runs: dict[str, Run], repetitions: int) -> dict[str, list[float]]:
    """Seconds of single calls of each run, a block of one after a block of the other."""
    numbers = {name: calls_per_block(run) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, run in runs.items():
            time.sleep(SETTLE_S)
            seconds[name] += [seconds_of(partial(run, 1)) for _ in range(numbers[name])]
    return seconds


# --- input ----------------------------------------------------------------------------------------------------


def training_files(subject: Subject) -> peer_data.Files:
    """The PNG files of the training side. Raises UserError where images are not one file each of one size."""
    data = subject.setup.data
    records = [data.manifest.records[i] for i in data.split.train]
    paths = [(record.image, record.mask) for record in records]
    images = tuple(image for image, _ in paths if isinstance(image, Path))
    masks = tuple(mask for _, mask in paths if mask is None or isinstance(mask, Path))
    if len(images) < len(records) or len(masks) < len(records) or data.cache.shape is None:
        raise UserError(
            "`data.root`: PyTorch's side reads PNG files of one size with a mask file each, as in DAGM's Class1 to "
            "Class10; name such a folder or leave it empty"
        )
    return peer_data.Files(images, masks, data.cache.shape)


def strips_of(subject: Subject) -> peer_data.Strips:
    """The slicing for PyTorch's side. Raises UserError where it has no such option."""
    slicer, augment = subject.setup.data.slicer, subject.setup.config.augment
    if slicer.mode != "strips" or augment.max_angle_deg or augment.max_shift_px:
        raise UserError(
            "`slicing.mode` and `augment`: PyTorch's side cuts strips and turns by k·90° only; leave the others out"
        )
    return peer_data.Strips(
        edges=slicer.vertical_edges,
        slice_px=slicer.slice_px,
        rotate90=augment.rotate90,
        flip=augment.flip,
        positive_share=POSITIVE_MASK_SHARE,
        positive_px=POSITIVE_MASK_PX,
    )


def make_set(subject: Subject) -> peer_data.StripSet:
    """PyTorch's data set of the training side; nothing is decoded yet."""
    return peer_data.StripSet(training_files(subject), strips_of(subject))


def loader_of(
    subject: Subject, dataset: peer_data.StripSet, num_slices: int, num_workers: int
) -> DataLoader[peer_data.Example]:
    """Batches of an epoch of so many slices."""
    config = subject.setup.config
    wishes = peer_data.Wishes(dataset.files, num_slices, config.train.balance, config.seed)
    pin = torch.cuda.is_available()
    return peer_data.make_loader(dataset, wishes, config.train.batch_size, num_workers, pin)


def compare_pipelines(cell: Cell, subject: Subject, options: Options) -> Values:
    """Batches of decoded images alone, in one process on each side, in turn."""
    dataset = make_set(subject)
    dataset.decode()
    theirs = run_pipeline(endless(loader_of(subject, dataset, 2**40, 0)))
    spent = {OURS: CoreSeconds(), PEER: CoreSeconds()}
    with closing(subject.with_threads().iterate()) as batches:
        runs = {OURS: run_pipeline(batches), PEER: theirs}
        for run in runs.values():
            run(WARM_UP_BATCHES)
        numbers = {name: calls_per_block(run) for name, run in runs.items()}
        for _ in range(options.repetitions):
            for name, run in runs.items():
                # Ours makes batches ahead also while the peer works: those must not count for nothing.
                run(WARM_UP_BATCHES)
                spent[name].add(run, numbers[name], cell.batch_size)
    values: Values = {}
    for name, each in spent.items():
        values[f"{name}_slices_per_s"] = each.slices / each.wall_s
        values[f"{name}_slices_per_core_s"] = each.slices / each.core_s
    values["ratio"] = over(values["ours_slices_per_s"], values["peer_slices_per_s"])
    values["ratio_per_core"] = over(values["ours_slices_per_core_s"], values["peer_slices_per_core_s"])
    return values


def endless(loader: DataLoader[peer_data.Example]) -> Iterator[peer_data.Example]:
    """Epoch after epoch."""
    while True:
        yield from loader


def compare_epochs(cell: Cell, subject: Subject, options: Options) -> Values:
    """An epoch from PNG files that have not been decoded yet, and a later one; steps compiled before.

    Both sides decode the training side's files and keep the result: ours in a file, PyTorch's in shared memory.
    """
    per_image = options.epoch_slices or subject.setup.data.slicer.num_slices
    steps = len(subject.setup.data.split.train) * per_image // cell.batch_size
    if not steps:
        raise UserError(
            f"`--epoch_slices` (={options.epoch_slices}) must give at least one batch of {cell.batch_size}"
        )
    ours = our_epochs(subject, steps, options.folder / "epochs")
    theirs, notes = peer_epochs(subject, steps, options)
    found: dict[str, list[float]] = {}
    for number in range(EPOCH_ROUNDS):
        for name, epoch in {OURS: ours, **theirs}.items():
            for which, seconds in zip(("first", "later"), epoch(number), strict=True):
                found.setdefault(f"{which}_{name}", []).append(seconds)
    values: Values = {"steps": steps, "num_images": len(subject.setup.data.split.train)}
    for which in ("first", "later"):
        medians = {name: median(found[f"{which}_{name}"]) for name in (OURS, *theirs)}
        values |= beside(medians, which)
    return {**values, **notes}


# (number of the round) → seconds of a first and of a later epoch.
Epochs = Callable[[int], tuple[float, float]]


def our_epochs(subject: Subject, steps: int, folder: Path) -> Epochs:
    """First: decoding into a new cache, and ``steps`` steps. Later: ``steps`` more on what is decoded."""
    shutil.rmtree(folder, ignore_errors=True)
    subject.run_steps()(2)

    def epochs(number: int) -> tuple[float, float]:
        start_s = time.perf_counter()
        fed = subject.on_files(folder / str(number))
        with closing(fed.iterate()) as batches:
            run = subject.run_training(batches)
            run(steps)
            first_s = time.perf_counter() - start_s
        with closing(fed.iterate()) as batches:
            run = subject.run_training(batches)
            return first_s, seconds_of(partial(run, steps))

    return epochs


def peer_epochs(subject: Subject, steps: int, options: Options) -> tuple[dict[str, Epochs], Values]:
    """The same by PyTorch, eager and compiled; worker processes are started before the clock."""
    num_slices = steps * subject.setup.config.train.batch_size
    dataset = make_set(subject)
    loader = loader_of(subject, dataset, num_slices, options.peer_workers)
    next(iter(loader))
    training: dict[str, Callable[[Iterator[Any]], Run]] = {}

    def make(compiled: bool) -> Run:
        twin = twin_of(subject)
        step = make_adamw_step(twin, compiled)
        training[COMPILED if compiled else EAGER] = lambda examples: run_training(twin, step, examples)
        return run_steps(twin, step, subject.batches)

    runs, notes = peer_runs(make, options.peer_compiles)

    def epochs(number: int, name: str) -> tuple[float, float]:
        del number
        start_s = time.perf_counter()
        dataset.decode()
        training[name](iter(loader))(steps)
        first_s = time.perf_counter() - start_s
        return first_s, seconds_of(lambda: training[name](iter(loader))(steps))

    return {name: partial(epochs, name=name) for name in runs}, notes


def compare(cell: Cell, subjects: Subjects, options: Options) -> Values:
    """The figures of a cell whose kind begins with ``peer_``."""
    subject = subjects.of(cell)
    jax.block_until_ready(subject.setup.initial_state())
    match cell.kind:
        case "peer_step":
            return compare_steps(subject, options)
        case "peer_inference":
            return compare_inference(subject, options)
        case "peer_pipeline":
            return compare_pipelines(cell, subject, options)
        case "peer_epoch":
            return compare_epochs(cell, subject, options)
    raise ValueError(f"`cell.kind` (={cell.kind}) is none that is compared here")

"""Figures of each kind of cell beside PyTorch: ours and theirs in turn, in one process, on the same batches."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from dagm_jax.command_line import one_line
from dagm_jax.errors import UserError
from launch.bench import peer_data, peer_step
from launch.bench.measure import Options, Values, over, pipeline_rates
from launch.bench.plan import Cell
from launch.bench.subject import Subject
from launch.bench.timing import Run, repeat, seconds_of, time_alternately

OURS, EAGER, COMPILED = "ours", "eager", "compiled"
EPOCH_ROUNDS = 2
# Most characters of an error in a note.
MESSAGE_LENGTH = 200


def twin_of(subject: Subject) -> peer_step.Twin:
    """A new PyTorch twin of the run's network with its initial weights."""
    state = subject.setup.initial_state()
    return peer_step.make_twin(subject.setup.config, subject.setup.network, state.params, state.stats)


def peer_runs(make: Callable[[bool], tuple[Any, ...]], compiles: bool) -> tuple[dict[str, Any], Values]:
    """(name → what ``make`` gives for each form of PyTorch's; ``compiled_error`` where torch.compile failed).

    ``make(compiled)`` gives a run, which is called once, and what belongs to it. The eager one must work; torch.compile
    may fail for lack of a C++ compiler.
    """
    made, notes = {EAGER: make(False)}, {}
    made[EAGER][0](1)
    if compiles:
        try:
            compiled = make(True)
            compiled[0](1)
            made[COMPILED] = compiled
        except Exception as error:  # torch.compile raises whatever a compiler's absence leads to
            notes["compiled_error"] = f"{type(error).__name__}: {one_line(error)}"[:MESSAGE_LENGTH]
    return made, notes


def beside(seconds: Mapping[str, float], name: str) -> Values:
    """Seconds of ours and theirs, and ratios above 1 where ours is faster; ``name`` begins each."""
    ours_s, theirs_s = seconds[OURS], {which: seconds.get(which) for which in (EAGER, COMPILED)}
    return {
        **{f"{name}_{which}_s": each_s for which, each_s in {OURS: ours_s, **theirs_s}.items()},
        **{f"{name}_ratio_{which}": over(each_s, ours_s) for which, each_s in theirs_s.items()},
        f"{name}_ratio": over(min(s for s in theirs_s.values() if s is not None), ours_s),
    }


def time_beside(runs: Mapping[str, Run], name: str, options: Options, singly: bool = False) -> Values:
    """`beside` for the medians of these runs, timed in turn."""
    blocks = time_alternately(runs, options.request.repetitions, singly=singly)
    return beside({which: each.median_s for which, each in blocks.items()}, name)


def compare_steps(cell: Cell, subject: Subject, options: Options) -> Values:
    """The training step on batches that are on the device."""

    def make(compiled: bool) -> tuple[Run]:
        twin = twin_of(subject)
        return (peer_step.run_steps(twin, peer_step.make_adamw_step(twin, compiled), subject.batches),)

    theirs, notes = peer_runs(make, options.request.peer_compiles)
    runs = {OURS: subject.run_steps(), **{name: run for name, (run,) in theirs.items()}}
    return {**time_beside(runs, "step", options), **notes}


def compare_inference(cell: Cell, subject: Subject, options: Options) -> Values:
    """Slices to maps: throughput of batches on the device, latency from host memory to host memory."""
    image = peer_step.as_examples(subject.batches[:1])[0][0]

    def make(compiled: bool) -> tuple[Run, Run]:
        twin = twin_of(subject)
        predict, placed = peer_step.make_predict(twin, compiled), image.to(twin.device)
        answers = repeat(lambda: predict(image.to(twin.device)).cpu())
        return repeat(lambda: predict(placed), twin.synchronize), answers

    theirs, notes = peer_runs(make, options.request.peer_compiles)
    runs = {OURS: (subject.run_predictions(), subject.run_answers()), **theirs}
    batches, answers = ({name: each[i] for name, each in runs.items()} for i in (0, 1))
    latency = time_beside(answers, "latency", options, singly=True)
    return {**time_beside(batches, "batch", options), **latency, **notes}


def make_dataset(subject: Subject) -> peer_data.StripDataset:
    """PyTorch's data set of the training split's PNG files; nothing is decoded yet.

    Raises UserError where images are not one file each of one size, or are sliced or augmented in ways that it lacks.
    """
    data, augment = subject.setup.data, subject.setup.config.augment
    images = tuple(sample.image for sample in subject.training_samples)
    masks = tuple(sample.mask for sample in subject.training_samples)
    are_files = all(isinstance(path, Path | None) for path in (*images, *masks))
    if not are_files or data.cache.shape is None:
        raise UserError(
            "`data.root`: the PyTorch twin reads PNG files of one size with a mask file each, as in DAGM's Class1 to "
            "Class10; name such a folder or leave it empty"
        )
    if data.slicer.mode != "strips" or augment.max_angle_deg or augment.max_shift_px:
        raise UserError(
            "`slicing.mode` and `augment`: the PyTorch twin cuts strips and turns by k·90° only; leave the others out"
        )
    return peer_data.StripDataset(images, masks, data.cache.shape, data.slicer, augment)  # type: ignore[arg-type]


def compare_pipelines(cell: Cell, subject: Subject, options: Options) -> Values:
    """Batches of decoded images, ours and DataLoader's in turn, without worker processes."""
    dataset = make_dataset(subject)
    dataset.decode()
    theirs = iter(peer_data.make_loader(dataset, subject.setup.config, 2**40))
    values = pipeline_rates(subject, {"ours_": None, "peer_": repeat(lambda: next(theirs))}, options)
    values["ratio"] = over(values["ours_slices_per_s"], values["peer_slices_per_s"])
    values["ratio_per_core"] = over(values["ours_slices_per_core_s"], values["peer_slices_per_core_s"])
    return values


# Type: number of the round → seconds of a first and of a later epoch.
Epochs = Callable[[int], tuple[float, float]]


def compare_epochs(cell: Cell, subject: Subject, options: Options) -> Values:
    """A first epoch from PNG files that are not decoded yet, and a later one; steps are compiled before.

    Both decode the training split's files and keep the result: ours in a file, PyTorch in shared memory.
    """
    per_image = options.request.epoch_slices or subject.setup.data.slicer.num_slices
    steps = len(subject.setup.data.split.train) * per_image // cell.batch_size
    if not steps:
        raise UserError(f"`--epoch_slices` (={per_image}) must give at least one batch of {cell.batch_size}")
    theirs, notes = peer_epochs(subject, steps, options)
    both = {OURS: our_epochs(subject, steps, options.request.output / "epochs"), **theirs}
    rounds = [{name: epochs(number) for name, epochs in both.items()} for number in range(EPOCH_ROUNDS)]
    values: Values = {"steps": steps, "num_images": len(subject.setup.data.split.train)}
    for i, which in enumerate(("first", "later")):
        values |= beside({name: median(seconds[name][i] for seconds in rounds) for name in both}, which)
    return {**values, **notes}


def our_epochs(subject: Subject, steps: int, folder: Path) -> Epochs:
    """Our epochs. First: decoding into a new cache, and ``steps`` steps; later: ``steps`` more on decoded images."""
    shutil.rmtree(folder, ignore_errors=True)
    subject.run_steps()(2)

    def epochs(number: int) -> tuple[float, float]:
        start_s = time.perf_counter()
        fed = subject.decode(folder / str(number))
        with closing(fed.iterate()) as batches:
            subject.run_training(batches)(steps)
            first_s = time.perf_counter() - start_s
        with closing(fed.iterate()) as batches:
            return first_s, seconds_of(partial(subject.run_training(batches), steps))

    return epochs


def peer_epochs(subject: Subject, steps: int, options: Options) -> tuple[dict[str, Epochs], Values]:
    """(PyTorch's epochs, eager and compiled; notes of `peer_runs`). Worker processes are started before the clock."""
    dataset = make_dataset(subject)
    config, num_workers = subject.setup.config, options.request.peer_workers
    loader = peer_data.make_loader(dataset, config, steps * config.train.batch_size, num_workers)
    next(iter(loader))

    def make(compiled: bool) -> tuple[Run, Epochs]:
        twin = twin_of(subject)
        step = peer_step.make_adamw_step(twin, compiled)

        def later() -> None:
            peer_step.run_training(twin, step, iter(loader))(steps)

        def first() -> None:
            dataset.decode()
            later()

        warm_up = peer_step.run_steps(twin, step, subject.batches)
        return warm_up, lambda number: (seconds_of(first), seconds_of(later))

    made, notes = peer_runs(make, options.request.peer_compiles)
    return {name: epochs for name, (_, epochs) in made.items()}, notes


KINDS: dict[str, Callable[[Cell, Subject, Options], Values]] = {
    "peer_step": compare_steps,
    "peer_inference": compare_inference,
    "peer_pipeline": compare_pipelines,
    "peer_epoch": compare_epochs,
}

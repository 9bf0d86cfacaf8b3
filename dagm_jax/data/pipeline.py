"""The grain pipeline: a resumable stream of training batches from decoded images.

The stream is a ``grain.MapDataset``: ``ds[step]`` is the batch of that step, a function of (seed, step) alone, whatever
the number of worker processes; ``ds[step:]`` resumes it exactly.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any

import grain
import numpy as np

from dagm_jax.data.augment import Move, draw_moves
from dagm_jax.data.cache import ImageCache
from dagm_jax.data.config import AugmentConfig
from dagm_jax.data.sampling import BalancedSampler, Epochs, SampleSpec, pick_slice
from dagm_jax.data.slicing import Slicer, pad, slice_labels
from dagm_jax.errors import ProcessLost, UserError
from dagm_jax.types import Batch

# Beginning of grain's message when a worker process has ended by itself.
WORKER_LOST = "Worker process was terminated unexpectedly"


@dataclass(frozen=True)
class MakeBatch(grain.transforms.RandomMap):
    """Builds a batch: one slice of a randomly moved view for each requested (image, kind).

    Images smaller than the slicer's are padded. The view (rotation, flip) is drawn first, then one of *its* slices of
    that kind. rows: those of the batch that are made; what is drawn for them does not depend on which they are. A batch
    at a time, because calls for single slices, grain's and numpy's, take longer than copying their pixels.
    """

    cache: ImageCache
    slicer: Slicer
    augment: AugmentConfig
    rows: slice

    def random_map(self, element: list[SampleSpec], rng: np.random.Generator) -> Batch:
        shape = (self.slicer.height_px, self.slicer.width_px)
        moves = draw_moves(shape, self.augment, rng, len(element))
        numbers = rng.random(len(element)).tolist()
        drawn = list(zip(element, moves, numbers, strict=True))[self.rows]
        size = (len(drawn), *self.slicer.slice_shape, 1)
        batch = Batch(
            image=np.empty(size, np.uint8),
            mask=np.zeros(size, np.uint8),
            label=np.empty(len(drawn), np.int32),
            valid=np.ones(len(drawn), bool),
            image_index=np.array([spec.image_index for spec, _, _ in drawn], np.int32),
        )
        for row, (spec, move, u) in enumerate(drawn):
            batch["label"][row] = self._fill(spec, move, u, batch["image"][row], batch["mask"][row])
        return batch

    def _fill(
        self, spec: SampleSpec, move: Move, u: float, image_out: np.ndarray, mask_out: np.ndarray
    ) -> int:
        """Writes a slice of the moved image, and its part of the mask over zeros; returns its label."""
        shape = (self.slicer.height_px, self.slicer.width_px)
        image, sums = self.cache.image(spec.image_index), self.cache.mask_sums(spec.image_index)
        if move.is_dihedral and (not sums.total or (self.slicer.is_strips and image.shape == shape)):
            # The usual case: the labels follow from the kept sums, so that only pixels of the chosen slice are read.
            labels = np.zeros(self.slicer.num_slices, np.int32)
            if sums.total:
                held = self.slicer.held_by_strips(*move.line_sums(sums.down, sums.across))
                labels = slice_labels(held, sums.total)
            image, mask = move.turn(pad(image, shape)), None
        else:
            image, mask = move(pad(image, shape), pad(self.cache.mask(spec.image_index), shape))
            # The total is the image's own: in what is added to a small one, its defect may be there once more.
            labels = slice_labels(self.slicer.held(mask), sums.total)
        k = pick_slice(labels, spec.kind, u)
        image_out[:] = self.slicer.cut_one(image[:, :, None], k)
        if labels[k]:
            mask = move.turn(self.cache.mask(spec.image_index)) if mask is None else mask
            mask_out[:] = self.slicer.cut_one(mask[:, :, None], k)
        return int(labels[k])


def make_training_stream(
    cache: ImageCache,
    defective: Sequence[int],
    good: Sequence[int],
    slicer: Slicer,
    augment_config: AugmentConfig,
    *,
    batch_size: int,
    num_batches: int,
    balance: bool,
    seed: int,
    part: tuple[int, int] = (0, 1),
) -> grain.MapDataset:
    """A dataset of ``num_batches`` training batches of the images ``defective`` and ``good``.

    balance: as `BalancedSampler` has it; raises UserError where it has no defective image to draw from.
    part (i, n): block i of n of each batch, where n divides ``batch_size``; the blocks side by side are the batch.
    """
    if balance and not defective:
        raise UserError(
            "`train.balance` (=True) needs defective images in the train split, which has none; "
            "set it to False"
        )
    num_slices = batch_size * num_batches
    # Streams of one seed must not shuffle alike.
    everything = Epochs(sorted([*defective, *good]), num_slices, 3 * seed + 1)
    positive = Epochs(defective, num_slices, 3 * seed) if balance else None
    sampler = BalancedSampler(positive, everything, batch_size, num_batches)
    index, count = part
    size = batch_size // count
    make_batch = MakeBatch(cache, slicer, augment_config, slice(index * size, (index + 1) * size))
    return grain.MapDataset.source(sampler).seed(seed + 2).random_map(make_batch)


def iterate(stream: grain.MapDataset, start: int, num_workers: int) -> Generator[Any, None, None]:
    """The batches of ``stream`` from number ``start`` on, prefetched by threads or by ``num_workers`` processes.

    Closing it ends the processes, as any death of this one does. Raises ProcessLost where one of them died.
    """
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
    dataset = stream[start:].to_iter_dataset(options)
    if num_workers:
        workers = grain.MultiprocessingOptions(num_workers=num_workers)
        dataset = dataset.mp_prefetch(workers, worker_init_fn=_end_with_parent)
    # Processes that are started with signals held never get them: a terminal's Ctrl-C goes to all of its processes,
    # and the loop needs batches up to the step at which it saves.
    held = _signals_held if num_workers else nullcontext
    with held():
        iterator = iter(dataset)
    try:
        with held():
            batch = next(iterator, None)
        while batch is not None:
            # A copy: shared memory would be held for as long as anyone looks at the batch.
            yield {name: np.array(values) for name, values in batch.items()} if num_workers else batch
            batch = next(iterator, None)
    except RuntimeError as error:
        if not str(error).startswith(WORKER_LOST):
            raise
        raise ProcessLost(
            f"a worker process of the input pipeline has died ({str(error).partition('. ')[0]}), maybe for lack of "
            "memory: fewer of them need less (--config.data.num_workers); the same command goes on from what was saved "
            "last"
        ) from error
    finally:
        # grain frees a dropped batch in a thread of its own, while it waits for the workers to end; one that is dropped
        # later would be left in shared memory, and the resource tracker would warn of it.
        batch = None
        iterator.close()


def _end_with_parent(index: int, count: int) -> None:
    """Ends this worker process as soon as the one that started it is gone, of which no signal comes."""
    del index, count
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, name="end with parent", daemon=True).start()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM wait; processes that are started in it never get them."""
    # Where multiprocessing starts its tracker of resources, it lets them through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

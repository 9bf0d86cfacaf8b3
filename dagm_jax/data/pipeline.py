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
from dagm_jax.data.config import AugmentConfig, SlicingConfig
from dagm_jax.data.sampling import BalancedSampler, Epochs, SampleSpec, pick_slice
from dagm_jax.data.slicing import PadMode, pad, random_tile, slice_labels, slicer_for
from dagm_jax.data.synthetic.draw import add_defect, any_piece
from dagm_jax.errors import ProcessLost, UserError
from dagm_jax.types import Batch

# Beginning of grain's message when a worker process has ended by itself.
WORKER_LOST = "Worker process was terminated unexpectedly"


@dataclass(frozen=True)
class MakeBatch(grain.transforms.RandomMap):
    """Builds a batch: one slice of a randomly moved view for each requested (image, kind).

    The view (rotation, flip) is drawn first, then one of *its* slices of that kind. continues: whether there are images
    that are continued to a slice, so that batches tell which pixels are theirs. rows: those of the batch that are made;
    what is drawn for them does not depend on which they are. good: images that are shown in synthetic defects, which
    ``synthetic_share`` of the slices of good images get. A batch at a time, because calls for single slices,
    grain's and numpy's, take longer than copying their pixels.
    """

    cache: ImageCache
    slicing: SlicingConfig
    augment: AugmentConfig
    continues: bool
    rows: slice
    good: tuple[int, ...] = ()
    synthetic_share: float = 0.0

    def random_map(self, element: list[SampleSpec], rng: np.random.Generator) -> Batch:
        moves = draw_moves(self.augment, rng, len(element))
        numbers = rng.random(len(element)).tolist()
        drawn = list(zip(element, moves, numbers, strict=True))[self.rows]
        size = (len(drawn), *slicer_for(self.slicing, self.cache.largest, self.cache.largest).slice_shape, 1)
        batch = Batch(
            image=np.empty(size, np.uint8),
            mask=np.zeros(size, np.uint8),
            label=np.empty(len(drawn), np.int32),
            valid=np.ones(len(drawn), bool),
            image_index=np.array([spec.image_index for spec, _, _ in drawn], np.int32),
        )
        if self.continues:
            batch["inside"] = np.ones(size, bool)
        for row, (spec, move, u) in enumerate(drawn):
            self._fill(spec, move, u, batch, row)
        return batch

    def _fill(self, spec: SampleSpec, move: Move, u: float, batch: Batch, row: int) -> None:
        """Writes a slice of the moved image, its label, and its part of the mask over zeros."""
        image, sums = self.cache.image(spec.image_index), self.cache.mask_sums(spec.image_index)
        if image.shape[0] != image.shape[1] and not self.slicing.has_square_tiles:
            move = move.lying()
        # The mask is read where it is needed.
        mask = None
        if move.is_dihedral:
            image = move.turn(image)
        else:
            image, mask = move(image, self.cache.mask(spec.image_index))
        own = image.shape[0], image.shape[1]
        slicer = slicer_for(self.slicing, self.cache.largest, own)
        shape = slicer.height_px, slicer.width_px
        if mask is None and sums.total and not (slicer.is_strips and own == shape):
            mask = move.turn(self.cache.mask(spec.image_index))
        if slicer.mode == "tiles":
            marked = np.broadcast_to(False, own) if mask is None else mask
            rng = np.random.default_rng(int(u * 2**53))
            place, label = random_tile(marked, slicer.slice_shape, sums.total, spec.kind, rng)
        else:
            held = np.zeros(slicer.num_slices, np.int32)
            if mask is not None:
                held = slicer.held(pad(mask, shape, "constant"))
            elif sums.total:
                # The usual case: kept sums tell what slices hold, so that only pixels of the chosen one are read.
                held = slicer.held_by_strips(*move.line_sums(sums.down, sums.across))
            # The total is the image's own, also where a move has pushed a part of the defect beyond the border.
            labels = slice_labels(held, sums.total)
            k = pick_slice(labels, spec.kind, u)
            label = int(labels[k])

        def cut(array: np.ndarray, mode: PadMode) -> np.ndarray:
            if slicer.mode == "tiles":
                return pad(array[place], slicer.slice_shape, mode)[:, :, None]
            return slicer.cut_one(pad(array, shape, mode)[:, :, None], k)  # type: ignore[no-any-return]

        batch["label"][row] = label
        batch["image"][row] = cut(image, "edge")
        if label:
            marked = move.turn(self.cache.mask(spec.image_index)) if mask is None else mask
            batch["mask"][row] = cut(marked, "constant")
        if "inside" in batch:
            batch["inside"][row] = cut(np.broadcast_to(True, own), "constant")
        if self.synthetic_share and not sums.total:
            rng = np.random.default_rng((int(u * 2**53), 1))
            if rng.random() < self.synthetic_share:
                self._add_defect(batch, row, rng)

    def _add_defect(self, batch: Batch, row: int, rng: np.random.Generator) -> None:
        """Draws a synthetic defect into a slice of a good image."""
        image = batch["image"][row, :, :, 0]
        other = self.cache.image(self.good[rng.integers(len(self.good))])
        drawn = add_defect(image, any_piece(other, image.shape, rng), rng)
        if drawn is None:
            return
        mask = drawn[1]
        if "inside" in batch:
            mask &= batch["inside"][row, :, :, 0]
        if mask.any():
            batch["image"][row, :, :, 0], batch["mask"][row, :, :, 0], batch["label"][row] = drawn[0], mask, 1


def make_training_stream(
    cache: ImageCache,
    defective: Sequence[int],
    good: Sequence[int],
    slicing: SlicingConfig,
    augment_config: AugmentConfig,
    *,
    batch_size: int,
    num_batches: int,
    balance: bool,
    seed: int,
    part: tuple[int, int] = (0, 1),
    synthetic_share: float = 0.0,
) -> grain.MapDataset:
    """A dataset of ``num_batches`` training batches of the images ``defective`` and ``good``.

    balance: as `BalancedSampler` has it; raises UserError where it has no defective image to draw from.
    part (i, n): block i of n of each batch, where n divides ``batch_size``; the blocks side by side are the batch.
    synthetic_share: of the slices of good images, those with a synthetic defect.
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
    rows = slice(index * size, (index + 1) * size)
    slicers = [(shape, slicer_for(slicing, cache.largest, shape)) for shape in set(cache.shapes)]
    # Tiles may reach over an image's edge.
    continues = slicing.mode == "tiles" or any((s.height_px, s.width_px) != shape for shape, s in slicers)
    make_batch = MakeBatch(cache, slicing, augment_config, continues, rows, tuple(good), synthetic_share)
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

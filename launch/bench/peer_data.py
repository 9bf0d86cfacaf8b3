"""PyTorch's input pipeline: PNG files decoded by threads, then strips of turned images by ``DataLoader``.

Slices, augmentation and balance are those of ours, written anew. Free of jax: the loader's worker processes import this
module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from dagm_jax.data.config import AugmentConfig
from dagm_jax.data.slicing import POSITIVE_MASK_PX, POSITIVE_MASK_SHARE, Slicer

if TYPE_CHECKING:
    from dagm_jax.config import RunConfig

# Type of a strip or a batch: (image, mask, label).
Example = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# Type of a request: (index of an image, whether its strip is positive, None for any).
SampleRequest = tuple[int, bool | None]
DECODE_THREADS = 4


@dataclass(frozen=True)
class StripSource:
    """Images of the training split, all of ``shape`` (h, w), and how they are turned and cut into full-height strips.

    images, masks: a file each, None for the mask of a good image.
    """

    images: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    shape: tuple[int, int]
    slicer: Slicer
    augment: AugmentConfig


class StripDataset(Dataset[Example]):
    """Data set whose items are random strips, one for each sample request.

    Decoded images are in shared memory, so that worker processes hold them once and may start before `decode`.
    """

    def __init__(self, source: StripSource) -> None:
        self.source = source
        shape = (len(source.images), *source.shape)
        self.images = torch.zeros(shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self.masks = torch.zeros(shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._rng: np.random.Generator | None = None

    def decode(self) -> None:
        """Reads all files; Pillow decodes without the interpreter's lock."""
        images, masks = self.images.numpy(), self.masks.numpy()

        def read(index: int) -> None:
            with Image.open(self.source.images[index]) as picture:
                images[index] = np.asarray(picture)
            mask = self.source.masks[index]
            if mask is not None:
                with Image.open(mask) as picture:
                    masks[index] = np.asarray(picture) > 127

        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            list(pool.map(read, range(len(self.source.images))))

    def __getitem__(self, request: SampleRequest) -> Example:
        if self._rng is None:
            # torch gives every worker a seed of its own.
            self._rng = np.random.default_rng(torch.initial_seed() % 2**63)
        rng, source, (index, positive) = self._rng, self.source, request
        image, mask = self.images[index].numpy(), self.masks[index].numpy()
        if source.augment.flip and rng.random() < 0.5:
            image, mask = image[:, ::-1], mask[:, ::-1]
        if source.augment.rotate90:
            turns = int(rng.integers(4))
            image, mask = np.rot90(image, turns), np.rot90(mask, turns)
        labels = label_strips(mask, source.slicer)
        fitting = np.flatnonzero((labels == 1) == positive) if positive is not None else ()
        chosen = int(rng.choice(fitting)) if len(fitting) else int(rng.integers(len(labels)))
        left = source.slicer.vertical_edges[chosen]
        cut = (slice(None), slice(left, left + source.slicer.slice_px), None)
        image, mask = np.ascontiguousarray(image[cut]), np.ascontiguousarray(mask[cut])
        # int32 as in our batches, for whose types the step is compiled.
        label = torch.tensor(int(labels[chosen]), dtype=torch.int32)
        return torch.from_numpy(image), torch.from_numpy(mask), label


def label_strips(mask: np.ndarray, slicer: Slicer) -> np.ndarray:
    """Label of each strip: 1 where it holds enough of the mask, 0 where none, -1 between."""
    until = np.concatenate([[0], np.cumsum(mask.sum(axis=0, dtype=np.int32))])
    left = np.array(slicer.vertical_edges)
    held = until[left + slicer.slice_px] - until[left]
    enough = held >= min(POSITIVE_MASK_SHARE * until[-1], POSITIVE_MASK_PX)
    return np.where(held == 0, 0, np.where(enough, 1, -1))


class BalancedSampler(Sampler[SampleRequest]):
    """Sampler of ``number`` requests: in turn a positive strip of a defective image, a negative strip of any image.

    Without ``balance`` any strip of any image. Images are shuffled, and again when all have been drawn.
    """

    def __init__(self, source: StripSource, number: int, balance: bool, seed: int) -> None:
        self.source, self.number, self.balance = source, number, balance
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return self.number

    def _shuffled(self, indices: Sequence[int]) -> Iterator[int]:
        while True:
            yield from self.rng.permutation(indices).tolist()

    def __iter__(self) -> Iterator[SampleRequest]:
        everything = self._shuffled(range(len(self.source.images)))
        defective = self._shuffled([i for i, mask in enumerate(self.source.masks) if mask is not None])
        for k in range(self.number):
            if not self.balance:
                yield next(everything), None
            elif k % 2 == 0:
                yield next(defective), True
            else:
                yield next(everything), False


def make_loader(
    dataset: StripDataset, config: RunConfig, num_slices: int, num_workers: int = 0
) -> DataLoader[Example]:
    """Loader of an epoch of so many slices in batches; worker processes stay from epoch to epoch."""
    train = config.train
    return DataLoader(
        dataset,
        batch_size=train.batch_size,
        sampler=BalancedSampler(dataset.source, num_slices, train.balance, config.seed),
        num_workers=num_workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # Forking a process in which jax has threads may hang.
        multiprocessing_context="spawn" if num_workers else None,
    )

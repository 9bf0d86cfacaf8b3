"""PyTorch's input pipeline: PNG files decoded by threads, then strips of turned images by ``DataLoader``.

Augmentation and balance are those of ours, written anew; edges and labels of strips are ours. Free of jax: the loader's
worker processes import this module.
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
from dagm_jax.data.slicing import Slicer, slice_labels

if TYPE_CHECKING:
    from dagm_jax.config import RunConfig

# Type of a strip, and of a batch: (image uint8 [b h w 1], mask uint8 {0, 1} [b h w 1], label int32 [b]).
Example = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
# Type of a request: (index of an image, whether its strip is positive, None for any).
SampleRequest = tuple[int, bool | None]
DECODE_THREADS = 4


@dataclass(eq=False)
class StripDataset(Dataset[Example]):
    """Data set whose items are random full-height strips of turned training images, one for each sample request.

    image_files, mask_files: one each, None for the mask of a good image; shape: (h, w) of all. Decoded images are in
    shared memory, so that worker processes hold them once and may start before `decode`.
    """

    image_files: tuple[Path, ...]
    mask_files: tuple[Path | None, ...]
    shape: tuple[int, int]
    slicer: Slicer
    augment: AugmentConfig

    def __post_init__(self) -> None:
        shape = (2, len(self.image_files), *self.shape)
        self.pixels = torch.zeros(shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._rng: np.random.Generator | None = None

    def decode(self) -> None:
        """Reads all files; Pillow decodes without the interpreter's lock."""

        def read(image: np.ndarray, mask: np.ndarray, image_file: Path, mask_file: Path | None) -> None:
            with Image.open(image_file) as picture:
                image[:] = np.asarray(picture)
            if mask_file is not None:
                with Image.open(mask_file) as picture:
                    mask[:] = np.asarray(picture) > 127

        with ThreadPoolExecutor(DECODE_THREADS) as pool:
            list(pool.map(read, *self.pixels.numpy(), self.image_files, self.mask_files))

    def __getitem__(self, request: SampleRequest) -> Example:
        if self._rng is None:
            # torch gives every worker a seed of its own.
            self._rng = np.random.default_rng(torch.initial_seed() % 2**63)
        rng, (index, positive) = self._rng, request
        pixels = self.pixels[:, index].numpy()
        if self.augment.flip and rng.random() < 0.5:
            pixels = pixels[:, :, ::-1]
        if self.augment.rotate90:
            pixels = np.rot90(pixels, int(rng.integers(4)), axes=(1, 2))
        down = pixels[1].sum(axis=0, dtype=np.int32)
        labels = slice_labels(self.slicer.held_by_strips(down, down), down.sum())
        fitting = np.flatnonzero((labels == 1) == positive) if positive is not None else ()
        chosen = int(rng.choice(fitting)) if len(fitting) else int(rng.integers(len(labels)))
        left = self.slicer.vertical_edges[chosen]
        image, mask = map(np.ascontiguousarray, pixels[:, :, left : left + self.slicer.slice_px, None])
        # int32 as in our batches, for whose types the step is compiled.
        return torch.from_numpy(image), torch.from_numpy(mask), torch.tensor(labels[chosen])


class BalancedSampler(Sampler[SampleRequest]):
    """Sampler of ``number`` requests: in turn a positive strip of a defective image, a negative strip of any image.

    Without ``balance`` any strip of any image. Images are shuffled, and again when all have been drawn.
    """

    def __init__(self, dataset: StripDataset, number: int, balance: bool, seed: int) -> None:
        self.masks, self.number, self.balance = dataset.mask_files, number, balance
        self.rng = np.random.default_rng(seed)

    def _shuffled(self, indices: Sequence[int]) -> Iterator[int]:
        while True:
            yield from self.rng.permutation(indices).tolist()

    def __iter__(self) -> Iterator[SampleRequest]:
        everything = self._shuffled(range(len(self.masks)))
        defective = self._shuffled([i for i, mask in enumerate(self.masks) if mask is not None])
        for k in range(self.number):
            positive = k % 2 == 0 if self.balance else None
            yield next(defective if positive else everything), positive


def make_loader(
    dataset: StripDataset, config: RunConfig, num_slices: int, num_workers: int = 0
) -> DataLoader[Example]:
    """Loader of an epoch of so many slices in batches; worker processes stay from epoch to epoch."""
    train = config.train
    return DataLoader(
        dataset,
        batch_size=train.batch_size,
        sampler=BalancedSampler(dataset, num_slices, train.balance, config.seed),
        num_workers=num_workers,
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        # Forking a process in which jax has threads may hang.
        multiprocessing_context="spawn" if num_workers else None,
    )

"""Contents of synthetic defects: images float32 [h w], of which those places are taken that a shape marks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Grey = NDArray[np.float32]


def level(image: Grey, other: Grey, rng: np.random.Generator) -> Grey:
    """One grey level, 1 to 4 standard deviations beside the mean."""
    return np.full_like(image, image.mean() + rng.choice([-1, 1]) * rng.uniform(1, 4) * image.std())


def shift(image: Grey, other: Grey, rng: np.random.Generator) -> Grey:
    """The image brighter or darker, with more or less contrast."""
    mean = image.mean()
    moved = rng.choice([-1, 1]) * rng.uniform(0.7, 3) * image.std()
    return mean + moved + np.exp(rng.uniform(-1, 0.7)) * (image - mean)  # type: ignore[no-any-return]


def noise(image: Grey, other: Grey, rng: np.random.Generator) -> Grey:
    """Noise with the image's own spectrum and 1 to 3 times its contrast."""
    spectrum = np.abs(np.fft.rfft2(image - image.mean()))
    phases = np.fft.rfft2(rng.normal(size=image.shape))
    drawn = np.fft.irfft2(spectrum * phases / np.maximum(np.abs(phases), 1e-9), image.shape)
    scale = rng.uniform(1, 3) * image.std() / max(float(drawn.std()), 1e-6)
    return (image.mean() + scale * drawn).astype(np.float32)  # type: ignore[no-any-return]


def patch(image: Grey, other: Grey, rng: np.random.Generator) -> Grey:
    """Another good image, turned by 180° and moved (CutPaste, NSA), at its own or at this one's brightness."""
    moved = np.roll(other[::-1, ::-1], [rng.integers(edge) for edge in other.shape], (0, 1))
    return moved if rng.random() < 0.5 else moved - moved.mean() + image.mean()


def shuffle(image: Grey, other: Grey, rng: np.random.Generator) -> Grey:
    """The image's own texture in blocks of 4 to 16 px, in another order."""
    edge = int(rng.integers(4, 17))
    rows, columns = (rng.permutation(length // edge + 1) * edge for length in image.shape)
    at = [
        np.minimum((starts[:, None] + np.arange(edge)).ravel()[:length], length - 1)
        for starts, length in zip((rows, columns), image.shape, strict=True)
    ]
    return image[np.ix_(*at)]


def wipe(image: Grey, other: Grey, rng: np.random.Generator) -> Grey:
    """The image without its fine texture, maybe along one axis alone."""
    sigmas = rng.uniform(2, 8) * np.array([(1, 1), (1, 0.1), (0.1, 1)])[rng.integers(3)]
    return ndimage.gaussian_filter(image, sigmas)  # type: ignore[no-any-return]


def warp(image: Grey, other: Grey, rng: np.random.Generator) -> Grey:
    """The image moved by a smooth field of up to some 12 px."""
    rows, columns = np.indices(image.shape, np.float32)
    waves = [
        rng.uniform(4, 12) * np.sin(2 * np.pi * place / rng.uniform(24, 80) + rng.uniform(0, 6))
        for place in (rows, columns)
    ]
    return ndimage.map_coordinates(image, (rows + waves[1], columns + waves[0]), order=1, mode="mirror")  # type: ignore[no-any-return]


ContentFunction = Callable[[Grey, Grey, np.random.Generator], Grey]
CONTENTS: tuple[ContentFunction, ...] = (
    level,
    shift,
    noise,
    patch,
    shuffle,
    wipe,
    warp,
)

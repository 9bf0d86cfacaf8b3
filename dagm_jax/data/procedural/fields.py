"""Random fields that the textures are mixed from: smooth noise, noise of a given spectrum, what a class shares."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft


def kept(values: np.ndarray) -> np.ndarray:
    """The values as float32, read-only, so that a cache may hand them out."""
    field: np.ndarray = values.astype(np.float32)
    field.setflags(write=False)
    return field


@lru_cache(maxsize=64)
def _blending(size_px: int, cell_px: float) -> np.ndarray:
    """Weights float32 [size_px, knots] that turn a coarse row of knots, one each ``cell_px``, into a smooth row.

    Cubic B-spline: at distance d (in cells) (4 - 6d^2 + 3d^3)/6 for d < 1 and (2 - d)^3/6 for 1 <= d < 2.
    A matrix product with it costs a fraction of what scipy.ndimage.zoom does.
    """
    cells = max(1, round(size_px / cell_px))
    place = (np.arange(size_px) + 0.5) / size_px * cells
    d = np.abs(place[:, None] - (np.arange(cells + 4)[None, :] - 1.5))
    weights = np.where(d < 1, (4 - 6 * d**2 + 3 * d**3) / 6, np.maximum(2 - d, 0) ** 3 / 6)
    return kept(weights)


def smooth_noise(rng: np.random.Generator, size_px: int, cell_px: float) -> np.ndarray:
    """Smooth Gaussian noise float32 [size_px size_px] of mean 0 and sd about 1, features of about cell_px."""
    blend = _blending(size_px, cell_px)
    knots = rng.standard_normal((blend.shape[1], blend.shape[1]), np.float32)
    # The squared spline weights sum to 0.48 per axis on average.
    return np.asarray(blend @ knots @ blend.T / np.float32(0.48))


def spline_row(rng: np.random.Generator, size_px: int, cell_px: float) -> np.ndarray:
    """Smooth Gaussian noise float32 [size_px] of mean 0 and sd about 1, features of about cell_px."""
    blend = _blending(size_px, cell_px)
    return (blend @ rng.standard_normal(blend.shape[1], np.float32)) / np.float32(0.48**0.5)


def frequencies(size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """(fx [1, w//2 + 1], fy [h, 1]) in cycles per px, as ``scipy.fft.irfft2`` takes a square image's waves."""
    return scipy.fft.rfftfreq(size_px)[None, :], scipy.fft.fftfreq(size_px)[:, None]


def gain_of(power: np.ndarray, sd: float, white: float = 0.0) -> np.ndarray:
    """Gain float32 [h, w//2 + 1] that gives ``wave_noise`` this power spectrum, scaled to sd ``sd``; read-only.

    white: the share of the variance that goes to a floor, the same for all waves.
    """
    # Half the plane stands for both halves, hence the weight 2.
    scaled = power * ((1 - white) / (2 * power.sum()))
    scaled += white / (2 * scaled.size)
    return kept(sd * power.shape[0] ** 2 * np.sqrt(scaled / 2))


@lru_cache(maxsize=8)
def cloud_gain(
    size_px: int, across_px: float, along_px: float, slope: float, least: float, sd: float, white: float = 0.0
) -> np.ndarray:
    """Gain float32 [h, w//2 + 1] of a cloud's Fourier coefficients; white as in `gain_of`.

    Power (1 + (across fx)^2 + (along fy)^2)^-slope (1 - exp(-(f/least)^2)), f in cycles/px: fitted to the real
    images' autocorrelation after their common background was taken out.
    """
    fx, fy = frequencies(size_px)
    power = (1 + (across_px * fx) ** 2 + (along_px * fy) ** 2) ** -slope
    return gain_of(power * (1 - np.exp(-(fx**2 + fy**2) / least**2)), sd, white)


def wave_noise(rng: np.random.Generator, gain: np.ndarray) -> np.ndarray:
    """Gaussian noise float32 [h w] of mean 0 whose Fourier coefficients have the gain [h, w//2 + 1]; periodic."""
    waves = np.empty(gain.shape, np.complex64)
    waves.real = rng.standard_normal(gain.shape, np.float32)
    waves.imag = rng.standard_normal(gain.shape, np.float32)
    waves *= gain
    return np.asarray(scipy.fft.irfft2(waves, s=(gain.shape[0],) * 2, overwrite_x=True))


def shared_field(seed: int, class_id: int, amplitude: np.ndarray, sd: float) -> np.ndarray:
    """The background of all images of (seed, class): float32 [h w], mean 0, sd ``sd``, read-only. For a cache to keep.

    Random phases, but a given amplitude [h, w//2 + 1] of each wave: statistics hardly depend on the seed.
    """
    # SeedSequence pads with zeros: a bare [seed, 8] would be the stream of good image 0. No image has a 2.
    rng = np.random.default_rng(np.random.SeedSequence([seed, class_id, 0, 2]))
    phases = rng.uniform(0, 2 * np.pi, amplitude.shape)
    field: np.ndarray = scipy.fft.irfft2(amplitude * np.exp(1j * phases), s=(amplitude.shape[0],) * 2)
    return kept((field - field.mean()) * (sd / field.std()))


@lru_cache(maxsize=8)
def shared_clouds(seed: int, class_id: int, size_px: int, sd: float) -> np.ndarray:
    """A shared field of clouds, power (1 + (500 f)^2)^-1.5: float32 [h w], mean 0, sd ``sd``, read-only."""
    fx, fy = frequencies(size_px)
    power = (1 + 500**2 * (fx**2 + fy**2)) ** -1.5
    power[0, 0] = 0
    return shared_field(seed, class_id, np.sqrt(power), sd)


def bimodal(latent: np.ndarray, level: float, slope: float) -> np.ndarray:
    """Grey values float32 in (0, 255) of a Gaussian latent: 255 / (1 + exp(-(level + slope z))).

    The steeper the slope, the more of them lie near black and near white.
    """
    curve: np.ndarray = np.tanh(latent * np.float32(slope / 2) + np.float32(level / 2))
    return (curve + 1) * np.float32(127.5)

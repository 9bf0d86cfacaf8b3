"""Procedural look-alikes of DAGM classes: image, weak mask and ellipse from four numbers, no file needed.

Every random number comes from (seed, class, index, defective), so an image is the same in any process and in
any order. What the images of one class share (the stripes of class 8) comes from (seed, class) alone.
Lengths are in px whatever the image size, as if a smaller image were a crop. A further class is one texture
function, one defect function and one line of the registry at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.ndimage

from dagm_jax.data.ellipse import rasterise
from dagm_jax.types import Ellipse, UserError

_STEPS_PER_PX = 24  # of a tabulated ring profile; reading it at the nearest step adds a little grain
_WAVES = 8  # of a family of rings in class 1; with fewer, single rings stand out
MIN_SIZE_PX = 128  # an amoeba of class 1 spans up to 90 px and has to leave some texture around it


@dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """One drawn image: image uint8 [h w], mask bool [h w], and the ellipse that the mask fills or None."""

    image: np.ndarray
    mask: np.ndarray
    ellipse: Ellipse | None


def draw(class_id: int, index: int, *, seed: int, defective: bool, size_px: int = 512) -> Drawing:
    """One square image with its weak mask; the mask is a filled ellipse that holds the whole defect.

    The same arguments give the same pixels. A good and a defective image of one index have unrelated
    textures, so that no defective image has its clean twin among the good ones.
    """
    image, _, ellipse = _draw_with_twin(class_id, index, seed, defective, size_px)
    mask = rasterise(ellipse, image.shape) if ellipse else np.zeros(image.shape, bool)
    return Drawing(image, mask, ellipse)


def _draw_with_twin(
    class_id: int, index: int, seed: int, defective: bool, size_px: int
) -> tuple[np.ndarray, np.ndarray, Ellipse | None]:
    """The image, the same image without its defect (both uint8 [h w]), and the ellipse or None."""
    _check(class_id, index, seed, size_px)
    rng = np.random.default_rng(np.random.SeedSequence([seed, class_id, index, int(defective)]))
    clean = _RECIPES[class_id].texture(rng, seed, size_px)
    if not defective:
        image = _to_uint8(clean)
        return image, image, None
    damaged, ellipse = _RECIPES[class_id].defect(rng, clean)
    return _to_uint8(damaged), _to_uint8(clean), ellipse


def _check(class_id: int, index: int, seed: int, size_px: int) -> None:
    """Nothing, or a UserError that names the argument at fault."""
    if class_id not in _RECIPES:
        known = ", ".join(map(str, CLASSES))
        raise UserError(
            f"class_id={class_id}: only the classes {known} can be drawn; choose one of them, or read"
            " this class's real images from a data root"
        )
    for name, value, least in (("index", index, 0), ("seed", seed, 0), ("size_px", size_px, MIN_SIZE_PX)):
        if value < least:
            raise UserError(f"{name}={value}: must be at least {least}; pass {least} or more")


def _to_uint8(image: np.ndarray) -> np.ndarray:
    """The float image [h w] rounded and clipped to uint8."""
    pixels: np.ndarray = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return pixels


# ---------------------------------------------------------------- shared tools


@lru_cache(maxsize=16)
def _blending(size_px: int, cells: int) -> np.ndarray:
    """Weights float32 [size_px, cells + 4] that turn a coarse row of knots into a smooth row.

    Cubic B-spline: at distance d (in cells) (4 - 6d^2 + 3d^3)/6 for d < 1 and (2 - d)^3/6 for 1 <= d < 2.
    A matrix product with it costs a fraction of what scipy.ndimage.zoom does.
    """
    place = (np.arange(size_px) + 0.5) / size_px * cells
    d = np.abs(place[:, None] - (np.arange(cells + 4)[None, :] - 1.5))
    weights = np.where(d < 1, (4 - 6 * d**2 + 3 * d**3) / 6, np.maximum(2 - d, 0) ** 3 / 6)
    blend: np.ndarray = weights.astype(np.float32)
    blend.setflags(write=False)
    return blend


def _smooth_noise(rng: np.random.Generator, size_px: int, cell_px: float) -> np.ndarray:
    """Smooth Gaussian noise float32 [size_px size_px] of mean 0 and sd about 1, features of about cell_px."""
    cells = max(1, round(size_px / cell_px))
    blend = _blending(size_px, cells)
    knots = rng.standard_normal((cells + 4, cells + 4), np.float32)
    # The squared spline weights sum to 0.48 per axis on average.
    noise: np.ndarray = (blend @ knots @ blend.T) / np.float32(0.48)
    return noise


def _spline_row(rng: np.random.Generator, size_px: int, cell_px: float) -> np.ndarray:
    """Smooth Gaussian noise float32 [size_px] of mean 0 and sd about 1, features of about cell_px."""
    blend = _blending(size_px, max(1, round(size_px / cell_px)))
    return (blend @ rng.standard_normal(blend.shape[1], np.float32)) / np.float32(0.48**0.5)


def _window(row: float, col: float, reach: float, size_px: int) -> tuple[slice, slice]:
    """Row and column slices of the pixels within ``reach`` of a point, clipped to the image."""

    def cut(center: float) -> slice:
        return slice(max(0, math.floor(center - reach)), min(size_px, math.ceil(center + reach) + 1))

    return cut(row), cut(col)


def _local(
    window: tuple[slice, slice], row: float, col: float, angle: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (u along ``angle``, v across), float32 [h w] of the window, of each pixel about a point."""
    dx = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :] - np.float32(col)
    dy = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None] - np.float32(row)
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return dx * cos + dy * sin, dy * cos - dx * sin


def _enclosing(wanted: Ellipse, touched: np.ndarray, window: tuple[slice, slice]) -> Ellipse:
    """``wanted``, scaled up as little as it takes to hold every touched pixel (bool [h w] of the window)."""
    row, col = wanted.center_y - 1, wanted.center_x - 1
    u, v = _local(window, row, col, wanted.angle_rad)
    reach = np.sqrt((u / wanted.semi_a) ** 2 + (v / wanted.semi_b) ** 2)[touched]
    grow = 1.02 * max(1.0, float(reach.max(initial=0.0)))
    return replace(wanted, semi_a=wanted.semi_a * grow, semi_b=wanted.semi_b * grow)


# ---------------------------------------------------------------- class 1


def _texture_1(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Dark fine moiré of concentric arcs, mirrored about a row and a column: float32 [h w].

    The grey value is m (1 + c z)^2 with z roughly normal, which gives the real images' skewed histogram. z is
    0.9 rings + 0.4 white noise + slow brightness; as the brightness is part of z, contrast grows with it.
    """
    center = int(rng.integers(size_px // 4, size_px * 3 // 4 + 1))
    reach = max(center, size_px - 1 - center) + 1
    fold = np.abs(np.arange(size_px) - center)
    folded = _rings(rng, reach)
    folded += np.float32(0.2) * _smooth_noise(rng, reach, 18)
    z = np.take(np.take(folded, fold, axis=0), fold, axis=1)
    z += _glow(rng, size_px, center)
    z += np.float32(0.40) * rng.standard_normal((size_px, size_px), np.float32)
    z += np.float32(0.25) * _smooth_noise(rng, size_px, 100)
    mean = 70.0 + 3.8 * rng.standard_normal()
    z *= np.float32(0.19)
    z += 1
    z *= z
    z *= np.float32(mean / float(z.mean()))
    return z


def _rings(rng: np.random.Generator, reach: int) -> np.ndarray:
    """One quadrant of the moiré, float32 [reach reach], variance about 0.8.

    Sums of cos(2 pi (f rho + g rho^2 / 2)) with rho^2 = X^2 + q Y^2 and local frequencies f + g rho far
    above the sampling limit of 0.5 cycles per px: the pixel grid folds the rings into arcs about many
    places. The profile over rho is tabulated, which costs far less than a cosine for each pixel and each
    wave. Most of what folds to slow waves is taken out again, as the real images hardly show any. A little
    smoothing along each axis, of another strength in every image, gives neighbours the real images' slight
    correlation.
    """
    x2 = np.arange(reach, dtype=np.float32)[None, :] ** 2
    y2 = np.arange(reach, dtype=np.float32)[:, None] ** 2
    total = np.zeros((reach, reach), np.float32)
    for _ in range(3):
        q = float(rng.uniform(0.75, 1.33))
        start = rng.uniform(0.3, 2.5, _WAVES)
        growth = rng.uniform(-1.5, 4.0, _WAVES) / 512
        phase = rng.uniform(0, 1, _WAVES)
        rho = np.arange(math.ceil(reach * math.sqrt(1 + q) * _STEPS_PER_PX) + 2)[:, None] / _STEPS_PER_PX
        turns = (rho * (start + rho * (growth / 2)) + phase).astype(np.float32)
        profile = np.cos(np.float32(2 * np.pi) * turns).sum(axis=1) * np.float32((0.56 / _WAVES) ** 0.5)
        place = np.sqrt(x2 + np.float32(q) * y2) * np.float32(_STEPS_PER_PX)
        total += np.take(profile, place.astype(np.int32))
    total -= np.float32(0.85) * scipy.ndimage.uniform_filter(total, 5, mode="mirror")
    across, down = rng.uniform(0.02, 0.22, 2).astype(np.float32)
    total[:, 1:-1] += across * (total[:, :-2] + total[:, 2:])
    total[1:-1] += down * (total[:-2] + total[2:])
    return total


def _glow(rng: np.random.Generator, size_px: int, center: int) -> np.ndarray:
    """The slow light in the corner far from the centre, float32 [h w]: g + 0.5 sqrt(g) cos(2 pi r / p).

    g is Gaussian in rows and columns about a point beyond that corner, r the distance from the point: arcs of
    period p = 14 to 34 px that reach further than the light itself.
    """
    line = np.arange(size_px, dtype=np.float32)
    beyond = rng.uniform(-0.05, 0.3, 2)
    far = 1 + beyond if center < size_px / 2 else -beyond
    row, col = (line - np.float32(part * size_px) for part in far)
    height = np.float32(rng.uniform(1.2, 3.4))
    root = [np.exp(-0.25 * (d / np.float32(rng.uniform(0.15, 0.36) * size_px)) ** 2) for d in (row, col)]
    sqrt_g = root[0][:, None] * (np.sqrt(height) * root[1][None, :])
    steps = (np.hypot(row[:, None], col[None, :]) * np.float32(8)).astype(np.int32)
    period = 8 * float(rng.uniform(14, 34))
    wave = np.cos(np.arange(2 * 8 * size_px) * (2 * np.pi / period) + rng.uniform(0, 2 * np.pi))
    light: np.ndarray = sqrt_g * (sqrt_g + np.float32(0.5) * np.take(wave.astype(np.float32), steps))
    return light


def _defect_1(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a smooth amoeba of 40-80 px that holds only the local mean, and its loose ellipse.

    Outline: r(theta) = rho(theta) (1 + sum_k w_k cos(k theta + p_k)) about an ellipse rho; edge 1.5 px soft.
    """
    size_px = clean.shape[0]
    row, col = rng.uniform(0.07, 0.93, 2) * size_px
    angle = float(rng.uniform(0, np.pi))
    half_long = float(rng.uniform(20, 40))
    half_wide = half_long * float(rng.uniform(0.6, 1.0))
    window = _window(row, col, 1.5 * half_long, size_px)
    u, v = _local(window, row, col, angle)
    theta = np.arctan2(v / np.float32(half_wide), u / np.float32(half_long))
    wobble = np.ones_like(theta)
    for k, most in ((1, 0.06), (2, 0.12), (3, 0.14), (4, 0.06), (5, 0.04)):
        wobble += np.float32(rng.uniform(0, most)) * np.cos(k * theta + np.float32(rng.uniform(0, 2 * np.pi)))
    inward = (wobble - np.hypot(u / np.float32(half_long), v / np.float32(half_wide))) * np.float32(half_wide)
    share = np.clip(inward / np.float32(1.5) + np.float32(0.5), 0, 1)
    damaged = clean.copy()
    grain = np.float32(5.0) * rng.standard_normal(share.shape, np.float32)
    wiped = scipy.ndimage.gaussian_filter(clean[window], 8, mode="nearest", truncate=2.5) + grain
    damaged[window] += share * (wiped - clean[window])
    semi_a = float(np.clip(half_long * rng.uniform(1.4, 2.6), 33, 94))
    semi_b = float(np.clip(half_wide * rng.uniform(1.4, 2.6), 23, 93))
    off = rng.uniform(-0.12, 0.12, 2) * half_long
    tilt = angle + float(rng.uniform(-0.3, 0.3))
    wanted = Ellipse(semi_a, semi_b, tilt, float(col + off[1] + 1), float(row + off[0] + 1))
    return damaged, _enclosing(wanted, share > 0, window)


# ---------------------------------------------------------------- class 8


def _texture_8(rng: np.random.Generator, seed: int, size_px: int) -> np.ndarray:
    """Cloudy grey over the broad vertical stripes that all images of a seed share: float32 [h w].

    Shared background (sd 30) + own cloud (sd 19.5) + own fine vertical streaks (sd 7.5) + own level (sd 3).
    """
    gain = _cloud_gain(size_px)
    waves = np.empty(gain.shape, np.complex64)
    waves.real = rng.standard_normal(gain.shape, np.float32)
    waves.imag = rng.standard_normal(gain.shape, np.float32)
    waves *= gain
    image: np.ndarray = scipy.fft.irfft2(waves, s=(size_px, size_px), overwrite_x=True)
    image += np.float32(7.5) * _spline_row(rng, size_px, 7)
    image += _background_8(seed, size_px)
    image += np.float32(110 + 3 * rng.standard_normal())
    return image


@lru_cache(maxsize=4)
def _cloud_gain(size_px: int) -> np.ndarray:
    """Gain float32 [h, w//2 + 1] of the cloud's Fourier coefficients.

    Power (1 + (14.8 fx)^2 + (10 fy)^2)^-4.46 (1 - exp(-(f/0.024)^2)) + white floor, f in cycles/px: fitted
    to the real images' autocorrelation after their common background was taken out.
    """
    fx = scipy.fft.rfftfreq(size_px)[None, :]
    fy = scipy.fft.fftfreq(size_px)[:, None]
    power = (1 + (14.8 * fx) ** 2 + (10 * fy) ** 2) ** -4.46 * (1 - np.exp(-(fx**2 + fy**2) / 0.024**2))
    # Half the plane stands for both halves, hence the weight 2.
    power *= 0.9 / (2 * power.sum())
    power += 0.1 / (2 * power.size)
    gain: np.ndarray = (19.5 * size_px**2 * np.sqrt(power / 2)).astype(np.float32)
    gain.setflags(write=False)
    return gain


@lru_cache(maxsize=4)
def _background_8(seed: int, size_px: int) -> np.ndarray:
    """The stripes that all images of (seed, class 8) share: float32 [h w], mean 0, sd 30.2, read-only.

    Random phases, but a fixed amplitude for each wave: the statistics then hardly depend on the seed. Power
    over fx: Gaussian, stripes about 18 px wide; over fy: 68 % constant columns, the rest about 50 px long.
    """
    # SeedSequence pads with zeros: a bare [seed, 8] would be the stream of good image 0. No image has a 2.
    rng = np.random.default_rng(np.random.SeedSequence([seed, 8, 0, 2]))
    fx = scipy.fft.rfftfreq(size_px)
    fy = scipy.fft.fftfreq(size_px)
    across = np.exp(-2 * (np.pi * 18 * fx) ** 2) * (fx != 0)
    along = np.exp(-2 * (np.pi * 50 * fy) ** 2) * (fy != 0)
    along *= 0.32 / along.sum()
    along[0] = 0.68
    phases = rng.uniform(0, 2 * np.pi, (size_px, fx.size))
    waves = np.sqrt(along[:, None] * across) * np.exp(1j * phases)
    field: np.ndarray = scipy.fft.irfft2(waves, s=(size_px, size_px))
    field = (field - field.mean()) * (30.2 / field.std())
    field = field.astype(np.float32)
    field.setflags(write=False)
    return field


def _defect_8(rng: np.random.Generator, clean: np.ndarray) -> tuple[np.ndarray, Ellipse]:
    """The image with a tiny arc scratch in it (15-60 px long, black with a white edge), and its slim ellipse.

    Arc: v = s (1 - (2u/L)^2) - s/2 over the chord |u| <= L/2. Black where |d| < 0.8 px, white beyond it on
    one side; the white fades in and out along the arc, so that the scratch keeps the local mean.
    """
    size_px = clean.shape[0]
    row, col = rng.uniform(0.04, 0.96, 2) * size_px
    angle = float(rng.uniform(0, np.pi))
    length = 15 + 45 * float(rng.uniform(0, 1)) ** 1.7
    sag = length * float(rng.uniform(-0.14, 0.14))
    window = _window(row, col, length / 2 + 4, size_px)
    u, v = _local(window, row, col, angle)
    curve = np.float32(sag) * (np.float32(0.5) - (u * np.float32(2 / length)) ** 2)
    off_arc = v - curve
    taper = np.clip(np.float32(length / 2) - np.abs(u), 0, 1)
    black = taper * np.clip(3 * (np.float32(0.8) - np.abs(off_arc)), 0, 1)
    side = np.float32(rng.choice((-1, 1)))
    fading = np.float32(0.75) + np.float32(0.25) * np.cos(u * np.float32(rng.uniform(0.1, 0.9)))
    edge = np.clip(3 * (np.float32(0.7) - np.abs(off_arc * side - np.float32(1.2))), 0, 1)
    white = taper * fading * edge * (1 - black)
    damaged = clean.copy()
    damaged[window] += black * (np.float32(rng.uniform(5, 25)) - damaged[window])
    damaged[window] += white * (np.float32(rng.uniform(190, 240)) - damaged[window])
    semi_a = length / 2 * float(rng.uniform(1.4, 2.6)) + 2
    semi_b = min(semi_a, 8.5 * math.exp(0.5 * rng.standard_normal()))
    off = rng.uniform(-0.05, 0.05, 2) * length
    wanted = Ellipse(semi_a, semi_b, angle, float(col + off[1] + 1), float(row + off[0] + 1))
    return damaged, _enclosing(wanted, (black > 0) | (white > 0), window)


# ---------------------------------------------------------------- registry


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How to draw a class.

    texture(rng, seed, size_px) -> float32 [h w], free of defects;
    defect(rng, clean) -> (damaged copy of clean, ellipse that holds every pixel changed).
    """

    texture: Callable[[np.random.Generator, int, int], np.ndarray]
    defect: Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, Ellipse]]


_RECIPES: dict[int, _Recipe] = {
    1: _Recipe(_texture_1, _defect_1),
    8: _Recipe(_texture_8, _defect_8),
}
CLASSES: tuple[int, ...] = tuple(_RECIPES)

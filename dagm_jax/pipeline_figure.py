"""The way of one image through the detector, in one picture: source, rotation, strips, defect map, verdict."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dagm_jax.figures import RED, write_figure

MAX_STRIPS = 8
# The gap between two strips, as a share of a strip's width.
GAP = 0.2
CONTOUR = "#56E0FF"
GREEN = "#007A53"
# Height of a panel; widths as shares of it. A narrow picture leaves room for its title.
PANEL_INCHES = 2.4
LEAST_SHARE, BAR_SHARE, VERDICT_SHARE = 0.6, 0.05, 0.75
TITLE_PT = 8.5


@dataclass(frozen=True, slots=True, eq=False)
class ImagePath:
    """An image and what the detector made of it.

    source and turned (as training may see it): uint8 [h w]; strips: uint8 [n h s]; map: float [h w], the larger the
    more defective; mask: bool [h w], the true defect, empty for a good image, all True where it
    may be anywhere; score, threshold, verdict: the image's.
    """

    source: NDArray[np.uint8]
    turned: NDArray[np.uint8]
    strips: NDArray[np.uint8]
    map: NDArray[np.floating]
    mask: NDArray[np.bool_]
    score: float
    threshold: float
    defective: bool

    def __post_init__(self) -> None:
        shapes = {"map": self.map.shape, "mask": self.mask.shape}
        for name, shape in shapes.items():
            if shape != self.source.shape:
                raise ValueError(f"`{name}` {shape} must have the shape of `source` {self.source.shape}")
        if self.strips.ndim != 3 or not len(self.strips):
            raise ValueError(f"`strips` {self.strips.shape} must be [n h s] with at least one strip")


def lay_out(strips: NDArray[np.uint8]) -> NDArray[np.float64]:
    """At most MAX_STRIPS of the strips ``[n h s]``, evenly chosen, side by side with gaps (NaN): float ``[h w]``."""
    num_shown = min(len(strips), MAX_STRIPS)
    chosen = np.linspace(0, len(strips) - 1, num_shown).round().astype(int)
    gap = np.full((strips.shape[1], max(1, round(GAP * strips.shape[2]))), np.nan)
    parts: list[NDArray[np.float64]] = []
    for index in chosen:
        parts += [strips[index].astype(np.float64), gap]
    return np.concatenate(parts[:-1], axis=1)


def plot_pipeline(image: ImagePath, path: str | os.PathLike[str], title: str = "") -> None:
    """Write the five panels, left to right; the true defect is a light blue contour on the map.

    The map's colours reach from 0 to its maximum or the threshold, whichever is larger; the threshold is marked on the
    colour bar. The verdict is green where it is right and red where it is wrong.
    """
    laid_out = lay_out(image.strips)
    pictures = (image.source, image.turned, laid_out, image.map)
    shares = [max(picture.shape[1] / picture.shape[0], LEAST_SHARE) for picture in pictures]
    ratios = [*shares, BAR_SHARE, VERDICT_SHARE]
    figure = Figure(figsize=(PANEL_INCHES * (sum(ratios) + 0.5), PANEL_INCHES + 0.7), layout="constrained")
    source, turned, strips, heat, bar, verdict = figure.subplots(1, len(ratios), width_ratios=ratios)
    height, width = image.source.shape
    _draw_grey(source, image.source, f"source\n{height}×{width} px")
    _draw_grey(turned, image.turned, "turned or mirrored\n(in training only)")
    num, height, width = image.strips.shape
    shown = f"\n({MAX_STRIPS} shown)" if num > MAX_STRIPS else "\n"
    _draw_grey(strips, laid_out, f"{num} {'slices' if num > 1 else 'slice'} of {height}×{width}{shown}")
    _draw_map(heat, bar, image)
    _draw_verdict(verdict, image)
    if title:
        figure.suptitle(title, fontsize=9)
    write_figure(figure, path, palette=True)


def _draw_grey(axes: Axes, array: NDArray[Any], title: str) -> None:
    axes.imshow(array, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    axes.set_title(title, fontsize=TITLE_PT)


def _draw_map(axes: Axes, bar: Axes, image: ImagePath) -> None:
    # Not the minimum but 0 is the bottom: an even map shall not look like a found defect.
    norm = Normalize(0, max(float(image.map.max()), image.threshold, float(np.finfo(np.float32).tiny)))
    axes.imshow(image.map, cmap="inferno", norm=norm)
    axes.set_axis_off()
    has_mask = bool(image.mask.any() and not image.mask.all())
    if has_mask:
        height, width = image.mask.shape
        # A border of background closes a contour that the image's edge cuts.
        framed = np.pad(image.mask, 1).astype(np.float32)
        axes.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), framed, [0.5], colors=CONTOUR)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_title("defect map" + ("\nand true defect" if has_mask else "\n"), fontsize=TITLE_PT)
    axes.figure.colorbar(ScalarMappable(norm, "inferno"), cax=bar)
    bar.axhline(image.threshold, color=CONTOUR, linewidth=2)
    bar.tick_params(labelsize=7)


def _draw_verdict(axes: Axes, image: ImagePath) -> None:
    is_right = image.defective == bool(image.mask.any())
    names = {True: "Defective", False: "Not defective"}
    axes.set_axis_off()
    axes.set_title("verdict\n", fontsize=TITLE_PT)
    place: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
    colour = GREEN if is_right else RED
    axes.text(0.5, 0.68, names[image.defective], fontsize=15, color=colour, weight="bold", **place)
    relation = "≥" if image.defective else "<"
    axes.text(0.5, 0.5, f"score {image.score:.4g} {relation} {image.threshold:.4g}", fontsize=9, **place)
    axes.text(0.5, 0.36, f"truth: {names[bool(image.mask.any())].lower()}", fontsize=9, **place)

"""Figures of a run, one PNG each, drawn without a display and without touching matplotlib's global state.

Every ``plot_…`` function writes by `storage.replacing`; missing parent folders are made. Colours are those of Okabe and
Ito, which colour-blind readers distinguish.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from PIL import Image

from dagm_jax.evaluation import metrics
from dagm_jax.storage import replacing
from dagm_jax.types import MAX_GALLERY_ITEMS, GalleryItem
from dagm_jax.visualization.overlay import draw_layers, draw_overlay

DPI = 110
BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D0312D", "#767676"
# Longer side of an image in the gallery.
GALLERY_SIDE_PX = 210


def write_figure(figure: Figure, path: Path, palette: bool = False) -> None:
    """Writes the figure into ``path`` as a PNG, reduced to 256 colours if ``palette``."""
    buffer = io.BytesIO()
    # No software tag: the same numbers give the same bytes under any release of matplotlib that draws alike.
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    if palette:
        # PNG compresses no textures, but fewer colours. An octree keeps greys grey and small coloured areas true, where
        # a median cut spends the palette on the textures.
        drawn = Image.open(buffer).convert("RGB")
        reduced = drawn.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        reduced.save(buffer, format="PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "xb") as stream:
        stream.write(buffer.getvalue())


def style_axes(axes: Axes) -> None:
    """Gives a panel a light grid behind its curves, and no frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def series(history: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the metric ``name`` in the rows of one kind; rows without it are left out."""
    rows = [row for row in history if row["kind"] == kind and row.get(name) is not None]
    return [row["step"] for row in rows], [row[name] for row in rows]


def plot_curves(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes loss (left) and accuracy (right) over steps, train as a line, validation as dots on a line.

    history: rows {"step": int, "kind": "train" | "validation", "loss": float, "accuracy": float}, in any
    order of kinds; a value that is absent or None is left out, and a panel without any says so. Axes are linear.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        style_axes(axes)
        for kind, colour, marker in (("train", BLUE, ""), ("validation", ORANGE, "o")):
            steps, values = series(history, kind, name)
            # A single row has no line; a dot shows it.
            look = {"color": colour, "marker": "o" if len(steps) == 1 else marker, "markersize": 4}
            axes.plot(steps, values, linewidth=1.5, label=kind, **look)
        if all(line.get_xdata().size == 0 for line in axes.lines):
            axes.text(0.5, 0.5, f"no {name} recorded", ha="center", color=GREY, transform=axes.transAxes)
        axes.set(xlabel="step", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(top=1.01)
    figure.legend(handles=panels[0].lines, loc="outside lower center", ncols=2, frameon=False)
    write_figure(figure, path)


def plot_confusion(counts: metrics.ImageCounts, path: Path, title: str) -> None:
    """Writes the confusion matrix of `draw_confusion` alone."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    draw_confusion(figure.subplots(), counts, title)
    write_figure(figure, path)


def draw_confusion(axes: Axes, counts: metrics.ImageCounts, title: str) -> None:
    """Draws the confusion matrix: rows the truth, columns the prediction; counts, and shares of each row."""
    cells = np.array([[counts.tp, counts.fn], [counts.fp, counts.tn]])
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(cells):
        share = f"{100 * shares[row, column]:.1f} %" if cells[row].sum() else "–"
        ink = "white" if shares[row, column] > 0.55 else "black"
        place: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
        axes.text(column, row - 0.06, f"{count}", fontsize=20, **place)
        axes.text(column, row + 0.2, share, fontsize=10, **place)
    names = ("Defective", "Not defective")
    axes.set_xticks([0, 1], names)
    axes.set_yticks([0, 1], names, rotation=90, va="center")
    axes.set(xlabel="prediction", ylabel="truth")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)


def plot_roc_pr(labels: ArrayLike, scores: ArrayLike, path: Path) -> None:
    """Writes the ROC (left) and the precision-recall curve (right) of image scores with their areas.

    labels: {0, 1} [n]; scores: [n]. Dashed: chance. Raises ValueError where one class is missing.
    """
    false_alarm_rate, recall, precision = metrics.rank_curve(labels, scores)
    recall = np.concatenate([[0.0], recall])
    prevalence = float(np.mean(np.asarray(labels)))
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    left.plot(np.concatenate([[0.0], false_alarm_rate]), recall, color=BLUE, linewidth=2, clip_on=False)
    left.set(xlabel="false-alarm rate (1 - specificity)", ylabel="recall")
    left.set_title(f"ROC, AUROC {metrics.auroc(labels, scores):.4f}")
    right.axhline(prevalence, color=GREY, linestyle="--", linewidth=1)
    # The step that average precision adds up: each precision holds back to the recall before it.
    precision = np.concatenate([precision[:1], precision])
    right.step(recall, precision, where="pre", color=BLUE, linewidth=2, clip_on=False)
    right.set(xlabel="recall", ylabel="precision")
    right.set_title(f"precision-recall, AP {metrics.average_precision(labels, scores):.4f}")
    right.text(0.02, prevalence + 0.015, f"chance {prevalence:.3f}", color=GREY, fontsize=9)
    for axes in (left, right):
        style_axes(axes)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    write_figure(figure, path)


def plot_gallery(items: Sequence[GalleryItem], pixel_threshold: float, path: Path) -> None:
    """Writes up to 8 images, four to a row: the source above its overlay, which `draw_layers` explains.

    A wrong prediction has a red frame and title. Shrunk to 210 px a side and 256 colours, under 400 kB. Raises
    ValueError for no items, for more than 8, and for unequal shapes.
    """
    if not 1 <= len(items) <= MAX_GALLERY_ITEMS:
        raise ValueError(f"`items` ({len(items)}) must be 1 to {MAX_GALLERY_ITEMS} images")
    num_rows = -(-len(items) // 4)
    num_columns = -(-len(items) // num_rows)
    figure = Figure(figsize=(2.1 * num_columns, 4.55 * num_rows), layout="constrained")
    # The third line of each row is a narrow gap: it shows which source belongs to which overlay.
    panels = figure.subplots(3 * num_rows, num_columns, squeeze=False, height_ratios=[1, 1, 0.04] * num_rows)
    for axes in panels.flat:
        axes.set_axis_off()
    for place, item in enumerate(items):
        row, column = divmod(place, num_columns)
        colour = "black" if item.correct else RED
        layers = draw_layers(item.image, item.map, pixel_threshold, item.mask, GALLERY_SIDE_PX)
        overlay = draw_overlay(*layers)
        source = Image.fromarray(item.image).resize(overlay.shape[1::-1], Image.Resampling.BOX)
        for axes, picture in zip(panels[3 * row : 3 * row + 2, column], (source, overlay), strict=True):
            axes.set_axis_on()
            axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=colour, linewidth=0.8 if item.correct else 3.5)
        # Dollars in a file's name are no formula.
        title: dict[str, Any] = {"fontsize": 7.5, "loc": "left", "pad": 4, "parse_math": False}
        panels[3 * row, column].set_title(item.title, color=colour, **title)
    write_figure(figure, path, palette=True)

"""Pictures of a report, one PNG each, drawn without a display and without touching matplotlib's global state.

Every function writes to a temporary file beside ``path`` and renames it: a reader sees the old picture or
the new one, never half of one. Missing parent folders are made. Colours are those of Okabe and Ito, told
apart by colour-blind readers; maps use matplotlib's "inferno", whose lightness rises evenly.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from dagm_jax.data.replacing import replacing
from dagm_jax.evaluation import metrics
from dagm_jax.evaluation.threshold import spread_scores
from dagm_jax.types import MAX_GALLERY_ITEMS, GalleryItem

DPI = 110
BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D0312D", "#767676"
_GALLERY_SIDE_PX = 210
_LOGIT_TICKS = (1e-6, 1e-4, 1e-3, 1e-2, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999, 1 - 1e-6)
_LOGIT_TICK_NAMES = ("≤1e-6", "1e-4", ".001", ".01", ".1", ".5", ".9", ".99", ".999", ".9999", "≥1-1e-6")


# --- files --------------------------------------------------------------------------------------------------


def write_figure(figure: Figure, path: str | os.PathLike[str], palette: bool = False) -> None:
    """Put the figure into ``path`` as a PNG at once, reduced to 256 colours if ``palette``."""
    buffer = io.BytesIO()
    # No software tag: the same numbers give the same bytes under any release of matplotlib that draws alike.
    figure.savefig(buffer, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    if palette:
        # Textures are noise, which no PNG compresses; colours are what can be saved. An octree keeps greys
        # grey and small coloured areas true, where a median cut spends the palette on the textures.
        drawn = Image.open(buffer).convert("RGB")
        reduced = drawn.quantize(256, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        reduced.save(buffer, format="PNG", optimize=True)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, "xb") as stream:
        stream.write(buffer.getvalue())


def style_axes(axes: Axes) -> None:
    """Give a panel the look of all: a light grid behind, no frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


# --- training -----------------------------------------------------------------------------------------------


def series(history: Sequence[Mapping[str, Any]], kind: str, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one figure in the rows of one kind; rows without it are left out."""
    rows = [row for row in history if row["kind"] == kind and row.get(name) is not None]
    return [row["step"] for row in rows], [row[name] for row in rows]


def plot_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write loss (left) and accuracy (right) over steps, train as a line, validation as dots on a line.

    history: rows {"step": int, "kind": "train" | "validation", "loss": float, "accuracy": float}, in any
    order of kinds; a value that is absent or None is left out, and a panel without any says so. Linear
    axes.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    handles: dict[str, Any] = {}
    for axes, name in zip(panels, ("loss", "accuracy"), strict=True):
        style_axes(axes)
        for kind, colour, marker in (("train", BLUE, ""), ("validation", ORANGE, "o")):
            steps, values = series(history, kind, name)
            if steps:
                # A single row has no line; a dot shows it.
                marker = marker or ("o" if len(steps) == 1 else "")
                (handles[kind],) = axes.plot(
                    steps, values, color=colour, marker=marker, markersize=4, linewidth=1.5, label=kind
                )
        if not axes.lines:
            axes.text(0.5, 0.5, f"no {name} recorded", ha="center", color=GREY, transform=axes.transAxes)
            axes.grid(False)
        axes.set(xlabel="step", title=name)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(top=1.01)
    if handles:
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=2, frameon=False)
    write_figure(figure, path)


# --- verdicts -----------------------------------------------------------------------------------------------


def plot_confusion(counts: metrics.ImageCounts, path: str | os.PathLike[str], title: str) -> None:
    """Write the confusion matrix of `draw_confusion` alone."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    draw_confusion(figure.subplots(), counts, title)
    write_figure(figure, path)


def draw_confusion(axes: Axes, counts: metrics.ImageCounts, title: str) -> None:
    """Draw the confusion matrix: rows the truth, columns the verdict; counts, and shares of each row."""
    cells = np.array([[counts.tp, counts.fn], [counts.fp, counts.tn]])
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(cells):
        ink = "white" if shares[row, column] > 0.55 else "black"
        place: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
        axes.text(column, row - 0.06, f"{count}", fontsize=20, **place)
        share = f"{100 * shares[row, column]:.1f} %" if cells[row].sum() else "–"
        axes.text(column, row + 0.2, share, fontsize=10, **place)
    names = ("Defective", "Not defective")
    axes.set_xticks([0, 1], names)
    axes.set_yticks([0, 1], names, rotation=90, va="center")
    axes.set(xlabel="verdict", ylabel="truth")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)


def plot_roc_pr(labels: ArrayLike, scores: ArrayLike, path: str | os.PathLike[str]) -> None:
    """Write the ROC (left) and the precision-recall curve (right) of image scores with their areas.

    labels: {0, 1} [n]; scores: [n]. Dashed: chance. Raises ValueError where one class is missing.
    """
    roc = metrics.roc_curve(labels, scores)
    curve = metrics.precision_recall_curve(labels, scores)
    prevalence = float(np.mean(np.asarray(labels)))
    figure = Figure(figsize=(9.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    left.plot(roc.false_alarm_rate, roc.recall, color=BLUE, linewidth=2, clip_on=False)
    left.set(xlabel="false-alarm rate (1 - specificity)", ylabel="recall")
    left.set_title(f"ROC, AUROC {metrics.auroc(labels, scores):.4f}")
    right.axhline(prevalence, color=GREY, linestyle="--", linewidth=1)
    # The step that average precision adds up: each precision holds back to the recall before it.
    recall = np.concatenate([[0.0], curve.recall])
    precision = np.concatenate([curve.precision[:1], curve.precision])
    right.step(recall, precision, where="pre", color=BLUE, linewidth=2, clip_on=False)
    right.set(xlabel="recall", ylabel="precision")
    right.set_title(f"precision-recall, AP {metrics.average_precision(labels, scores):.4f}")
    right.text(0.02, prevalence + 0.015, f"chance {prevalence:.3f}", color=GREY, fontsize=9)
    for axes in (left, right):
        style_axes(axes)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    write_figure(figure, path)


def plot_score_histogram(
    labels: ArrayLike, scores: ArrayLike, threshold: float, path: str | os.PathLike[str]
) -> None:
    """Write the histograms of good and defective scores, as shares of each group, and the threshold.

    labels: {0, 1} [n]; scores: [n]. Scores that all lie in [0, 1] stand on a logit axis, so that groups
    piled up at 0 and at 1 stay visible; others on a plain one. Shares, because good images are many times
    as many.
    """
    truth = np.asarray(labels).astype(bool)
    values = np.asarray(scores, dtype=np.float64)
    bounded = bool(values.size and values.min() >= 0 and values.max() <= 1)
    # The threshold is put on the scores' own axis, even if it lies just above 1.
    line = float(spread_scores([np.clip(threshold, 0, 1)])[0]) if bounded else threshold
    spread = spread_scores(values)
    low, high = float(min(spread.min(), line)), float(max(spread.max(), line))
    pad = 0.04 * (high - low) or 0.5
    edges = np.linspace(low - pad, high + pad, 49)
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    axes = figure.subplots()
    style_axes(axes)
    for group, name, colour in ((~truth, "good", BLUE), (truth, "defective", ORANGE)):
        if group.any():
            weights = np.full(int(group.sum()), 1 / group.sum())
            label = f"{name} (n = {int(group.sum())})"
            axes.hist(spread[group], edges.tolist(), weights=weights, color=colour, alpha=0.7, label=label)
    axes.axvline(line, color="black", linewidth=1.5, linestyle="--", label=f"threshold {threshold:.4g}")
    if bounded:
        _set_logit_ticks(axes, edges[0], edges[-1])
    axes.set(xlim=(edges[0], edges[-1]), ylabel="share of the group")
    axes.set_xlabel("image score (logit axis)" if bounded else "image score")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    write_figure(figure, path)


def _set_logit_ticks(axes: Axes, low: float, high: float) -> None:
    """Name the plain positions of logits by their probabilities."""
    places = spread_scores(_LOGIT_TICKS)
    shown = [
        (place, name) for place, name in zip(places, _LOGIT_TICK_NAMES, strict=True) if low <= place <= high
    ]
    if len(shown) >= 3:
        axes.set_xticks([place for place, _ in shown], [name for _, name in shown])
        return
    # Scores within a narrow band: evenly spaced places, each named by its probability.
    spaced = np.linspace(low, high, 6)[1:-1]
    axes.set_xticks(spaced, [f"{1 / (1 + np.exp(-place)):.4g}" for place in spaced])


# --- images -------------------------------------------------------------------------------------------------


def _shrink(image: NDArray[Any], side_px: int) -> NDArray[Any]:
    """The image with its longer side at most ``side_px``, averaged over areas."""
    scale = side_px / max(image.shape)
    if scale >= 1:
        return image
    height, width = (max(1, round(size * scale)) for size in image.shape)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))


def _map_range(items: Sequence[GalleryItem]) -> Normalize:
    """[0, 1] for probabilities; for any other map the range over all items, so that their colours compare."""
    low = min(float(np.min(item.map)) for item in items)
    high = max(float(np.max(item.map)) for item in items)
    return Normalize(0, 1) if low >= 0 and high <= 1 else Normalize(low, high)


def _draw_item(source: Axes, overlaid: Axes, item: GalleryItem, norm: Normalize) -> None:
    height, width = item.image.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    grey = _shrink(item.image, _GALLERY_SIDE_PX)
    heat = _shrink(np.asarray(item.map, dtype=np.float32), _GALLERY_SIDE_PX)
    for axes in (source, overlaid):
        axes.set_axis_on()
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set(color="black" if item.correct else RED, linewidth=0.8 if item.correct else 3.5)
    opacity = 0.85 * np.clip(np.asarray(norm(heat), dtype=np.float64), 0, 1)
    overlaid.imshow(heat, cmap="inferno", norm=norm, alpha=opacity, extent=extent)
    if item.mask.any():
        # A border of background closes the contour of an ellipse that the image's edge cuts.
        framed = np.pad(item.mask, 1).astype(np.float32)
        columns, rows = np.arange(-1, width + 1), np.arange(-1, height + 1)
        overlaid.contour(columns, rows, framed, levels=[0.5], colors="#56E0FF", linewidths=1.1)
        overlaid.set(xlim=extent[:2], ylim=extent[2:])
    colour = "black" if item.correct else RED
    # Of a file's name dollars are no formula.
    source.set_title(item.title, fontsize=7.5, color=colour, loc="left", pad=4, parse_math=False)


def plot_gallery(items: Sequence[GalleryItem], path: str | os.PathLike[str]) -> None:
    """Write up to 8 images, four to a row: above the source, below it the map laid over it and the ellipse.

    The map's colour and opacity both grow with its value, on one scale for all items (a colour bar shows
    it); the true ellipse is a light blue contour; a wrong verdict has a red frame and title. Shrunk to 210
    px a side and 256 colours, under 400 kB. Raises ValueError for no items, for more than 8, and for unequal
    shapes.
    """
    if not 1 <= len(items) <= MAX_GALLERY_ITEMS:
        raise ValueError(f"`items` ({len(items)}) must be 1 to {MAX_GALLERY_ITEMS} images")
    for item in items:
        if not item.image.shape == item.map.shape == item.mask.shape:
            shapes = f"image {item.image.shape}, map {item.map.shape}, mask {item.mask.shape}"
            raise ValueError(f"`items` ({item.title!r}: {shapes}) must have one shape each")
    num_rows = -(-len(items) // 4)
    num_columns = -(-len(items) // num_rows)
    figure = Figure(figsize=(2.1 * num_columns + 0.8, 4.55 * num_rows), layout="constrained")
    # The third line of each row is a narrow gap: it shows which source belongs to which map.
    panels = figure.subplots(3 * num_rows, num_columns, squeeze=False, height_ratios=[1, 1, 0.04] * num_rows)
    norm = _map_range(items)
    for axes in panels.flat:
        axes.set_axis_off()
    for place, item in enumerate(items):
        row, column = divmod(place, num_columns)
        _draw_item(panels[3 * row, column], panels[3 * row + 1, column], item, norm)
    bar = figure.colorbar(ScalarMappable(norm, "inferno"), ax=panels, shrink=0.5, aspect=30, pad=0.015)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("defect map", fontsize=8)
    write_figure(figure, path, palette=True)

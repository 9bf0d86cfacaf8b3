"""The benchmark's results as pictures, each with command, hardware and versions below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dagm_jax.visualization.figures import BLUE, GREY, ORANGE, style_axes, write_figure
from launch.bench.plan import Cell
from launch.bench.runner import State
from launch.bench.tables import Origin

BAR_HEIGHT = 0.32
Bar = tuple[str, float, str]


def label(cell: Cell) -> str:
    """A cell in a few words."""
    config = cell.config.rpartition("/")[2].replace(".py", "")
    devices = f", {cell.num_devices} devices" if cell.num_devices > 1 else ""
    return f"{config}, {cell.mode}, {cell.precision}, {cell.batch_size}{devices}"


def draw_bars(
    bars: Sequence[Bar], title: str, unit: str, origin: Origin, line: float | None = None
) -> Figure:
    """Horizontal bars (label, value, colour) from the top down, with their values; ``line``: where a rule is drawn."""
    figure = Figure(figsize=(9, 2.2 + BAR_HEIGHT * len(bars)), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    axes.barh(list(places), [value for _, value, _ in bars], color=[color for _, _, color in bars])
    axes.set_yticks(list(places), [name for name, _, _ in bars])
    axes.invert_yaxis()
    for place, (_, value, _) in zip(places, bars, strict=True):
        axes.annotate(f" {value:.3g}", (value, place), va="center")
    if line is not None:
        axes.axvline(line, color=GREY, linewidth=1)
    axes.margins(x=0.12)
    axes.set_xlabel(unit)
    style_axes(axes)
    axes.set_title(title)
    facts = "\n".join(textwrap.fill(text, 150) for text in origin.lines())
    figure.supxlabel(facts, fontsize=5, ha="left", x=0.01)
    return figure


def throughput_bars(state: State, *kinds: str) -> list[Bar]:
    """Slices a second of the cells of these kinds."""
    return [
        (f"{label(o.cell)}" + (f" ({o.cell.kind})" if len(kinds) > 1 else ""), o.values["slices_per_s"], BLUE)
        for o in state.of(*kinds)
    ]


def ratio_bars(state: State) -> list[Bar]:
    """Our speed over the peer's of every comparison: eager in grey, compiled in orange."""
    names = {"peer_step": "step", "peer_inference": "batch", "peer_epoch": "first"}
    bars = []
    for outcome in state.of(*names):
        for form, color in (("eager", GREY), ("compiled", ORANGE)):
            value = outcome.values.get(f"{names[outcome.cell.kind]}_ratio_{form}")
            if value is not None:
                kind = outcome.cell.kind.removeprefix("peer_")
                bars.append((f"{kind}: {label(outcome.cell)} / {form}", value, color))
    bars += [
        (f"pipeline per core: {label(o.cell)}", o.values["ratio_per_core"], BLUE)
        for o in state.of("peer_pipeline")
    ]
    return bars


def write_plots(state: State, origin: Origin, folder: Path) -> None:
    """``training.png``, ``inference.png`` and ``peer.png``, those that there are figures for."""
    pictures = {
        "training": (throughput_bars(state, "step", "whole"), "Training", "slices/s", None),
        "inference": (throughput_bars(state, "inference"), "Inference by batch size", "slices/s", None),
        "peer": (ratio_bars(state), "Speed over PyTorch's in the same run", "times", 1.0),
    }
    for name, (bars, title, unit, line) in pictures.items():
        if bars:
            write_figure(draw_bars(bars, title, unit, origin, line), folder / f"{name}.png")

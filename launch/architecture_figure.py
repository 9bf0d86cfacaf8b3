"""A network drawn from its module: which stage feeds which is read off the traced computation, not written down.

Every stage of the module becomes a named call in the jaxpr of the whole forward pass. Its nodes are these calls, its
edges the ways by which the output of one reaches the input of another through whatever lies between (pools,
up-sampling, concatenation). Nothing is computed: parameters and input are shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import Literal as Constant
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dagm_jax.visualization.figures import BLUE, GREY, ORANGE, write_figure

Side = Literal["input", "encoder", "bottleneck", "decoder", "head"]
Kind = Literal["pool", "up", "same"]
Direction = Literal["left", "right", "top", "bottom"]
Point = tuple[float, float]

# Attribute of a module → side of the picture, and the name of its stages (numbered from 1 in a list).
STAGES: dict[str, tuple[Side, str]] = {
    "encoder": ("encoder", "E"),
    "bottleneck": ("bottleneck", "bottleneck"),
    "decoder": ("decoder", "D"),
    "head": ("head", "head"),
    "heads": ("head", "head "),
    "classifier": ("head", "classifier"),
}
INPUT = "input"
# Marks the calls of stages in the jaxpr; jax names calls of its own too.
PREFIX = "stage: "


@dataclass(frozen=True)
class Stage:
    """A box: its name, its side, and the (height, width, channels) of its output."""

    name: str
    side: Side
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Edge:
    """The output of ``source`` reaches ``target``, at a smaller size (pool), a larger one (up), or its own (same)."""

    source: str
    target: str
    kind: Kind


@dataclass(frozen=True)
class Architecture:
    """The stages of a network in the order in which they are called, and the edges between them."""

    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]

    def sources(self, target: str) -> set[str]:
        """The names of the stages that feed ``target``."""
        return {edge.source for edge in self.edges if edge.target == target}


# --- reading --------------------------------------------------------------------------------------------------


class _Named(nnx.Module):
    """A stage whose call shows in a jaxpr as one named equation."""

    def __init__(self, name: str, stage: Any) -> None:
        self.name, self.stage = name, stage

    def __call__(self, *args: Any, **options: Any) -> Any:
        def call(*args: Any) -> Any:
            return self.stage(*args, **options)

        call.__name__ = PREFIX + self.name
        return jax.jit(call)(*args)


def _name_stages(module: Any) -> dict[str, Side]:
    """Wraps every stage of ``module`` in place; name → side."""
    sides: dict[str, Side] = {}
    for attribute, (side, name) in STAGES.items():
        value = getattr(module, attribute, None)
        if value is None:
            continue
        if isinstance(value, nnx.List):
            named = [_Named(f"{name}{i + 1}", stage) for i, stage in enumerate(value)]
            setattr(module, attribute, nnx.List(named))
        else:
            named = [_Named(name, value)]
            setattr(module, attribute, named[0])
        sides |= {one.name: side for one in named}
    return sides


def read_architecture(
    build: Callable[[nnx.Rngs], Any], *, in_channels: int, slice_shape: tuple[int, int]
) -> Architecture:
    """The architecture of the module that ``build`` makes, for slices of ``slice_shape`` (height, width) px.

    Raises ValueError where a stage of the module is not called by its forward pass itself.
    """
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    sides: dict[str, Side] = {}

    def forward(state: Any, x: Any) -> Any:
        module: Any = nnx.merge(graphdef, state, copy=True)
        sides.update(_name_stages(module))
        return module(x, train=False)

    x = jax.ShapeDtypeStruct((1, *slice_shape, in_channels), jnp.float32)
    jaxpr = jax.make_jaxpr(forward)(state, x).jaxpr
    stages = [Stage(INPUT, "input", (*slice_shape, in_channels))]
    feeds: list[tuple[str, str]] = []
    for name, sources, shape in _stage_calls(jaxpr):
        stages.append(Stage(name, sides[name], shape))
        feeds += [(source.name, name) for source in stages if source.name in sources]
    missing = sides.keys() - {stage.name for stage in stages}
    if missing:
        raise ValueError(f"the forward pass does not call {', '.join(sorted(missing))}; it cannot be drawn")
    size = {stage.name: stage.shape[0] for stage in stages}
    return Architecture(tuple(stages), tuple(Edge(a, b, _kind(size[a], size[b])) for a, b in feeds))


def _stage_calls(jaxpr: Any) -> Iterator[tuple[str, set[str], tuple[int, int, int]]]:
    """(name, names of the stages whose outputs reach it, output shape) of every call of a stage, in order."""
    # The last argument is the image; the others are parameters, which come from no stage.
    reached: dict[Any, set[str]] = {jaxpr.invars[-1]: {INPUT}}
    for equation in jaxpr.eqns:
        variables = [v for v in equation.invars if not isinstance(v, Constant)]
        sources: set[str] = set().union(*(reached.get(v, set()) for v in variables))
        called = str(equation.params.get("name", ""))
        if called.startswith(PREFIX):
            name = called.removeprefix(PREFIX)
            yield name, sources, equation.outvars[0].aval.shape[1:]
            sources = {name}
        reached |= dict.fromkeys(equation.outvars, sources)


def _kind(source_px: int, target_px: int) -> Kind:
    if source_px == target_px:
        return "same"
    return "pool" if source_px > target_px else "up"


# --- drawing --------------------------------------------------------------------------------------------------

COLUMNS: dict[Side, float] = {"input": -1.0, "encoder": 0.0, "bottleneck": 1.0, "decoder": 2.0, "head": 3.1}
COLOURS: dict[Kind, str] = {"pool": ORANGE, "up": BLUE, "same": GREY}
LEGEND: dict[Kind, str] = {"pool": "to a smaller map", "up": "to a larger map", "same": "at the same size"}
BOX_WIDTH, BOX_HEIGHT = 0.62, 0.5
INCHES_PER_COLUMN, INCHES_PER_ROW = 2.1, 1.15
# Rows that lie further apart than this have others between them.
NEIGHBOURS = 1.5
# How far an arrow that goes round a box bows out, as a share of its length.
BOW = 0.25


@dataclass(frozen=True)
class _Box:
    """Centre and height of a box, in columns and rows; y grows upwards."""

    x: float
    y: float
    height: float


def _boxes(stages: tuple[Stage, ...]) -> dict[str, _Box]:
    """A row for each size, the largest on top; the deepest encoder stage in the middle if no decoder stands there.

    Stages that share a place share its height.
    """
    rows = sorted({stage.shape[0] for stage in stages}, reverse=True)
    decoder_rows = {stage.shape[0] for stage in stages if stage.side == "decoder"}
    places: dict[tuple[float, int], list[str]] = {}
    for stage in stages:
        lone = stage.side == "encoder" and stage.shape[0] not in decoder_rows
        column = COLUMNS["bottleneck" if lone else stage.side]
        places.setdefault((column, rows.index(stage.shape[0])), []).append(stage.name)
    boxes = {}
    for (column, row), names in places.items():
        for i, name in enumerate(names):
            pitch = 1.4 * BOX_HEIGHT / len(names)
            y = -row + pitch * ((len(names) - 1) / 2 - i)
            boxes[name] = _Box(column, y, BOX_HEIGHT if len(names) == 1 else 0.8 * pitch)
    return boxes


def _sides(source: _Box, target: _Box) -> tuple[Direction, Direction]:
    """The sides of the two boxes that an arrow joins; past other boxes of its column it goes round on the right."""
    if source.x == target.x:
        if abs(source.y - target.y) > NEIGHBOURS:
            return "right", "right"
        return ("bottom", "top") if source.y > target.y else ("top", "bottom")
    return ("right", "left") if source.x < target.x else ("left", "right")


def _ports(boxes: dict[str, _Box], edges: tuple[Edge, ...]) -> list[tuple[Point, Point]]:
    """Where each edge leaves and arrives; ends on one side of a box are spread over it in the order of the others."""
    ends: dict[tuple[str, Direction], list[tuple[float, int, int]]] = {}
    for i, edge in enumerate(edges):
        pair = boxes[edge.source], boxes[edge.target]
        for end, (name, side) in enumerate(zip((edge.source, edge.target), _sides(*pair), strict=True)):
            ends.setdefault((name, side), []).append((pair[1 - end].y, i, end))
    points: dict[tuple[int, int], Point] = {}
    for (name, side), group in ends.items():
        for place, (_, i, end) in enumerate(sorted(group)):
            share = (place + 1) / (len(group) + 1)
            points[i, end] = _point(boxes[name], side, share)
    return [(points[i, 0], points[i, 1]) for i in range(len(edges))]


def _point(box: _Box, side: Direction, share: float) -> Point:
    """The point on a side of a box, ``share`` of its height up; the middle of its top and bottom."""
    if side in ("top", "bottom"):
        return box.x, box.y + box.height / 2 * (1 if side == "top" else -1)
    return box.x + BOX_WIDTH / 2 * (1 if side == "right" else -1), box.y + box.height * (share - 0.5)


def _draw_edge(axes: Axes, start: Point, end: Point, kind: Kind) -> None:
    is_round = start[0] == end[0] and abs(start[1] - end[1]) > NEIGHBOURS
    arrow = FancyArrowPatch(
        start,
        end,
        connectionstyle=f"arc3,rad={BOW if is_round else 0}",
        arrowstyle="-|>",
        mutation_scale=10,
        color=COLOURS[kind],
        linewidth=1.3,
        shrinkA=0,
        shrinkB=0,
    )
    axes.add_patch(arrow)


def _draw_box(axes: Axes, box: _Box, stage: Stage) -> None:
    corner = (box.x - BOX_WIDTH / 2, box.y - box.height / 2)
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(
        FancyBboxPatch(corner, BOX_WIDTH, box.height, boxstyle=style, facecolor="#F2F2F2", edgecolor="black")
    )
    height, width, channels = stage.shape
    between = "\n" if box.height == BOX_HEIGHT else "  "
    text = f"{stage.name}{between}{height}×{width}×{channels}"
    axes.text(box.x, box.y, text, ha="center", va="center", fontsize=8)


def plot_architecture(architecture: Architecture, path: Path, title: str) -> None:
    """Write the stages as boxes, one row per size, and the edges as arrows coloured by what happens to the size."""
    boxes = _boxes(architecture.stages)
    columns = [box.x for box in boxes.values()]
    rows = [box.y for box in boxes.values()]
    left, right = min(columns) - 0.5, max(columns) + 0.5
    bottom, top = min(rows) - 0.5, max(rows) + 0.5
    figure = Figure(
        figsize=(INCHES_PER_COLUMN * (right - left), INCHES_PER_ROW * (top - bottom) + 0.8),
        layout="constrained",
    )
    axes = figure.subplots()
    axes.set(xlim=(left, right), ylim=(bottom, top))
    axes.set_axis_off()
    for edge, (start, end) in zip(architecture.edges, _ports(boxes, architecture.edges), strict=True):
        _draw_edge(axes, start, end, edge.kind)
    for stage in architecture.stages:
        _draw_box(axes, boxes[stage.name], stage)
    axes.set_title(title, fontsize=11)
    kinds = [kind for kind in COLOURS if any(edge.kind == kind for edge in architecture.edges)]
    handles = [Line2D([], [], color=COLOURS[kind], label=LEGEND[kind]) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    write_figure(figure, path)

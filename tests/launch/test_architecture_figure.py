"""What the picture of a network says is what the paper's text says, and what the module does."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from dagm_jax.models.config import ConvAutoencoderConfig, CustomUNetConfig, UNet3PlusConfig
from launch import architecture_figure
from launch.architecture_figure import Architecture, Edge, plot_architecture, read_architecture


@cache
def read(config: Any) -> Architecture:
    def build(rngs: nnx.Rngs) -> Any:
        return config.build(in_channels=3, out_channels=1, rngs=rngs)

    return read_architecture(build, in_channels=3, slice_shape=(64, 32))


def pairs(architecture: Architecture) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in architecture.edges}


ENCODER = {("input", "E1"), ("E1", "E2"), ("E2", "E3"), ("E3", "E4"), ("E4", "E5")}
PLAIN = ENCODER | {
    ("E5", "D4"), ("D4", "D3"), ("D3", "D2"), ("D2", "D1"), ("D1", "head"),
    ("E4", "D4"), ("E3", "D3"), ("E2", "D2"), ("E1", "D1"),
}  # fmt: skip
PREVIOUS = {("E3", "D4"), ("E2", "D3"), ("E1", "D2")}


def test_custom_unet_is_the_papers() -> None:
    """Catches an edge that is not there or not drawn: D_i sees D_{i+1}, E_i and E_{i-1}."""
    assert pairs(read(CustomUNetConfig(base_channels=2))) == PLAIN | PREVIOUS


def test_plain_unet_lacks_the_previous_encoder_stages_alone() -> None:
    """Catches a picture that is drawn from memory: another configuration gives another one."""
    assert pairs(read(CustomUNetConfig(base_channels=2, extra_skips="none"))) == PLAIN
    assert ("E5", "D3") not in pairs(read(CustomUNetConfig(base_channels=2, up="bilinear")))


def test_autoencoder_is_one_path() -> None:
    """Catches a skip: then the bottleneck would be none."""
    path = ["input", "E1", "E2", "E3", "E4", "bottleneck", "D4", "D3", "D2", "D1", "head"]
    architecture = read(ConvAutoencoderConfig(base_channels=2, bottleneck_channels=2))
    assert [(e.source, e.target) for e in architecture.edges] == list(pairwise(path))


def test_unet3plus_sees_every_scale() -> None:
    """Catches a lost branch: every decoder stage has one edge from each of the five scales."""
    architecture = read(UNet3PlusConfig(base_channels=2))
    wanted = {
        "D4": {"E1", "E2", "E3", "E4", "E5"},
        "D3": {"E1", "E2", "E3", "D4", "E5"},
        "D2": {"E1", "E2", "D3", "D4", "E5"},
        "D1": {"E1", "D2", "D3", "D4", "E5"},
    }
    assert {name: architecture.sources(name) for name in wanted} == wanted
    assert architecture.sources("classifier") == architecture.sources("head 5") == {"E5"}
    bare = read(UNet3PlusConfig(base_channels=2, deep_supervision=False, classification_guided=False))
    assert {stage.name for stage in bare.stages if stage.side == "head"} == {"head 1"}


def test_shapes_and_kinds_of_edges() -> None:
    """Catches sizes of the inputs for those of the outputs, and pools drawn as up-sampling."""
    architecture = read(CustomUNetConfig(base_channels=2))
    shapes = {stage.name: stage.shape for stage in architecture.stages}
    assert shapes["input"] == (64, 32, 3) and shapes["head"] == (64, 32, 1)
    assert shapes["E1"] == shapes["D1"] == (64, 32, 2) and shapes["E5"] == (4, 2, 32)
    for edge in (
        Edge("E1", "E2", "pool"),
        Edge("E1", "D2", "pool"),
        Edge("D2", "D1", "up"),
        Edge("E2", "D2", "same"),
    ):
        assert edge in architecture.edges


def test_nothing_is_computed() -> None:
    """Catches parameters that are made: at this width they would fill the memory of any machine."""
    assert read(CustomUNetConfig(base_channels=2**16)).stages[1].shape == (64, 32, 2**16)


class Hidden(nnx.Module):
    """Calls its stage inside another compiled call."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.head = nnx.Conv(3, 1, (1, 1), rngs=rngs)

    def __call__(self, x: Any, *, train: bool) -> Any:
        import jax

        return jax.jit(lambda x: self.head(x))(x)


def test_a_stage_that_is_not_seen_is_an_error() -> None:
    """Catches a stage that silently misses in the picture."""
    with pytest.raises(ValueError, match="does not call head; it cannot be drawn"):
        read_architecture(Hidden, in_channels=3, slice_shape=(16, 16))


@pytest.mark.parametrize(
    "config", [CustomUNetConfig(2), ConvAutoencoderConfig(2), UNet3PlusConfig(2)], ids=lambda c: c.name
)
def test_boxes_do_not_overlap(tmp_path: Path, config: Any) -> None:
    """Catches two stages drawn in one place, and a blank picture."""
    architecture = read(config)
    boxes = list(architecture_figure._boxes(architecture.stages).values())
    assert len(boxes) == len(architecture.stages)
    for i, a in enumerate(boxes):
        for b in boxes[:i]:
            assert (
                abs(a.x - b.x) >= architecture_figure.BOX_WIDTH or abs(a.y - b.y) > (a.height + b.height) / 2
            )
    plot_architecture(architecture, tmp_path / "network.png", "a network")
    drawn = np.asarray(Image.open(tmp_path / "network.png").convert("L"))
    assert drawn.std() > 5 and drawn.shape[0] > 400

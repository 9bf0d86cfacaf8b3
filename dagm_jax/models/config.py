"""Shapes of the three networks. Nothing here imports flax, so that reading a configuration is cheap."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from dagm_jax.errors import check_choices, require
from dagm_jax.types import ComputeDtype

NormKind = Literal["batch", "group", "none"]
UpKind = Literal["conv_transpose", "bilinear"]
ExtraSkips = Literal["previous_encoder", "none", "next_encoder", "both", "all_shallower"]


class NetworkConfig:
    """Checks and construction that the shapes of all networks share.

    name: of the module in this folder, by which the command line selects the network; its class there has the name of
    the configuration's, less "Config". halo_px: how far the input of an output pixel reaches at most, rounded up to a
    multiple of 16.
    """

    name: ClassVar[str]
    halo_px: ClassVar[int]

    def __post_init__(self) -> None:
        check_choices("model", self)
        widths = (field.name for field in fields(self) if field.name.endswith("_channels"))  # type: ignore[arg-type]
        require("model", self, " ".join(widths), lambda x: x >= 1, "be at least 1")

    def build(self, **arguments: Any) -> Any:
        """The network of this shape, freshly initialised; arguments: in_channels, out_channels, axis_name, rngs."""
        module = importlib.import_module(f"dagm_jax.models.{self.name}")
        return getattr(module, type(self).__name__.removesuffix("Config"))(self, **arguments)


@dataclass(frozen=True)
class CustomUNetConfig(NetworkConfig):
    """Shape of the network. Widths are ``base_channels`` · 2^(level-1); compute dtype of the convolutions."""

    base_channels: int = 16
    extra_skips: ExtraSkips = "previous_encoder"
    norm: NormKind = "batch"
    up: UpKind = "conv_transpose"
    compute_dtype: ComputeDtype = "float32"

    name: ClassVar[str] = "custom_unet"
    halo_px: ClassVar[int] = 144


@dataclass(frozen=True)
class ConvAutoencoderConfig(NetworkConfig):
    """Shape of the network. Widths are ``base_channels`` · 2^(level-1); ``bottleneck_channels`` at 1/16 of the size."""

    base_channels: int = 32
    bottleneck_channels: int = 32
    norm: NormKind = "batch"
    compute_dtype: ComputeDtype = "float32"

    name: ClassVar[str] = "conv_autoencoder"
    halo_px: ClassVar[int] = 80


@dataclass(frozen=True)
class UNet3PlusConfig(NetworkConfig):
    """Shape of the network. Encoder widths are ``base_channels`` · 2^(level-1), decoder widths 5 · ``base_channels``.

    ``deep_supervision`` adds a head to each coarser stage, ``classification_guided`` the module that says whether a
    slice holds a defect at all. The norm is batch normalisation, as in the paper's code.
    """

    base_channels: int = 64
    deep_supervision: bool = True
    classification_guided: bool = True
    compute_dtype: ComputeDtype = "float32"

    name: ClassVar[str] = "unet3plus"
    halo_px: ClassVar[int] = 128

"""Shapes of the three networks. Nothing here imports flax, so that reading a configuration is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from dagm_jax.errors import UserError, check_choices
from dagm_jax.types import ComputeDtype

if TYPE_CHECKING:
    from flax import nnx

    from dagm_jax.models.conv_autoencoder import ConvAutoencoder
    from dagm_jax.models.custom_unet import CustomUNet
    from dagm_jax.models.unet3plus import UNet3Plus

NormKind = Literal["batch", "group", "none"]
UpKind = Literal["conv_transpose", "bilinear"]
ExtraSkips = Literal["previous_encoder", "none", "next_encoder", "both", "all_shallower"]


@dataclass(frozen=True)
class CustomUNetConfig:
    """Shape of the network. Widths are ``base_channels`` · 2^(level-1); compute dtype of the convolutions."""

    base_channels: int = 16
    extra_skips: ExtraSkips = "previous_encoder"
    norm: NormKind = "batch"
    up: UpKind = "conv_transpose"
    compute_dtype: ComputeDtype = "float32"

    name: ClassVar[str] = "custom_unet"

    def __post_init__(self) -> None:
        check_choices("model", self)
        if self.base_channels < 1:
            raise UserError(f"`model.base_channels` (={self.base_channels}) must be at least 1")

    def build(
        self, *, in_channels: int, out_channels: int, axis_name: str | None = None, rngs: nnx.Rngs
    ) -> CustomUNet:
        """The network of this shape, freshly initialised."""
        from dagm_jax.models.custom_unet import CustomUNet

        return CustomUNet(
            self, in_channels=in_channels, out_channels=out_channels, axis_name=axis_name, rngs=rngs
        )


@dataclass(frozen=True)
class ConvAutoencoderConfig:
    """Shape of the network. Widths are ``base_channels`` · 2^(level-1); ``bottleneck_channels`` at 1/16 of the size."""

    base_channels: int = 32
    bottleneck_channels: int = 32
    norm: NormKind = "batch"
    compute_dtype: ComputeDtype = "float32"

    name: ClassVar[str] = "conv_autoencoder"

    def __post_init__(self) -> None:
        check_choices("model", self)
        for name in ("base_channels", "bottleneck_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"`model.{name}` (={getattr(self, name)}) must be at least 1")

    def build(
        self, *, in_channels: int, out_channels: int, axis_name: str | None = None, rngs: nnx.Rngs
    ) -> ConvAutoencoder:
        """The network of this shape, freshly initialised."""
        from dagm_jax.models.conv_autoencoder import ConvAutoencoder

        return ConvAutoencoder(
            self, in_channels=in_channels, out_channels=out_channels, axis_name=axis_name, rngs=rngs
        )


@dataclass(frozen=True)
class UNet3PlusConfig:
    """Shape of the network. Encoder widths are ``base_channels`` · 2^(level-1), decoder widths 5 · ``base_channels``.

    ``deep_supervision`` adds a head to each coarser stage, ``classification_guided`` the module that says whether a
    slice holds a defect at all. The norm is batch normalisation, as in the paper's code.
    """

    base_channels: int = 64
    deep_supervision: bool = True
    classification_guided: bool = True
    compute_dtype: ComputeDtype = "float32"

    name: ClassVar[str] = "unet3plus"

    def __post_init__(self) -> None:
        check_choices("model", self)
        if self.base_channels < 1:
            raise UserError(f"`model.base_channels` (={self.base_channels}) must be at least 1")

    def build(
        self, *, in_channels: int, out_channels: int, axis_name: str | None = None, rngs: nnx.Rngs
    ) -> UNet3Plus:
        """The network of this shape, freshly initialised."""
        from dagm_jax.models.unet3plus import UNet3Plus

        return UNet3Plus(
            self, in_channels=in_channels, out_channels=out_channels, axis_name=axis_name, rngs=rngs
        )

"""Random moves of an image and its mask together, from an explicit generator; numpy and scipy only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from dagm_jax.data.config import AugmentConfig


@dataclass(frozen=True)
class Move:
    """A move of an image within its frame: `turn`, then a rotation about the centre and a shift, borders reflected."""

    quarter_turns: int
    flip: bool
    angle_deg: float
    shift_px: tuple[float, float]

    def lying(self) -> Move:
        """The move by 0° or 180° in place of 90° or 270°, which would exchange height and width."""
        return replace(self, quarter_turns=self.quarter_turns - self.quarter_turns % 2)

    @property
    def is_dihedral(self) -> bool:
        return not self.angle_deg and not any(self.shift_px)

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``image`` (uint8 ``[h w]``) and ``mask`` (bool ``[h w]``) moved; views where only axes change.

        Else the image is interpolated linearly, the mask takes the nearest pixel, so that it stays binary.
        """
        image, mask = self.turn(image), self.turn(mask)
        if self.is_dihedral:
            return image, mask
        angle = np.deg2rad(self.angle_deg)
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        center = (np.array(image.shape) - 1) / 2
        offset = center - matrix @ (center + np.array(self.shift_px))
        moved = ndimage.affine_transform(image, matrix, offset, order=1, mode="mirror")
        moved_mask = ndimage.affine_transform(mask.view(np.uint8), matrix, offset, order=0, mode="mirror")
        return moved, moved_mask.astype(bool)

    def turn(self, array: np.ndarray) -> np.ndarray:
        """``array [h w …]`` mirrored left-right if ``flip``, then turned by ``quarter_turns``·90°, 0 to 3; a view.

        np.rot90 takes longer for its checks than it takes to copy a strip.
        """
        if self.flip:
            array = array[:, ::-1]
        if self.quarter_turns == 2:
            return array[::-1, ::-1]
        if self.quarter_turns % 2:
            array = array.swapaxes(0, 1)
            return array[::-1] if self.quarter_turns == 1 else array[:, ::-1]
        return array

    def line_sums(self, down: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The sums down the columns and across the rows of a dihedrally moved array, from those of the array."""
        if self.flip:
            down = down[::-1]
        for _ in range(self.quarter_turns):
            # A turn to the left makes the last column the first row.
            down, across = across, down[::-1]
        return down, across


def draw_moves(config: AugmentConfig, rng: np.random.Generator, number: int) -> list[Move]:
    """Random moves of as many images."""
    # All numbers are drawn whatever the options, so that one option does not change another one's draws.
    quarter_turns, flips = rng.integers(4, size=number), rng.integers(2, size=number)
    angles, row_shifts, column_shifts = rng.uniform(-1, 1, (3, number))
    shifts = config.max_shift_px * np.stack([row_shifts, column_shifts], axis=1)
    drawn = (quarter_turns, flips, config.max_angle_deg * angles, shifts)
    return [
        Move(turns * config.rotate90, bool(flip and config.flip), angle, (down, right))
        for turns, flip, angle, (down, right) in zip(*(numbers.tolist() for numbers in drawn), strict=True)
    ]

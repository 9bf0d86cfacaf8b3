"""The white level of a user's 16-bit images, one for all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dagm_jax.data.images.decode import MODES_16, WHITE_16, open_header, read_bytes, read_grey
from dagm_jax.data.images.load import in_threads
from dagm_jax.types import Photo, Sample


def find_white(photos: Sequence[Photo], heartbeat: Callable[[], None] = lambda: None) -> int:
    """The least 2^k - 1 >= 255 that no value of the 16-bit images among these exceeds; 65535 without such images.

    Decodes the 16-bit images alone. ``heartbeat`` is called after each file.
    """

    def highest(photo: Photo) -> int:
        try:
            # A pipe would be waited for.
            if not photo.path.is_file():
                return 0
            with open_header(photo.path) as picture:
                if picture.mode not in MODES_16:
                    return 0
            return int(read_grey(read_bytes(photo.path), photo.path, None, "", "luma").max())
        except Exception:  # a decoder that is fed garbage may raise anything; `load` will say what is wrong
            return 0

    most = 0
    for value in in_threads(highest, photos):
        most = max(most, value)
        heartbeat()
    return int(2 ** max(8, most.bit_length()) - 1) if most else WHITE_16


def with_white(samples: Sequence[Sample], white: int | None) -> tuple[Sample, ...]:
    """The samples with this white level in those users' images whose own is not known yet."""
    return tuple(
        replace(sample, image=replace(sample.image, white=white))
        if isinstance(sample.image, Photo) and sample.image.white is None
        else sample
        for sample in samples
    )

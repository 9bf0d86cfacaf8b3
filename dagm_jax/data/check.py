"""A folder of images, read as training would and described: what is there, what is left out and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from dagm_jax.data.images.decode import WHITE_16, BadImage
from dagm_jax.data.images.load import BadMask, load_all
from dagm_jax.data.leakage import content_digest, find_copies
from dagm_jax.types import Manifest, Photo, Sample, Skip

# Limit of the ratio of the largest image's pixels to the median's that needs no words.
USUAL_RATIO = 4.0


@dataclass(frozen=True)
class Findings:
    """The usable samples of a set, those left out, and for each usable one its (h, w) and the share of its mask.

    mask_shares: None for images without a mask.
    """

    samples: tuple[Sample, ...]
    skipped: tuple[Skip, ...]
    shapes: tuple[tuple[int, int], ...]
    mask_shares: tuple[float | None, ...]

    def rows(self) -> Iterator[tuple[str, str]]:
        """(what, figures) of the usable samples."""
        labels = Counter(sample.label for sample in self.samples)
        masked = sum(sample.mask is not None for sample in self.samples if sample.label)
        yield "good images", str(labels[0])
        yield "defective images", f"{labels[1]}, {masked} of them with masks"
        for kind, number in sorted(Counter(sample.kind for sample in self.samples if sample.kind).items()):
            yield f"kind {kind}", str(number)
        if halves := Counter(sample.half or "neither" for sample in self.samples):
            yield "halves", ", ".join(f"{name} {number}" for name, number in sorted(halves.items()))
        if self.shapes:
            areas = sorted(self.shapes, key=lambda shape: shape[0] * shape[1])
            ends = [f"{height}x{width}" for height, width in (areas[0], areas[-1])]
            yield (
                "sizes (h x w, px)",
                ends[0] if len(set(areas)) == 1 else f"{len(set(areas))}, {ends[0]} to {ends[1]}",
            )
            ratio = areas[-1][0] * areas[-1][1] / median(height * width for height, width in areas)
            if ratio > USUAL_RATIO:
                yield "warning", f"the largest image has {ratio:.1f} times the pixels of the median one"
        whites = {sample.image.white for sample in self.samples if isinstance(sample.image, Photo)}
        if scaled := sorted(white for white in whites if white is not None and white < WHITE_16):
            yield "white of 16-bit images", ", ".join(map(str, scaled))
        if shares := [share for share in self.mask_shares if share is not None]:
            yield (
                "share of defect pixels",
                f"{min(shares):.2%} to {max(shares):.2%}, median {median(shares):.2%}",
            )
            if median(shares) > 0.5:
                yield "warning", "most masks cover more than half of their image; are they inverted?"
        yield "left out", str(len(self.skipped))


def check_images(
    manifest: Manifest,
    samples: Sequence[Sample],
    shape: tuple[int, int] | None,
    on_image: Callable[[], None] = lambda: None,
) -> Findings:
    """The findings in the images of ``manifest``, whose ``samples`` know their white level: those of training.

    shape: (h, w) that every image must have, None for any. on_image is called after each image.
    """
    sizes: dict[int, tuple[int, int]] = {}
    shares: dict[int, float] = {}
    digests: dict[int, bytes] = {}
    skips: dict[int, Skip] = {}
    for place, (sample, loaded) in enumerate(zip(samples, load_all(samples, shape), strict=True)):
        on_image()
        if isinstance(loaded, BadImage):
            skips[place] = Skip(sample.image_id, str(loaded))
            if isinstance(loaded, BadMask):
                digests[place] = content_digest(loaded.image)
            continue
        image, mask = loaded
        digests[place] = content_digest(image)
        sizes[place] = image.shape[0], image.shape[1]
        if sample.label and sample.mask is not None:
            shares[place] = float(np.mean(mask))
    skips |= find_copies(samples, digests, frozenset(skips))
    kept = [place for place in range(len(samples)) if place not in skips]
    return Findings(
        tuple(samples[place] for place in kept),
        (*manifest.skipped, *(skips[place] for place in sorted(skips))),
        tuple(sizes[place] for place in kept),
        tuple(shares.get(place) for place in kept),
    )

"""The report page: one HTML file that shows what was judged, why, and what another threshold would change.

The page needs nothing but itself: thumbnails, style and script are inside, and its security policy forbids every
connection. It is written image by image, so memory stays flat however many there are.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, TextIO
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dagm_jax.data.replacing import replacing

THUMBNAIL_SIDE_PX = 176
THUMBNAIL_QUALITY = 35
PICTURE_SIDE_PX = 1024
PICTURE_QUALITY = 60
# Anchors of matplotlib's "inferno", red, green, blue at 0, 1/8, ... 1.
_HEAT = np.array(
    [
        (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85),
        (227, 89, 51), (249, 140, 10), (249, 201, 50), (252, 255, 164),
    ]
)  # fmt: skip
_HEAT_OPACITY = 0.8
# Opacities that differ by less than the eye sees compress to a third.
_OPACITY_STEP = 16
_JUDGED_INK, _TRUE_INK = (255, 255, 255), (86, 224, 255)

UInt8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Pictures:
    """An image and the map that is laid over it: WebP files as bytes, of one size; the map's is transparent."""

    image: bytes
    overlay: bytes


@dataclass(frozen=True, slots=True)
class PageEntry:
    """What the page says of one image.

    label: 1 defective, 0 good, None unknown. score: None, NaN and infinities are no score: the image is listed with its
    ``error`` and counts nowhere. picture, picture_overlay: the full picture and its overlay, as paths relative to the
    page (any characters; an overlay only with a picture).
    """

    name: str
    label: int | None
    score: float | None
    thumbnail: Pictures | None = None
    picture: str | None = None
    picture_overlay: str | None = None
    error: str = ""

    def __post_init__(self) -> None:
        if self.label not in (0, 1, None):
            raise ValueError(f"`label` (={self.label!r}) must be 0 (good), 1 (defective) or None (unknown)")
        for name in ("picture", "picture_overlay"):
            path = getattr(self, name)
            if path is not None and os.path.isabs(path):
                raise ValueError(f"`{name}` (={path!r}) must be relative to the page, which may be moved")


# --- pictures -----------------------------------------------------------------------------------------------


def draw_pictures(
    image: UInt8,
    evidence: NDArray[np.floating],
    pixel_threshold: float,
    true_mask: Mask | None = None,
    side_px: int = THUMBNAIL_SIDE_PX,
    quality: int = THUMBNAIL_QUALITY,
) -> Pictures:
    """The image and its overlay, both with the longer side at most ``side_px``, as lossy WebP.

    image: uint8 [h w] or [h w 3]; evidence: the map, [h w] in [0, 1]; true_mask: bool [h w], outlined in light blue.
    Colour and opacity of the overlay grow with the map: half of the scale lies below the pixel threshold, half above,
    and what is at least as high as the threshold has a white outline. Shrinking keeps each cell's highest value, so
    that a defect of one pixel is still seen. Raises ValueError for unequal sizes.
    """
    size = image.shape[:2]
    for name, array in (("map", evidence), ("mask", true_mask)):
        if array is not None and array.shape != size:
            raise ValueError(f"the {name} {array.shape} must have the size of its image {size}")
    scale = min(1.0, side_px / max(size))
    height, width = (max(1, round(length * scale)) for length in size)
    shrunk = Image.fromarray(image).resize((width, height), Image.Resampling.BOX)
    heat = _highest(evidence, height, width)
    overlay = _draw_overlay(heat, pixel_threshold)
    _draw_outline(overlay, heat >= pixel_threshold, _JUDGED_INK)
    if true_mask is not None:
        _draw_outline(overlay, _highest(true_mask, height, width), _TRUE_INK)
    return Pictures(_encode(shrunk, quality), _encode(Image.fromarray(overlay), quality))


def _highest(values: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """The highest value in each cell of a grid of ``height`` x ``width`` cells; the grid is no finer than the array."""
    if values.shape == (height, width):
        return values
    rows, columns = (
        (np.arange(number) * length) // number
        for number, length in ((height, values.shape[0]), (width, values.shape[1]))
    )
    return np.asarray(np.maximum.reduceat(np.maximum.reduceat(values, rows, axis=0), columns, axis=1))


def _draw_overlay(heat: NDArray[np.floating], pixel_threshold: float) -> UInt8:
    """The map as red, green, blue, opacity, uint8 [h w 4]."""
    anchors = ([0, pixel_threshold, 1], [0, 0.5, 1]) if 0 < pixel_threshold < 1 else ([0, 1], [0, 1])
    strength = np.interp(np.nan_to_num(heat), *anchors)
    return np.asarray(_inks()[np.rint(strength * 255).astype(np.uint8)])


@cache
def _inks() -> UInt8:
    """Red, green, blue and opacity of the strengths 0, 1/255, … 1, uint8 [256, 4]."""
    strength = np.linspace(0, 1, 256)
    places = np.linspace(0, 1, len(_HEAT))
    colours = [np.interp(strength, places, _HEAT[:, channel]) for channel in range(3)]
    opacity = np.round(255 * _HEAT_OPACITY * strength**1.5 / _OPACITY_STEP) * _OPACITY_STEP
    return np.stack([*colours, opacity], axis=-1).astype(np.uint8)


def _draw_outline(overlay: UInt8, mask: Mask, ink: tuple[int, int, int]) -> None:
    """Colours the pixels of the mask that have a neighbour outside it; the image's own edge is no outline."""
    framed = np.pad(mask, 1, mode="edge")
    inner = framed[:-2, 1:-1] & framed[2:, 1:-1] & framed[1:-1, :-2] & framed[1:-1, 2:]
    overlay[mask & ~inner] = (*ink, 255)


def _encode(image: Image.Image, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format="WEBP", quality=quality, alpha_quality=80, method=2)
    return stream.getvalue()


# --- the file -----------------------------------------------------------------------------------------------


def to_json(value: Any) -> str:
    """JSON that no HTML parser leaves: ASCII alone and no "<", so that no name can end the script that holds it.

    Raises ValueError for NaN and infinities, which JSON has not.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def relative_url(path: str | None) -> str | None:
    """The URL of a path relative to the page: percent-encoded, and never anything but a relative file."""
    return None if path is None else "./" + quote(os.fsencode(path))


def _row(entry: PageEntry) -> list[Any]:
    """The entry as the script reads it; see ``readEntry`` in page.js."""
    score = None if entry.score is None or not math.isfinite(entry.score) else float(entry.score)
    error = entry.error or ("" if score is not None else f"no score ({entry.score})")
    shown = entry.thumbnail or Pictures(b"", b"")
    thumbnail, overlay = (base64.b64encode(file).decode() for file in (shown.image, shown.overlay))
    pictures = [relative_url(entry.picture), relative_url(entry.picture_overlay)]
    return [entry.name, entry.label, score, thumbnail, overlay, *pictures, error]


@dataclass(slots=True)
class PageWriter:
    """A page being written; ``summary`` (name → text, shown at the top) may be filled until it is closed."""

    stream: TextIO
    summary: dict[str, str] = field(default_factory=dict)

    def add(self, entry: PageEntry) -> None:
        """Writes one image; nothing of it is kept."""
        row = to_json(_row(entry))
        self.stream.write(f'<script type="application/json" class="entry">{row}</script>\n')


@contextmanager
def open_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    threshold: float,
    pixel_threshold: float,
    summary: Mapping[str, str] | None = None,
) -> Iterator[PageWriter]:
    """A writer of the page ``path``, which appears, or is replaced, in whole at the end of a with-block without error.

    threshold: score >= threshold is defective; what the page begins with. Raises ValueError unless both thresholds are
    finite.
    """
    if not (math.isfinite(threshold) and math.isfinite(pixel_threshold)):
        raise ValueError(
            f"`threshold` (={threshold}) and `pixel_threshold` (={pixel_threshold}) must be finite"
        )
    head, tail, script = _template(title)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target, encoding="utf-8") as stream:
        stream.write(head)
        writer = PageWriter(stream, dict(summary or {}))
        yield writer
        facts = {
            "title": title,
            "threshold": float(threshold),
            "pixelThreshold": float(pixel_threshold),
            "summary": list(writer.summary.items()),
        }
        stream.write(tail.substitute(facts=to_json(facts), script=script))


def write_page(
    path: str | os.PathLike[str],
    entries: Iterable[PageEntry],
    *,
    title: str,
    threshold: float,
    pixel_threshold: float,
    summary: Mapping[str, str] | None = None,
) -> None:
    """Writes the page of all entries, which may come from a generator: see `open_page`."""
    with open_page(
        path, title=title, threshold=threshold, pixel_threshold=pixel_threshold, summary=summary
    ) as page:
        for entry in entries:
            page.add(entry)


def _template(title: str) -> tuple[str, Template, str]:
    """(all of the page before its entries, what comes after them with ``$facts`` and ``$script`` open, the script).

    Style and script are let through by their hashes: whatever else gets into the page is not executed.
    """
    assets = resources.files("dagm_jax") / "page_assets"
    names = ("page.html", "page.css", "page.js")
    page, style, script = ((assets / name).read_text(encoding="utf-8") for name in names)

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    policy = (
        f"default-src 'none'; img-src 'self' file: data:; style-src {source(style)}; "
        f"script-src {source(script)}; base-uri 'none'; form-action 'none'"
    )
    head, tail = page.split("$entries")
    # A title made of a file name may hold bytes that are no text.
    shown = html.escape(title).encode("ascii", "xmlcharrefreplace").decode()
    return Template(head).substitute(title=shown, policy=policy, style=style), Template(tail), script

"""The report page: one HTML file with each image's prediction, its score map, and the effect of other thresholds.

Thumbnails, style and script are inside, and the security policy forbids every connection. The page is written image by
image, so that memory does not grow with their number.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from scipy.special import expit

from dagm_jax.evaluation import metrics
from dagm_jax.evaluation.metrics import FloatArray, IntArray
from dagm_jax.evaluation.threshold import spread_scores
from dagm_jax.storage import replacing
from dagm_jax.visualization.overlay import UInt8

# Longer side and WebP quality of thumbnails and of full pictures.
THUMBNAIL_SIDE_PX, THUMBNAIL_QUALITY = 176, 35
PICTURE_SIDE_PX, PICTURE_QUALITY = 1024, 60
# Bars of each histogram.
NUM_BARS = 48
# Free share of the histogram's width at either end.
MARGIN = 0.03


@dataclass(frozen=True, slots=True)
class Pictures:
    """An image and the layer with its map: WebP files as bytes, of one size; the layer is transparent."""

    image: bytes
    overlay: bytes


@dataclass(frozen=True, slots=True)
class PageEntry:
    """An image of the page.

    label: 1 defective, 0 good, None unknown. score: None, NaN and infinities are no score: the image is listed with its
    ``error`` and counts nowhere. picture, picture_overlay: the full picture and its overlay, as paths relative to the
    page (any characters; an overlay only with a picture). kind: of the defect, empty where it is not known.
    """

    name: str
    label: int | None
    score: float | None
    thumbnail: Pictures | None = None
    picture: str | None = None
    picture_overlay: str | None = None
    error: str = ""
    kind: str = ""


def draw_pictures(under: UInt8, layer: UInt8, quality: int = THUMBNAIL_QUALITY) -> Pictures:
    """The image and its layer, both of `draw_layers`, as lossy WebP."""
    files = []
    for picture in (under, layer):
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, format="WEBP", quality=quality, alpha_quality=80, method=2)
        files.append(stream.getvalue())
    return Pictures(*files)


def write_page(
    path: Path,
    entries: Iterable[PageEntry],
    *,
    title: str,
    threshold: float,
    summary: Mapping[str, str] | None = None,
    warning: str = "",
) -> None:
    """Writes the page of all entries, which may come from a generator; the file appears or is replaced at the end.

    threshold: the calibrated one; score >= threshold is defective. summary: name → text, shown at the top, under a
    ``warning`` where there is one. Raises ValueError unless the threshold is finite.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"`threshold` (={threshold}) must be finite")
    head, tail, script = _template(title, summary or {}, warning)
    labels: list[int] = []
    scores: list[float] = []
    with replacing(path, encoding="utf-8") as stream:
        stream.write(head)
        for entry in entries:
            row = _row(entry)
            stream.write(f'<script type="application/json" class="entry">{to_json(row)}</script>\n')
            if row[2] is not None:
                labels.append(-1 if entry.label is None else entry.label)
                scores.append(row[2])
        facts = make_facts(np.array(labels, np.int64), np.array(scores, np.float64), float(threshold))
        stream.write(tail.substitute(facts=to_json(facts), script=script))


def to_json(value: Any) -> str:
    """JSON in ASCII without "<", so that no file name can end the script element that holds it.

    Raises ValueError for NaN and infinities, which JSON lacks.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def relative_url(path: str | None) -> str | None:
    """The URL of a path relative to the page: percent-encoded, and never anything but a relative file."""
    return None if path is None else "./" + quote(os.fsencode(path))


def _row(entry: PageEntry) -> list[Any]:
    """The entry in the order of ``readEntry`` in page.js."""
    score = None if entry.score is None or not math.isfinite(entry.score) else float(entry.score)
    error = entry.error or ("" if score is not None else f"no score ({entry.score})")
    shown = entry.thumbnail or Pictures(b"", b"")
    thumbnail, overlay = (base64.b64encode(file).decode() for file in (shown.image, shown.overlay))
    pictures = [relative_url(entry.picture), relative_url(entry.picture_overlay)]
    # Enough digits to differ from 0, 1 and its neighbours.
    text = "" if score is None else f"{score:.{7 if 0.99 < score < 1 else 4}g}"
    return [entry.name, entry.label, score, thumbnail, overlay, *pictures, error, text, entry.kind]


def _template(title: str, summary: Mapping[str, str], warning: str) -> tuple[str, Template, str]:
    """(the page before its entries, the template after them with ``$facts`` and ``$script``, the script).

    The policy allows style and script by their hashes, so that nothing else in the page is executed.
    """
    assets = resources.files("dagm_jax.visualization") / "page_assets"
    names = ("page.html", "page.css", "page.js")
    page, style, script = ((assets / name).read_text(encoding="utf-8") for name in names)

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    def escape(text: str) -> str:
        # A file name in the title may hold undecodable bytes.
        return html.escape(text).encode("ascii", "xmlcharrefreplace").decode()

    values = {
        "title": escape(title),
        "warning": f'<p class="warning" role="alert">{escape(warning)}</p>' if warning else "",
        "summary": "".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in summary.items()
        ),
        "style": style,
        "policy": f"default-src 'none'; img-src 'self' file: data:; style-src {source(style)}; "
        f"script-src {source(script)}; base-uri 'none'; form-action 'none'",
    }
    head, tail = page.split("$entries")
    return Template(head).substitute(values), Template(tail), script


def make_facts(labels: IntArray, scores: FloatArray, threshold: float) -> dict[str, Any]:
    """The constants of the page's script as JSON values; labels: 1, 0, -1 for unknown.

    scores: the distinct ones, rising. stops: one threshold for each possible set of decisions, rising; the one at
    ``place`` decides as the calibrated threshold does. below: for each label the number of scores below the k-th
    distinct score, then the number of all. intervals: for each label the 95 % Wilson intervals of the shares 0/n … n/n
    of its n images. areas: AUROC and average precision.
    """
    distinct = np.unique(scores)
    place = int(np.searchsorted(distinct, threshold))
    groups = {
        name: np.sort(scores[labels == label])
        for name, label in (("good", 0), ("defective", 1), ("unknown", -1))
    }
    sizes = {name: group.size for name, group in groups.items()}
    known = labels >= 0
    stops = _stops(distinct.tolist(), threshold, place) if distinct.size else [threshold]
    return {
        "scores": distinct.tolist(),
        "stops": stops,
        "place": place,
        "below": {
            name: np.searchsorted(group, [*distinct, np.inf]).tolist() for name, group in groups.items()
        },
        "intervals": {
            name: [metrics.wilson_interval(k, sizes[name]) for k in range(sizes[name] + 1)]
            for name in ("good", "defective")
        },
        "areas": [
            f"{area(labels[known], scores[known]):.4f}" for area in (metrics.auroc, metrics.average_precision)
        ]
        if sizes["good"] and sizes["defective"]
        else None,
        "histogram": _histogram(groups, distinct, np.array(stops)) if distinct.size else None,
    }


def _stops(distinct: list[float], threshold: float, place: int) -> list[float]:
    """The lowest score, middles between neighbours, the next float above the highest; ``threshold`` at its place.

    Each has the fewest digits that give the same decisions, but at least four.
    """
    stops = []
    above = math.nextafter(distinct[-1], math.inf)
    for k, (low, high) in enumerate(zip([-math.inf, *distinct], [*distinct, above], strict=True)):
        middle = low / 2 + high / 2
        # Neighbouring floats have no middle.
        value = threshold if k == place else middle if middle > low else high
        shorter = (float(f"{value:.{digits}g}") for digits in range(4, 17))
        stops.append(next((one for one in shorter if low < one <= high), value))
    return stops


def _histogram(groups: Mapping[str, FloatArray], distinct: FloatArray, stops: FloatArray) -> dict[str, Any]:
    """Bars of each group, as shares of the highest, and places of scores and thresholds, as shares of the width.

    Scores that all lie in [0, 1] have a logit axis, as in `spread_scores`.
    """
    is_logit = bool(distinct[0] >= 0 and distinct[-1] <= 1)

    def spread(values: FloatArray) -> FloatArray:
        # Halves, because the range of two floats need not be a float.
        return (spread_scores(np.clip(values, 0, 1)) if is_logit else values) / 2

    ends = spread(np.array([distinct[0], distinct[-1], stops.min(), stops.max()]))
    low, high = float(ends.min()), float(ends.max())

    def share(values: FloatArray) -> FloatArray:
        inner = (spread(values) - low) / (high - low) if high > low else np.full(values.shape, 0.5)
        return MARGIN + (1 - 2 * MARGIN) * inner

    def tick(inner: float) -> str:
        value = 2 * (low * (1 - inner) + high * inner)
        value = expit(value) if is_logit else value
        return f"1 - {1 - value:.1g}" if is_logit and value > 0.99 else f"{value:.2g}"

    bars = {
        name: np.histogram(share(group), NUM_BARS, (0, 1))[0] / group.size
        for name, group in groups.items()
        if group.size
    }
    highest = max(float(heights.max()) for heights in bars.values())
    return {
        "axis": "score (logit axis), share of each group" if is_logit else "score, share of each group",
        "bars": [[name, groups[name].size, (heights / highest).tolist()] for name, heights in bars.items()],
        "ticks": [[MARGIN + (1 - 2 * MARGIN) * inner, tick(inner)] for inner in (0, 0.25, 0.5, 0.75, 1)],
        "scorePlaces": share(distinct).tolist(),
        "stopPlaces": share(stops).tolist(),
    }

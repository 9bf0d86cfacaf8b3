"""The report page as a file: what is in it, what cannot get out of it, and that it is written without being held."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import tracemalloc
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dagm_jax import page
from dagm_jax.page import PageEntry, Pictures, draw_pictures, open_page, write_page

HOSTILE = '</script><img src=x onerror="document.title=1">\'"&\u2028<!--<script>'


class Reader(HTMLParser):
    """What an HTML parser sees: the tags, the text of each script and style, and the policy."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[dict[str, str | None], str]] = []
        self._open: dict[str, str | None] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._open = {"tag": tag, **dict(attributes)} if tag in ("script", "style", "title") else None

    def handle_endtag(self, tag: str) -> None:
        self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            self.texts.append((self._open, data))

    def scripts(self, **wanted: str) -> list[str]:
        """The texts of the scripts whose attributes are exactly these."""
        return [text for found, text in self.texts if found == {"tag": "script", **wanted}]

    @property
    def rows(self) -> list[list[Any]]:
        return [json.loads(text) for text in self.scripts(type="application/json", **{"class": "entry"})]

    @property
    def facts(self) -> dict[str, Any]:
        (text,) = self.scripts(type="application/json", id="facts")
        found: dict[str, Any] = json.loads(text)
        return found


def written(tmp_path: Path, entries: list[PageEntry], **changes: Any) -> Reader:
    """The page of these entries, read back."""
    known: dict[str, Any] = {"title": "page", "threshold": 0.5, "pixel_threshold": 0.5} | changes
    write_page(tmp_path / "index.html", entries, **known)
    return Reader((tmp_path / "index.html").read_text(encoding="utf-8"))


def opened(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


# --- what gets in -------------------------------------------------------------------------------------------


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    """Would catch: a file name, reason, title or summary that ends its script or opens a tag of its own."""
    plain = written(tmp_path, [PageEntry("a", 1, 0.5), PageEntry("b", None, None, error="c")])
    entries = [PageEntry(HOSTILE, 1, 0.5), PageEntry(HOSTILE, None, None, error=HOSTILE)]
    hostile = written(tmp_path, entries, title=HOSTILE, summary={HOSTILE: HOSTILE})
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [row[0] for row in hostile.rows] == [HOSTILE, HOSTILE]
    assert hostile.rows[1][7] == HOSTILE
    assert hostile.facts["title"] == HOSTILE and hostile.facts["summary"] == [[HOSTILE, HOSTILE]]


@pytest.mark.parametrize(
    "name", ["$entries", "${facts}", "$$", "Grüße 表面 🏭", "rtl \u202e gnp.exe", "\x00\n\t"]
)
def test_names_come_through_as_they_are(tmp_path: Path, name: str) -> None:
    """Would catch: a name taken for a place of the template, or one that loses characters on its way."""
    reader = written(tmp_path, [PageEntry(name, 0, 0.1)], title=name)
    assert reader.rows[0][0] == name and reader.facts["title"] == name


def test_names_that_are_no_text(tmp_path: Path) -> None:
    """Would catch: a file name of bytes that are no UTF-8, on which the whole page failed, or its link led nowhere."""
    name = b"caf\xe9 #1?.png".decode("utf-8", "surrogateescape")
    reader = written(tmp_path, [PageEntry(name, 0, 0.1, picture=name)], title=name)
    assert reader.rows[0][0] == name
    assert reader.rows[0][5] == "./caf%E9%20%231%3F.png"


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("overlays/a.png", "./overlays/a.png"),
        ("../images/a%20b.png", "./../images/a%2520b.png"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ("//host/a.png", None),
        ("/etc/passwd", None),
    ],
)
def test_links_lead_to_files_beside_the_page(path: str, url: str | None) -> None:
    """Would catch: a link to another host or to a script, and an absolute path, which breaks when the page is moved."""
    if url is None:
        with pytest.raises(ValueError, match="relative to the page"):
            PageEntry("a", 1, 0.5, picture=path)
    else:
        assert page.relative_url(path) == url


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf])
def test_no_score_is_no_verdict(tmp_path: Path, score: float | None) -> None:
    """Would catch: NaN in the JSON, which stops the whole page, or read as a number and counted as good."""
    (row,) = written(tmp_path, [PageEntry("a", 1, score)]).rows
    assert row[2] is None and "no score" in row[7]


@pytest.mark.parametrize("score", [5e-324, -1.7976931348623157e308, 0.1 + 0.2, float(np.float32(0.7)), -0.0])
def test_scores_keep_their_bits(tmp_path: Path, score: float) -> None:
    """Would catch: rounded scores, which decide differently at a threshold next to them."""
    assert written(tmp_path, [PageEntry("a", None, score)]).rows[0][2].hex() == score.hex()


def test_labels_are_three(tmp_path: Path) -> None:
    """Would catch: an unknown label written as good; a -1 of a slice or a word taken for a label."""
    rows = written(tmp_path, [PageEntry("a", label, 0.5) for label in (0, 1, None)]).rows
    assert [row[1] for row in rows] == [0, 1, None]
    with pytest.raises(ValueError, match="must be 0"):
        PageEntry("a", -1, 0.5)


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_thresholds_are_numbers(tmp_path: Path, threshold: float) -> None:
    """Would catch: a page whose every image is judged good because nothing reaches NaN."""
    with pytest.raises(ValueError, match="must be finite"):
        written(tmp_path, [], threshold=threshold)


# --- the policy ---------------------------------------------------------------------------------------------


def test_policy_lets_through_its_own_style_and_script_alone(tmp_path: Path) -> None:
    """Would catch: an asset changed on its way into the page, which the browser then refuses; a door left open."""
    reader = written(tmp_path, [])
    (policy,) = [found["content"] for tag, found in reader.tags if tag == "meta" and "http-equiv" in found]
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    (style,) = [text for found, text in reader.texts if found == {"tag": "style"}]
    (script,) = reader.scripts()

    def source(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    assert rules.pop("style-src") == source(style) and rules.pop("script-src") == source(script)
    assert rules.pop("img-src") == "'self' file: data:"
    assert set(rules.values()) == {"'none'"} and "default-src" in rules


def test_page_names_no_address(tmp_path: Path) -> None:
    """Would catch: a font, script or picture from a network, or a style or handler inside a tag, which is refused."""
    reader = written(tmp_path, [])
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    names = {name for _, found in reader.tags for name in found}
    assert not {name for name in names if name in ("src", "style", "srcset") or name.startswith("on")}


# --- the file -----------------------------------------------------------------------------------------------


def test_page_is_written_image_by_image(tmp_path: Path) -> None:
    """Would catch: entries of a generator gathered in memory, where thousands of thumbnails do not belong."""
    rng = np.random.default_rng(0)

    def entries() -> Iterator[PageEntry]:
        for k in range(400):
            yield PageEntry(f"{k}", 0, 0.5, Pictures(rng.bytes(40_000), rng.bytes(10_000)))

    tracemalloc.start()
    try:
        write_page(tmp_path / "index.html", entries(), title="t", threshold=0.5, pixel_threshold=0.5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "index.html").stat().st_size > 400 * 50_000 * 4 / 3
    assert peak < 3_000_000


def test_page_appears_in_whole_or_not_at_all(tmp_path: Path) -> None:
    """Would catch: half a page left by an interruption in place of the last whole one, or its part left beside it."""

    def interrupted() -> Iterator[PageEntry]:
        yield PageEntry("after", 0, 0.5)
        raise KeyboardInterrupt

    path = tmp_path / "index.html"
    written(tmp_path, [PageEntry("before", 0, 0.5)])
    with pytest.raises(KeyboardInterrupt):
        write_page(path, interrupted(), title="t", threshold=0.5, pixel_threshold=0.5)
    assert list(tmp_path.iterdir()) == [path]
    assert "before" in path.read_text(encoding="utf-8")


def test_summary_may_be_filled_to_the_end(tmp_path: Path) -> None:
    """Would catch: figures that are known only after the last image left out of the page."""
    path = tmp_path / "new" / "index.html"
    with open_page(path, title="t", threshold=0.5, pixel_threshold=0.25, summary={"model": "m"}) as one:
        one.summary["images per second"] = "7"
    facts = Reader(path.read_text(encoding="utf-8")).facts
    assert facts["summary"] == [["model", "m"], ["images per second", "7"]]
    assert (facts["threshold"], facts["pixelThreshold"]) == (0.5, 0.25)


# --- pictures -----------------------------------------------------------------------------------------------


def test_one_pixel_is_seen_in_the_thumbnail() -> None:
    """Would catch: a map shrunk by its mean, in which a small defect fades away; rows and columns exchanged."""
    evidence = np.zeros((1000, 500), np.float32)
    evidence[901, 107] = 1
    pictures = draw_pictures(np.full(evidence.shape, 100, np.uint8), evidence, 0.5, side_px=100, quality=90)
    opacity = opened(pictures.overlay)[..., 3]
    assert opacity.shape == (100, 50)
    assert opacity[90, 10] > 200 and np.count_nonzero(opacity > 30) <= 9


def test_opacity_follows_the_pixel_threshold() -> None:
    """Would catch: a map painted on the scale of probabilities where its threshold is 0.05, and nothing is seen."""
    evidence = np.tile(np.linspace(0, 1, 200, dtype=np.float32), (50, 1))
    for threshold in (0.05, 0.5, 0.9):
        opacity = page._draw_overlay(evidence, threshold)[..., 3].astype(int)
        at = opacity[0, np.searchsorted(evidence[0], threshold)]
        assert abs(at - 255 * 0.8 * 0.5**1.5) <= page._OPACITY_STEP
        assert np.all(np.diff(opacity[0]) >= 0) and opacity[0, 0] == 0 and opacity[0, -1] >= 190


@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0, -1.0])
def test_thresholds_outside_the_map_give_a_plain_scale(threshold: float) -> None:
    """Would catch: an interpolation over anchors that do not rise, whose colours mean nothing."""
    evidence = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    opacity = page._draw_overlay(evidence, threshold)[0, :, 3].astype(int)
    assert np.all(np.diff(opacity) > 0)


def test_outlines_of_verdict_and_truth() -> None:
    """Would catch: outlines swapped, filled, or drawn along the image's own edge."""
    mask = np.zeros((20, 20), bool)
    mask[:8, 5:15] = True
    overlay = np.zeros((20, 20, 4), np.uint8)
    page._draw_outline(overlay, mask, page._TRUE_INK)
    inked = overlay[..., 3] > 0
    assert not inked[0:7, 6:14].any(), "the inside stays, up to the image's edge"
    assert inked[7, 5:15].all() and inked[:8, 5].all() and inked[:8, 14].all()
    assert inked.sum() == 10 + 7 + 7
    assert tuple(overlay[7, 9]) == (*page._TRUE_INK, 255)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (64, 64), (512, 300), (30, 40, 3)])
def test_pictures_of_any_size(shape: tuple[int, ...]) -> None:
    """Would catch: a size that rounds to nothing, an image that is enlarged, colours that are refused."""
    size = shape[:2]
    pictures = draw_pictures(np.zeros(shape, np.uint8), np.zeros(size, np.float32), 0.5, np.zeros(size, bool))
    expected = tuple(max(1, round(length * min(1, page.THUMBNAIL_SIDE_PX / max(size)))) for length in size)
    assert opened(pictures.image).shape[:2] == opened(pictures.overlay).shape[:2] == expected


def test_pictures_need_one_size() -> None:
    """Would catch: a map of another size stretched over its image, with the defect somewhere else."""
    image, evidence = np.zeros((8, 8), np.uint8), np.zeros((8, 8), np.float32)
    with pytest.raises(ValueError, match="the map"):
        draw_pictures(image, evidence[:4], 0.5)
    with pytest.raises(ValueError, match="the mask"):
        draw_pictures(image, evidence, 0.5, np.zeros((4, 8), bool))

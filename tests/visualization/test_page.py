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

from dagm_jax.evaluation.metrics import auroc, wilson_interval
from dagm_jax.visualization import page
from dagm_jax.visualization.overlay import draw_layers
from dagm_jax.visualization.page import PageEntry, Pictures, draw_pictures, make_facts, write_page

HOSTILE = '</script><img src=x onerror="document.title=1">\'"&\u2028<!--<script>'


# Tags whose texts are compared.
KEPT = ("script", "style", "title", "h1", "p", "dt", "dd")


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
        self._open = {"tag": tag, **dict(attributes)} if tag in KEPT else None

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
    write_page(tmp_path / "index.html", entries, **{"title": "page", "threshold": 0.5} | changes)
    return Reader((tmp_path / "index.html").read_text(encoding="utf-8"))


def opened(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)))


def test_a_warning_stands_at_the_top(tmp_path: Path) -> None:
    """Would catch: a page of a model without any learning that looks like all others, and a warning on every page."""
    shown = {"tag": "p", "class": "warning", "role": "alert"}
    assert (shown, "a <guess>") in written(tmp_path, [], warning="a <guess>").texts
    assert not any(found == shown for found, _ in written(tmp_path, []).texts)


def test_hostile_texts_stay_texts(tmp_path: Path) -> None:
    """Would catch: a file name, reason, title or summary that ends its script or opens a tag of its own."""
    plain = written(
        tmp_path, [PageEntry("a", 1, 0.5), PageEntry("b", None, None, error="c")], summary={"d": "e"}
    )
    entries = [PageEntry(HOSTILE, 1, 0.5), PageEntry(HOSTILE, None, None, error=HOSTILE)]
    hostile = written(tmp_path, entries, title=HOSTILE, summary={HOSTILE: HOSTILE})
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [row[0] for row in hostile.rows] == [HOSTILE, HOSTILE]
    assert hostile.rows[1][7] == HOSTILE
    assert [text for found, text in hostile.texts if found["tag"] in ("title", "h1", "dt", "dd")] == [
        HOSTILE
    ] * 4


@pytest.mark.parametrize(
    "name", ["$entries", "${facts}", "$$", "Grüße 表面 🏭", "rtl \u202e gnp.exe", "\x00\n\t"]
)
def test_names_come_through_as_they_are(tmp_path: Path, name: str) -> None:
    """Would catch: a name taken for a place of the template, or one that loses characters on its way."""
    assert written(tmp_path, [PageEntry(name, 0, 0.1)], title=name).rows[0][0] == name


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
        ("//host/a.png", ".///host/a.png"),
        ("/etc/passwd", ".//etc/passwd"),
    ],
)
def test_links_lead_to_files_beside_the_page(path: str, url: str) -> None:
    """Would catch: a link to another host, to a script or to an absolute path."""
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
    """Would catch: an unknown label written as good."""
    rows = written(tmp_path, [PageEntry("a", label, 0.5) for label in (0, 1, None)]).rows
    assert [row[1] for row in rows] == [0, 1, None]


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_thresholds_are_numbers(tmp_path: Path, threshold: float) -> None:
    """Would catch: a page on which every image is good because nothing reaches NaN."""
    with pytest.raises(ValueError, match="must be finite"):
        written(tmp_path, [], threshold=threshold)


def test_script_decides_as_the_detector() -> None:
    """Would catch: > for >= in the one comparison of page.js, which Python evaluates here; another comparison."""
    script = (Path(page.__file__).parent / "page_assets" / "page.js").read_text(encoding="utf-8")
    (rule,) = re.findall(r"const isDefective = \(score, threshold\) => (.+);", script)
    decided = [
        eval(rule, {"score": score, "threshold": 0.5}) for score in (0.0, math.nextafter(0.5, 0), 0.5, 1.0)
    ]
    assert decided == [False, False, True, True]
    sides = r"(?:[\w.]*score\b|[\w.]*threshold\b)"
    compared = re.findall(rf"{sides} *[<>]=? *[\w.]+|[\w.]+ *[<>]=? *{sides}", script)
    assert compared == [rule], "no second rule"


@pytest.mark.parametrize("threshold", [-1.0, 0.3, 0.35, 0.9, 2.0])
@pytest.mark.parametrize(
    "scores",
    [
        [0.1, 0.3, 0.3, 0.7, 0.9, 0.9],
        [-1.7976931348623157e308, -1.0, 1.0, 1.797e308],
        [0.0, 5e-324, 1e-323, 1.0],
        [1 - 2**-53, 1.0, np.nextafter(1, 2), 7.0],
        [0.5, 0.5],
    ],
    ids=["ties", "largest", "smallest", "neighbours", "equal"],
)
def test_counts_of_every_stop(scores: list[float], threshold: float) -> None:
    """Would catch: an off-by-one at a tie, a decision without a stop, a middle that overflows or is no middle."""
    values, labels = np.array(scores), np.arange(len(scores)) % 3 - 1
    facts = make_facts(labels, values, threshold)
    distinct = np.unique(values)
    assert facts["scores"] == distinct.tolist() and len(facts["stops"]) == distinct.size + 1
    for place, stop in enumerate(facts["stops"]):
        decisions = values >= stop
        assert np.sum(distinct < stop) == place
        for name, label in (("good", 0), ("defective", 1), ("unknown", -1)):
            assert facts["below"][name][place] == np.sum(~decisions & (labels == label))
    assert np.array_equal(values >= facts["stops"][facts["place"]], values >= threshold)
    places = facts["histogram"]["scorePlaces"], facts["histogram"]["stopPlaces"]
    assert all(0 <= min(one) <= max(one) <= 1 and one == sorted(one) for one in places)


def test_stops_are_short_and_far_from_scores() -> None:
    """Would catch: thresholds of 17 digits, or at a score where there is room between two."""
    assert make_facts(np.array([0, 1]), np.array([0.2, 0.6]), 0.123456)["stops"][1:2] == [0.4]
    assert make_facts(np.array([0, 1]), np.array([0.2, 0.6]), 0.4123456)["stops"][1] == 0.4123


def test_facts_are_those_of_the_metrics() -> None:
    """Would catch: intervals of the other label, areas over images without a label, bars that are no shares."""
    labels, scores = np.array([0, 0, 0, 1, 1, -1]), np.array([0.1, 0.2, 0.6, 0.4, 0.9, 0.5])
    facts = make_facts(labels, scores, 0.5)
    assert facts["intervals"]["good"] == [wilson_interval(k, 3) for k in range(4)]
    assert facts["intervals"]["defective"] == [wilson_interval(k, 2) for k in range(3)]
    assert facts["areas"][0] == f"{auroc(labels[:5], scores[:5]):.4f}"
    numbers = {name: (number, len(heights)) for name, number, heights in facts["histogram"]["bars"]}
    assert numbers == {"good": (3, 48), "defective": (2, 48), "unknown": (1, 48)}
    one_label = make_facts(labels[:3], scores[:3], 0.5)
    assert one_label["areas"] is None and one_label["intervals"]["defective"] == [None]


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


def test_page_is_written_image_by_image(tmp_path: Path) -> None:
    """Would catch: entries of a generator gathered in memory, where thousands of thumbnails do not belong."""
    rng = np.random.default_rng(0)

    def entries() -> Iterator[PageEntry]:
        for k in range(400):
            yield PageEntry(f"{k}", 0, 0.5, Pictures(rng.bytes(40_000), rng.bytes(10_000)))

    tracemalloc.start()
    try:
        write_page(tmp_path / "index.html", entries(), title="t", threshold=0.5)
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
        write_page(path, interrupted(), title="t", threshold=0.5)
    assert list(tmp_path.iterdir()) == [path]
    assert "before" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (64, 64), (512, 300)])
def test_pictures_of_any_size(shape: tuple[int, int]) -> None:
    """Would catch: a size that rounds to nothing, an image that is enlarged, a layer that hides its image."""
    image, score_map, mask = (np.zeros(shape, dtype) for dtype in (np.uint8, np.float32, bool))
    pictures = draw_pictures(*draw_layers(image, score_map, 0.5, mask, page.THUMBNAIL_SIDE_PX))
    expected = tuple(max(1, round(length * min(1, page.THUMBNAIL_SIDE_PX / max(shape)))) for length in shape)
    assert opened(pictures.image).shape[:2] == opened(pictures.overlay).shape[:2] == expected
    assert not opened(pictures.overlay)[..., 3].any()

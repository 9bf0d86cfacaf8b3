"""The report page in a real browser, by keyboard and mouse: what it shows is what numpy computes.

Needs Chromium with its driver (Debian: chromium, chromium-driver) and the extra `browser`.
"""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dagm_jax.evaluation import metrics
from dagm_jax.visualization.page import PageEntry, Pictures, write_page

pytest.importorskip("selenium", reason="needs the extra `browser`")
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"
)
HOSTILE = '</script><img src=x onerror="window.pwned=1">\'"&.png'
TIMEOUT_S = 60


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    one = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield one
    one.quit()


def picture(grey: int, mode: str = "L") -> bytes:
    """A flat WebP, opaque in any mode."""
    stream = io.BytesIO()
    Image.new(mode, (16, 16), grey if mode == "L" else (grey, 0, 0, 255)).save(stream, format="WEBP")
    return stream.getvalue()


THUMBNAIL = Pictures(picture(90), picture(255, "RGBA"))


def labelled(number: int = 40, seed: int = 0) -> list[PageEntry]:
    """Images whose labels and scores overlap, with ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(number) < 0.4).astype(int)
    scores = np.round(np.clip(rng.normal(0.4 + 0.25 * labels, 0.2), 0.001, 0.999), 2)
    return [
        PageEntry(f"line{k % 3}/img{k}.png", int(label), float(score), THUMBNAIL)
        for k, (label, score) in enumerate(zip(labels, scores, strict=True))
    ]


class Page:
    """The page of some entries in the browser."""

    def __init__(
        self, driver: webdriver.Chrome, folder: Path, entries: Sequence[PageEntry], threshold: float = 0.5
    ) -> None:
        self.driver, self.entries = driver, entries
        self.scored = [entry for entry in entries if entry.score is not None and math.isfinite(entry.score)]
        self.labels = np.array([-1 if entry.label is None else entry.label for entry in self.scored])
        self.scores = np.array([entry.score for entry in self.scored], np.float64)
        write_page(folder / "index.html", entries, title="Page", threshold=threshold)
        for kind in ("browser", "performance"):
            driver.get_log(kind)
        driver.get((folder / "index.html").as_uri())
        WebDriverWait(driver, TIMEOUT_S).until(lambda d: not d.find_elements(By.ID, "loading"))

    def __getitem__(self, name: str) -> Any:
        return self.driver.find_element(By.ID, name)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        """The label of the focused element."""
        label: str = self.script("return document.activeElement.getAttribute('aria-label')")
        return label

    def choose(self, group: str, value: str) -> None:
        self.script(
            "const one = document.querySelector(`#filters [name=${arguments[0]}][value='${arguments[1]}']`);"
            "one.click();",
            group,
            value,
        )

    def names(self) -> list[str]:
        """Names of the cards in the page, in the order of the list."""
        found: list[str] = self.script(
            "return [...document.querySelectorAll('#gallery .item')]"
            ".sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map(i => i.querySelector('.name').textContent)"
        )
        return found

    def is_seen(self, name: str) -> bool:
        return bool(self[name].is_displayed())

    def counts(self) -> metrics.ImageCounts:
        """The confusion matrix as it is shown."""
        cells = self.script(
            "return ['tp', 'fp', 'fn', 'tn'].map(id => document.querySelector(`#${id} b`).innerText)"
        )
        return metrics.ImageCounts(*map(int, cells))

    def counts_at(self, threshold: float) -> metrics.ImageCounts:
        """What numpy counts over the images with a label."""
        known = self.labels >= 0
        return metrics.ImageCounts.from_decisions(self.labels[known], self.scores[known] >= threshold)

    def text(self, name: str) -> str:
        found: str = self[name].get_attribute("textContent")
        return found


@pytest.fixture
def open_entries(driver: webdriver.Chrome, tmp_path: Path) -> Callable[..., Page]:
    return lambda entries, **changes: Page(driver, tmp_path, entries, **changes)


Opener = Callable[..., Page]


# --- threshold ----------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    """The share as the page rounds it."""
    return f"{100 * share:.{2 if 0 < share < 0.1 else 1}f} %"


def check_figures(page: Page, threshold: float) -> None:
    """Predictions, rates and intervals are those of this threshold."""
    expected = page.counts_at(threshold)
    assert page.counts() == expected
    assert page["counts"].text.startswith(f"{int(np.sum(page.scores >= threshold))} of {len(page.scored)} ")
    for name, wrong, right in (("escape", expected.fn, expected.tp), ("overkill", expected.fp, expected.tn)):
        interval = metrics.wilson_interval(wrong, wrong + right)
        assert interval is not None
        assert page.text(f"{name}-detail").endswith(f"95 %: {percent(interval[0])} to {percent(interval[1])}")


def test_arrow_keys_reach_every_decision(open_entries: Opener) -> None:
    """Would catch: a slider that skips decisions, an off-by-one at a tie, > for >=, a rate over the other label;
    consequences that a screen reader is not told."""
    page = open_entries(labelled(24))
    distinct = np.unique(page.scores)
    assert distinct.size < 24, "there are ties"
    check_figures(page, 0.5)
    page["slider"].send_keys(Keys.HOME)
    for threshold in [*distinct, np.inf]:
        check_figures(page, threshold)
        typed = float(page["threshold"].get_property("value"))
        assert np.array_equal(page.scores >= typed, page.scores >= threshold)
        page["slider"].send_keys(Keys.ARROW_RIGHT)
    assert page.counts().tp == page.counts().fp == 0
    last = "0 of 24 predicted defective, "
    assert last in page["slider"].get_attribute("aria-valuetext")
    WebDriverWait(page.driver, TIMEOUT_S).until(lambda d: last in page.text("live"))
    page["slider"].send_keys(Keys.ARROW_LEFT)
    check_figures(page, distinct[-1])


def test_typed_thresholds_and_the_way_back(open_entries: Opener) -> None:
    """Would catch: a field that only shows, arrow keys in it that jump by 1, a calibrated threshold that is lost."""
    page = open_entries(labelled(), threshold=0.4321)
    assert not page["reset"].is_enabled()
    page["threshold"].clear()
    page["threshold"].send_keys("0.615")
    check_figures(page, 0.615)
    page["threshold"].send_keys(Keys.ARROW_UP)
    check_figures(page, float(np.unique(page.scores[page.scores >= 0.615])[1]))
    page["reset"].click()
    check_figures(page, 0.4321)
    assert not page["reset"].is_enabled()
    mark, thumb = (float(page["slider"].get_property(key)) for key in ("value", "max"))
    assert mark / thumb == np.sum(np.unique(page.scores) < 0.4321) / np.unique(page.scores).size


def test_curves_are_those_of_the_metrics(open_entries: Opener) -> None:
    """Would catch: ties counted wrongly in the areas; a dot of another threshold than the one that is set."""
    page = open_entries(labelled())
    assert f"AUROC {metrics.auroc(page.labels, page.scores):.4f}" in page.text("roc")
    assert f"AP {metrics.average_precision(page.labels, page.scores):.4f}" in page.text("pr")
    for keys in ((), (Keys.PAGE_UP,), (Keys.HOME,), (Keys.ARROW_RIGHT,) * 9):
        page["slider"].send_keys(*keys or ("",))
        counts = page.counts()
        overkill, found = counts.fp / (counts.fp + counts.tn), counts.tp / (counts.tp + counts.fn)
        dots = page.script(
            "return [...document.querySelectorAll('.dot')].map(d => [+d.getAttribute('cx'), +d.getAttribute('cy')])"
        )
        assert dots[0] == pytest.approx([26 + 150 * overkill, 8 + 150 * (1 - found)], abs=1e-3)
        assert dots[1] == pytest.approx(
            [26 + 150 * found, 8 + 150 * (1 - (counts.rate("precision") or 0))], abs=1e-3
        )


def test_histogram_sets_the_threshold(open_entries: Opener) -> None:
    """Would catch: a click that lands on the other end of the axis."""
    page = open_entries(labelled())
    chart = page["histogram"].find_element(By.TAG_NAME, "svg")
    half = chart.size["width"] // 2
    for offset, called in ((-half + 2, len(page.scored)), (half - 2, 0)):
        ActionChains(page.driver).move_to_element_with_offset(chart, offset, -30).click().perform()
        assert page["counts"].text.startswith(f"{called} of ")


# --- gallery ------------------------------------------------------------------------------------------------


def test_orders(open_entries: Opener) -> None:
    """Would catch: a wrong order, names ordered as text where they hold numbers, ties in the order of the file."""
    entries = labelled(30)
    page = open_entries(list(reversed(entries)))

    def number(entry: PageEntry) -> tuple[str, int]:
        line, _, rest = entry.name.partition("/")
        return line, int(rest.removeprefix("img").removesuffix(".png"))

    by_name = sorted(entries, key=number)
    expected = {
        "falling": sorted(by_name, key=lambda e: -(e.score or 0)),
        "rising": sorted(by_name, key=lambda e: e.score or 0),
        "name": by_name,
        "name-falling": by_name[::-1],
    }
    for order, wanted in expected.items():
        Select(page["order"]).select_by_value(order)
        names = page.names()
        assert len(names) >= 10 and names == [entry.name for entry in wanted][: len(names)]
    Select(page["order"]).select_by_value("nearest")
    found = {entry.name: entry.score or 0 for entry in entries}
    distances = [abs(found[name] - 0.5) for name in page.names()]
    assert distances == pytest.approx(sorted(distances))


def test_kinds_are_a_filter_where_there_are_any(open_entries: Opener) -> None:
    """Would catch: a kind that ends the page's script or is told as another, and a filter of nothing."""
    assert not open_entries(labelled()).is_seen("kind")
    kinds = ["crack", HOSTILE, ""]
    entries = [replace(entry, kind=kinds[k % 3]) for k, entry in enumerate(labelled())]
    page = open_entries(entries)
    choice = Select(page["kind"])
    assert [option.text for option in choice.options] == ["all", *sorted([HOSTILE, "crack"])]
    for kind in kinds[:2]:
        choice.select_by_visible_text(kind)
        kept = [entry.name for entry in entries if entry.kind == kind]
        assert sorted(page.names()) == sorted(kept)
        assert f", {kind}" in page["gallery"].find_element(By.TAG_NAME, "button").text
    assert page.script("return window.pwned") is None


def test_filters(open_entries: Opener) -> None:
    """Would catch: escapes and overkills exchanged, filters that forget one another or the threshold."""
    unlabelled = [PageEntry(f"unknown{k}", None, k / 10, THUMBNAIL) for k in range(10)]
    page = open_entries(labelled() + unlabelled)
    shown = page["shown"]

    def check(keep: Callable[[int, bool, str], bool]) -> None:
        called = page.scores >= threshold
        kept = [
            entry.name
            for entry, label, is_called in zip(page.scored, page.labels, called, strict=True)
            if keep(int(label), bool(is_called), entry.name)
        ]
        assert shown.text.startswith(f"{len(kept)} ")
        assert set(page.names()) <= set(kept) and bool(kept) == bool(page.names())

    for threshold in (0.5, 0.62):
        page["threshold"].clear()
        page["threshold"].send_keys(str(threshold))
        check(lambda label, called, name: True)
        for value, wanted in (("1", 1), ("0", 0), ("unknown", -1)):
            page.choose("label", value)
            check(lambda label, called, name, wanted=wanted: label == wanted)
        page.choose("label", "")
        page.choose("prediction", "1")
        check(lambda label, called, name: called)
        page["search"].send_keys("LINE1/")
        check(lambda label, called, name: called and "line1/" in name)
        page.choose("prediction", "")
        page.choose("errors", "escapes")
        check(lambda label, called, name: label == 1 and not called and "line1/" in name)
        page["search"].clear()
        page["search"].send_keys(Keys.SPACE, Keys.BACKSPACE)
        page.choose("errors", "overkills")
        check(lambda label, called, name: label == 0 and called)
        page.choose("errors", "errors")
        check(lambda label, called, name: label >= 0 and called != bool(label))
        page.choose("errors", "correct")
        check(lambda label, called, name: label >= 0 and called == bool(label))
        page["filters"].find_element(By.CSS_SELECTOR, "[type=reset]").click()
        WebDriverWait(page.driver, TIMEOUT_S).until(lambda d: shown.text == "50 images")
    page["search"].send_keys("no such name")
    assert page.is_seen("empty") and not page.names()


def test_cards_say_their_prediction(open_entries: Opener) -> None:
    """Would catch: an escape or overkill that only its colour tells; a prediction of the threshold before."""
    said = {(1, True): "defective", (1, False): "escape", (0, True): "overkill", (0, False): "good"}
    said |= {(None, True): "defective", (None, False): "good"}
    entries = [
        PageEntry(f"{label} {score}", label, score, THUMBNAIL)
        for label in (0, 1, None)
        for score in (0.3, 0.7)
    ]
    page = open_entries(entries)
    for threshold in (0.5, 0.8, 0.2):
        page["threshold"].clear()
        page["threshold"].send_keys(str(threshold))
        badges = page.script(
            "return [...document.querySelectorAll('.card')].map(c => [c.title, c.querySelector('.badge').innerText])"
        )
        expected = {entry.name: said[entry.label, (entry.score or 0) >= threshold] for entry in entries}
        assert dict(badges) == expected


def test_cells_of_the_confusion_matrix_filter(open_entries: Opener) -> None:
    """Would catch: a cell that shows another cell's images, or that cannot be left again."""
    page = open_entries(labelled())
    counts = page.counts()
    for name in ("tp", "fn", "fp", "tn"):
        page[name].send_keys(Keys.ENTER)
        assert page["shown"].text.startswith(f"{getattr(counts, name)} of ")
        assert page[name].get_attribute("aria-pressed") == "true"
    page["tn"].send_keys(Keys.ENTER)
    assert page["shown"].text == "40 images"


def test_map_shows_on_hover_focus_and_demand(open_entries: Opener) -> None:
    """Would catch: a map that always or never covers its image, and one that only a mouse can see."""
    page = open_entries(labelled())
    cards = page.driver.find_elements(By.CSS_SELECTOR, "#gallery .card")

    def opacity_becomes(card: Any, wanted: str) -> None:
        overlay = card.find_element(By.CSS_SELECTOR, ".map")
        WebDriverWait(page.driver, TIMEOUT_S).until(
            lambda d: overlay.value_of_css_property("opacity") == wanted
        )

    opacity_becomes(cards[1], "0")
    ActionChains(page.driver).move_to_element(cards[1]).perform()
    opacity_becomes(cards[1], "1")
    ActionChains(page.driver).move_to_element(page["title"]).perform()
    opacity_becomes(cards[1], "0")
    page["search"].click()
    page.press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    assert page.script("return document.activeElement.classList.contains('card')")
    opacity_becomes(page.driver.switch_to.active_element, "1")
    page["maps"].click()
    opacity_becomes(cards[3], "1")


def test_gallery_by_keyboard(open_entries: Opener, tmp_path: Path) -> None:
    """Would catch: cards that keys cannot reach, a focus lost when its card leaves the window or the viewer closes."""
    entries = [PageEntry(f"{k:04d}", k % 2, k / 1000, THUMBNAIL) for k in range(999)]
    (tmp_path / "full #1.webp").write_bytes(picture(200))
    entries.append(PageEntry("best", 1, 0.9999, THUMBNAIL, "full #1.webp"))
    page = open_entries(entries)
    page["search"].click()
    page.press(*[Keys.TAB] * 4)
    assert page.focused().startswith("best, predicted defective, label defective, score 0.9999")
    page.press(Keys.END)
    assert page.focused().startswith("0000, predicted good, label good, score 0")
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert page.focused().startswith("0002,")
    page.script("window.scrollTo(0, 0)")
    page.press(Keys.ARROW_RIGHT)
    assert page.focused().startswith("0001, predicted good, an escape, label defective")
    page.press(Keys.HOME)
    assert page.focused().startswith("best,")
    page.press(Keys.ENTER)
    assert page["viewer"].get_attribute("open") and page["viewer-name"].text == "best"
    assert page["viewer-file"].get_attribute("href").endswith("/full%20%231.webp")
    width = "return document.getElementById('viewer-image').naturalWidth"
    WebDriverWait(page.driver, TIMEOUT_S).until(lambda d: d.execute_script(width) == 16)
    assert not page["viewer-map"].is_displayed(), "no overlay of the full picture"
    assert not page["viewer-shows-map"].is_displayed(), "a switch that switches nothing"
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page["viewer-name"].text == "0997" and not page["viewer-file"].is_displayed()
    page.press("m")
    assert page["viewer-map"].value_of_css_property("opacity") == "0"
    page.press(Keys.ESCAPE)
    WebDriverWait(page.driver, TIMEOUT_S).until(lambda d: page.focused().startswith("0997,"))
    outline = page.driver.switch_to.active_element.value_of_css_property("outline-style")
    assert outline == "solid", "the focus is seen"


# --- what may be missing ------------------------------------------------------------------------------------


def test_without_labels_there_are_counts_alone(open_entries: Opener) -> None:
    """Would catch: rates and a confusion matrix over labels that nobody gave."""
    page = open_entries([PageEntry(f"{k}", None, k / 10, THUMBNAIL) for k in range(10)])
    assert not [name for name in ("confusion", "curves", "escape-rate", "other-rates") if page.is_seen(name)]
    assert not [one for one in page.driver.find_elements(By.CSS_SELECTOR, ".labelled") if one.is_displayed()]
    assert page["num-defective"].text == "5" and page["num-good"].text == "5"
    page["slider"].send_keys(Keys.ARROW_RIGHT)
    assert page["num-defective"].text == "4" and page["num-good"].text == "6"
    assert "overkill" not in page["slider"].get_attribute("aria-valuetext")


def test_one_label_has_its_rate_and_no_curve(open_entries: Opener) -> None:
    """Would catch: a division by no defective images, shown as NaN or as an escape rate of 0; an image that could not
    be read left out in silence, or counted."""
    good = [PageEntry(f"{k}", 0, k / 10) for k in range(10)]
    page = open_entries([*good, PageEntry("torn.png", 1, None, error="ends too early")])
    assert page["escape-rate"].text == "–" and page["overkill-rate"].text == "50.0 %"
    assert not page.is_seen("curves") and page.is_seen("histogram")
    assert page["failed-heading"].text == "Without a prediction: 1"
    assert page["failed-list"].text == "torn.png ends too early"


@pytest.mark.parametrize("entries", [[], [PageEntry("torn.png", None, math.nan)]], ids=["none", "unreadable"])
def test_a_page_of_nothing(open_entries: Opener, entries: list[PageEntry]) -> None:
    """Would catch: a script that stops at the lowest score of no scores, and leaves the page empty."""
    page = open_entries(entries)
    assert page["shown"].text == "0 images"
    assert page.is_seen("failed") == bool(entries)
    assert not page.driver.get_log("browser")


# --- safety -------------------------------------------------------------------------------------------------


def test_hostile_names_are_shown_and_do_nothing(open_entries: Opener) -> None:
    """Would catch: a file name that becomes markup anywhere: card, tooltip, list, viewer."""
    entries = [PageEntry(HOSTILE, 1, 0.9, THUMBNAIL), PageEntry(HOSTILE, None, None, error=HOSTILE)]
    page = open_entries(entries)
    assert page.names() == [HOSTILE]
    assert page["failed-list"].text == f"{HOSTILE} {HOSTILE}"
    page.driver.find_element(By.CSS_SELECTOR, ".card").click()
    assert page["viewer-name"].text == HOSTILE
    assert page.script("return window.pwned === undefined && !document.querySelector('[onerror]')")
    assert not page.driver.get_log("browser")


def requests_of(driver: webdriver.Chrome) -> list[str]:
    """Addresses that the page has asked for since the log was last read."""
    messages = [json.loads(line["message"])["message"] for line in driver.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent if one["documentURL"].startswith("file:")]


def test_no_request_leaves_the_page(open_entries: Opener) -> None:
    """Would catch: anything that is loaded from elsewhere, and a policy that would let it through."""
    page = open_entries(labelled())
    page["slider"].send_keys(Keys.ARROW_RIGHT)
    page.driver.find_element(By.CSS_SELECTOR, ".card").click()
    page.press(Keys.ARROW_RIGHT, Keys.ESCAPE)
    asked = requests_of(page.driver)
    assert [url for url in asked if url.startswith("file:")] == [page.driver.current_url]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert not page.driver.get_log("browser")
    # Blocked by the policy before anything is sent, so that nobody needs to listen there.
    refused = page.driver.execute_async_script(
        "const done = arguments[0], url = 'http://127.0.0.1:9/leak', refused = [];"
        "document.addEventListener('securitypolicyviolation', e => {"
        "  refused.push(e.effectiveDirective); if (refused.length === 4) done(refused.sort()); });"
        "new Image().src = url; fetch(url).catch(() => {});"
        "const script = document.createElement('script'); script.textContent = 'window.pwned = 1';"
        "document.body.append(script); document.body.setAttribute('style', 'color: red');"
    )
    assert refused == ["connect-src", "img-src", "script-src-elem", "style-src-attr"]
    assert page.script("return window.pwned === undefined")


# --- looks --------------------------------------------------------------------------------------------------

CONTRASTS = """
const channels = (text) => text.match(/[\\d.]+/g).slice(0, 4).map(Number);
const light = (rgb) => rgb.slice(0, 3).map(c => c / 255)
  .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, k) => sum + c * [0.2126, 0.7152, 0.0722][k], 0);
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = channels(getComputedStyle(one).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
};
return [...document.querySelectorAll('body *')]
  .filter(e => e.checkVisibility() && !e.disabled && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
  .map(e => {
    const style = getComputedStyle(e), isSvg = e instanceof SVGElement;
    const [a, b] = [light(channels(isSvg ? style.fill : style.color)), light(behind(e))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 40)];
  });
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(open_entries: Opener, scheme: str) -> None:
    """Would catch: grey on grey, or text that keeps the ink of the other scheme (WCAG AA: 4.5)."""
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page = open_entries([*labelled(), PageEntry("torn.png", None, None, error="torn")])
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    try:
        assert page.script("return matchMedia(`(prefers-color-scheme: ${arguments[0]})`).matches", scheme)
        contrasts = page.script(CONTRASTS)
    finally:
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert len(contrasts) > 60
    assert not [found for found in contrasts if found[0] < 4.5]


# --- size ---------------------------------------------------------------------------------------------------


def test_five_thousand_images(open_entries: Opener) -> None:
    """Would catch: a card for each of thousands of images at once, and figures that only hold for few."""
    rng = np.random.default_rng(1)
    labels = rng.random(5000) < 0.3
    scores = np.float32(1 / (1 + np.exp(-rng.normal(-1 + 3 * labels, 1)))).astype(np.float64)
    thumbnail = Pictures(picture(90) + rng.bytes(3000), picture(255, "RGBA") + rng.bytes(1000))
    page = open_entries(
        [
            PageEntry(f"belt/{k:05d}.png", int(label), float(score), thumbnail)
            for k, (label, score) in enumerate(zip(labels, scores, strict=True))
        ]
    )
    assert int(page["slider"].get_property("max")) == np.unique(scores).size
    check_figures(page, 0.5)
    assert 10 <= len(page.names()) < 200
    page["slider"].send_keys(Keys.PAGE_UP, Keys.ARROW_RIGHT)
    place = int(page["slider"].get_property("value"))
    check_figures(page, np.unique(scores)[place])
    page.choose("errors", "escapes")
    assert page["shown"].text.startswith(f"{page.counts().fn} of 5000 ")
    page.choose("errors", "")
    page["search"].send_keys("0499")
    assert page["shown"].text.startswith("11 of 5000 ")
    page["search"].clear()
    page["search"].send_keys("belt")
    page.script("window.scrollTo(0, document.body.scrollHeight)")
    lowest = f"belt/{int(np.argmin(scores)):05d}.png"
    WebDriverWait(page.driver, TIMEOUT_S).until(lambda d: lowest in page.names())
    assert len(page.names()) < 200

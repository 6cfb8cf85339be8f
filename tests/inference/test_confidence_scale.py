"""The levels of confidence: one scale for the terminal, the gallery and the pages, also at its exact limits."""

import io
import itertools
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sca_caption.benchmarks.browser import served
from sca_caption.cli.terminal import shown_confidence
from sca_caption.export import browser_site
from sca_caption.images import Transform
from sca_caption.inference.captions import Caption, Result
from sca_caption.inference.confidence_scale import LEVELS, files, level_of, percent_of
from sca_caption.inference.gallery import Photograph, read
from sca_caption.inference.results_file import results_file
from sca_caption.serve import app
from sca_caption.vocab import Vocabulary
from tests.helpers.chromium import browser_page, needs_browser

LIMITS = [
    (each.minimum - 0.5) / 100 for each in LEVELS if each.minimum
]  # whole per cents round up to the minimum
NEAR = [0.0, -1e-9, 1e-9, -1e-5, 1e-5, -4e-5, 6e-5, -1e-4, 1e-4, 5e-3]
SWEEP = sorted(
    {0.0, 0.0049, 0.005, 1.0, *np.linspace(0, 1, 21).tolist()}
    | {limit + shift for limit in [*LIMITS, 0.4, 0.6] for shift in NEAR}
)


def caption(confidence: float) -> Caption:
    return Caption("a dog", -3.0, -1.0, True, -1.0, confidence, (4, 5))


def test_the_limits_belong_to_the_higher_level():
    assert [level_of(value).name for value in (0.6, 0.5999, 0.595, 0.5949, 0.4, 0.395, 0.3949, 0.0, 1.0)] == [
        "high", "high", "high", "medium", "medium", "medium", "low", "low", "high",
    ]  # fmt: skip
    assert [percent_of(value) for value in (0.0, 0.0049, 0.005, 0.595, 1.0)] == [0, 0, 1, 60, 100]


@pytest.mark.parametrize("value", SWEEP)
def test_a_results_files_rounding_changes_no_level(value):
    assert level_of(round(value, 4)) == level_of(value) and percent_of(round(value, 4)) == percent_of(value)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours #rrggbb (WCAG 2.2)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    high, low = sorted(map(luminance, (one, other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


GROUNDS = {"light": ("#ffffff", "#f7f5f2", "#f4f3f0"), "dark": ("#17161a", "#212026", "#232120")}


@pytest.mark.parametrize("mode", GROUNDS)
def test_colours_can_be_read(mode):
    """On the backgrounds of the pages and of their cards."""
    for level, ground in itertools.product(LEVELS, GROUNDS[mode]):
        assert contrast(getattr(level, mode), ground) >= 4.5, (level.name, ground)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def in_terminal(value: float, monkeypatch) -> tuple[str, int]:
    """The level that the terminal's colour says, and the per cent."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", Terminal())
    found = re.fullmatch("\x1b\\[(\\d+)m(\\d\\.\\d\\d)\x1b\\[0m", shown_confidence(caption(value)))
    return next(each.name for each in LEVELS if each.sgr == found[1]), round(100 * float(found[2]))


def test_the_terminals_colours(monkeypatch):
    for value in SWEEP:
        assert in_terminal(value, monkeypatch) == (level_of(value).name, percent_of(value))
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert shown_confidence(caption(0.7)) == "0.70", "no colours in files and pipes"


LABELS = "(all) => [...all].map((each) => [each.className, each.textContent])"
SERVE_PAGE = """async (values) => {
    const { prepare, showAnswer } = await import("./result.js");
    prepare();
    return values.map((confidence) => {
        const one = { text: "a dog", score: -1, log_prob: -3, confidence, missing_words: [] };
        const shown = { caption: "a dog", words: ["a", "dog"], probabilities: null, attention: null };
        showAnswer({ ...shown, captions: [one, one], dropped_words: [] });
        return (LABELS)(document.querySelectorAll("#result .confidence-label"));
    });
}""".replace("LABELS", LABELS)
SITE = """async (values) => {
    const { Card } = await import("./card.js");
    return values.map((confidence) => {
        const card = new Card(new File([], "a.png"), () => {}), one = { text: "a dog", score: -1, confidence };
        const shown = { preview: new Blob(), width: 9, height: 9, region: [0, 0, 1, 1] };
        card.captioned({ ...shown, captions: [one, one], words: [], layers: [] });
        return (LABELS)(card.element.querySelectorAll(".confidence-label"));
    });
}""".replace("LABELS", LABELS)


def write_gallery(folder: Path, values) -> None:
    """A gallery with one photograph of each confidence."""
    words, numbers = Vocabulary(["a", "dog"]), ("score", "confidence")
    Image.new("RGB", (30, 30)).save(folder / "a.png")
    ids = range(1, len(values) + 1)
    settings = {"num_captions": 1}
    with results_file(
        folder / "gallery.html", ids, numbers=numbers, settings=settings, words=words
    ) as results:
        for index, value in enumerate(values):
            item = Photograph(folder / "a.png")
            read(item, Transform(32))
            results.write(index, Result(item, (caption(value),)))


def write_page(folder: Path, sources) -> None:
    """A page's files, without a model or a server behind it."""
    folder.mkdir()
    for path in sources:
        shutil.copyfile(path, folder / path.name)
    for name, text in files().items():
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.slow
@needs_browser
def test_all_pages_say_the_same(tmp_path):
    write_gallery(tmp_path, SWEEP)
    write_page(tmp_path / "serve", app.PAGE_FOLDER.iterdir())
    # Without its service worker, the page is not loaded twice.
    scripts = [path for path in browser_site.PAGE if path.name != "isolation.js"]
    write_page(tmp_path / "site", [*scripts, browser_site.PAGES / "browser.html"])
    with served(tmp_path) as address, browser_page() as page:
        page.goto(f"{address}/gallery.html")
        labels = page.locator(".card .confidence-label").evaluate_all(LABELS)
        found = {"gallery": [[each] for each in labels]}
        page.goto(f"{address}/serve/serve.html")
        found["serve"] = page.evaluate(SERVE_PAGE, SWEEP)
        page.goto(f"{address}/site/browser.html")
        found["site"] = page.evaluate(SITE, SWEEP)
        for mode, each in itertools.product(("light", "dark"), LEVELS):
            page.emulate_media(color_scheme=mode)
            code = f"getComputedStyle(document.documentElement).getPropertyValue('--confidence-{each.name}')"
            assert page.evaluate(code).strip() == getattr(each, mode)
    for name, labels in found.items():
        for several, value in zip(labels, SWEEP, strict=True):
            level, percent = level_of(value), percent_of(value)
            assert len(several) == (1 if name == "gallery" else 2)
            for position, (classes, text) in enumerate(several):
                assert classes == f"confidence-label confidence-{level.name}", (name, value)
                assert f"{percent or 'under 1'}\xa0%" in text
                # Never by colour alone.
                assert (level.words if position == 0 and name != "gallery" else level.name) in text

"""The gallery: what its page holds, that it is closed to the network and to code in names, and what a person sees."""

import base64
import io
import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sca_caption.cli import caption
from sca_caption.images import ORIENTATION, Transform, load
from sca_caption.inference.captioning import Caption, CaptionPipeline, Result
from sca_caption.inference.gallery import ENTRIES, Photograph, attention_of, hash_of, link, read
from sca_caption.inference.results_file import results_file
from sca_caption.models.attention_trace import LayerTrace, Trace
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import Vocabulary
from tests.helpers.chromium import browser_page, needs_browser

SETTINGS = {"checkpoint": ["abc"], "num_captions": 2}
WORDS = Vocabulary(["a", "dog", "man", "'s", "hat", "woman", "runs"])
NASTY = "</script><img src=x onerror=alert(1)> & \"'.png"


def told(text: str, confidence: float, missing: tuple[str, ...] = ()) -> Caption:
    tokens = tuple(WORDS.encode(text.replace("'s", " 's").split()))
    return Caption(text, -3.0, -1.0, True, -0.5, confidence, tokens, missing_words=missing)


def traced(words: int) -> Trace:
    """The word of index i looks at the cell of index i of 3 x 3 alone."""
    spatial = np.eye(9, dtype=np.float32)[:words].reshape(words, 3, 3)
    layers = (
        LayerTrace("low", 1 - spatial, None),
        LayerTrace("high", spatial, None),
        LayerTrace("top", None, None),
    )
    return Trace(np.ones(words, np.float32), layers)


def write_gallery(path: Path, captions: dict[Path, tuple[Caption, ...]], failed=(), **options) -> None:
    of_kind = {"numbers": ("score", "confidence"), "settings": SETTINGS, "words": WORDS, **options}
    with results_file(path, range(1, len(captions) + len(failed) + 1), **of_kind) as results:
        for index, (photo, said) in enumerate(captions.items()):
            item = Photograph(photo)
            read(item, Transform(32))
            results.write(index, Result(item, said, trace=traced(len(said[0].tokens))))
        for number, reason in enumerate(failed):
            results.write(len(captions) + number, Result(Path("x"), error=UserError(reason)))


@pytest.fixture
def gallery(tmp_path) -> Path:
    """A page of four photographs, one of them with a nasty name, beside which they lie."""
    names = ("b 2.png", "b 10.png", NASTY.replace("/", "_"), "tall.jpg")
    said = [("a dog runs", 0.8), ("a man's hat", 0.3), ("a woman runs", 0.5), ("a man", 0.2)]
    captions = {}
    for index, (name, (text, confidence)) in enumerate(zip(names, said, strict=True)):
        path = tmp_path / "photos" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 60) if index < 3 else (40, 300), (90 + 40 * index, 120, 160)).save(path)
        captions[path] = (
            told(text, confidence, ("hat",) * (index == 0)),
            told("dog", 0.1, ("woman", "'s/hat")),
        )
    write_gallery(tmp_path / "gallery.html", captions, failed=[f"photos/{NASTY}: no such file"])
    return tmp_path / "gallery.html"


def entries_of(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").split(ENTRIES)[1].split("\n</script>")[0].split("\n")
    return [json.loads(line) for line in lines]


def test_entries_are_those_of_other_results_and_what_is_seen(gallery):
    entries = entries_of(gallery)
    assert [(e["image_id"], e["caption"], e["confidence"]) for e in entries] == [
        (1, "a dog runs", 0.8), (2, "a man's hat", 0.3), (3, "a woman runs", 0.5), (4, "a man", 0.2)
    ]  # fmt: skip
    assert [c["caption"] for c in entries[0]["captions"]] == ["a dog runs", "dog"]
    assert entries[1]["attention"]["words"] == ["a", " man", "'s", " hat"]
    for entry in entries:
        data = base64.b64decode(entry["thumbnail"].removeprefix("data:image/webp;base64,"))
        with Image.open(io.BytesIO(data)) as small, Image.open(entry["file_name"]) as image:
            assert small.format == "WEBP" and max(small.size) <= 256
            colour = np.asarray(small.convert("RGB")).mean((0, 1))
            assert np.abs(colour - np.asarray(image.convert("RGB")).mean((0, 1))).max() < 6


def test_attention_is_that_of_the_highest_layer_that_has_any():
    found = attention_of(traced(4), WORDS.encode(["a", "man", "'s", "hat"]), WORDS)
    levels = np.frombuffer(base64.b64decode(found["alpha"]), np.uint8).reshape(found["shape"])
    assert found["shape"] == [4, 3, 3] and found["peak"] == 9.0, "all on one of nine places"
    assert (levels == np.eye(9)[:4].reshape(4, 3, 3) * 255).all()
    nothing = Trace(np.ones(2), (LayerTrace("only", None, np.ones((2, 4))),))
    assert attention_of(nothing, [4, 5], WORDS) is None


def test_the_model_sees_what_it_sees_without_a_thumbnail_and_that_is_upright(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (900, 1400, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    for mode in ("resize", "crop"):
        photo = Photograph(tmp_path / "turned.jpg")
        assert (read(photo, Transform(160, mode)) == load(photo.path, Transform(160, mode))).all()
        assert photo.cropped == (mode == "crop")
        with Image.open(io.BytesIO(photo.thumbnail)) as small:
            assert small.size == (165, 256)


def test_links_lead_from_the_page_to_the_file(tmp_path):
    assert link(tmp_path / "a b" / "c#1?.jpg", tmp_path) == "a%20b/c%231%3F.jpg"
    assert link(tmp_path / "x.jpg", tmp_path / "pages") == "../x.jpg"
    assert link(Path("c:d.jpg"), Path()) == "c%3Ad.jpg"
    assert link(Path(os.fsdecode(b"latin-\xe9.jpg")), Path()) == "latin-%E9.jpg"


def test_nothing_in_the_data_is_markup_and_the_page_may_run_its_own_script_only(gallery):
    text = gallery.read_text(encoding="utf-8")
    assert text.count("</script>") == text.count("<script") == 3 and "onerror=alert(1)> &" in text
    assert "<img src=x" not in text and not re.search(r"https?://", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1]
    style, script = (
        re.search(r"<style>(.*?)</style>", text, re.S)[1],
        re.search(r"<script>(.*?)</script>", text, re.S)[1],
    )
    assert f"script-src {hash_of(script)};" in policy and f"style-src {hash_of(style)};" in policy
    assert policy.startswith("default-src 'none'; img-src 'self' file: data:;")
    assert "{{" not in text


def test_two_runs_write_the_same_bytes_and_one_can_add_to_the_other(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        Image.new("RGB", (30, 30), "red").save(path)
    captions = {path: (told("a dog", 0.5),) for path in paths}
    settings = SETTINGS | {"num_captions": 1}
    for name in ("one.html", "two.html"):
        write_gallery(tmp_path / name, captions, settings=settings)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()

    grown = tmp_path / "grown.html"
    write_gallery(grown, dict(list(captions.items())[:2]), settings=settings)
    with results_file(grown, [1, 2, 3], resume=True, numbers=("score", "confidence"), settings=settings,
                      words=WORDS) as results:  # fmt: skip
        assert results.missing(paths) == [2]
        item = Photograph(paths[2])
        read(item, Transform(32))
        results.write(2, Result(item, captions[paths[2]], trace=traced(2)))
    assert grown.read_bytes() == (tmp_path / "one.html").read_bytes()
    with (
        pytest.raises(UserError, match=r"another model"),
        results_file(grown, [1], resume=True, numbers=("score",), settings=settings | {"checkpoint": ["other"]},
                     words=WORDS),
    ):  # fmt: skip
        pass
    (tmp_path / "page.html").write_text("<p>my own page</p>")
    with pytest.raises(UserError, match=r"page\.html was not written by caption\.py"):
        write_gallery(tmp_path / "page.html", {}, failed=["x"], resume=True)


def test_the_program_writes_one(tiny_checkpoint, photos, tmp_path, capsys):
    output = tmp_path / "x.html"
    flags = [str(photos[0].parent), "--checkpoint", str(tiny_checkpoint), "--output", str(output)]
    assert caption.main(flags) == 0
    assert capsys.readouterr().err == f"7 of 7 images captioned in {output}\n"
    expected = list(CaptionPipeline.load(tiny_checkpoint).stream(photos, traced=True))
    for entry, result in zip(entries_of(output), expected, strict=True):
        assert (entry["caption"], entry["file_name"]) == (result.captions[0].text, str(result.item))
        assert "".join(entry["attention"]["words"]) == entry["caption"]
        shape, last = entry["attention"]["shape"], result.trace.layers[-1].spatial
        levels = np.frombuffer(base64.b64decode(entry["attention"]["alpha"]), np.uint8).reshape(shape)
        scale = entry["attention"]["peak"] / last[0].size / 255
        assert np.abs(levels * scale - last).max() < scale
    before = output.read_bytes()
    assert caption.main([*flags, "--resume"]) == 0
    assert output.read_bytes() == before

    several = [*flags[:2], str(tiny_checkpoint), *flags[2:]]
    assert caption.main([*several[:-1], str(tmp_path / "y.html")]) == 0
    assert all("attention" not in entry for entry in entries_of(tmp_path / "y.html"))


LIT = """canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let best = 0, light = 0;
    for (let i = 0; i < data.length; i += 4)
        if (data[i] > light) [best, light] = [i / 4, data[i]];
    const x = best % canvas.width, y = Math.floor(best / canvas.width);
    return {drawn: data.some(level => level > 0), x: x / canvas.width, y: y / canvas.height};
}"""
SHOWN = "[...document.querySelectorAll('.card .caption')].map(p => p.textContent)"


def until(page, expression: str) -> None:
    """Wait; `page.wait_for_function` would need a page that lets strings be run."""
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


@pytest.mark.slow
@needs_browser
def test_in_a_browser(gallery):
    requests = []
    with browser_page() as page:
        page.on("request", lambda request: requests.append(request.url))
        page.goto(gallery.as_uri())
        assert page.title() == "Captions of 4 photographs"
        assert page.evaluate(SHOWN) == ["a dog runs", "a man's hat", "a woman runs", "a man"]
        until(page, "[...document.querySelectorAll('.card img')].every(i => i.naturalWidth)")
        assert page.get_by_role("button", name="a dog runs").count() == 1, "the caption is the picture's text"

        # search: the beginnings of words, any part of a name, and all of several
        for words, found in (("man", ["a man's hat", "a man"]), ("RUNS dog", ["a dog runs"]), ("tall", ["a man"]),
                             ("10.png", ["a man's hat"]), ("zebra", [])):  # fmt: skip
            page.fill("#search", words)
            assert page.evaluate(SHOWN) == found
            assert page.inner_text("#count") == f"{len(found)} of 4 photographs"
        assert page.is_visible("#none")
        page.fill("#search", "")

        page.select_option("#order", "ascending")
        assert page.evaluate(SHOWN) == ["a man", "a man's hat", "a woman runs", "a dog runs"]
        page.select_option("#order", "name")
        assert [name for name in page.locator(".card .name").all_text_contents() if name[0] == "b"] == [
            "b 2.png",
            "b 10.png",
        ]
        page.select_option("#order", "given")

        assert page.locator(".card .missing").all_text_contents() == ["without hat"]

        # what the nasty name says is text
        assert page.locator(".card .name").nth(2).text_content() == NASTY.replace("/", "_")
        assert page.locator("#failed li").all_text_contents() == [f"photos/{NASTY}: no such file"]

        # the mouse over a picture: its words one after another, and where they look
        page.locator(".card .picture").nth(0).hover()
        for word, (x, y) in (("a", (1 / 6, 1 / 6)), ("dog", (1 / 2, 1 / 6)), ("runs", (5 / 6, 1 / 6))):
            until(page, f"document.querySelector('.card .current')?.textContent == '{word}'")
            until(page, "playing.player.frame && performance.now() - playing.player.began > FADE + 100")
            if page.locator(".card .current").text_content() == word:  # or the machine was too slow to look
                spot = page.locator(".card canvas").evaluate(LIT)
                assert spot["drawn"] and abs(spot["x"] - x) < 0.2 and abs(spot["y"] - y) < 0.2
        page.mouse.move(0, 0)
        until(page, "!document.querySelector('.card canvas')")

        # the keyboard: focus plays, arrows move, Enter opens, words choose, Escape closes
        page.locator(".card button").nth(0).focus()
        page.keyboard.press("ArrowRight")
        until(page, "document.querySelectorAll('.card')[1].querySelector('canvas, .current')")
        page.keyboard.press("Enter")
        assert page.inner_text("#large-caption") == "a man's hat" and page.inner_text("#place") == "2 of 4"
        assert page.locator("#alternatives li").all_text_contents() == [
            "a man's hatscore -1.00  30\xa0% low", "dogscore -1.00  10\xa0% lowwithout woman, 's/hat"
        ]  # fmt: skip
        assert page.get_attribute("#large .file a", "href") == "photos/b%2010.png"
        until(page, "player")
        page.locator("#words button").nth(3).click()
        assert page.inner_text("#words .current") == "hat" and page.inner_text("#play") == "Play"
        until(page, "performance.now() - player.began > FADE + 100")
        spot = page.locator("#large canvas").evaluate(LIT)
        assert spot["drawn"] and abs(spot["x"] - 1 / 6) < 0.2 and abs(spot["y"] - 1 / 2) < 0.2
        page.click("#next")
        assert page.inner_text("#large-caption") == "a woman runs"
        until(page, "document.querySelector('#large img').src.startsWith('file:')")
        page.keyboard.press("Escape")
        assert not page.is_visible("#large")
        assert page.evaluate("document.activeElement.closest('.card').entry.caption") == "a woman runs"

        assert not page.messages
        assert requests and all(url.startswith(("file:", "data:")) for url in requests)


@pytest.mark.slow
@needs_browser
def test_on_a_phone_where_the_photographs_are_no_more_in_the_dark(gallery):
    shutil.rmtree(gallery.parent / "photos")
    with browser_page(360, 740) as page:
        page.emulate_media(color_scheme="dark", reduced_motion="reduce")
        page.goto(gallery.as_uri())
        width = "[document.documentElement.scrollWidth, innerWidth]"
        assert page.evaluate(width)[0] <= 360
        assert (
            page.locator(".card").nth(1).bounding_box()["y"]
            == page.locator(".card").nth(0).bounding_box()["y"]
        )
        dark, light = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (dark, light)]
        assert brightness[0] < 200 < brightness[1]
        page.locator(".card button").nth(3).click()
        until(page, "document.querySelector('#large img').src.startsWith('data:') && player")
        assert page.evaluate(width)[0] <= 360
        assert page.locator("#large canvas").evaluate(LIT)["drawn"], "all words at once"
        assert page.inner_text("#play") == "Play"


@pytest.mark.slow
@needs_browser
def test_least_confident_first_as_it_opens(tmp_path):
    photo, captions = tmp_path / "x.png", {}
    Image.new("RGB", (30, 30)).save(photo)
    for name, confidence in (("a", 0.9), ("b", 0.1), ("c", 0.5)):
        captions[shutil.copy(photo, tmp_path / f"{name}.png")] = (
            told("a dog" if name == "a" else "a hat", confidence),
        )
    settings = SETTINGS | {"num_captions": 1}
    write_gallery(tmp_path / "x.html", captions, settings=settings, least_confident_first=True)
    assert [entry["image_id"] for entry in entries_of(tmp_path / "x.html")] == [1, 2, 3]
    with browser_page() as page:
        page.goto((tmp_path / "x.html").as_uri())
        assert page.locator(".card .name").all_text_contents() == ["b.png", "c.png", "a.png"]
        assert page.input_value("#order") == "ascending" and not page.messages

"""The page of caption.py --serve in headless Chromium, with the tiny captioner."""

import base64
import dataclasses
import io
import itertools
import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from sca_caption import checkpoint
from sca_caption.config import SearchConfig
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.serve.limits import Limits
from sca_caption.serve.options import Options
from tests.helpers.chromium import browser_page, needs_browser
from tests.helpers.made_photos import encoded, photo
from tests.helpers.tiny_captioner import TINY, tiny_captioner
from tests.helpers.web_server import serving

pytestmark = [needs_browser, pytest.mark.slow]

SEARCH = SearchConfig(num_captions=3, min_length=4, max_length=6)


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    """The tiny captioner with larger spatial weights, so that attention ranges from zero to ten times uniform."""
    loaded = checkpoint.load(tiny_checkpoint)
    with torch.no_grad():
        for name, weights in loaded.model.named_parameters():
            if "spatial" in name:
                weights *= 20
    return CaptionPipeline.load(loaded, search=SEARCH)


@pytest.fixture(scope="module")
def url(pipeline):
    with serving(pipeline, defaults=Options(SEARCH), limits=Limits(upload_bytes=500_000)) as url:
        yield url


@contextmanager
def opened(url, **size):
    """The loaded page. At the end, there must be no errors in its console and no requests to other servers."""
    with browser_page(**size) as page:
        requests, expected = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.expected = expected
        page.goto(url)
        page.wait_for_selector("body[data-ready]")
        yield page
        foreign = [each for each in requests if not each.startswith((url, "blob:", "data:"))]
        assert foreign == [] and f"{url}/api/model" in requests
        wrong = [m for m in page.messages if not any(each in m for each in expected)]
        assert wrong == []


def caption_of(pipeline, path) -> str:
    return next(iter(pipeline.stream([path]))).captions[0].text


def wait_for(page, caption: str) -> None:
    page.wait_for_selector(f"#photo[alt={json.dumps(caption)}]")
    page.wait_for_selector("#busy", state="hidden")


def heat(page) -> np.ndarray:
    """The canvas over the photograph, RGBA (H, W, 4)."""
    page.wait_for_timeout(400)  # until it has faded in
    url = page.evaluate("document.getElementById('heat').toDataURL()")
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def send(page, kind: str, name: str, data: bytes) -> None:
    """Drop a file on the page, or paste it (`kind`)."""
    code = """([kind, name, text]) => {
        const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
        const transfer = new DataTransfer();
        if (name) transfer.items.add(new File([bytes], name, { type: "image/png" }));
        const options = { bubbles: true, cancelable: true };
        document.body.dispatchEvent(kind === "paste" ? new ClipboardEvent(kind, { ...options, clipboardData: transfer })
            : new DragEvent(kind, { ...options, dataTransfer: transfer }));
    }"""
    page.evaluate(code, [kind, name, base64.b64encode(data).decode()])


def test_a_photograph_chosen_before_the_model_card_arrives_is_captioned(url, pipeline, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photo(3)))
    held: list = []
    with browser_page() as page:
        page.route("**/api/model", lambda route: held.append(route))
        page.goto(url)
        page.set_input_files("#file", path)
        page.wait_for_timeout(200)
        assert page.get_attribute("body", "data-ready") is None and page.is_hidden("#error")
        held[0].continue_()
        wait_for(page, caption_of(pipeline, path))
        assert not page.messages


def test_a_photograph_is_captioned_and_its_words_are_shown(url, pipeline, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(photo(3)))
    with opened(url) as page:
        page.set_input_files("#file", path)
        wanted = next(iter(pipeline.stream([path], traced=True)))
        caption, trace = wanted.captions[0].text, wanted.trace
        wait_for(page, caption)
        assert page.inner_text("#caption") == caption
        others = page.locator("#alternatives li").all_inner_texts()
        assert [text.split("\n")[0].strip() for text in others] == [c.text for c in wanted.captions[1:]]
        assert "log-probability" in page.inner_text("#confidence"), "this model has no confidence"
        assert not heat(page)[..., 3].any(), "the photograph alone"

        page.keyboard.press("ArrowRight")
        maps = [heat(page)]
        words = caption.split()
        for word in words[1:]:
            page.keyboard.press("ArrowRight")
            assert page.inner_text("#word").startswith(word)
            maps.append(heat(page))
        pressed = page.locator('.word[aria-pressed="true"]').all_inner_texts()
        assert pressed == [words[-1]]
        for before, after in itertools.pairwise(maps):
            assert (before != after).any(), "each word has its own map"
        spatial = trace.layers[-1].spatial
        for drawn, weights in zip(maps, spatial, strict=True):
            check_heat(drawn, weights)

        listed = page.locator("#bars li").all()
        assert len(listed) == 8
        times = trace.layers[-1].channel[-1] * trace.layers[-1].channel.shape[1]
        for row in listed:
            number = int(row.locator(".number").inner_text())
            assert float(row.locator(".times").inner_text().rstrip("×")) == pytest.approx(
                times[number], abs=0.006
            )
            assert row.locator(".course i").count() == len(words)

        page.click("#layers button >> nth=0")
        check_heat(heat(page), trace.layers[0].spatial[-1])
        page.keyboard.press("Escape")


def check_heat(drawn: np.ndarray, weights: np.ndarray) -> None:
    """Weights above uniform are coloured, most strongly at the maximum, and weights far below are not."""
    times = weights * weights.size
    opacity = drawn[..., 3]
    rows, columns = weights.shape
    centres = opacity[
        np.ix_(
            [int((i + 0.5) * len(opacity) / rows) for i in range(rows)],
            [int((i + 0.5) * len(opacity) / columns) for i in range(columns)],
        )
    ]
    assert (centres[times < 0.8] <= 25).all()
    if times.max() > 1.5:
        assert centres[np.unravel_index(times.argmax(), times.shape)] == pytest.approx(
            int(centres.max()), abs=30
        )
        assert centres.max() > 30


def test_upsampling_and_the_logarithmic_scale(url):
    code = """async ([map, rows, columns, side]) => {
        const { upsample, strength, positionName } = await import("/attention.js");
        return [Array.from(upsample(map, rows, columns, side)), [0.5, 1, 2, 4, 8].map((x) => strength(x, 4)),
            positionName(map, rows, columns)];
    }"""
    values = np.random.default_rng(0).random((3, 5))
    values[2, 0] = 2
    with opened(url) as page:
        smooth, strengths, position = page.evaluate(code, [values.ravel().tolist(), 3, 5, 45])
        flat, _, _ = page.evaluate(code, [[0.25] * 15, 3, 5, 45])
    smooth = np.array(smooth).reshape(45, 45)
    np.testing.assert_allclose(smooth[7::15, 4::9], values, atol=1e-6)  # the cells' centres
    np.testing.assert_allclose(flat, 0.25, atol=1e-6)
    np.testing.assert_allclose(smooth[7], convolved(values[0]), atol=1e-5)
    assert strengths == pytest.approx([0, 0, 0.5, 1, 1])
    assert position == "lower left"


def convolved(cells: np.ndarray) -> np.ndarray:
    """A row of cells upsampled to 45 values with the cubic convolution kernel for a = -1/2 (Keys 1981)."""
    found = []
    for x in range(45):
        at = (x + 0.5) * len(cells) / 45 - 0.5
        total = 0.0
        for cell in range(-3, len(cells) + 3):
            d = abs(at - cell)
            kernel = 1.5 * d**3 - 2.5 * d**2 + 1 if d <= 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            total += kernel * (d < 2) * cells[min(len(cells) - 1, max(0, cell))]
        found.append(total)
    return np.array(found)


def test_pointing_pinning_and_playing(url, pipeline, photos):
    with opened(url) as page:
        page.set_input_files("#file", photos[4])
        wait_for(page, caption_of(pipeline, photos[4]))
        words = page.locator(".word")
        words.nth(1).hover()
        pointed = heat(page)
        assert pointed[..., 3].any() and words.nth(1).get_attribute("aria-pressed") == "true"
        page.mouse.move(5, 5)
        assert not heat(page)[..., 3].any()
        words.nth(1).click()
        page.mouse.move(5, 5)
        np.testing.assert_array_equal(heat(page), pointed)
        page.click("#play")
        for word in range(2):
            page.wait_for_selector(f'.word:nth-of-type({word + 1})[aria-pressed="true"]')
        page.click("#play")
        assert page.inner_text("#play") == "Play word by word"


def test_dropped_and_pasted_photographs_and_the_history(url, pipeline, photos):
    made = [photos[1], photos[4]]
    captions = [caption_of(pipeline, path) for path in made]
    assert captions[0] != captions[1]
    with opened(url) as page:
        send(page, "drop", "1.png", made[0].read_bytes())
        wait_for(page, captions[0])
        send(page, "paste", "image.png", made[1].read_bytes())
        wait_for(page, captions[1])
        pictures = page.locator("#strip img")
        assert [each.get_attribute("alt") for each in pictures.all()] == captions[::-1]
        pictures.nth(1).click()
        wait_for(page, captions[0])
        assert page.inner_text("#caption") == captions[0] == page.title()
        send(page, "drop", "", b"")
        assert "not a file" in page.inner_text("#error")
        send(page, "paste", "", b"")
        assert "no image" in page.inner_text("#error")


def test_the_camera(url):
    with opened(url) as page:
        page.click("#camera")
        page.wait_for_selector("#shoot:not([disabled])")
        page.click("#shoot")
        page.wait_for_selector("#result:not([hidden])")
        assert page.evaluate("document.getElementById('photo').naturalWidth") >= 320
        assert page.locator("#camera-dialog[open]").count() == 0
        page.click("#camera")
        page.wait_for_selector("#shoot:not([disabled])")
        page.keyboard.press("Escape")
        page.wait_for_selector("#camera-dialog", state="hidden")
        assert page.inner_text("#error") == ""


def test_changed_settings_caption_again(url, pipeline, photos):
    with opened(url) as page:
        page.set_input_files("#file", photos[3])
        wait_for(page, caption_of(pipeline, photos[3]))
        page.click("#settings summary")
        assert page.input_value("[name=beam_size]") == "7" and page.input_value("[name=num_captions]") == "3"
        page.fill("[name=force_words]", "water")
        page.press("[name=force_words]", "Tab")
        page.wait_for_selector('#photo[alt*="water"]')
        page.fill("[name=beam_size]", "1")
        page.press("[name=beam_size]", "Tab")
        page.wait_for_selector("#others", state="hidden")
        assert page.input_value("[name=num_captions]") == "1", "at most the beam size"
        page.fill("[name=force_words]", "waters")
        page.expected.append("422")
        page.press("[name=force_words]", "Tab")
        page.wait_for_selector("#error:not([hidden])")
        assert re.match("Required words 'waters': .*nearest: water", page.inner_text("#error"))
        page.click("#controls [type=reset]")
        wait_for(page, caption_of(pipeline, photos[3]))
        assert page.locator("#strip li").count() == 1


def test_files_that_are_not_photographs(url, pipeline, photos, tmp_path):
    notes, large = tmp_path / "notes.txt", tmp_path / "large.bmp"
    notes.write_text("no photograph")
    large.write_bytes(bytes(500_001))
    with opened(url) as page:
        page.expected.append("415")
        page.set_input_files("#file", notes)
        page.wait_for_selector("#error:not([hidden])")
        assert page.inner_text("#error").startswith("notes.txt: not an image")
        assert page.is_visible("#placeholder") and not page.is_visible("#result")
        page.set_input_files("#file", photos[0])
        wait_for(page, caption_of(pipeline, photos[0]))
        assert not page.is_visible("#error")
        page.set_input_files("#file", large)
        page.wait_for_selector("#error:not([hidden])")
        assert re.match("large.bmp: more than 0.5 MB; resize", page.inner_text("#error"))
        assert page.inner_text("#caption") == caption_of(pipeline, photos[0]), "the previous result stays"
        page.set_input_files("#file", [notes, photos[1]])
        wait_for(page, caption_of(pipeline, photos[1]))


def test_formats_that_browsers_cannot_show(url, pipeline, tmp_path):
    path = tmp_path / "scan.tif"
    path.write_bytes(encoded(photo(7, (50, 40)), "TIFF"))
    with opened(url) as page:
        page.set_input_files("#file", path)
        wait_for(page, caption_of(pipeline, path))
        assert page.is_visible("#photo")
        assert page.evaluate("[photo.naturalWidth, photo.naturalHeight]") == [50, 40]
        page.click("#settings summary")
        page.fill("[name=max_length]", "4")
        page.press("[name=max_length]", "Tab")
        page.wait_for_function("() => document.querySelectorAll('.word').length <= 4")
        assert page.is_visible("#photo")


@pytest.mark.parametrize("kind", ["S", "C", "ensemble"])
def test_models_without_spatial_or_channel_attention_and_ensembles(kind, tiny_checkpoint, photos):
    loaded = checkpoint.load(tiny_checkpoint)
    if kind != "ensemble":
        model = tiny_captioner(config=dataclasses.replace(TINY, attention=kind))
        loaded = dataclasses.replace(loaded, model=model)
    pipeline = CaptionPipeline.load([loaded, loaded] if kind == "ensemble" else loaded, search=SEARCH)
    with serving(pipeline) as url, opened(url) as page:
        page.set_input_files("#file", photos[1])
        wait_for(page, caption_of(pipeline, photos[1]))
        assert page.is_visible("#legend") == (kind == "S")
        page.keyboard.press("ArrowRight")
        assert "(word 1 of " in page.inner_text("#word")
        assert page.is_visible("#bars") == (kind == "C")
        assert page.is_visible("#play") == (kind != "ensemble")


def test_a_small_screen_in_dark_mode(url, pipeline, photos):
    with opened(url, width=360, height=740) as page:
        page.emulate_media(color_scheme="dark")
        ground = re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert max(map(int, ground)) < 60
        page.set_input_files("#file", photos[6])
        wait_for(page, caption_of(pipeline, photos[6]))
        page.locator(".word").first.click()
        page.click("#settings summary")
        page.click("footer summary")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        for button in page.locator(".buttons button:visible").all():
            assert button.bounding_box()["height"] >= 44, "large enough for touch"


def test_every_control_has_an_accessible_name(url, pipeline, photos):
    """Buttons, inputs, images and sections have names for screen readers."""
    with opened(url) as page:
        page.set_input_files("#file", photos[2])
        wait_for(page, caption_of(pipeline, photos[2]))
        page.click("#settings summary")
        unnamed = page.evaluate("""() => [...document.querySelectorAll("button, input, img, section")].filter(
            (each) => !(each.textContent.trim() || each.getAttribute("aria-label") || each.alt || each.labels?.length
                || each.querySelector("img[alt]"))).map((each) => each.outerHTML)""")
        assert unnamed == []
        assert page.locator("[role=alert]").count() == 1
        assert caption_of(pipeline, photos[2]) in page.text_content("#announcement")

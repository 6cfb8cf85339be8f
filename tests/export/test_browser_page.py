"""The static page in Chromium: captions equal to Python's, attention per word, and no requests to other servers."""

import base64
import csv
import io
import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from tests.helpers.chromium import browser_page, needs_browser
from tests.helpers.guided_captioners import WORDS, made_consensus, predicting_words
from tests.helpers.made_photos import encoded, photo

pytest.importorskip("onnxscript", reason="writing ONNX needs onnx and onnxscript")
pytest.importorskip("onnxruntime", reason="the page is compared with onnxruntime under Python")
expect = pytest.importorskip("playwright.sync_api", reason="needs playwright to drive a browser").expect

from sca_caption import images
from sca_caption.benchmarks.browser import served
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import SearchConfig
from sca_caption.export.browser_site import INSTALL
from sca_caption.export.onnx_folder import export
from sca_caption.guidance.confidence import ConfidenceModel
from sca_caption.guidance.words import PredictedWords
from sca_caption.images import Transform
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.vocab import EOS

ROOT = Path(__file__).parents[2]
RUNTIME = Path(os.environ.get("ONNXRUNTIME_WEB", ROOT / "node_modules" / "onnxruntime-web"))
needs_runtime = pytest.mark.skipif(
    not (RUNTIME / "dist").is_dir(), reason=f"needs onnxruntime-web; {INSTALL}"
)
expect.set_options(timeout=120_000)  # other programs may use the processors
CAPTIONED = re.compile(r"\d+ captioned$")


@pytest.fixture(scope="module")
def given() -> Checkpoint:
    """A captioner with excluded words, consensus reranking and confidence that depend on the image."""
    model = predicting_words()
    model.word.bias.data[EOS] -= 0.3  # captions of one to twenty words that depend on the image
    consensus = made_consensus(model.backbone.channels[0])
    consensus.up.weight *= 5  # changes captions
    guides = {
        "consensus": consensus,
        "words": PredictedWords({"people": 0.5, "dogs": 0.5, "red": 0.5, "blue": 0.5}),
        "confidence": ConfidenceModel(2.0, 1.5, {"consensus": 2.0}),
    }
    return Checkpoint(model.requires_grad_(False), WORDS, Transform(size=32), guides=guides)


@pytest.fixture(scope="module")
def site(given, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("browser") / "site"
    export(folder, given, dtypes=["float32"], runtime=RUNTIME)
    return folder


@pytest.fixture(scope="module")
def opened(site):
    """The page with its model loaded; `asked` collects the addresses that it and its worker request."""
    with served(site) as address, browser_page() as page:
        page.asked = []
        page.context.on("request", lambda request: page.asked.append(request.url))
        page.address = address
        page.goto(address)
        page.wait_for_selector("body.ready")
        yield page


@pytest.fixture
def page(opened):
    """The same page without photographs."""
    if opened.locator("#clear").is_visible():
        opened.fill("#search", "")
        opened.click("#clear")
    opened.mouse.move(0, 0)
    opened.set_viewport_size({"width": 1200, "height": 800})
    yield opened
    assert opened.messages == []


@contextmanager
def another(opened):
    """A new page beside the one that all tests share."""
    page, messages = opened.context.browser.new_page(), []
    page.on("pageerror", lambda error: messages.append(str(error)))
    yield page
    page.close()
    assert messages == []


def file(name: str, content: bytes, kind: str = "image/png") -> dict:
    return {"name": name, "mimeType": kind, "buffer": content}


def give(page, files: list[dict]) -> None:
    page.set_input_files("#files", files)
    expect(page.locator("#count")).to_have_text(CAPTIONED)


def saved(page, button: str) -> str:
    with page.expect_download() as download:
        page.click(button)
    return Path(download.value.path()).read_text(encoding="utf-8")


def pictures(count: int) -> list[bytes]:
    """Lossless images of several sizes, which the browser and Pillow decode to the same pixels."""
    sizes = [(40 + 17 * i, 150 - 9 * i) for i in range(count)]
    return [encoded(photo(number, size)) for number, size in enumerate(sizes)]


def captions_of(pipeline: CaptionPipeline, contents: list[bytes]):
    return [result.captions for result in pipeline.stream(contents)]


pytestmark = [needs_browser, needs_runtime, pytest.mark.slow]


# ---- captions --------------------------------------------------------------------------------------------------------


def test_captions_are_pythons(page, given):
    contents = pictures(10)
    give(page, [file(f"{i}.png", content) for i, content in enumerate(contents)])
    found = json.loads(saved(page, "#json"))
    wanted, unmasked, unranked = (
        captions_of(CaptionPipeline.load(given, search=search, guidance=guidance), contents)
        for search, guidance in (
            (SearchConfig(num_captions=3), True),
            (SearchConfig(num_captions=3), False),
            (SearchConfig(num_captions=3, rerank_weight=0), True),
        )
    )
    for other in (unmasked, unranked):
        assert [captions[0].text for captions in other] != [captions[0].text for captions in wanted]
    assert len({captions[0].text for captions in wanted}) >= 3
    for index, (entry, captions) in enumerate(zip(found, wanted, strict=True)):
        best = captions[0]
        assert entry["file_name"] == f"{index}.png" and entry["image_id"] == index + 1
        assert entry["caption"] == best.text
        assert entry["score"] == pytest.approx(best.score, abs=1e-3)
        assert entry["confidence"] == pytest.approx(best.confidence, abs=1e-3)
        card = page.locator(".card").nth(len(contents) - 1 - index)  # newest first
        assert card.locator(".caption").inner_text().split() == best.text.split()
        assert card.locator("img").get_attribute("alt") == best.text
        others = card.locator(".others li").evaluate_all(
            "all => all.map((each) => each.firstChild.textContent.trim())"
        )
        assert others == [caption.text for caption in captions[1:]]
    rows = [*csv.DictReader(io.StringIO(saved(page, "#csv")))]
    assert [{name: str(value) for name, value in entry.items()} for entry in found] == rows


def test_captions_come_with_several_threads_and_with_one(page, given):
    """The page isolates itself by a service worker, and does without where the browser refuses service workers."""
    assert page.evaluate("crossOriginIsolated")
    (content,) = pictures(1)
    (captions,) = captions_of(CaptionPipeline.load(given), [content])
    other = page.context.browser.new_page(service_workers="block")
    other.goto(page.address)
    other.wait_for_selector("body.ready", timeout=120_000)
    assert not other.evaluate("crossOriginIsolated")
    for each in (page, other):
        give(each, [file("a.png", content)])
        assert each.locator(".card img").get_attribute("alt") == captions[0].text
    other.close()


# ---- pictures --------------------------------------------------------------------------------------------------------

TO_PIXELS = """async ([content, transform]) => {
  const { readPhotograph } = await import("/photograph.js");
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  return [...(await readPhotograph(new File([bytes], "a"), transform)).pixels];
}"""


def differences(page, content: bytes, size: int = 32, mode: str = "resize") -> np.ndarray:
    """Absolute differences between the browser's and Python's pixels, of 255."""
    transform = Transform(size, mode)
    found = page.evaluate(TO_PIXELS, [base64.b64encode(content).decode(), transform.to_dict()])
    found = np.array(found).reshape(3, transform.size, transform.size).transpose(1, 2, 0)
    return np.abs(found - images.load(content, transform).astype(int))


def lossless() -> dict[str, bytes]:
    picture = photo(3, (57, 41))
    levels = np.asarray(picture.convert("L"))
    holes = picture.convert("RGBA")
    holes.putalpha(Image.fromarray(np.where(levels > 99, 255, 0).astype(np.uint8)))
    gamma = PngInfo()
    gamma.add(b"gAMA", (100_000).to_bytes(4, "big"))
    palette = picture.quantize(9)
    return {
        "colour": encoded(picture),
        "grey": encoded(picture.convert("L")),
        "palette": encoded(palette),
        "palette with holes": encoded(palette, transparency=3),
        "on white": encoded(holes),
        "gamma": encoded(picture, pnginfo=gamma),
        "webp": encoded(picture, "WEBP", lossless=True),
        "gif": encoded(palette, "GIF"),
        "bmp": encoded(picture, "BMP"),
        "tall": encoded(photo(4, (40, 300))),
        "one pixel": encoded(photo(5, (1, 1))),
    }


def test_lossless_images_have_the_same_pixels_as_in_python(page):
    wrong = {name: differences(page, content).max() for name, content in lossless().items()}
    assert wrong == dict.fromkeys(wrong, 0)
    assert differences(page, lossless()["colour"], 24, "crop").max() == 0


def test_jpeg_images_are_rotated_and_differ_by_rounding(page):
    """JPEG decoders round differently, and Pillow reduces large images while it decodes them."""
    picture = photo(6, (60, 44))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[images.ORIENTATION] = turn
        assert differences(page, encoded(picture, "JPEG", quality=95, exif=exif)).max() <= 3, turn
    large = photo(7, (320, 290))
    ImageDraw.Draw(large).text((20, 20), "fine print\n" * 20, fill="white")
    far = differences(page, encoded(large, "JPEG", quality=95))
    assert far.mean() < 0.5 and far.max() <= 20


# ---- attention -------------------------------------------------------------------------------------------------------


def test_words_show_their_attention(page, given):
    contents = pictures(10)
    batch = stack([images.load(content, given.transform) for content in contents])
    found = [(best, traced) for (best, *_), traced in CaptionPipeline.load(given).trace_batch(batch)]
    longest = max(range(10), key=lambda row: len(found[row][0].tokens))
    best, traced = found[longest]
    assert len(best.tokens) >= 3
    give(page, [file("a.png", contents[longest])])
    words = page.locator(".caption button")
    assert words.all_text_contents() == best.text.split()
    drawn = page.locator(".card canvas")
    seen = set()
    words.first.focus()
    for index, probability in enumerate(traced.probabilities):
        page.wait_for_timeout(300)  # the map fades in
        assert page.locator(".looked").all_text_contents() == [best.text.split()[index]]
        match = re.search(r"probability (?:under )?(\d+)\s%", page.locator(".word").inner_text())
        assert abs(int(match[1]) - 100 * probability) <= 1
        seen.add(drawn.evaluate("canvas => canvas.toDataURL()"))
        page.keyboard.press("ArrowRight")
    assert len(seen) >= 3  # maps of words differ
    page.keyboard.press("Home")
    assert words.first.evaluate("word => word === document.activeElement")
    assert page.locator(".caption [tabindex='0']").count() == 1  # one stop of the tab key for all words
    page.locator("#search").focus()
    page.wait_for_timeout(300)
    assert page.locator(".looked").count() == 0 and page.locator(".word").inner_text() == ""
    words.nth(1).hover()
    assert page.locator(".looked").inner_text() == best.text.split()[1]


# ---- the page --------------------------------------------------------------------------------------------------------

HAND_OVER = """([kind, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
  const given = kind === "paste" ? { clipboardData: data } : { dataTransfer: data };
  const Event = kind === "paste" ? ClipboardEvent : DragEvent;
  document.body.dispatchEvent(new Event(kind, { bubbles: true, cancelable: true, ...given }));
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_photographs_are_dropped_and_pasted(page, kind):
    page.evaluate(HAND_OVER, [kind, base64.b64encode(pictures(1)[0]).decode()])
    expect(page.locator("#count")).to_have_text("1 captioned")
    assert page.locator(".file span").inner_text() == f"{kind}.png"


def test_the_camera(page):
    page.click("#camera")
    expect(page.locator("#camera-dialog")).to_be_visible()
    page.wait_for_timeout(1000)  # the camera starts
    page.click("#shoot")
    expect(page.locator("#count")).to_have_text("1 captioned")
    expect(page.locator("#camera-dialog")).to_be_hidden()


def test_files_that_are_no_images_show_the_reason(page):
    files = [file("notes.png", b"these are no pixels"), file("a.png", pictures(1)[0]), file("empty.jpg", b"")]
    give(page, [*files, file("phone.heic", b"\0\0\0\x18ftypheic" + bytes(99), "image/heic")])
    assert page.locator("#count").inner_text() == "1 captioned"
    assert page.locator("[role=alert]:visible").all_text_contents() == [
        "phone.heic: a file type that this browser cannot open; convert it to JPEG",
        "empty.jpg: empty file (0 bytes); get the file again",
        "notes.png: not an image, or damaged; get it again or convert it",
    ]
    page.get_by_role("button", name="Remove empty.jpg").click()
    assert page.locator(".card").count() == 3


def test_search_and_order(page):
    give(page, [file(f"{i}.png", content) for i, content in enumerate(pictures(6))])

    def names() -> list[str]:
        return page.locator(".file span").all_text_contents()

    assert names() == [f"{i}.png" for i in range(5, -1, -1)]
    page.fill("#search", "4.PN")
    assert names() == ["4.png"]
    word = page.locator(".caption button").last.inner_text()
    page.fill("#search", word)
    assert "4.png" in names() and all(word in text for text in page.locator(".caption").all_text_contents())
    page.fill("#search", "nothing has this")
    assert names() == [] and page.locator("#count").inner_text().startswith("0 of 6 shown.")
    page.fill("#search", "")
    page.check("#by-confidence")
    trust = {entry["file_name"]: entry["confidence"] for entry in json.loads(saved(page, "#json"))}
    shown = [trust[name] for name in names()]
    assert shown == sorted(shown) and len(set(shown)) > 3
    page.uncheck("#by-confidence")


def test_no_requests_to_other_servers_and_none_once_loaded(page):
    asked = len(page.asked)
    page.context.set_offline(True)
    try:
        give(page, [file("a.png", pictures(1)[0])])
    finally:
        page.context.set_offline(False)
    own = (f"{page.address}/", "blob:")
    assert [url for url in page.asked[:asked] if not url.startswith(own)] == []
    assert [url for url in page.asked[asked:] if not url.startswith("blob:")] == []


def test_captions_on_a_simulated_gpu_are_pythons(opened, given):
    contents = pictures(3)
    with another(opened) as page:
        page.goto(f"{opened.address}/?processor=gpu")
        for count, content in enumerate(contents, 1):
            page.set_input_files("#files", [file(f"{count}.png", content)])
            expect(page.locator("#count")).to_have_text(f"{count} captioned")
            if count == 2:  # tried, and taken
                expect(page.locator("#processor")).to_have_text(re.compile("GPU"))
        found = json.loads(saved(page, "#json"))
    wanted = captions_of(CaptionPipeline.load(given, search=SearchConfig(num_captions=3)), contents)
    for entry, (best, *_) in zip(found, wanted, strict=True):
        assert entry["caption"] == best.text
        assert entry["score"] == pytest.approx(best.score, abs=1e-3)


def test_the_content_security_policy_covers_the_worker(opened, site):
    ask = "address => fetch(address).then(() => 'answered', () => 'refused')"
    with served(site) as other, another(opened) as page:
        page.goto(opened.address)
        page.wait_for_selector("body.ready")
        for place in (page, page.workers[0]):
            assert place.evaluate(ask, f"{other}/site.json") == "refused"
            assert place.evaluate(ask, f"{opened.address}/site.json") == "answered"


def test_everything_fits_a_telephone(page):
    page.set_viewport_size({"width": 360, "height": 740})
    give(page, [file("a name that is rather long for a telephone.png", pictures(1)[0])])
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360


def test_a_page_opened_as_a_file_says_what_to_do(opened, site):
    with another(opened) as page:
        page.goto((site / "index.html").as_uri())
        page.wait_for_selector("text=python -m http.server")
        page.wait_for_timeout(2500)
        assert page.locator("#unserved").evaluate("line => getComputedStyle(line).visibility") == "visible"


@pytest.mark.parametrize("lost", ["model/step.onnx", "runtime/ort-wasm-simd-threaded.wasm", "site.json"])
def test_a_missing_file_is_named(opened, site, tmp_path, lost):
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    (copy / lost).unlink()
    with served(copy) as address, another(opened) as page:
        page.goto(address)
        expect(page.locator("#failure")).to_contain_text(f"{lost} is not on the server")
        assert page.locator("#model").is_hidden()

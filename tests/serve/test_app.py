"""The API of caption.py --serve: its responses agree with `CaptionPipeline`, and it refuses invalid requests."""

import base64
import dataclasses
import http.client
import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from sca_caption import checkpoint, images
from sca_caption.config import SearchConfig
from sca_caption.images import Transform
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.attention_trace import unattended_maps
from sca_caption.serve.answer import strongest_channels
from sca_caption.serve.app import FILES, create_app
from sca_caption.serve.guard import Guard
from sca_caption.serve.limits import Limits
from sca_caption.serve.options import Options, read_options
from sca_caption.serve.schema import ERRORS, Answer, ModelCard
from sca_caption.serve.upload import display_name
from tests.helpers.made_photos import encoded, message, photo
from tests.helpers.web_server import SlowPipeline, get, post, running, serving, until

DEFAULTS = SearchConfig(num_captions=3, max_length=8)


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return CaptionPipeline.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def url(pipeline):
    with serving(
        pipeline, defaults=Options(DEFAULTS), limits=Limits(upload_bytes=2_000_000, pixels=400_000)
    ) as url:
        yield url


def pixels_of(pipeline, path):
    return torch.from_numpy(images.load(path, pipeline.transform)).permute(2, 0, 1)[None]


def test_an_answer_agrees_with_the_pipeline(url, pipeline, photos):
    for path in photos:
        response = post(url, path)
        found = response.json()
        assert response.status_code == 200
        batch = pixels_of(pipeline, path)
        ((captions, trace),) = pipeline.with_search(DEFAULTS).trace_batch(batch)
        assert found["caption"] == captions[0].text
        assert [each["text"] for each in found["captions"]] == [each.text for each in captions]
        for name in ("score", "log_prob"):
            wanted = [getattr(each, name) for each in captions]
            assert [each[name] for each in found["captions"]] == pytest.approx(wanted, abs=1e-4)
        assert found["captions"][0]["confidence"] is None
        assert found["words"] == captions[0].text.split()
        assert found["probabilities"] == pytest.approx(trace.probabilities.tolist(), rel=1e-3)
        assert (found["width"], found["height"]) == Image.open(path).size
        assert found["attention"]["region"] == [0, 0, 1, 1] and found["preview"] is None
        maps = unattended_maps(pipeline.sca_cnn, batch)
        for layer, wanted, excited in zip(found["attention"]["layers"], trace.layers, maps, strict=True):
            assert (layer["layer"], layer["grid"]) == (wanted.name, [8, 8])
            flat = wanted.spatial.reshape(len(found["words"]), 64)
            np.testing.assert_allclose(layer["spatial"], flat, rtol=1e-3)
            check_channels(layer, wanted.channel, excited[0])


def check_channels(layer, weights, maps):
    """weights (T, C), maps (C, 8, 8)"""
    assert layer["channels"] == weights.shape[1]
    for word, listed in enumerate(layer["channel"]):
        times = weights[word] * weights.shape[1]
        ranks = sorted((not each.any(), -weight) for each, weight in zip(maps, times, strict=True))
        assert [each["times"] for each in listed] == pytest.approx(
            [-weight for _, weight in ranks[:8]], rel=1e-3
        )
        for each in listed:
            assert each["times"] == pytest.approx(times[each["index"]], rel=1e-3)
            course = weights[:, each["index"]] * weights.shape[1]
            assert each["course"] == pytest.approx(course.tolist(), rel=1e-3)
            x, y = (int(place * 8) for place in each["peak"])
            assert maps[each["index"], y, x] == pytest.approx(maps[each["index"]].max(), rel=1e-4)


def test_silent_channels_are_not_among_the_strongest():
    maps = np.zeros((3, 2, 2))
    maps[1, 0, 1], maps[2, 1, 0] = 2.0, 1.0
    found = strongest_channels(np.array([[0.9, 0.04, 0.06]]), 0, maps)
    assert [(each.index, each.peak) for each in found[:2]] == [(2, (0.25, 0.75)), (1, (0.75, 0.25))]


def test_settings_reach_the_search(url, pipeline, photos):
    fields = {"beam_size": 2, "num_captions": 2, "min_length": 3, "max_length": 4, "length_penalty": -1.0,
              "block_ngrams": 1, "remove_bad_endings": False}  # fmt: skip
    found = post(url, photos[5], **fields).json()
    wanted = pipeline.with_search(SearchConfig(**fields)).caption_batch(pixels_of(pipeline, photos[5]))[0]
    assert [each["text"] for each in found["captions"]] == [each.text for each in wanted]
    found = post(url, photos[0], force_words="cat/dog, Water", grammar=False).json()["caption"].split()
    assert {"cat", "dog"} & set(found) and "water" in found
    found = post(url, photos[0], force_words="cat, on/gruffalo", max_length=1).json()
    assert found["dropped_words"] == ["gruffalo"]
    assert found["captions"][0]["missing_words"] == ["cat", "on/gruffalo"]


def test_a_narrower_beam_gives_fewer_captions_than_the_default(url, photos):
    assert len(post(url, photos[0], beam_size=2).json()["captions"]) == 2


def test_guidance_can_be_turned_off():
    off = read_options({"guidance": "off"}, Options(DEFAULTS), Limits())
    assert off == Options(DEFAULTS, guidance=False)
    assert read_options({"neutral": "on"}, Options(DEFAULTS), Limits()) == Options(DEFAULTS, neutral=True)


def test_fields_of_earlier_versions_are_read():
    fields = {"mention": "dog", "sound_endings": "off", "objects": "off"}
    found = read_options(fields, Options(DEFAULTS), Limits())
    assert found.force_words == ("dog",) and not found.search.remove_bad_endings and not found.guidance


def test_several_models_caption_without_attention(tiny_checkpoint, pipeline, photos):
    with serving(CaptionPipeline.load([tiny_checkpoint, tiny_checkpoint])) as url:
        found = post(url, photos[2]).json()
        assert found["caption"] == pipeline.caption_batch(pixels_of(pipeline, photos[2]))[0][0].text
        assert found["attention"] is None and found["probabilities"] is None
        assert get(f"{url}/api/model").json()["layers"] == []


def test_the_region_that_the_model_sees_of_a_rotated_photograph(tiny_checkpoint, tmp_path):
    loaded = checkpoint.load(tiny_checkpoint)
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6  # rotated by 90 degrees
    data = encoded(photo(1, (60, 40)), "JPEG", exif=exif)
    with serving(CaptionPipeline.load(dataclasses.replace(loaded, transform=Transform(32, "crop")))) as url:
        found = post(url, data, preview=True).json()
    assert (found["width"], found["height"]) == (40, 60)
    assert found["attention"]["region"] == pytest.approx([0, 1 / 6, 1, 2 / 3])
    head, _, content = found["preview"].partition(",")
    assert head == "data:image/jpeg;base64"
    (tmp_path / "x.jpg").write_bytes(base64.b64decode(content))
    assert Image.open(tmp_path / "x.jpg").size == (40, 60)


def test_files_that_are_not_images_get_the_messages_of_the_command_line(url, photos, tmp_path):
    bad = {
        "notes.txt": b"no image at all, but long enough to be looked at",
        "torn.png": photos[1].read_bytes()[:60],
        "half.jpg": encoded(photo(3), "JPEG")[:300],
        "empty.jpg": b"",
    }
    for name, data in bad.items():
        path = tmp_path / name
        path.write_bytes(data)
        response = post(url, path)
        wanted = message(lambda path=path: images.load(path, Transform(32)))
        assert response.status_code == 415
        assert response.json() == {"error": wanted.replace(str(path), name)}


def test_no_other_program_is_started_to_decode_an_image(url, tmp_path):
    """Pillow would start Ghostscript for an EPS file."""
    (tmp_path / "x.eps").write_bytes(encoded(photo(1), "EPS"))
    response = post(url, tmp_path / "x.eps")
    assert response.status_code == 415
    assert re.match("x.eps: .* EPS .*; convert it to JPEG or PNG", response.json()["error"])


def test_too_many_pixels_are_not_decoded(url, monkeypatch):
    monkeypatch.setattr(images, "decode", lambda *_: pytest.fail("decoded"))
    response = post(url, encoded(Image.new("L", (1000, 500))))
    assert response.status_code == 413
    assert re.match("a.png: 0.5 million pixels; .* 0.4 million .*resize", response.json()["error"])


def test_too_many_bytes_are_refused_before_the_upload(url):
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    connection.putrequest("POST", "/api/caption")
    connection.putheader("Content-Type", "multipart/form-data; boundary=x")
    connection.putheader("Content-Length", "2000001")
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert re.match("more than 2 MB; resize", json.load(response)["error"])


def test_too_many_bytes_of_unknown_length_are_not_read_to_the_end(url):
    sent = []

    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(4000):
            sent.append(1)
            yield bytes(100_000)

    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    with httpx.Client(trust_env=False, timeout=60) as client:
        response = client.post(f"{url}/api/caption", content=endless(), headers=kind)
    assert response.status_code == 413
    assert len(sent) < 4000


def test_an_upload_that_stops_times_out(pipeline):
    with serving(pipeline, limits=Limits(upload_seconds=0.2)) as url:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.putrequest("POST", "/api/caption")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"--x")
        response = connection.getresponse()
        assert response.status == 408
        assert re.search("after 0.2 seconds; send it again", json.load(response)["error"])


def test_invalid_settings(url, photos):
    """Errors name the flag, the value and the limit."""
    for fields, parts in (
        ({"num_captions": 8}, ("--num-captions 8", "--beam-size 7")),
        ({"beam_size": "two"}, ("--beam-size 'two'", "whole number")),
        ({"beam_size": 0}, ("--beam-size 0", "at least 1")),
        ({"beam_size": 21}, ("--beam-size 21", "at most 20")),
        ({"max_length": 10**9}, ("--max-length 1000000000", "at most 50")),
        ({"min_length": 9}, ("--min-length 9", "--max-length 8")),
        ({"length_penalty": "nan"}, ("--length-penalty 'nan'", "number")),
        ({"diversity": "inf"}, ("--diversity 'inf'", "number")),
        ({"remove_bad_endings": "perhaps"}, ("--remove-bad-endings 'perhaps'", "true or false")),
        ({"force_words": "dogs"}, ("--force-words 'dogs'", "nearest: dog")),
        ({"force_words": "a b c d"}, ("--force-words", "3", "4", "dog/puppy")),
        ({"force_words": "a" * 201}, ("--force-words", "201", "200")),
        ({"beams": 2}, ("'beams'", "beam_size, block_ngrams, ")),
    ):
        response = post(url, photos[0], **fields)
        error = response.json()["error"]
        assert response.status_code == 422 and "\n" not in error, fields
        assert not [part for part in parts if part not in error], error


@pytest.mark.parametrize(
    ("request_", "status", "error"),
    [
        ({"content": b"x"}, 415, "not a form"),
        ({"json": {}}, 415, "not a form"),
        ({"files": {"beam_size": (None, "3")}}, 400, "0 files in the form"),
        ({"files": {"photo": ("a.png", b"x")}}, 400, "1 files in the form"),
        ({"files": [("image", ("a", b"x")), ("image", ("b", b"x"))]}, 400, "2 files in the form"),
        ({"content": b"xx", "headers": {"Content-Type": "multipart/form-data; boundary=y"}}, 400,
         "cannot be parsed"),
        ({"content": b"", "headers": {"Content-Type": "multipart/form-data"}}, 400, "cannot be parsed"),
    ],
)  # fmt: skip
def test_requests_without_a_form_with_one_photograph(url, request_, status, error):
    with httpx.Client(trust_env=False) as client:
        response = client.post(f"{url}/api/caption", **request_)
    assert response.status_code == status
    found = response.json()["error"]
    assert error in found and found.endswith(
        "send a form (multipart/form-data) with the image file in the field image"
    )


def test_other_addresses_and_methods(url):
    assert (get(f"{url}/docs").status_code, get(f"{url}/docs").json()) == (404, {"error": "not found"})
    assert get(f"{url}/api/caption").json() == {"error": "method not allowed"}
    assert get(f"{url}/../pyproject.toml").status_code == 404


def test_a_full_queue_refuses_and_abandoned_requests_are_dropped(tiny_checkpoint, photos):
    slow = SlowPipeline.load(tiny_checkpoint)
    app = create_app(slow, limits=Limits(waiting=2))
    queue, signals = app.state.queue, slow.signals
    with running(app) as url, ThreadPoolExecutor(3) as threads:
        answers = [threads.submit(post, url, photos[0])]
        assert signals.begun.acquire(timeout=60)
        leaves = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%s\r\n--x--\r\n'
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        leaves.request("POST", "/api/caption", form % photos[1].read_bytes(), kind)
        until(lambda: queue.occupied == 2)
        leaves.close()
        until(lambda: queue.occupied == 1)
        answers += [threads.submit(post, url, path) for path in photos[2:4]]
        until(lambda: queue.occupied == 3)
        refused = post(url, photos[4])
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        assert re.match("busy: 3 .*; try again in 5 seconds", refused.json()["error"])
        signals.may.release(3)
        assert [answer.result().status_code for answer in answers] == [200] * 3
        assert signals.count == 3
        assert queue.occupied == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1234"}, 200),
        ({"Host": "[::1]:7860"}, 200),
        ({"Host": "127.0.0.9"}, 200),
        ({"Host": "evil.example"}, 400),
        ({"Host": "127.0.0.1.evil.example:7860"}, 400),
        ({"Host": "192.168.1.5:7860"}, 400),
        ({"Host": "[::1"}, 400),
        ({"Host": ""}, 400),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_only_pages_of_this_server_and_programs_are_answered(url, photos, headers, status):
    response = post(url, photos[0], headers=headers)
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers
    if "Host" in headers:
        assert get(f"{url}/", headers=headers).status_code == status
    own = {"Origin": url}
    assert post(url, photos[0], headers=own).status_code == 200


@pytest.mark.parametrize(
    ("host", "open_to"), [("0.0.0.0", True), ("192.168.1.5", True), ("localhost", False)]
)
def test_a_server_on_the_network_accepts_addresses_but_not_other_names(host, open_to):
    guard = Guard(None, host)
    assert guard.is_own_host("192.168.1.5:7860") is open_to
    assert guard.is_own_host("localhost:7860") and not guard.is_own_host("rebound.example:7860")


def test_nothing_is_written_to_disk(url, monkeypatch):
    def write(*_, **__):
        raise AssertionError("a temporary file")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, write)
    data = encoded(Image.effect_noise((600, 600), 90), "BMP") + bytes(1_400_000)
    assert len(data) > 1_600_000
    assert post(url, data).status_code == 200


def test_security_headers_of_every_response(url):
    for path in [*FILES, "/api/model", "/openapi.json", "/nothing"]:
        headers = get(url + path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert "server" not in headers and "set-cookie" not in headers


def test_the_page_requests_only_its_own_files(url):
    wanted = set()

    class Page(HTMLParser):
        def handle_starttag(self, tag, attributes):
            attributes = dict(attributes)
            assert not {"style"} & set(attributes) and not any(name.startswith("on") for name in attributes)
            wanted.update(attributes[name] for name in ("src", "href") if attributes.get(name))

    Page().feed(get(f"{url}/").text)
    scripts = [path for path in FILES if path.endswith(".js")]
    for path in scripts:
        wanted.update(re.findall(r'from "\./([^"]+)"', get(url + path).text))
    local = {name for name in wanted if not name.startswith("data:")}
    assert {f"/{name}" for name in local} == set(FILES) - {"/"} | {"/openapi.json", "/api/model"}
    for path in FILES:
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", get(url + path).text)


def test_the_model_card_and_the_schema_agree_with_the_api(url, pipeline, photos):
    card = ModelCard.model_validate(get(f"{url}/api/model").json(), strict=True)
    assert card.vocabulary == 16 and card.layers == ["layer1.0", "layer1.1"] and not card.guidance
    assert card.defaults.model_dump() == vars(DEFAULTS) | {
        "force_words": [],
        "guidance": True,
        "neutral": False,
    }
    assert (card.limits.upload_bytes, card.limits.pixels, card.limits.beam_size) == (2_000_000, 400_000, 20)
    Answer.model_validate_json(post(url, photos[0]).text, strict=True)
    schema = get(f"{url}/openapi.json").json()
    assert schema["openapi"] == "3.1.0" and set(schema["paths"]) == {"/api/caption", "/api/model"}
    text = json.dumps(schema)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert references == set(schema["components"]["schemas"])
    post_ = schema["paths"]["/api/caption"]["post"]
    assert set(post_["responses"]) == {"200", *map(str, ERRORS)}
    form = post_["requestBody"]["content"]["multipart/form-data"]["schema"]
    known = {field.name for field in dataclasses.fields(SearchConfig)}
    assert set(form["properties"]) == known | {"image", "force_words", "guidance", "neutral", "preview"}
    assert form["properties"]["num_captions"]["default"] == 3
    for name in known:  # the API accepts the defaults of the schema
        assert post(url, photos[0], **{name: form["properties"][name]["default"]}).status_code == 200


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (b"C:\\fakepath\\a.jpg", "a.jpg"),
        (b"../../etc/passwd", "passwd"),
        (b"a\x1b[31m\nb.png", "a[31mb.png"),
        ("caf\u00e9.jpg".encode(), "caf\u00e9.jpg"),
        (b"", "the image"),
        (b"a" * 100, "a" * 79 + "…"),
    ],
)
def test_names_in_messages(name, wanted):
    assert display_name(name) == wanted

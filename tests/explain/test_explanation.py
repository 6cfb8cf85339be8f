"""Explanations hold what the model attended, also for captions that are given, and are written whole or not at all."""

import json

import numpy as np
import pytest
from PIL import Image

from sca_caption import Captioner
from sca_caption.explain.explanation import explain
from sca_caption.images import load
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.attention_trace import trace_to_json, unattended_maps
from tests.helpers.explanations import made_explanation
from tests.helpers.made_photos import message, photo


@pytest.fixture
def pipeline(tiny_checkpoint) -> CaptionPipeline:
    return CaptionPipeline.load(tiny_checkpoint)


def test_an_explanation_is_of_the_caption_that_is_found(pipeline, photos):
    (wanted,) = pipeline.stream(photos[:1], traced=True)
    found = explain(pipeline, photos[0])
    assert found.caption == wanted.captions[0] and " ".join(found.words) == found.caption.text
    np.testing.assert_array_equal(found.trace.layers[0].spatial, wanted.trace.layers[0].spatial)
    maps = unattended_maps(pipeline.sca_cnn, stack([load(photos[0], pipeline.transform)]))
    assert len(found.maps) == len(found.trace.layers) == 2
    for mine, whole in zip(found.maps, maps, strict=True):
        np.testing.assert_array_equal(mine, whole[0])


def test_a_given_caption_is_traced_in_its_place(pipeline, photos):
    found = explain(pipeline, photos[0])
    again = explain(pipeline, photos[0], found.caption.text.capitalize() + ".")
    assert again.words == found.words
    np.testing.assert_array_equal(again.trace.layers[1].channel, found.trace.layers[1].channel)
    for name in ("log_prob", "score", "mean_log_prob"):
        if found.caption.finished:
            assert getattr(again.caption, name) == pytest.approx(getattr(found.caption, name), rel=1e-3)
    other = explain(pipeline, photos[0], "two dog")
    assert other.words == ("two", "dog") and len(other.trace.probabilities) == 2


def test_words_that_the_model_lacks_are_named(pipeline, photos):
    text = message(lambda: explain(pipeline, photos[0], "a zebra in the water, and a giraffe"))
    assert "and, giraffe, zebra" in text
    assert "has no words" in message(lambda: explain(pipeline, photos[0], " ... "))


def test_several_models_are_refused(tiny_checkpoint, photos):
    several = CaptionPipeline.load([tiny_checkpoint, tiny_checkpoint])
    for caption in (None, "a dog"):
        assert "the attention of 2 models cannot be shown at once" in message(
            lambda caption=caption: explain(several, photos[0], caption)
        )


def test_the_photograph_is_upright_and_no_larger_than_needed(pipeline, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned to the right
    photo(1, (1800, 600)).save(tmp_path / "turned.jpg", exif=exif)
    found = explain(pipeline, tmp_path / "turned.jpg")
    assert found.photograph.size == (333, 1000) and found.photograph.mode == "RGB"
    assert explain(pipeline, photo(2, (3, 2))).photograph.size == (3, 2)


@pytest.mark.parametrize("kinds", ["S", "C", "SC"])
def test_numbers_go_through_json_and_sum_to_one(kinds):
    made = made_explanation(layers=(("low", 8, 4, 3), ("high", 12, 2, 2)), kinds=kinds)
    found = json.loads(json.dumps(made.numbers()))
    assert found == trace_to_json(made.trace, made.words) and found["words"] == list(made.words)
    np.testing.assert_allclose(found["probabilities"], made.trace.probabilities, rtol=1e-3)
    for layer, traced in zip(found["layers"], made.trace.layers, strict=True):
        assert layer["layer"] == traced.name
        assert (layer["spatial"] is None) == ("S" not in kinds) and (layer["channel"] is None) == (
            "C" not in kinds
        )
        if traced.spatial is not None:
            T, H, W = traced.spatial.shape
            assert layer["grid"] == [H, W]
            np.testing.assert_allclose(np.reshape(layer["spatial"], (T, H, W)), traced.spatial, rtol=1e-3)
        for kind in filter(None, (layer["spatial"], layer["channel"])):
            np.testing.assert_allclose(np.sum(kind, 1), 1, atol=1e-3)
    assert all(len(repr(value).replace(".", "").strip("0")) <= 8 for value in found["probabilities"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg", "pdf", "gif"])
def test_the_same_explanation_gives_the_same_bytes(kind, tmp_path):
    made, files = made_explanation(words=("a", "dog")), [tmp_path / f"{name}.{kind}" for name in "ab"]
    for file in files:
        made.save(file)
    content = files[0].read_bytes()
    assert content == files[1].read_bytes() and sorted(tmp_path.iterdir()) == files
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF", "gif": b"GIF89a"}
    assert content.startswith(starts[kind])


def test_what_cannot_be_written(tmp_path):
    made = made_explanation(words=("a",))
    kinds = "unknown figure format '.webp'; one of: .gif, .pdf, .png, .svg"
    assert kinds in message(lambda: made.save(tmp_path / "why.webp"))
    assert "no folder" in message(lambda: made.save(tmp_path / "no" / "why.png"))
    for kind in ("png", "gif"):
        folder = tmp_path / f"why.{kind}"
        folder.mkdir()
        assert "it is a folder; give a file" in message(lambda folder=folder: made.save(folder))
    assert {path.name for path in tmp_path.iterdir()} == {"why.png", "why.gif"}


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    made = made_explanation(words=("a",))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    monkeypatch.setattr("PIL.Image.Image.save", full)
    for kind in ("svg", "gif"):
        text = message(lambda kind=kind: made.save(tmp_path / f"why.{kind}", "--explain"))
        assert "No space left on device); free space or choose another --explain" in text
    assert list(tmp_path.iterdir()) == []


def test_captioner_explains_the_same(tiny_checkpoint, pipeline, photos):
    captioner = Captioner.load(tiny_checkpoint)
    wanted = explain(pipeline, photos[0])
    with Image.open(photos[0]) as image:
        for picture in (photos[0], np.asarray(image)):
            found = captioner.explain(picture)
            assert found.caption == wanted.caption and found.numbers() == wanted.numbers()
    assert captioner.explain(photos[0], "two dog").words == ("two", "dog")

"""CaptionPipeline: what it yields against the model run by hand, one image at a time."""

import threading

import numpy as np
import pytest
import torch

from sca_caption import checkpoint, images
from sca_caption.config import SearchConfig
from sca_caption.decoding.beam_search import beam_search
from sca_caption.decoding.rules import bad_endings, conjunctions
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.runtime.errors import UserError


@pytest.fixture(scope="module")
def pipeline(tiny_checkpoint):
    return CaptionPipeline.load(
        tiny_checkpoint,
        search=SearchConfig(beam_size=3, num_captions=2, max_length=6, distinct=False),
        batch_size=3,
    )


def by_hand(path, loaded, **settings):
    """Open, transform, encode and search one image with the layers below."""
    pixels = torch.from_numpy(images.load(path, loaded.transform)).permute(2, 0, 1)[None]
    search = SearchConfig(**settings)
    with torch.inference_mode():
        return beam_search(
            loaded.model,
            loaded.model.start(loaded.model.encode(pixels)),
            beam_size=search.beam_size,
            num_captions=search.num_captions,
            max_length=search.max_length,
            length_penalty=search.length_penalty,
            block_ngrams=search.block_ngrams,
            bad_endings=bad_endings(loaded.vocabulary),
            conjunctions=conjunctions(loaded.vocabulary),
        )[0]


def test_captions_come_in_order_and_are_those_of_each_image_alone(pipeline, tiny_checkpoint, photos):
    loaded = checkpoint.load(tiny_checkpoint)
    results = list(pipeline.stream(photos))
    assert [result.item for result in results] == photos
    assert len({result.captions[0].text for result in results}) > 3, "different images, different captions"
    for path, result in zip(photos, results, strict=True):
        expected = by_hand(path, loaded, beam_size=3, num_captions=2, max_length=6)
        assert [c.text for c in result.captions] == [loaded.vocabulary.decode(h.tokens) for h in expected]
        assert [c.log_prob for c in result.captions] == pytest.approx(
            [h.log_prob for h in expected], abs=1e-3
        )
        assert [c.score for c in result.captions] == pytest.approx([h.score for h in expected], abs=1e-3)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 50])
def test_the_batch_size_changes_no_caption(batch_size, pipeline, tiny_checkpoint, photos):
    other = CaptionPipeline.load(tiny_checkpoint, search=pipeline.search, batch_size=batch_size)
    found = [[c.text for c in result.captions] for result in other.stream(photos)]
    assert found == [[c.text for c in result.captions] for result in pipeline.stream(photos)]


def test_bad_items_are_reported_in_their_place(pipeline, photos, tmp_path):
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(photos[0].read_bytes()[:200])
    items = [tmp_path / "missing.jpg", *photos[:4], torn, photos[4], torn, torn, torn]
    results = list(pipeline.stream(items))
    assert [result.item for result in results] == items
    assert [bool(result.error) for result in results] == [True, *[False] * 4, True, False, True, True, True]
    assert all(bool(result.captions) != bool(result.error) for result in results)
    assert str(results[0].error).startswith(f"{items[0]}: no such file")
    assert str(torn) in str(results[5].error)
    good = [result.captions[0] for result in results if not result.error]
    expected = [result.captions[0] for result in pipeline.stream(photos[:5])]
    assert [caption.text for caption in good] == [caption.text for caption in expected]
    assert [c.score for c in good] == pytest.approx([c.score for c in expected], abs=1e-3)


def test_other_readers_and_features(pipeline, photos):
    """Items may be anything that `read` turns into pixels, or into the trunk's features."""
    pixels = [images.load(path, pipeline.transform) for path in photos]
    expected = [result.captions for result in pipeline.stream(photos)]
    assert [result.captions for result in pipeline.stream(range(7), pixels.__getitem__)] == expected

    def features(index):
        with torch.inference_mode():
            encoded = pipeline.sca_cnn.encode(torch.from_numpy(pixels[index]).permute(2, 0, 1)[None])
        return tuple(x[0].numpy() for x in encoded)

    found = [result.captions for result in pipeline.stream(range(7), features)]
    assert [[c.text for c in captions] for captions in found] == [
        [c.text for c in captions] for captions in expected
    ]


def test_reading_is_bounded(pipeline):
    """However many items there are, at most two batches of them are held."""
    lock, taken = threading.Lock(), []

    def endless():
        while True:
            with lock:
                taken.append(len(taken))
            yield taken[-1]

    stream = pipeline.stream(endless(), lambda item: np.full((32, 32, 3), item % 256, np.uint8))
    assert [next(stream).item for _ in range(7)] == list(range(7))
    assert len(taken) <= 7 + 2 * pipeline.batch_size
    stream.close()


def test_a_programming_error_is_not_hidden(pipeline):
    with pytest.raises(ZeroDivisionError):
        list(pipeline.stream([0], lambda item: 1 // item))


def test_nothing_in_nothing_out(pipeline):
    assert list(pipeline.stream([])) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_size": 0}, "--beam-size 0: must be at least 1"),
        (
            {"num_captions": 4, "beam_size": 3},
            "--num-captions 4: must be at most --beam-size 3; ask for fewer",
        ),
        ({"max_length": 0}, "--max-length 0: must be"),
        ({"block_ngrams": -1}, "--block-ngrams -1: must be"),
        ({"length_penalty": float("nan")}, "--length-penalty nan: must be"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(UserError, match=message):
        SearchConfig(**options)


def test_a_device_that_is_not_there(tiny_checkpoint):
    with pytest.raises(UserError, match="no device 'abacus'"):
        CaptionPipeline.load(tiny_checkpoint, device="abacus")
    with pytest.raises(UserError, match="--batch-size 0"):
        CaptionPipeline.load(tiny_checkpoint, batch_size=0)

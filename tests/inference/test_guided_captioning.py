"""The pipeline with every guide: what its numbers mean, and what a new guide needs."""

import dataclasses

import pytest
import torch

from sca_caption import Captioner, checkpoint
from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.explain.explanation import explain
from sca_caption.guidance import GUIDES
from sca_caption.guidance.guide import Guide, TrainedGuide
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.vocab import BOS, EOS
from tests.helpers.guided_captioners import WORDS, guided_checkpoint, pixels
from tests.helpers.made_photos import photo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def given():
    return guided_checkpoint()


@pytest.fixture(scope="module")
def pipeline(given):
    return CaptionPipeline.load(given)


def own_log_prob(pipeline, image, caption) -> float:
    """Sum of logit - logsumexp(logits) along the caption, one word at a time."""
    model, total, last = pipeline.sca_cnn, 0.0, torch.tensor([BOS])
    with torch.inference_mode():
        state = model.start(model.encode(image))
        for token in [*caption.tokens, *[EOS] * caption.finished]:
            logits, state = model.step(last, state)
            total += float(logits[0, token] - logits[0].logsumexp(0))
            last = torch.tensor([token])
    return total


def test_every_guide_changes_captions(given, pipeline):
    batch, search = pixels(8), SearchConfig(rerank_weight=200.0)
    whole = [captions[0].text for captions in pipeline.with_search(search).caption_batch(batch)]
    assert {guide.name for guide in pipeline.guides} == set(GUIDES)
    for name in ("consensus", "words"):
        guides = {other: guide for other, guide in given.guides.items() if other != name}
        less = CaptionPipeline.load(dataclasses.replace(given, guides=guides), search=search).caption_batch(
            batch
        )
        assert [captions[0].text for captions in less] != whole, name


def test_log_prob_is_the_captioners_own(pipeline):
    """With masks and reranking; so captions that were found in different ways can be compared."""
    batch = pixels(8)
    several = pipeline.with_search(SearchConfig(num_captions=3))
    off = several.with_search(several.search, guidance=False)
    sampled = CaptionPipeline.load(guided_checkpoint(), sampling=SamplingConfig())
    for way in (several, off, sampled):
        for image, captions in zip(batch, way.caption_batch(batch), strict=True):
            for caption in captions:
                assert caption.log_prob == pytest.approx(
                    own_log_prob(pipeline, image[None], caption), abs=1e-3
                )


def test_explaining_a_caption_gives_the_numbers_of_the_search(pipeline):
    """Of every caption that a search ends, also of those with masked words."""
    search = SearchConfig(num_captions=3, length_penalty=0.9, rerank_weight=3.0)
    several = pipeline.with_search(search)
    checked = 0
    for number, captions in enumerate(several.caption_batch(pixels(8))):
        for caption in captions:
            if not caption.finished:
                continue
            found = explain(several, photo(number), caption.text).caption
            assert (found.text, found.tokens, found.finished) == (caption.text, caption.tokens, True)
            for name in ("log_prob", "score", "mean_log_prob", "confidence"):
                assert getattr(found, name) == pytest.approx(getattr(caption, name), abs=1e-3), name
            assert found.ratings == pytest.approx(caption.ratings, abs=1e-4)
            checked += 1
    assert checked >= 8
    explained = Captioner(several).explain(photo(0), "A man runs!").caption
    assert explained.text == "a man runs" and explained.confidence is not None


def test_sampling_obeys_the_mask(given, pipeline):
    batch = pixels(8)
    sampled = CaptionPipeline.load(given, search=SearchConfig(num_captions=5), sampling=SamplingConfig())
    _, predictions = pipeline.model.start(batch, pipeline.guides)
    mask = next(guide for guide in pipeline.guides if guide.name == "words")
    banned = mask.banned_words(predictions["words"], [[]] * 8, len(WORDS))
    for row, captions in zip(banned, sampled.caption_batch(batch), strict=True):
        assert not any(row[list(caption.tokens)].any() for caption in captions)
    free = CaptionPipeline.load(given, search=sampled.search, sampling=SamplingConfig(), guidance=False)
    drawn = free.caption_batch(batch)
    assert any(
        row[list(caption.tokens)].any() for row, each in zip(banned, drawn, strict=True) for caption in each
    )


def test_without_guidance(given, pipeline):
    batch, search = pixels(8), SearchConfig()
    off = pipeline.with_search(search, guidance=False)
    loaded = CaptionPipeline.load(given, guidance=False)
    assert [c[0].text for c in off.caption_batch(batch)] == [c[0].text for c in loaded.caption_batch(batch)]
    assert {guide.name for guide in off.guides} == {"consensus", "confidence"}
    assert off.caption_batch(batch) != pipeline.caption_batch(batch)


def test_a_guide_is_one_class_and_one_line(given, monkeypatch, tmp_path):
    """It is stored, loaded, masks words and rates captions, and no other code knows it."""

    class Length(TrainedGuide):
        def __init__(self, words: int):
            super().__init__()
            self.words = words
            self.weight = torch.nn.Parameter(torch.ones(1), requires_grad=False)

        def settings(self):
            return {"words": self.words}

        def forward(self, state):
            return self.weight.expand(len(state), 1)

    class PreferLength(Guide):
        name, prediction, trained_type, rates = "length", "wanted_length", Length, True

        def __init__(self, words):
            self.words = words

        @classmethod
        def from_trained(cls, trained, vocabulary):
            return cls(trained.words)

        def banned_words(self, predicted, forced, words):
            banned = torch.zeros(len(predicted), words, dtype=torch.bool)
            banned[:, WORDS.encode(["a"])] = True
            return banned

        def rate(self, predicted, image, tokens):
            return -float(predicted[image, 0]) * abs(len(tokens) - self.words)

    monkeypatch.setitem(GUIDES, "length", PreferLength)
    plain = dataclasses.replace(given, guides={})
    checkpoint.save(tmp_path / "best.pt", dataclasses.replace(plain, guides={"length": Length(12)}))
    for captions in CaptionPipeline.load(tmp_path / "best.pt").caption_batch(pixels(8)):
        assert "a" not in captions[0].text.split()
    unequal = [len(c[0].tokens) for c in CaptionPipeline.load(plain).caption_batch(pixels(8))]
    guided = [len(c[0].tokens) for c in CaptionPipeline.load(tmp_path / "best.pt").caption_batch(pixels(8))]
    assert sum(abs(n - 12) for n in guided) < sum(abs(n - 12) for n in unequal)


def test_the_shipped_model_runs_the_guides_of_its_file():
    stored = set(checkpoint.load().guides)
    guides = [guide.name for guide in Captioner.load(device="cpu").pipeline.guides]
    assert guides == [name for name in GUIDES if name in stored]

"""Captions drawn at random: how often each comes, against the exact distribution of the truncated model."""

import itertools
import math
from collections import Counter

import pytest
import torch

from sca_caption.config import SamplingConfig, SearchConfig
from sca_caption.decoding.sampling import draw, sample, truncated
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.vocab import BOS, EOS, PAD, UNK
from tests.helpers.toy_decoder import ToyRNN, log_prob_of, made_images

RULES = [
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
    {"temperature": 0.5, "top_k": 0, "top_p": 1.0},
    {"temperature": 2.0, "top_k": 2, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.6},
    {"temperature": 1.5, "top_k": 3, "top_p": 0.8},
]


def kept(scores, temperature, top_k, top_p):
    """The rule for one word's turn, with a dict: {word: score} -> {word: probability}."""
    weights = {word: math.exp(score / temperature) for word, score in scores.items()}
    best = sorted(weights, key=lambda word: -weights[word])[: top_k or None]
    mass, nucleus = sum(weights[word] for word in best), []
    while best and sum(weights[word] for word in nucleus) < top_p * mass - 1e-12:
        nucleus.append(best.pop(0))
    total = sum(weights[word] for word in nucleus)
    return {word: weights[word] / total for word in nucleus}


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_rule_for_one_word(rule):
    scores = torch.randn(20, 9, generator=torch.Generator().manual_seed(0)) * 2
    scores[:, 3] = -torch.inf
    for row, found in zip(scores.tolist(), truncated(scores, **rule).exp().tolist(), strict=True):
        expected = kept({word: score for word, score in enumerate(row) if score > -math.inf}, **rule)
        assert found == pytest.approx([expected.get(word, 0.0) for word in range(9)], abs=1e-5)


@pytest.mark.parametrize("rule", RULES[1:], ids=str)
def test_each_caption_comes_as_often_as_it_should(rule):
    model, image, count = ToyRNN(1, sharpness=1.0), made_images(1), 8000
    expected = {}
    for length in (1, 2):
        for tokens in itertools.product((4, 5, 6), repeat=length):
            probability, state, word = 1.0, model.start(image), BOS
            for following in (*tokens, EOS) if length < 2 else tokens:
                logits, state = model.step(torch.tensor([word]), state)
                barred = (PAD, BOS, UNK) if word != BOS else (PAD, BOS, UNK, EOS)
                scores = {w: s for w, s in enumerate(logits[0].tolist()) if w not in barred}
                probability *= kept(scores, **rule).get(following, 0.0)
                word = following
            expected[tokens] = probability
    assert sum(expected.values()) == pytest.approx(1)
    generator = torch.Generator().manual_seed(0)
    (found,) = draw(model, model.start(image), num_captions=count, max_length=2, generator=generator, **rule)
    times = Counter(tuple(hypothesis.tokens) for hypothesis in found)
    assert set(times) <= {tokens for tokens, probability in expected.items() if probability > 0}
    for tokens, probability in expected.items():
        spread = math.sqrt(count * probability * (1 - probability))
        assert abs(times[tokens] - count * probability) <= 5 * spread + 1, tokens


def test_scores_are_the_models_and_the_best_comes_first():
    model, images = ToyRNN(2, vocabulary=9), made_images(4)
    found = draw(model, model.start(images), num_captions=5, top_p=0.8, max_length=6, length_penalty=0.7)
    for image, hypotheses in zip(images, found, strict=True):
        assert [h.score for h in hypotheses] == sorted((h.score for h in hypotheses), reverse=True)
        for hypothesis in hypotheses:
            log_prob = log_prob_of(model, image, hypothesis.tokens, hypothesis.finished)
            length = len(hypothesis.tokens) + hypothesis.finished
            assert hypothesis.log_prob == pytest.approx(log_prob, abs=1e-4)
            assert hypothesis.score == pytest.approx(log_prob / length**0.7, abs=1e-4)


def test_masked_words_are_never_drawn_and_scores_stay_the_models():
    model, images = ToyRNN(2, vocabulary=9), made_images(4)

    def mask(last, state):
        return (torch.arange(9) == 5) | ((last == 4)[:, None] & (torch.arange(9) == 6))

    found = draw(model, model.start(images), num_captions=50, top_p=1.0, max_length=6, mask=mask)
    drawn = [each.tokens for hypotheses in found for each in hypotheses]
    assert not any(5 in tokens or (4, 6) in itertools.pairwise(tokens) for tokens in drawn)
    assert {word for tokens in drawn for word in tokens} == {4, 6, 7, 8}
    for image, hypotheses in zip(images, found, strict=True):
        for each in hypotheses:
            log_prob = log_prob_of(model, image, each.tokens, each.finished)
            assert each.log_prob == pytest.approx(log_prob, abs=1e-4)
    free = draw(model, model.start(images), num_captions=50, top_p=1.0, max_length=6)
    assert any(5 in each.tokens for hypotheses in free for each in hypotheses)


def test_the_likeliest_word_alone_is_greedy_search_and_no_phrase_comes_twice():
    model, images = ToyRNN(0, vocabulary=7, end_bias=-1.0), made_images(6)
    drawn = sample(model, model.start(images), rule=lambda s: truncated(s, top_k=1), max_length=12)
    assert any(len(set(itertools.pairwise(t))) < len(t) - 1 for t in drawn.tokens), "may repeat itself"
    drawn = draw(model, model.start(images), num_captions=20, block_ngrams=2, max_length=12)
    captions = [hypothesis.tokens for found in drawn for hypothesis in found]
    assert all(len(set(itertools.pairwise(tokens))) == len(tokens) - 1 for tokens in captions)


def test_the_seed_decides(tiny_checkpoint, photos):
    def captions(seed):
        pipeline = CaptionPipeline.load(
            tiny_checkpoint, search=SearchConfig(num_captions=3), sampling=SamplingConfig(seed=seed)
        )
        return [[caption.text for caption in result.captions] for result in pipeline.stream(photos[:2])]

    assert captions(0) == captions(0) != captions(1)
    assert {len(each) for each in captions(0)} == {3}

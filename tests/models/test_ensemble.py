"""Ensembles: enumeration of captions by their mean probabilities, and a model with itself against the model alone."""

import itertools
import math

import pytest
from torch import nn

from sca_caption import checkpoint
from sca_caption.decoding.beam_search import beam_search, greedy
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.ensemble import Ensemble
from sca_caption.vocab import Vocabulary
from tests.helpers.made_photos import message
from tests.helpers.toy_decoder import EVERYTHING, ToyRNN, log_prob_of, made_images, same


class Toy(nn.Module):
    def __init__(self, seed, **options):
        super().__init__()
        self.rnn = ToyRNN(seed, **options)

    def encode(self, images):
        return images

    def start(self, images):
        return self.rnn.start(images)

    def step(self, tokens, state):
        return self.rnn.step(tokens, state)


def test_word_probabilities_are_the_mean_of_the_models():
    models, images = [Toy(seed) for seed in (1, 2, 3)], made_images(2)
    ensemble = Ensemble(models)
    found = beam_search(
        ensemble, ensemble.start(ensemble.encode(images)), beam_size=EVERYTHING, num_captions=5, max_length=4,
        length_penalty=0.0,
    )  # fmt: skip
    for image, hypotheses in zip(images, found, strict=True):
        best = []
        for count in (1, 2, 3):
            for tokens in itertools.product((4, 5, 6), repeat=count):
                # A model's probability of a word is the ratio of the probabilities of two prefixes.
                total, prefix = 0.0, [0.0] * 3
                for position in range(count + 1):
                    ended = position == count
                    longer = [log_prob_of(m.rnn, image, tokens[: position + 1], ended) for m in models]
                    gains = [math.exp(b - a) for a, b in zip(prefix, longer, strict=True)]
                    total, prefix = total + math.log(sum(gains) / 3), longer
                best.append((total, list(tokens)))
        best.sort(reverse=True)
        assert [h.tokens for h in hypotheses] == [tokens for _, tokens in best[:5]]
        assert [h.log_prob for h in hypotheses] == pytest.approx([p for p, _ in best[:5]], abs=1e-4)


def test_a_model_twice_gives_the_same_captions_as_once():
    model, images = Toy(1, vocabulary=20, end_bias=1.5), made_images(6)
    twice = Ensemble([model, model])
    for search in (greedy, lambda *x: [h for found in beam_search(*x, beam_size=3) for h in found]):
        same(search(twice, twice.start(twice.encode(images))), search(model, model.start(images)))


def test_an_ensemble_of_checkpoints(tiny_checkpoint, photos):
    alone, twice = (
        CaptionPipeline.load(tiny_checkpoint),
        CaptionPipeline.load([tiny_checkpoint, str(tiny_checkpoint)]),
    )
    expected = [result.captions[0] for result in alone.stream(photos)]
    found = [result.captions[0] for result in twice.stream(photos)]
    assert [caption.text for caption in found] == [caption.text for caption in expected]
    assert [c.score for c in found] == pytest.approx([c.score for c in expected], abs=1e-3)


def test_checkpoints_with_different_vocabularies_are_refused(tiny_checkpoint, tmp_path):
    made = checkpoint.load(tiny_checkpoint)
    words = list(made.vocabulary.words[4:])
    other = checkpoint.Checkpoint(made.model, Vocabulary([*words[1:], words[0]]), made.transform)
    checkpoint.save(tmp_path / "other.pt", other)
    several = [tiny_checkpoint, tmp_path / "other.pt"]
    message(lambda: CaptionPipeline.load(several), f"--checkpoint {several[1]}", "words", str(several[0]))

"""Tiny models that remember every word they have read, and what searches over them are compared by."""

import itertools

import pytest
import torch

from sca_caption.decoding.stepper import Hypothesis
from sca_caption.vocab import BOS, EOS

WORDS = 3  # besides the four special words
VOCABULARY = 4 + WORDS
EVERYTHING = 1000  # a beam wider than there are captions of up to five of three words


class ToyState:
    """A row's hidden vector, the image that it belongs to, and all words it has read."""

    def __init__(self, hidden, read):
        self.hidden, self.read = hidden, read
        self.device = hidden.device

    def __len__(self):
        return len(self.hidden)

    def select(self, rows):
        return ToyState(self.hidden[rows], self.read[rows])


class ToyRNN:
    """A random recurrent network: the next word depends on the image and on every word so far, in order."""

    def __init__(self, seed=0, vocabulary=VOCABULARY, size=6, sharpness=2.0, end_bias=0.0):
        self.vocabulary, self.size, self.rows_seen = vocabulary, size, []
        made = torch.Generator().manual_seed(seed)

        def random(*shape):
            return torch.randn(*shape, generator=made, dtype=torch.float64)

        self.embedding, self.recurrent = random(vocabulary, size), random(size, size)
        self.output = sharpness * random(size, vocabulary)
        self.end_bias = end_bias

    def start(self, images):
        return ToyState(images.tanh(), torch.empty(len(images), 0, dtype=torch.long))

    def step(self, tokens, state):
        assert len(tokens) == len(state)
        self.rows_seen.append(len(tokens))
        hidden = (state.hidden @ self.recurrent + self.embedding[tokens]).tanh()
        logits = hidden @ self.output
        logits[:, EOS] += self.end_bias
        return logits, ToyState(hidden, torch.cat([state.read, tokens[:, None]], 1))


def made_images(count, seed=0, size=6):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_prob_of(model, image, tokens, ended):
    """A caption's log-probability by feeding it to the model word by word, alone."""
    state, total = model.start(image[None]), 0.0
    for word, following in itertools.pairwise([BOS, *tokens, *([EOS] * ended)]):
        logits, state = model.step(torch.tensor([word]), state)
        logits = logits[0].float()
        total += (logits[following] - logits.logsumexp(0)).item()
    return total


def has_repeat(tokens, n):
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return len(set(grams)) < len(grams) or any(a == b for a, b in itertools.pairwise(tokens))


def same(found: list[Hypothesis], expected: list[Hypothesis]):
    assert [hypothesis.tokens for hypothesis in found] == [hypothesis.tokens for hypothesis in expected]
    assert [hypothesis.finished for hypothesis in found] == [hypothesis.finished for hypothesis in expected]
    for name in ("log_prob", "score"):
        assert [getattr(h, name) for h in found] == pytest.approx(
            [getattr(h, name) for h in expected], abs=1e-5
        )

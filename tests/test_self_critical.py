"""Sampling against exact probabilities, and self-critical training against its formula and its purpose."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY_WORDS, tiny_captioner
from test_decode import VOCABULARY, ToyRNN, made_images

from sca_caption import decode
from sca_caption.captioner import Batch
from sca_caption.metrics import Cider, ptb_tokenize
from sca_caption.self_critical import END, SelfCritical
from sca_caption.vocab import BOS, EOS, PAD, UNK, Vocabulary


def log_probs(model, image, tokens, max_length):
    """log p of one caption, renormalised over the words that are allowed at each step, EOS as its last if shorter."""
    state, total = model.start(image[None]), 0.0
    ended = [EOS] if len(tokens) < max_length else []
    for t, (word, following) in enumerate(itertools.pairwise([BOS, *tokens, *ended])):
        logits, state = model.step(torch.tensor([word]), state)
        barred = [PAD, BOS, UNK] + [EOS] * (t == 0)
        logits[:, barred] = -torch.inf
        total += logits.log_softmax(1)[0, following].item()
    return total


def test_samples_carry_their_log_probability():
    model, images = ToyRNN(seed=1, end_bias=2.0), made_images(3)
    torch.manual_seed(0)
    sampled = decode.sample(
        model, model.start(images).select(torch.arange(3).repeat_interleave(4)), max_length=5
    )
    assert len(sampled.tokens) == 12 and {True, False} == set(sampled.finished)
    for row, tokens in enumerate(sampled.tokens):
        assert tokens and not set(tokens) & {PAD, BOS, EOS, UNK}
        assert sampled.finished[row] == (len(tokens) < 5)
        expected = log_probs(model, images[row // 4], tokens, 5)
        assert sampled.log_prob[row].item() == pytest.approx(expected, abs=1e-5)


def test_samples_are_as_frequent_as_the_model_says():
    model, image, count, longest = ToyRNN(seed=2, sharpness=1.0), made_images(1), 4000, 2
    torch.manual_seed(0)
    sampled = decode.sample(
        model, model.start(image).select(torch.zeros(count, dtype=torch.long)), max_length=longest
    )
    words = [w for w in range(VOCABULARY) if w not in (PAD, BOS, EOS, UNK)]
    possible = [list(c) for n in (1, 2) for c in itertools.product(words, repeat=n)]
    chances = [torch.tensor(log_probs(model, image[0], c, longest)).exp().item() for c in possible]
    assert sum(chances) == pytest.approx(1)
    for caption, p in zip(possible, chances, strict=True):
        deviation = (p * (1 - p) / count) ** 0.5
        assert abs(sampled.tokens.count(caption) / count - p) < 4.5 * deviation, caption


TEXTS = {
    7: ["a dog runs on the grass", "the dog runs"],
    9: ["two cat sits in water", "a red cat sits on the ball"],
}
DATA = SimpleNamespace(vocabulary=Vocabulary(TINY_WORDS), references=TEXTS.__getitem__)


def images():
    flat = torch.tensor([[40.0, 200.0, 30.0], [200.0, 30.0, 60.0]])[:, :, None, None]
    return flat.expand(2, 3, 32, 32).to(torch.uint8)


def test_the_loss_is_the_policy_gradient_with_the_mean_of_the_others(monkeypatch):
    critic = SelfCritical(DATA, [7, 9], samples=3)
    tokens = [[4, 6], [4, 6, 10], [5], [15, 7, 11], [4], [5, 5]]
    finished = [True, False, True, True, True, True]
    log_prob = torch.arange(-6.0, 0.0)
    drawn = decode.Sampled(tokens, finished, log_prob)
    monkeypatch.setattr(decode, "sample", lambda model, state: drawn)
    loss, mean = critic.loss(tiny_captioner(), Batch(images(), torch.empty(0), torch.empty(0)), [7, 9])

    cider = Cider([[[*ptb_tokenize(text), END] for text in texts] for texts in TEXTS.values()])
    rewards = []
    for row, (ids, ended) in enumerate(zip(tokens, finished, strict=True)):
        words = DATA.vocabulary.decode(ids).split() + [END] * ended
        pair = [words, ["nothing"]] if row < 3 else [["nothing"], words]
        rewards.append(cider.score(pair)[1][row // 3] / 100)
    expected = 0.0
    for row in range(6):
        others = [rewards[k] for k in range(row // 3 * 3, row // 3 * 3 + 3) if k != row]
        expected -= (rewards[row] - sum(others) / 2) * log_prob[row].item()
    assert loss.item() == pytest.approx(expected / (sum(map(len, tokens)) + 5), rel=1e-5)
    assert mean == pytest.approx(sum(rewards) / 6)


def test_equal_rewards_teach_nothing():
    critic, model = SelfCritical(DATA, [7, 9], samples=4), tiny_captioner()
    critic.reward = lambda *_: 0.5
    loss, mean = critic.loss(model, Batch(images(), torch.empty(0), torch.empty(0)), [7, 9])
    loss.backward()
    assert mean == 0.5
    assert all(p.grad is None or not p.grad.abs().max() for p in model.parameters())


def test_training_raises_the_reward():
    torch.manual_seed(0)
    critic, model = SelfCritical(DATA, [7, 9], samples=16), tiny_captioner()
    model.backbone.set_trainable(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 5e-3)
    rewards = []
    for _ in range(25):
        loss, reward = critic.loss(model, Batch(images(), torch.empty(0), torch.empty(0)), [7, 9])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(reward)
    assert sum(rewards[-4:]) > 1.7 * sum(rewards[:4])

"""Sampling against exact probabilities; self-critical training against its formula, and that it raises the reward."""

import itertools
import multiprocessing
from dataclasses import astuple, replace
from types import SimpleNamespace

import pytest
import torch

from sca_caption.decoding import sampling
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.evaluation.caption_quality import has_bad_ending, quality, repeats
from sca_caption.evaluation.ptb_tokenizer import ptb_tokenize
from sca_caption.training.batches import Batch
from sca_caption.training.caption_task import CaptionTask
from sca_caption.training.losses import caption_loss
from sca_caption.training.self_critical import END, Reward, RewardWorkers, SelfCritical
from sca_caption.vocab import BOS, EOS, PAD, UNK, Vocabulary
from tests.helpers.tiny_captioner import TINY, TINY_WORDS, tiny_captioner
from tests.helpers.toy_decoder import VOCABULARY, ToyRNN, made_images


def log_probs(model, image, tokens, max_length):
    """log p of one caption over the words allowed at each step; a caption shorter than max_length ends in EOS."""
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
    sampled = sampling.sample(
        model, model.start(images).select(torch.arange(3).repeat_interleave(4)), max_length=5
    )
    assert len(sampled.tokens) == 12 and {True, False} == set(sampled.finished)
    for row, tokens in enumerate(sampled.tokens):
        assert tokens and not set(tokens) & {PAD, BOS, EOS, UNK}
        assert sampled.finished[row] == (len(tokens) < 5)
        expected = log_probs(model, images[row // 4], tokens, 5)
        assert sampled.log_prob[row].item() == pytest.approx(expected, abs=1e-5)


def test_samples_are_as_frequent_as_their_probability():
    model, image, count, longest = ToyRNN(seed=2, sharpness=1.0), made_images(1), 4000, 2
    torch.manual_seed(0)
    sampled = sampling.sample(
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
DATA = SimpleNamespace(vocabulary=Vocabulary(TINY_WORDS), references=TEXTS.__getitem__, parts=[range(12)])


def images():
    flat = torch.tensor([[40.0, 200.0, 30.0], [200.0, 30.0, 60.0]])[:, :, None, None]
    return flat.expand(2, 3, 32, 32).to(torch.uint8)


PEOPLE = [[4, 6, 10, EOS], [5, 6, 10, EOS], [15, 7, 11, EOS]]
BATCH = Batch(images(), padded(PEOPLE), torch.tensor([0, 0, 1]))


def critic(
    samples: int, cross_entropy: float = 0.0, reward=None, processes: int = 0, temperature: float = 1.0
) -> SelfCritical:
    return SelfCritical(
        RewardWorkers(reward or Reward(DATA, [7, 9]), processes), samples, cross_entropy, temperature
    )


def gradients(model, loss) -> torch.Tensor:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("processes", "temperature"), [(0, 1.0), (0, 0.4), (2, 1.0)])
def test_gradient_is_reinforce_with_the_mean_of_the_others_as_baseline(layers, processes, temperature):
    """Against the written-out sum, with gradients kept while sampling.

    A difference would show if word dropout were on, or if feature dropout differed between the two passes.
    """
    config = replace(TINY, layers=TINY.layers[-layers:], dropout=0.5, feature_dropout=0.3)
    model = tiny_captioner(config=config).train()
    reward, n = Reward(DATA, [7, 9], bleu_weight=0.5), 6
    torch.manual_seed(3)
    critical = critic(n, reward=reward, processes=processes, temperature=temperature)
    loss, mean = critical.loss(model, BATCH, [7, 9])
    found = gradients(model, loss)

    torch.manual_seed(3)
    model.dropout.eval()
    drawn = sampling.sample(
        model,
        model.start(model.encode(BATCH.images)).select(torch.arange(2).repeat_interleave(n)),
        rule=lambda scores: (scores / temperature).log_softmax(1),
    )
    rewards = [
        reward(([7, 9][row // n], *pair))
        for row, pair in enumerate(zip(drawn.tokens, drawn.finished, strict=True))
    ]
    assert len(set(rewards)) > 4
    expected = 0.0
    for row, own in enumerate(rewards):
        others = [rewards[k] for k in range(row // n * n, row // n * n + n) if k != row]
        expected = expected - (own - sum(others) / (n - 1)) * drawn.log_prob[row]
    expected = expected / (sum(map(len, drawn.tokens)) + sum(drawn.finished))
    wanted = gradients(model, expected)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert mean == pytest.approx(sum(rewards) / len(rewards))
    assert wanted.norm() > 0 and (found - wanted).norm() < 1e-6 * max(1, wanted.norm())


def test_cross_entropy_is_added():
    model = tiny_captioner()
    losses = []
    for weight in (0.0, 0.7):
        torch.manual_seed(0)
        losses.append(critic(3, weight).loss(model, BATCH, [7, 9])[0].item())
    assert losses[1] - losses[0] == pytest.approx(0.7 * caption_loss(model, BATCH).item(), rel=1e-5)


def test_equal_rewards_have_no_gradient():
    model = tiny_captioner()
    loss, mean = critic(4, reward=lambda _: 0.5).loss(model, BATCH, [7, 9])
    assert mean == 0.5 and not gradients(model, loss).any()


@pytest.mark.slow
def test_training_raises_the_reward():
    torch.manual_seed(0)
    critical, model = critic(samples=16), tiny_captioner()
    model.backbone.set_trainable(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 5e-3)
    rewards = []
    for _ in range(25):
        loss, reward = critical.loss(model, BATCH, [7, 9])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(reward)
    assert sum(rewards[-4:]) > 1.7 * sum(rewards[:4])


# ---- rewards ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bleu_weight", [0.0, 0.5])
def test_reward_equals_pycocoevalcaps_cider_and_bleu(bleu_weight):
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    reward = Reward(DATA, [7, 9], bleu_weight)
    references = {
        row: [f"{' '.join(ptb_tokenize(text))} {END}" for text in texts] for row, texts in TEXTS.items()
    }
    for row, tokens, ended in (
        (7, [4, 6, 10, 12, 5, 14], True), (7, [5, 6, 10], False), (9, [4, 16, 7, 11, 12, 5], True), (9, [4] * 20, False),
    ):  # fmt: skip
        said = " ".join([*ptb_tokenize(DATA.vocabulary.decode(tokens)), *[END] * ended])
        cider = Cider().compute_score(references, {7: ["x"], 9: ["x"], row: [said]})[1][[7, 9].index(row)]
        bleu = Bleu(4).compute_score({row: references[row]}, {row: [said]}, verbose=0)[1][3][0]
        assert reward((row, tokens, ended)) == pytest.approx(cider + bleu_weight * bleu, abs=1e-9)


@pytest.mark.parametrize("processes", [1, 3])
def test_workers_return_rewards_in_order_and_end_with_the_program(processes):
    reward = Reward(DATA, [7, 9])
    workers = RewardWorkers(reward, processes)
    captions = [(7 + 2 * (i % 2), [4, 4 + i], True) for i in range(10)]
    for submitted in (captions, captions[:2], []):
        assert workers.submit(submitted).result() == [reward(caption) for caption in submitted]
    children = multiprocessing.active_children()[-processes:]
    for connection in workers.connections:
        connection.close()
    for child in children:
        child.join(10)
        assert child.exitcode == 0


# ---- quality of captions, early stopping -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "repeated", "dangling"),
    [
        ("a dog runs on the grass", False, False),
        ("a man in a red hat in a boat", False, False),  # people say so
        ("a man in a red hat and a man in a blue hat", True, False),
        ("a dog dog runs", True, False),
        ("a black and black dog", False, False),
        ("a man standing with a", False, True),
        ("the people look on", False, False),
        ("a dog running through the grass of", False, True),
        ("", False, False),
    ],
)
def test_caption_quality(caption, repeated, dangling):
    words = caption.split()
    assert (repeats(words), has_bad_ending(words)) == (repeated, dangling)
    found = quality([words, ["a", "dog", "runs"], ["two", "dogs"]])
    assert astuple(found) == pytest.approx((100 * repeated / 3, 100 * dangling / 3, (len(words) + 5) / 3))


START = {"CIDEr": 50.0, "repeats": 1.0, "dangling": 0.0, "length": 9.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"CIDEr": 47.5, "repeats": 3.0, "dangling": 2.5, "length": 8.0}, ""),
        ({"CIDEr": 90.0, "repeats": 4.5}, "4.5% of the captions repeat a phrase, 1.0% at the start"),
        ({"CIDEr": 90.0, "dangling": 9.0}, "9.0% of the captions end in a dangling word, 0.0% at the start"),
        ({"CIDEr": 90.0, "length": 7.0}, "captions have 7.0 words, 9.0 at the start"),
        ({"CIDEr": 90.0, "length": 12.0}, "captions have 12.0 words, 9.0 at the start"),
        ({"CIDEr": 46.0}, "CIDEr fell to 46.0 from 50.0"),
    ],
)
def test_should_stop(change, reason):
    task = SimpleNamespace(self_critical=True, score_name="CIDEr")
    assert CaptionTask.should_stop(task, [START, START | change]) == reason
    task.self_critical = None
    assert CaptionTask.should_stop(task, [START, START | change]) == ""

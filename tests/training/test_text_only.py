"""Captions without photographs: their noise in closed form, their batches, and that a model learns to say them."""

import numpy as np
import pytest
import torch

from sca_caption.datasets.mixture import Mixture
from sca_caption.decoding.beam_search import greedy
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.training import text_only
from sca_caption.training.batches import MAX_WORDS, caption_fractions
from sca_caption.training.text_only import ADDED, MISSING, TextBatch, draw_texts, noisy, text_loss
from sca_caption.vocab import BOS, EOS, PAD
from tests.helpers.mixtures import TEXTS, mixture_of, write_two
from tests.helpers.small_captioner import WORDS, captioner
from tests.helpers.toy_backbone import toy  # noqa: F401

pytestmark = pytest.mark.usefixtures("toy")


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- noise -----------------------------------------------------------------------------------------------------------


def sparse(groups: int, words: int) -> torch.Tensor:
    """Fractions of which most are zero."""
    made = torch.Generator().manual_seed(3)
    return torch.rand(groups, words, generator=made) * (torch.rand(groups, words, generator=made) < 0.3)


def test_noise_is_zero_where_no_caption_has_the_word_and_stays_below_its_bounds():
    exact = sparse(50, 200)
    found = noisy(exact, generator())
    following = exact.roll(1, 0)
    assert found.shape == exact.shape and found.dtype == torch.float32 and found.min() == 0
    unknown = (exact == 0) & (following == 0)
    assert unknown.any() and not found[unknown].any()
    assert (found <= torch.maximum(exact, 0.6 * following)).all()
    assert 0 < (found > 0).float().mean() < (exact > 0).float().mean()  # more is missing than added


def test_noise_in_expectation():
    """Words that are kept have a half to all of their fraction, those of the next group 0 to 0.6 of it."""
    count = 20_000
    exact = torch.zeros(2, 2 * count)
    exact[0, :count], exact[1, count:] = 0.8, 0.5  # no word is in both
    first, second = noisy(exact, generator()).split(count, 1)
    for own, other, fraction in ((*first, 0.8), (*second.flip(0), 0.5)):
        assert (own > 0).float().mean().item() == pytest.approx(1 - MISSING, abs=0.015)
        assert own.mean().item() == pytest.approx((1 - MISSING) * 0.75 * fraction, rel=0.03)
        kept = own[own > 0]
        assert kept.min() >= 0.5 * fraction and kept.max() <= fraction
        assert kept.std().item() == pytest.approx(0.5 * fraction / 12**0.5, rel=0.03)  # uniform
        assert (other > 0).float().mean().item() == pytest.approx(ADDED, abs=0.015)
        assert other.mean().item() == pytest.approx(ADDED * 0.3 * fraction, rel=0.05)
        assert other.max() <= 0.6 * fraction


def test_noise_depends_on_the_seed_alone():
    exact = sparse(4, 50)
    assert torch.equal(noisy(exact, generator(1)), noisy(exact, generator(1)))
    assert not torch.equal(noisy(exact, generator(1)), noisy(exact, generator(2)))


# ---- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Mixture:
    return mixture_of(write_two(tmp_path_factory.mktemp("texts")))


GROUPS = [caption for name in ("squares", "animals") for caption in TEXTS[name]]


def words_of(mixture: Mixture, batch: TextBatch) -> list[tuple[int, str]]:
    """Row of `probabilities` and text of each caption; each has one end word, and then only padding."""
    found = []
    for group, ids in zip(batch.group.tolist(), batch.captions.tolist(), strict=True):
        end = ids.index(EOS)
        assert not any(ids[end + 1 :]) and PAD not in ids[:end]
        found.append((group, " ".join(mixture.vocabulary.to_words(ids[:end]))))
    return found


def test_captions_are_drawn_of_their_groups(mixture):
    groups, random = [2, 0, 1, 2], generator()
    seen: dict[int, set[str]] = {row: set() for row in range(4)}
    for _ in range(20):
        batch = draw_texts(mixture, groups, random)
        assert batch.probabilities.shape == (4, len(mixture.vocabulary))
        assert batch.styles.tolist() == [1, 0, 0, 1]
        drawn = words_of(mixture, batch)
        assert [row for row, _ in drawn] == [0, 0, 1, 1, 2, 3, 3]  # at most two of each photograph
        for row, text in drawn:
            assert text in GROUPS[groups[row]]
        assert len(set(drawn)) == len(drawn)  # no caption twice
        for row, text in drawn:
            seen[row].add(text)
    assert all(seen[row] == set(GROUPS[group]) for row, group in enumerate(groups))


def test_probabilities_are_noise_on_the_fractions_of_all_captions_of_the_group(mixture, monkeypatch):
    monkeypatch.setattr(text_only, "noisy", lambda exact, random: exact)
    batch = draw_texts(mixture, [2, 1], generator())
    for row, group in enumerate((2, 1)):
        for word, fraction in zip(mixture.vocabulary.words, batch.probabilities[row].tolist(), strict=True):
            having = sum(word in caption.split() for caption in GROUPS[group])
            assert fraction == pytest.approx(having / len(GROUPS[group])), word
    assert batch.probabilities[0].max() == 1  # "cow" is in all three


def test_draws_depend_on_the_seed_alone(mixture):
    one, same, other = (draw_texts(mixture, [0, 2, 1], generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(same).values(), strict=True))
    assert not torch.equal(one.probabilities, other.probabilities)


def test_long_captions_are_truncated():
    class Long:
        vocabulary = range(WORDS)

        def text_captions(self, group):
            return [[5] * (MAX_WORDS + 9)]

        def text_style(self, group):
            return 0

    batch = draw_texts(Long(), [0], generator())
    assert batch.captions.tolist() == [[5] * MAX_WORDS + [EOS]]


# ---- loss ------------------------------------------------------------------------------------------------------------

CAPTIONS = [[4, 5, 6, 7, 8], [4, 9, 6, 10], [11, 5], [4, 5, 12, 7, 13, 14]]


def reading_words(**changes):
    model = captioner(word_rank=4, styles=("one", "other"), **changes)
    with torch.no_grad():
        model.word_predictor.idf.uniform_(0.5, 2.0)
        model.null_image.normal_()
    return model


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@torch.no_grad()
def test_loss_equals_captions_one_word_at_a_time(smoothing):
    model, group, styles = reading_words(), [0, 0, 1, 2], [1, 0, 1]
    chances = torch.rand(3, WORDS, generator=torch.Generator().manual_seed(1))
    losses = []
    for row, caption in enumerate(CAPTIONS):
        own = slice(group[row], group[row] + 1)
        state, word = model.start_without_image(chances[own], torch.tensor(styles)[own]), BOS
        for target in [*caption, EOS]:
            logits, state = model.step(torch.tensor([word]), state)
            log_prob = logits[0].log_softmax(0)
            losses.append(-(1 - smoothing) * log_prob[target] - smoothing * log_prob.mean())
            word = target
    captions = padded([[*caption, EOS] for caption in CAPTIONS])
    batch = TextBatch(chances, captions, torch.tensor(group), torch.tensor(styles))
    torch.testing.assert_close(text_loss(model, batch, smoothing), torch.stack(losses).mean())
    assert text_loss(model, batch.to(torch.device("cpu")), smoothing) == text_loss(model, batch, smoothing)


def test_it_overfits_four_captions_without_photographs():
    """From the words of each alone, in any order, the model learns to say the caption."""
    model = reading_words(spread=False, embedding_size=32, lstm_size=64)
    words = torch.stack([caption_fractions([caption], WORDS) for caption in CAPTIONS])
    captions, rows = padded([[*caption, EOS] for caption in CAPTIONS]), torch.arange(4)
    batch = TextBatch(words, captions, rows, torch.tensor([0, 1, 0, 1]))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(100):
        optimizer.zero_grad()
        loss = text_loss(model, batch)
        if loss.item() < 0.03:
            break
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    found = greedy(model.eval(), model.start_without_image(words, batch.styles))
    assert [hypothesis.tokens for hypothesis in found] == CAPTIONS
    assert all(hypothesis.finished for hypothesis in found)
    # The same words in other rows: what is said depends on the words, not on the row.
    found = greedy(model, model.start_without_image(words.flip(0), batch.styles.flip(0)))
    assert [hypothesis.tokens for hypothesis in found] == CAPTIONS[::-1]


def test_mixed_precision_is_close_to_float32():
    """On a CPU; training on a GPU uses the same autocast."""
    model = reading_words()
    chances = torch.rand(4, WORDS, generator=torch.Generator().manual_seed(1))
    captions = padded([[*caption, EOS] for caption in CAPTIONS])
    batch = TextBatch(chances, captions, torch.arange(4), torch.tensor([0, 1, 0, 1]))
    wanted = text_loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = text_loss(model, batch)
    found.backward()
    assert found.item() == pytest.approx(wanted.item(), rel=0.02)
    assert model.null_image.grad.isfinite().all() and model.style.weight.grad.isfinite().all()

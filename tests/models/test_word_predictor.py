"""WordPredictor against its formulas by hand, and which loss trains it."""

import math

import pytest
import torch
import torch.nn.functional as F

from sca_caption.models.word_predictor import MIN_PROBABILITY, WordPredictor
from sca_caption.training.batches import Batch
from sca_caption.training.losses import caption_loss, word_loss
from tests.helpers.small_captioner import WORDS, batch_of, captioner
from tests.helpers.toy_backbone import toy  # noqa: F401

pytestmark = pytest.mark.usefixtures("toy")


def predictor(words: int = 4, **changes) -> WordPredictor:
    torch.manual_seed(0)
    return WordPredictor(**{"channels": 3, "rank": 5, "words": words} | changes)


# ---- query -----------------------------------------------------------------------------------------------------------


def test_query_by_hand():
    """Words below the threshold are not read; the others weigh what exceeds it times their idf, at unit length."""
    model = predictor()
    model.idf.copy_(torch.tensor([0.0, 2.0, 1.0, 3.0]))
    found = model.query(torch.tensor([[0.9, 0.4, 0.5, 0.05], [0.9, 0.1, 0.099, 0.6]]))
    assert MIN_PROBABILITY == 0.1
    length = math.hypot(0.3 * 2, 0.4 * 1)
    wanted = [[0.0, 0.6 / length, 0.4 / length, 0.0], [0.0, 0.0, 0.0, 1.0]]
    torch.testing.assert_close(found, torch.tensor(wanted))


@pytest.mark.parametrize("probability", [0.0, MIN_PROBABILITY])
def test_an_image_without_probable_words_has_a_query_of_zeros(probability):
    model = predictor()
    model.idf.fill_(2.0)
    found = model.query(torch.tensor([[probability] * 4, [1.0] * 4]))
    torch.testing.assert_close(found, torch.tensor([[0.0] * 4, [0.5] * 4]))


def test_idf_is_the_logarithm_of_documents_per_document_with_the_word():
    model = predictor()
    assert not model.idf.any() and "idf" in model.state_dict()
    model.set_idf(torch.tensor([8.0, 2.0, 1.0, 0.0]), 8)
    wanted = [0.0, math.log(4), math.log(8), math.log(8)]  # a word in no document counts as in one
    torch.testing.assert_close(model.idf, torch.tensor(wanted))


# ---- prediction ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_logits_by_hand():
    model = predictor().eval()
    features = torch.tensor([[4.0, 0.0, 1.0]])
    # The square roots (2, 0, 1) have length sqrt(5); they are scaled to length sqrt(3), for three channels.
    scaled = torch.tensor([[2.0, 0.0, 1.0]]) * math.sqrt(3 / 5)
    hidden = (scaled @ model.down.weight.T + model.down.bias).clamp_min(0)
    wanted = hidden @ model.up.weight.T + model.up.bias
    for same in (features, 7 * features, torch.tensor([[4.0, -3.0, 1.0]])):  # below zero counts as zero
        torch.testing.assert_close(model(same), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_untrained_probabilities_are_below_the_threshold():
    """The decoder starts without words, and learns to read them as they appear."""
    model = predictor(words=100, channels=40, rank=16).eval()
    found = model(torch.rand(20, 40, generator=torch.Generator().manual_seed(0)) * 9).sigmoid()
    assert found.max() < MIN_PROBABILITY


def test_gradients_are_finite_at_channels_of_zero():
    """The square root is infinitely steep at zero, and maps after a ReLU or with feature dropout are zero there."""
    model, features = predictor().eval(), torch.tensor([[4.0, 0.0, 1.0], [0.0, 0.0, 0.0]], requires_grad=True)
    word_loss(model(features), torch.tensor([[0.5] * 4] * 2)).backward()
    assert features.grad.isfinite().all() and features.grad[0, 0] != 0
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---- training --------------------------------------------------------------------------------------------------------


def test_word_loss_by_hand():
    logits = torch.tensor([[0.0, 2.0], [-1.0, 1.0]])
    fractions = torch.tensor([[0.5, 1.0], [0.0, 0.25]])
    total = 0.0
    for each, targets in zip(logits.tolist(), fractions.tolist(), strict=True):
        for logit, y in zip(each, targets, strict=True):
            p = 1 / (1 + math.exp(-logit))
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
    assert word_loss(logits, fractions).item() == pytest.approx(total / 2, rel=1e-5)  # of two images


def with_fractions(batch: Batch) -> Batch:
    """The batch with random fractions of captions with each word."""
    batch.fractions = torch.rand(len(batch.images), WORDS, generator=torch.Generator().manual_seed(1))
    return batch


def reading_words(**changes):
    """A captioner that reads predicted words, which exceed the threshold."""
    model = captioner(word_rank=5, word_dropout_rate=0.0, **changes)
    model.word_predictor.idf.uniform_(0.5, 3.0)
    torch.nn.init.normal_(model.word_predictor.up.bias, std=2.0)
    return model


def test_word_loss_alone_trains_the_predictor():
    """The decoder's loss reads the predicted words and has no gradient for them."""
    model, batch = reading_words(), with_fractions(batch_of())
    caption_loss(model, batch).backward()
    assert all(p.grad is None for p in model.word_predictor.parameters())
    assert model.context.weight.grad.abs().max() > 0  # though the words were read

    model.zero_grad()
    caption_loss(model, batch, word_loss_weight=0.3).backward()
    found = {name: p.grad.clone() for name, p in model.word_predictor.named_parameters()}
    model.zero_grad()
    state = model.start(model.encode(batch.images))
    (0.3 * F.binary_cross_entropy(state.words.sigmoid(), batch.fractions, reduction="sum") / 3).backward()
    for name, p in model.word_predictor.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-4, atol=1e-5)
        assert p.grad.abs().max() > 0, name


@torch.no_grad()
def test_the_weight_scales_the_word_loss():
    model, batch = reading_words(), with_fractions(batch_of())
    words = model.start(model.encode(batch.images)).words
    plain, weighted = (caption_loss(model, batch, word_loss_weight=weight) for weight in (0.0, 0.7))
    torch.testing.assert_close(weighted, plain + 0.7 * word_loss(words, batch.fractions))
    batch.fractions = None  # as of a model without words
    assert torch.equal(caption_loss(model, batch, word_loss_weight=0.7), plain)


@torch.no_grad()
def test_without_probable_words_the_captioner_is_one_without_a_predictor():
    model, plain = reading_words(), captioner()
    plain.load_state_dict({name: model.state_dict()[name] for name in plain.state_dict()})
    batch = batch_of()
    assert not torch.equal(caption_loss(model, batch), caption_loss(plain, batch))
    model.word_predictor.up.bias.fill_(-20.0)
    torch.testing.assert_close(caption_loss(model, batch), caption_loss(plain, batch))

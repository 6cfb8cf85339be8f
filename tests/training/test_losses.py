"""Losses of captioners against their formulas, computed one caption at a time or by hand."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sca_caption.decoding.teacher_forcing import padded, run
from sca_caption.training.batches import Batch
from sca_caption.training.losses import Teachers, caption_loss, load_teachers
from sca_caption.vocab import EOS, PAD, Vocabulary
from tests.helpers.made_photos import message
from tests.helpers.small_captioner import FORMS, MODES, batch_of, captioner, decode_alone
from tests.helpers.tiny_captioner import TINY_WORDS, tiny_captioner
from tests.helpers.toy_backbone import toy  # noqa: F401

pytestmark = pytest.mark.usefixtures("toy")
BATCH = Batch(
    torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    padded([[4, 5, EOS], [6, 7, 8, EOS], [5, EOS]]),
    torch.tensor([0, 1, 1]),
)


# ---- cross-entropy and attention penalty -----------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_cross_entropy_is_the_mean_over_words_of_captions_one_at_a_time(mode, layers, smoothing):
    model, batch = captioner(mode, layers), batch_of()
    losses = []
    for row in range(len(batch.captions)):
        log_prob, _, targets = decode_alone(model, batch, row)
        for t, target in enumerate(targets):
            losses.append(-(1 - smoothing) * log_prob[t, target] - smoothing * log_prob[t].mean())
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(caption_loss(model, batch, smoothing), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_order_of_captions_and_padding_do_not_matter(mode, layers):
    model, batch = captioner(mode, layers), batch_of()
    wanted = caption_loss(model, batch, 0.1, 0.5)
    order = torch.randperm(len(batch.captions), generator=torch.Generator().manual_seed(1))
    mixed = Batch(batch.images, F.pad(batch.captions[order], (0, 3), value=PAD), batch.image_index[order])
    torch.testing.assert_close(caption_loss(model, mixed, 0.1, 0.5), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_doubly_stochastic_penalty(mode, layers):
    """Xu et al. 2015, equation 14: the weights of each position should sum to 1 over a caption's words."""
    model, batch = captioner(mode, layers), batch_of()
    penalties = []
    for row in range(len(batch.captions)):
        _, attention, _ = decode_alone(model, batch, row)
        for layer in range(layers):
            for position in range(16 if "S" in mode else 0):
                looked = sum(step[layer][1][0, position] for step in attention)
                penalties.append((1 - looked) ** 2)
    wanted = caption_loss(model, batch)
    if penalties:
        wanted = wanted + 0.7 * torch.stack(penalties).mean()
    torch.testing.assert_close(caption_loss(model, batch, 0.0, 0.7), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mode", "layers"), FORMS)
@torch.no_grad()
def test_loss_of_a_batch_is_the_word_weighted_mean_of_its_images(mode, layers):
    model, batch = captioner(mode, layers), batch_of()
    total = words = 0
    for i in range(len(batch.images)):
        rows = batch.image_index == i
        single = Batch(
            batch.images[i : i + 1], batch.captions[rows], torch.zeros(int(rows.sum()), dtype=torch.long)
        )
        count = int((single.captions != PAD).sum())
        total, words = total + caption_loss(model, single) * count, words + count
    torch.testing.assert_close(caption_loss(model, batch), total / words, rtol=1e-5, atol=1e-5)


# ---- distillation ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class FixedState:
    count: int
    attention: tuple = ()

    def __len__(self):
        return self.count

    def select(self, rows):
        return FixedState(len(rows)) if isinstance(rows, torch.Tensor) else FixedState(rows.stop)


class Fixed(nn.Module):
    """Predicts the same distribution at every word, and counts the images that it encodes."""

    def __init__(self, *chances: float):
        super().__init__()
        self.logits, self.encoded = nn.Parameter(torch.tensor(chances).log()), 0

    def encode(self, images):
        self.encoded += len(images)

    def start(self, encoded, styles=None):
        return FixedState(2)

    def step(self, tokens, state):
        return self.logits.expand(len(tokens), -1), state


def test_divergence_and_gradient_by_hand():
    teachers = Teachers([Fixed(0.7, 0.2, 0.1), Fixed(0.1, 0.4, 0.5)])
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(9, 3).clone().requires_grad_()
    found = teachers.divergence(BATCH, logits)
    mean, student = (0.4, 0.3, 0.3), (0.5, 0.3, 0.2)
    assert found.item() == pytest.approx(
        sum(p * math.log(p / q) for p, q in zip(mean, student, strict=True)), rel=1e-5
    )
    found.backward()  # of each of the nine words: (student - teachers) / 9
    torch.testing.assert_close(logits.grad[0] * 9, torch.tensor(student) - torch.tensor(mean))
    assert [model.encoded for model in teachers.models] == [2, 2]  # once per image, not per caption
    assert all(model.logits.grad is None for model in teachers.models)


def test_divergence_from_an_equal_teacher_is_zero():
    model = tiny_captioner()
    teachers = Teachers([tiny_captioner(), tiny_captioner()])
    state = model.start(model.encode(BATCH.images)).select(BATCH.image_index)
    found = teachers.divergence(BATCH, run(model, state, BATCH.captions).logits)
    found.backward()
    assert abs(found.item()) < 1e-6
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-5


def test_training_lowers_the_divergence():
    model, teacher = tiny_captioner(), tiny_captioner()
    with torch.no_grad():
        teacher.word.bias += torch.linspace(-2, 2, len(teacher.word.bias))
    teachers, optimizer = Teachers([teacher]), torch.optim.Adam(model.word.parameters(), 0.1)
    losses = []
    for _ in range(30):
        state = model.start(model.encode(BATCH.images)).select(BATCH.image_index)
        loss = teachers.divergence(BATCH, run(model, state, BATCH.captions).logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


def test_a_teacher_with_another_vocabulary_is_an_error(tiny_checkpoint):
    cpu = torch.device("cpu")
    assert len(load_teachers([str(tiny_checkpoint)] * 2, Vocabulary(TINY_WORDS), cpu).models) == 2
    text = message(lambda: load_teachers([str(tiny_checkpoint)], Vocabulary(TINY_WORDS[1:]), cpu))
    assert text.startswith(f"--teacher {tiny_checkpoint} has another vocabulary (20 words) ")
    assert "(19 words)" in text

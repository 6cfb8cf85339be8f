"""Learning from teachers: Kullback and Leibler's divergence against its formula."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from sca_caption.decoding.teacher_forcing import padded, run
from sca_caption.training.batches import Batch
from sca_caption.training.losses import Teachers, load_teachers
from sca_caption.vocab import EOS, Vocabulary
from tests.conftest import TINY_WORDS, tiny_captioner
from tests.helpers.made_photos import message

BATCH = Batch(
    torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    padded([[4, 5, EOS], [6, 7, 8, EOS], [5, EOS]]),
    torch.tensor([0, 1, 1]),
)


@dataclasses.dataclass
class Rows:
    count: int
    attention: tuple = ()

    def __len__(self):
        return self.count

    def select(self, rows):
        return Rows(len(rows)) if isinstance(rows, torch.Tensor) else Rows(rows.stop)


class Fixed(nn.Module):
    """Says the same distribution at every word; counts the images that it encodes."""

    def __init__(self, *chances: float):
        super().__init__()
        self.logits, self.encoded = nn.Parameter(torch.tensor(chances).log()), 0

    def encode(self, images):
        self.encoded += len(images)

    def start(self, encoded):
        return Rows(2)

    def step(self, tokens, state):
        return self.logits.expand(len(tokens), -1), state


def test_one_word_by_hand():
    teachers = Teachers([Fixed(0.7, 0.2, 0.1), Fixed(0.1, 0.4, 0.5)])
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(9, 3).clone().requires_grad_()
    found = teachers.divergence(BATCH, logits)
    mean, student = (0.4, 0.3, 0.3), (0.5, 0.3, 0.2)
    assert found.item() == pytest.approx(
        sum(p * math.log(p / q) for p, q in zip(mean, student, strict=True)), rel=1e-5
    )
    found.backward()  # of the logits: student - teachers, a share of each of the nine words
    torch.testing.assert_close(logits.grad[0] * 9, torch.tensor(student) - torch.tensor(mean))
    assert [model.encoded for model in teachers.models] == [2, 2]  # each image once, not once a caption
    assert all(model.logits.grad is None for model in teachers.models)


def test_a_student_that_is_its_teacher_learns_nothing():
    model = tiny_captioner()
    teachers = Teachers([tiny_captioner(), tiny_captioner()])
    state = model.start(model.encode(BATCH.images)).select(BATCH.image_index)
    found = teachers.divergence(BATCH, run(model, state, BATCH.captions).logits)
    found.backward()
    assert abs(found.item()) < 1e-6
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-5


def test_the_loss_of_a_captioner_gets_nearer_to_its_teacher():
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


def test_a_teacher_with_other_words_is_refused(tiny_checkpoint):
    cpu = torch.device("cpu")
    assert len(load_teachers([str(tiny_checkpoint)] * 2, Vocabulary(TINY_WORDS), cpu).models) == 2
    text = message(lambda: load_teachers([str(tiny_checkpoint)], Vocabulary(TINY_WORDS[1:]), cpu))
    assert text.startswith(f"--teacher {tiny_checkpoint} has another vocabulary (20 words) ")
    assert "(19 words)" in text

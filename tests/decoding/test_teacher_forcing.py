"""Teacher forcing: what is read, what is to be said, and what is exchanged in what is read."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch

from sca_caption.decoding import teacher_forcing
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.training.batches import Batch
from sca_caption.training.losses import caption_loss
from sca_caption.vocab import BOS, EOS, PAD, UNK
from tests.helpers.tiny_captioner import tiny_captioner

CAPTIONS = padded([[4, 5, EOS], [6, 7, 8, 9, EOS], [5, EOS], [9, 8, 7, 6]])


@dataclass
class Rows:
    """Which caption each row is."""

    rows: torch.Tensor
    attention: tuple = ()

    def __len__(self):
        return len(self.rows)

    def select(self, rows):
        return Rows(self.rows[rows])


class Parrot:
    """Notes what it reads, caption by caption; its words are 10 for sure, were EOS not still likelier."""

    def __init__(self):
        self.read: dict[int, list[int]] = {}

    def step(self, tokens, state):
        for row, token in zip(state.rows.tolist(), tokens.tolist(), strict=True):
            self.read.setdefault(row, []).append(token)
        logits = torch.full((len(tokens), 12), -50.0)
        logits[:, 10], logits[:, EOS] = 50.0, 90.0
        return logits, state


def read(captions, **options) -> list[list[int]]:
    parrot = Parrot()
    forced = teacher_forcing.run(parrot, Rows(torch.arange(len(captions))), captions, **options)
    for row, caption in enumerate(captions.tolist()):  # what is to be said stays as it is, whatever is read
        assert forced.targets[forced.caption == row].tolist() == [word for word in caption if word != PAD]
    return [parrot.read[row] for row in range(len(captions))]


def test_the_words_before_are_read():
    assert read(CAPTIONS) == [[BOS, 4, 5], [BOS, 6, 7, 8, 9], [BOS, 5], [BOS, 9, 8, 7]]


def test_logits_are_those_of_single_captions_and_sums_are_by_caption():
    model = tiny_captioner()
    state = model.start(model.encode(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)))
    images = torch.tensor([1, 0, 1, 1])
    forced = teacher_forcing.run(model, state.select(images), CAPTIONS)
    for row, caption in enumerate(CAPTIONS.tolist()):
        one, wanted = state.select(images[row : row + 1]), []
        words = [word for word in caption if word != PAD]
        for word in [BOS, *words[:-1]]:
            logits, one = model.step(torch.tensor([word]), one)
            wanted.append(logits)
        torch.testing.assert_close(
            forced.logits[forced.caption == row], torch.cat(wanted), rtol=1e-4, atol=1e-5
        )
    assert forced.sums(forced.targets.float()).tolist() == CAPTIONS.sum(1).tolist()  # PAD is 0


@pytest.mark.parametrize(("option", "word"), [("word_dropout_p", UNK), ("scheduled_sampling_p", 10)])
def test_words_read_are_exchanged_at_their_chance_but_not_the_start(option, word):
    torch.manual_seed(0)
    captions = torch.randint(4, 9, (400, 6))
    found = torch.tensor(read(captions, **{option: 0.3}))
    assert (found[:, 0] == BOS).all()
    exchanged = found[:, 1:] == word
    assert (exchanged | (found[:, 1:] == captions[:, :-1])).all()  # nothing else is read
    # Within 4.5 deviations at every place: each word has its own chance.
    assert ((exchanged.float().mean(0) - 0.3).abs() < 4.5 * (0.3 * 0.7 / 400) ** 0.5).all()


def test_a_models_own_words_follow_its_distribution():
    class Fair(Parrot):
        def step(self, tokens, state):
            _, state = super().step(tokens, state)
            logits = torch.zeros(len(tokens), 12)
            logits[:, 4] = torch.log(torch.tensor(3.0))
            return logits, state

    torch.manual_seed(0)
    fair, count = Fair(), 3000
    teacher_forcing.run(fair, Rows(torch.arange(count)), torch.full((count, 2), 5), scheduled_sampling_p=1.0)
    seen = torch.tensor([fair.read[row][1] for row in range(count)]).bincount(minlength=12)
    # Eight words may stand there, 4 to 11, one three times as likely as the others; never one of the special ones.
    chances = torch.tensor([0.0] * 4 + [3.0] + [1.0] * 7) / 10
    assert ((seen / count - chances).abs() <= 4.5 * (chances * (1 - chances) / count).sqrt()).all()


def test_the_loss_takes_both():
    model = tiny_captioner()
    batch = Batch(
        torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8), CAPTIONS, torch.zeros(4, dtype=torch.long)
    )
    hidden = CAPTIONS.clone()
    hidden[hidden > UNK] = UNK
    state = model.start(model.encode(batch.images)).select(batch.image_index)
    logits = teacher_forcing.run(model, state, hidden).logits  # reads what the drop below makes it read
    targets = teacher_forcing.run(model, state, CAPTIONS).targets
    found = caption_loss(model, batch, decode_fn=partial(teacher_forcing.run, word_dropout_p=0.9999999))
    assert found.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, targets).item(), rel=1e-5)
    doubled = caption_loss(model, batch, extra_loss=lambda logits: 2 * logits.sum())
    assert doubled.item() == pytest.approx(
        (caption_loss(model, batch) + 2 * teacher_forcing.run(model, state, CAPTIONS).logits.sum()).item(),
        rel=1e-4,
    )

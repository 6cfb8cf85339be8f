"""Captions without photographs train the decoder: it reads which words an unseen photograph would predict.

The fraction of a photograph's captions that contain each word is what the model's `WordPredictor` predicts from an image.
For captions without photographs it is known exactly, so it is made as uncertain as a prediction: some words are missing,
and some words of another photograph are added.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sca_caption.datasets.mixture import Mixture
from sca_caption.decoding import teacher_forcing
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.training.batches import MAX_WORDS, caption_fractions
from sca_caption.vocab import EOS

MISSING = 0.4  # probability that a word is not predicted
ADDED = 0.3  # probability that a word of the other photograph is predicted
MAX_CAPTIONS = 2  # of a photograph in one step


@dataclass
class TextBatch:
    """N captions of G photographs that are not known."""

    probabilities: Tensor  # (G, W) what the photographs predict
    captions: Tensor  # (N, T) word ids with EOS, padded with PAD
    group: Tensor  # (N,) row of `probabilities` that each caption belongs to
    styles: Tensor  # (G,)

    def to(self, device: torch.device) -> "TextBatch":
        return TextBatch(*(x.to(device) for x in vars(self).values()))


def draw_texts(data: Mixture, groups: Sequence[int], random: np.random.Generator) -> TextBatch:
    """A batch of the given text groups, with noise and at most MAX_CAPTIONS captions of each."""
    words = len(data.vocabulary)
    captions = [data.text_captions(group) for group in groups]
    exact = torch.stack([caption_fractions(several, words) for several in captions])
    probabilities = noisy(exact, random)
    chosen = [
        [several[i] for i in random.permutation(len(several))[:MAX_CAPTIONS].tolist()] for several in captions
    ]
    return TextBatch(
        probabilities,
        padded([[*caption[:MAX_WORDS], EOS] for several in chosen for caption in several]),
        torch.tensor([i for i, several in enumerate(chosen) for _ in several]),
        torch.tensor([data.text_style(group) for group in groups]),
    )


def noisy(exact: Tensor, random: np.random.Generator) -> Tensor:
    """Fractions (G, W) as an image would predict them: words missing, and words of the next group added weakly."""

    def uniform() -> Tensor:
        return torch.from_numpy(random.random(exact.shape, np.float32))

    kept = exact * (uniform() >= MISSING) * (0.5 + 0.5 * uniform())
    others = exact.roll(1, 0) * (uniform() < ADDED) * 0.6 * uniform()
    return torch.maximum(kept, others)


def text_loss(model: SCACNN, batch: TextBatch, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the captions, the mean over words in nats."""
    state = model.start_without_image(batch.probabilities, batch.styles).select(batch.group)
    forced = teacher_forcing.run(model, state, batch.captions)
    return F.cross_entropy(forced.logits, forced.targets, label_smoothing=label_smoothing)

"""Predicts which words people would use for an image, for the decoder to read (semantic attention, You et al. 2016).

You et al., "Image captioning with semantic attention", CVPR 2016 (arXiv 1603.03925), let a decoder read attributes that
were detected in the image. Here the attributes are all words of the vocabulary, and the decoder reads their mean
embedding, weighted by

    q_w = max(0, p_w - MIN_PROBABILITY) * idf_w, scaled to unit length,

where p_w is the predicted fraction of an image's captions that contain word w. The inverse document frequency removes
words such as "a", which tell nothing of an image. Captions without a photograph have such a vector, too: the fractions
of the captions of the unseen photograph themselves. They can therefore train the decoder (see `training.text_only`).

Shapes: B images, C channels, R rank, W vocabulary size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_PROBABILITY = (
    0.1  # words below it are not read: several thousand improbable words would drown the probable ones
)
MIN_FEATURE = 1e-8  # smaller ones count as this, because the square root's gradient at zero is infinite


class WordPredictor(nn.Module):
    """Pooled features (B, C), none negative -> logits (B, W) of the fraction of captions that contain each word.

    A linear map of rank R of the features' square roots, so that a few strong channels do not outweigh the others.
    `idf` is set by training (see `set_idf`).
    """

    def __init__(self, channels: int, rank: int, words: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.down = nn.Linear(channels, rank)
        self.up = nn.Linear(rank, words)
        nn.init.constant_(self.up.bias, -5.0)  # most words are in few captions
        self.idf: Tensor
        self.register_buffer("idf", torch.zeros(words))

    def forward(self, pooled: Tensor) -> Tensor:
        x = F.normalize(pooled.clamp_min(MIN_FEATURE).sqrt(), dim=1) * pooled.shape[1] ** 0.5
        return self.up(self.dropout(self.down(self.dropout(x)).relu()))

    def set_idf(self, document_frequency: Tensor, documents: int) -> None:
        """document_frequency (W,): the number of images, of `documents`, whose captions contain each word."""
        self.idf.copy_((documents / document_frequency.clamp_min(1)).log())

    def query(self, probabilities: Tensor) -> Tensor:
        """q of the module's docstring: probabilities (B, W) -> (B, W), each row of length one, or zero."""
        return F.normalize((probabilities - MIN_PROBABILITY).clamp_min(0) * self.idf, dim=1)

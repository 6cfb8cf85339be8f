"""Captions that differ: beams in groups that avoid each other's words.

Vijayakumar et al., "Diverse beam search: decoding diverse solutions from neural sequence models", 2018 (arXiv
1610.02424), with their Hamming diversity.
"""

import torch
from torch import Tensor

from sca_caption.vocab import EOS


class Diverse:
    """G sets of beams, which choose one after another at every step.

    A word costs a group `diversity` nats for each beam of the groups before it that goes on with this word at this
    place. That decides which beams go on, and not what their captions score.
    """

    def __init__(self, sets: int, diversity: float):
        self.sets, self.diversity = sets, diversity

    def of(self, images: Tensor) -> "Diverse":
        return self

    def best(self, total: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best continuations of each group: total (n, B, V) -> (n, S, count) twice, their values less
        what their words cost, and where in B * V they are."""
        images, vocabulary = total.shape[::2]
        said = total.new_zeros(images, 1, vocabulary)  # beams of earlier groups that say a word now
        ranks, choices = [], []
        for group, mine in enumerate(total.view(images, self.sets, -1, vocabulary).unbind(1)):
            rank, choice = (mine - self.diversity * said).flatten(1).topk(min(count, mine[0].numel()))
            word = choice % vocabulary
            onward, kept = rank.masked_fill(word == EOS, -torch.inf).topk(min(count // 2, rank.shape[1]))
            said[:, 0].scatter_add_(1, word.gather(1, kept), onward.isfinite().to(total.dtype))
            ranks.append(rank)
            choices.append(choice + group * mine[0].numel())
        return torch.stack(ranks, 1), torch.stack(choices, 1)

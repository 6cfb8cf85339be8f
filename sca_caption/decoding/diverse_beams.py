"""Diverse beam search: groups of beams that avoid each other's words.

Vijayakumar et al., "Diverse beam search: decoding diverse solutions from neural sequence models", 2018 (arXiv
1610.02424), with their Hamming diversity.
"""

import torch
from torch import Tensor

from sca_caption.vocab import EOS


class DiverseBeams:
    """G groups of beams, which are extended one after another at every step.

    A word costs a group `diversity` nats for each beam of the groups before it that chooses the same word at this step.
    The cost decides which beams continue; it is no part of a caption's score.
    """

    def __init__(self, sets: int, diversity: float):
        self.sets, self.diversity = sets, diversity

    def select(self, images: Tensor) -> "DiverseBeams":
        return self

    def best(self, total: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The `count` best continuations of each group.

        total: scores (n, B, V) -> their values less the cost of their words, and their indices into B * V, both
        (n, S, count).
        """
        images, vocabulary = total.shape[::2]
        chosen = total.new_zeros(images, 1, vocabulary)  # beams of earlier groups that choose a word now
        ranks, choices = [], []
        for group, scores in enumerate(total.view(images, self.sets, -1, vocabulary).unbind(1)):
            rank, choice = (scores - self.diversity * chosen).flatten(1).topk(min(count, scores[0].numel()))
            word = choice % vocabulary
            onward, kept = rank.masked_fill(word == EOS, -torch.inf).topk(min(count // 2, rank.shape[1]))
            chosen[:, 0].scatter_add_(1, word.gather(1, kept), onward.isfinite().to(total.dtype))
            ranks.append(rank)
            choices.append(choice + group * scores[0].numel())
        return torch.stack(ranks, 1), torch.stack(choices, 1)

"""What a model says of captions that are given: logits at every word, the words before it being the caption's own.

Like `decode`, it knows of a captioner only its step and the ids of the special words.

Shapes: N captions, T words of the longest, M words of all, W vocabulary size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.decoding.rules import NEVER
from sca_caption.decoding.stepper import State, Stepper
from sca_caption.vocab import BOS, EOS, PAD, UNK


def padded(captions: Sequence[Sequence[int]]) -> Tensor:
    """Lists of ids as one tensor, filled up with PAD."""
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(caption) for caption in captions], batch_first=True, padding_value=PAD
    )


@dataclass
class Forced:
    """The words of all captions, first words first, and what the model gave for each."""

    logits: Tensor  # (M, W)
    targets: Tensor  # (M,) the captions' words
    caption: Tensor  # (M,) which caption each is of
    running: list[int]  # captions with a word at each t; the sum is M
    alphas: list[
        list[Tensor]
    ]  # spatial attention at each t, a tensor (running, m) an attended layer that has it

    def sums(self, values: Tensor) -> Tensor:
        """Values of words (M,), summed over the words of each caption: (N,)."""
        return values.new_zeros(self.running[0]).index_add(0, self.caption, values)


def run(model: Stepper, state: State, captions: Tensor, *, dropped: float = 0.0, own: float = 0.0) -> Forced:
    """Go through captions (N, T), ids with EOS and without BOS, padded with PAD; row i continues row i of `state`.

    dropped: the chance of each word to be read as UNK (Bowman et al. 2016, arXiv 1511.06349, section 3.1). own: its
    chance to be replaced, as what is read, by one that the model would say there (scheduled sampling, Bengio et al. 2015,
    arXiv 1506.03099). What is to be said stays the caption's.
    """
    lengths = (captions != PAD).sum(1)
    order = lengths.argsort(descending=True, stable=True)  # so that the captions still running are a prefix
    captions, state = captions[order], state.select(order)
    running = [rows for rows in (captions != PAD).sum(0).tolist() if rows]
    inputs = F.pad(captions[:, :-1], (1, 0), value=BOS)
    if dropped:
        inputs = inputs.masked_fill(chosen(inputs, dropped), UNK)
    replaced = chosen(inputs, own) if own else None
    logits, alphas = [], []
    for t, rows in enumerate(running):
        if rows < len(state):
            state = state.select(slice(rows))
        words = inputs[:rows, t]
        if replaced is not None and t:
            words = torch.where(replaced[:rows, t], said(logits[-1][:rows]), words)
        step_logits, state = model.step(words, state)
        logits.append(step_logits)
        alphas.append([alpha for _, alpha in state.attention if alpha is not None])
    targets = torch.cat([captions[:rows, t] for t, rows in enumerate(running)])
    return Forced(torch.cat(logits), targets, torch.cat([order[:rows] for rows in running]), running, alphas)


def chosen(inputs: Tensor, chance: float) -> Tensor:
    """Which of the words that are read, at random; never the start."""
    return (torch.rand(inputs.shape, device=inputs.device) < chance) & (inputs != BOS)


def said(logits: Tensor) -> Tensor:
    """A word drawn for each row, such as can stand within a caption."""
    barred = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    barred[[*NEVER, EOS]] = True
    return torch.multinomial(logits.detach().float().masked_fill(barred, -torch.inf).softmax(1), 1).squeeze(1)

"""Teacher forcing: the logits at every word of given captions, where the model reads the captions' own words.

Like the searches, it uses only a captioner's `step` and the ids of the special words.

Shapes: N captions, T words of the longest, M words of all, W vocabulary size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.decoding.rules import NEVER
from sca_caption.decoding.stepper import Stepper
from sca_caption.vocab import BOS, EOS, PAD, UNK


def padded(captions: Sequence[Sequence[int]]) -> Tensor:
    """Lists of ids as one tensor (N, T), padded with PAD."""
    return nn.utils.rnn.pad_sequence(
        [torch.tensor(caption) for caption in captions], batch_first=True, padding_value=PAD
    )


@dataclass
class Forced:
    """The words of all captions, all first words before all second words, with the model's logits for each."""

    logits: Tensor  # (M, W)
    targets: Tensor  # (M,) ids of the captions' words
    caption: Tensor  # (M,) index of the caption that each word belongs to
    running: list[int]  # number of captions that have a word at step t; the sum is M
    alphas: list[list[Tensor]]  # spatial attention at step t, (running, m) per attended layer that has it

    def sums(self, values: Tensor) -> Tensor:
        """Sum values of words (M,) over the words of each caption: (N,)."""
        return values.new_zeros(self.running[0]).index_add(0, self.caption, values)


def run(
    model: Stepper,
    state: Any,
    captions: Tensor,
    *,
    word_dropout_p: float = 0.0,
    scheduled_sampling_p: float = 0.0,
) -> Forced:
    """Run the model over captions (N, T), ids with EOS and without BOS, padded with PAD; row i starts in `state`'s row i.

    word_dropout_p: probability that a word is read as UNK (Bowman et al. 2016, arXiv 1511.06349, section 3.1).
    scheduled_sampling_p: probability that a word is replaced, as input only, by one sampled from the model (Bengio et
    al. 2015, arXiv 1506.03099). The targets are always the captions' words.
    """
    lengths = (captions != PAD).sum(1)
    order = lengths.argsort(descending=True, stable=True)  # captions that still have words are a prefix
    captions, state = captions[order], state.select(order)
    running = [rows for rows in (captions != PAD).sum(0).tolist() if rows]
    inputs = F.pad(captions[:, :-1], (1, 0), value=BOS)
    if word_dropout_p:
        inputs = inputs.masked_fill(random_mask(inputs, word_dropout_p), UNK)
    replaced = random_mask(inputs, scheduled_sampling_p) if scheduled_sampling_p else None
    logits: list[Tensor] = []
    alphas: list[list[Tensor]] = []
    for t, rows in enumerate(running):
        if rows < len(state):
            state = state.select(slice(rows))
        words = inputs[:rows, t]
        if replaced is not None and t:
            words = torch.where(replaced[:rows, t], sample_word(logits[-1][:rows]), words)
        step_logits, state = model.step(words, state)
        logits.append(step_logits)
        alphas.append([alpha for _, alpha in state.attention if alpha is not None])
    targets = torch.cat([captions[:rows, t] for t, rows in enumerate(running)])
    return Forced(torch.cat(logits), targets, torch.cat([order[:rows] for rows in running]), running, alphas)


def random_mask(inputs: Tensor, p: float) -> Tensor:
    """True with probability p for each input word, never for BOS: bool, of the shape of `inputs`."""
    return (torch.rand(inputs.shape, device=inputs.device) < p) & (inputs != BOS)


def sample_word(logits: Tensor) -> Tensor:
    """Sample a word for each row of logits (N, W), never EOS or another special word: (N,)."""
    banned = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    banned[[*NEVER, EOS]] = True
    return torch.multinomial(logits.detach().float().masked_fill(banned, -torch.inf).softmax(1), 1).squeeze(1)

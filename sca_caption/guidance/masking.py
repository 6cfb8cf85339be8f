"""Steppers whose captions leave out some words."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sca_caption.decoding import stepper


@dataclass(frozen=True)
class Speaker:
    """A captioner in whose captions of an image some words never come, and some not after some others."""

    model: stepper.Stepper
    closed: Tensor  # bool (B, W)
    wanted: Tensor  # bool (B, W)
    agreement: dict[int, Tensor]  # after this word (W,) of the wanted ones are closed
    no_compound: Tensor  # (W,) are closed after a wanted one

    def step(self, tokens: Tensor, state: stepper.State) -> tuple[Tensor, stepper.State]:
        logits, state = self.model.step(tokens, state)
        closed, wanted = self.closed[state.image], self.wanted[state.image]
        for word, wrong in self.agreement.items():
            closed = closed | ((tokens == word)[:, None] & wanted & wrong)
        closed = closed | (wanted.gather(1, tokens[:, None]) & self.no_compound)
        return logits.masked_fill_(closed, -torch.inf), state


@dataclass(frozen=True)
class Discreet:
    """A captioner that does not say some words of some images."""

    model: stepper.Stepper
    closed: Tensor  # bool (B, W)

    def step(self, tokens: Tensor, state: stepper.State) -> tuple[Tensor, stepper.State]:
        logits, state = self.model.step(tokens, state)
        return logits.masked_fill_(self.closed[state.image], -torch.inf), state

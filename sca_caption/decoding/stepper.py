"""The protocol between decoding and models, and the captions that decoding returns."""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A caption as ids, without <bos> and <eos>.

    `finished` is False where the search stopped (at max_length) before the model ended the caption; its
    log_prob then has no end word in it, and its length none either. consensus: see `consensus.Ranking`.
    """

    tokens: list[int]
    log_prob: float
    score: float
    finished: bool
    consensus: float | None = None


class State(Protocol):
    """What a decoder remembers between two words, a row for each caption in the making."""

    device: torch.device

    def __len__(self) -> int: ...

    def select(self, rows: Tensor) -> Self:
        """Row i of the result is row rows[i] of this state: reorders, repeats and drops rows."""


class Stepper(Protocol):
    def step(self, tokens: Tensor, state: State) -> tuple[Tensor, State]: ...

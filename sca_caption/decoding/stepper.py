"""The interface of captioners to decoding, and the captions that decoding returns.

    state = model.start(encoded)                 # one row per image; opaque except for len() and select()
    logits, state = model.step(tokens, state)    # tokens (rows,) -> logits (rows, V)

A caption's log-probability is the sum of the natural-log probabilities of its words, and of the end word if the caption
has one, under the model itself. Masks exclude words from a search and never renormalise the others, so captions that
were found under different masks can be compared.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Hypothesis:
    """A caption as word ids, without <bos> and <eos>.

    Attributes:
        log_prob: natural logarithm of its probability under the model (see the module).
        score: what captions are ranked by: log_prob / length^a, plus what guides add (see `guidance.guide`).
        finished: False if the search stopped at max_length before the model ended the caption. log_prob and length
            then include no end word.
        ratings: what each guide that rates captions gave it, by the guide's name.
    """

    tokens: list[int]
    log_prob: float
    score: float
    finished: bool
    ratings: dict[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Number of words whose probabilities log_prob includes."""
        return len(self.tokens) + self.finished


class State(Protocol):
    """The recurrent state of a captioner, one row per partial caption."""

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def select(self, rows: Tensor | slice) -> Self:
        """Row i of the result is row rows[i] of this state: reorders, repeats and drops rows."""


class Stepper(Protocol):
    """A captioner, one word at a time. Each has a class of its own for its `State`."""

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Previous words (rows,) -> logits of the next words (rows, V), and the state after them."""


class WordMask(Protocol):
    """Excludes words from a search (see `guidance.masking`)."""

    def __call__(self, last: Tensor, state: State) -> Tensor:
        """Previous words (rows,) and the state after them -> bool (rows, V), True for words that must not follow."""


def log_probs(logits: Tensor) -> Tensor:
    """Natural-log probabilities of words, (rows, V) -> (rows, V)."""
    return logits.float().log_softmax(1)

"""Masks that exclude words from a search.

A mask is applied to log-probabilities after they are normalised, so a caption's log-probability does not depend on what
was excluded (see `decoding.stepper`).

Shapes: B images, W words.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedWords:
    """Words that captions of an image must not contain: bool (B, W)."""

    banned: Tensor

    def __call__(self, last: Tensor, state: Any) -> Tensor:
        """Previous words (rows,) and a state whose `image` says which image each row belongs to -> bool (rows, W)."""
        return self.banned[state.image]


@dataclass(frozen=True)
class GrammaticalWords(MaskedWords):
    """MaskedWords for captions with an inserted noun: also excludes ungrammatical neighbours of the noun."""

    inserted: Tensor  # bool (B, W): the forms of the noun
    disagreeing: Mapping[int, Tensor]  # after this word, these forms (W,) do not agree: "a" before a plural
    no_compound: Tensor  # bool (W,): words that do not follow an inserted noun: "a laptop bench"

    def __call__(self, last: Tensor, state: Any) -> Tensor:
        banned, inserted = self.banned[state.image], self.inserted[state.image]
        for word, wrong in self.disagreeing.items():
            banned = banned | ((last == word)[:, None] & inserted & wrong)
        return banned | (inserted.gather(1, last[:, None]) & self.no_compound)


def word_mask(ids: list[int] | tuple[int, ...], size: int) -> Tensor:
    """True at `ids`: bool (size,)."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(ids)] = True
    return mask


def without_forced(banned: Tensor, forced: Sequence[Sequence[Collection[int]]]) -> Tensor:
    """The mask, bool (B, W), changed in place so that it excludes no forced word (per image, per group, ids)."""
    for row, groups in zip(banned, forced, strict=True):
        row[[word for group in groups for word in group]] = False
    return banned

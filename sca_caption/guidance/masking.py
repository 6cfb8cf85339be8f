"""Masks that exclude words from a search.

A mask is applied to log-probabilities after they are normalised, so a caption's log-probability does not depend on what
was excluded (see `decoding.stepper`).

Shapes: B images, W words.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class MaskedWords:
    """Words that captions of an image must not contain: bool (B, W)."""

    banned: Tensor

    def __call__(self, last: Tensor, state: Any) -> Tensor:
        """Previous words (rows,) and a state whose `image` says which image each row belongs to -> bool (rows, W)."""
        return self.banned[state.image]


def without_forced(banned: Tensor, forced: Sequence[Sequence[Collection[int]]]) -> Tensor:
    """The mask, bool (B, W), changed in place so that it excludes no forced word (per image, per group, ids)."""
    for row, groups in zip(banned, forced, strict=True):
        row[[word for group in groups for word in group]] = False
    return banned

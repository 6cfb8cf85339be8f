"""Words that no caption ends in, as what they begin would be missing: "a man with a"; and words that join two others."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sca_caption.config import SearchConfig
from sca_caption.vocab import BOS, EOS, PAD, UNK, Vocabulary

NEVER = (PAD, BOS, UNK)


@dataclass(frozen=True)
class Rules:
    """Which words may come where. Raises ValueError for sizes that make no sense.

    At least min_length and at most max_length words, never one of `forbidden`, and none of `never_last` at the end.
    """

    max_length: int = SearchConfig.max_length
    min_length: int = SearchConfig.min_length
    forbidden: Sequence[int] = NEVER
    never_last: Sequence[int] = ()

    def __post_init__(self):
        check(max_length=self.max_length, min_length=self.min_length)
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} is more than max_length={self.max_length}")

    def apply(self, scores: Tensor, last: Tensor, length: int) -> Tensor:
        """Set to -inf, in place, what may not be the word number `length` after the words `last` (rows,): (rows, V)."""
        scores[:, list(self.forbidden) + [EOS] * (length <= self.min_length)] = -torch.inf
        if self.never_last:
            never_last = torch.tensor(self.never_last, device=last.device)
            scores[torch.isin(last, never_last), EOS] = -torch.inf
            if length == self.max_length:
                scores[:, never_last] = -torch.inf
        return scores


def repeats(tokens: Tensor, n: int, vocabulary_size: int) -> Tensor:
    """True for words that would complete an n-gram the caption has, and for its last: (n, B, t) -> bool (n, B, V)."""
    images, beams, words = tokens.shape
    mask = torch.zeros(images, beams, vocabulary_size + 1, dtype=torch.bool, device=tokens.device)
    if words >= n:
        windows = tokens.unfold(2, n, 1)  # (n, B, t - n + 1, n)
        seen = (windows[..., :-1] == tokens[:, :, None, words - n + 1 :]).all(-1)
        # The windows that do not match mark a word past the vocabulary, which is cut off.
        mask.scatter_(2, torch.where(seen, windows[..., -1], vocabulary_size), True)
    mask.scatter_(2, tokens[..., -1:], True)
    return mask[..., :vocabulary_size]


def echoes(tokens: Tensor, joining: Tensor, vocabulary_size: int) -> Tensor:
    """True for the word before the last where the last is one of `joining` (ids): (n, B, t) -> bool (n, B, V)."""
    mask = torch.zeros(*tokens.shape[:2], vocabulary_size + 1, dtype=torch.bool, device=tokens.device)
    if tokens.shape[2] >= 2:
        joined = torch.isin(tokens[..., -1:], joining)
        mask.scatter_(2, torch.where(joined, tokens[..., -2:-1], vocabulary_size), True)
    return mask[..., :vocabulary_size]


def check(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")


# Not here is what people end captions in, if seldom: "looks on", "walks by", "jumps up", "another runs behind".
DETERMINERS = "a an the this these my your his its our their some several many each every no very"
PREPOSITIONS = (
    "about across after against among amongst at atop before beneath beside between during for from in into like near "
    "next of onto through to toward towards under upon with within without"
)
CONJUNCTIONS = "and as because but if or than when where which while who whose"
VERBS = "am are be been being can had has have having is was were carrying holding wearing"
BAD_ENDINGS = frozenset(f"{DETERMINERS} {PREPOSITIONS} {CONJUNCTIONS} {VERBS}".split())
JOINING = frozenset(("and", "or"))


def dangling(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of words that no caption ends in."""
    return _ids(BAD_ENDINGS, vocabulary)


def joining(vocabulary: Vocabulary) -> tuple[int, ...]:
    """The ids of words that stand between two different ones."""
    return _ids(JOINING, vocabulary)


def _ids(words: Collection[str], vocabulary: Vocabulary) -> tuple[int, ...]:
    return tuple(sorted(set(vocabulary.encode(words)) - {UNK}))

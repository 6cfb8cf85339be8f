"""Rules for the words of captions: lengths, repeated n-grams, repeated conjuncts and incomplete endings.

`BAD_ENDINGS` is the list of ImageCaptioning.pytorch's `remove_bad_endings` ("a man with a"), extended.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sca_caption.config import SearchConfig
from sca_caption.vocab import BOS, EOS, PAD, UNK, Vocabulary

NEVER = (PAD, BOS, UNK)  # words that no caption contains


@dataclass(frozen=True)
class Rules:
    """Rules for words by position. Raises ValueError for contradictory lengths.

    Captions have min_length to max_length words, none of `forbidden`, and do not end in one of `bad_endings` (ids).
    """

    max_length: int = SearchConfig.max_length
    min_length: int = SearchConfig.min_length
    forbidden: Sequence[int] = NEVER
    bad_endings: Sequence[int] = ()

    def __post_init__(self) -> None:
        require_positive(max_length=self.max_length, min_length=self.min_length)
        if self.min_length > self.max_length:
            raise ValueError(f"min_length={self.min_length} is more than max_length={self.max_length}")

    def apply(self, scores: Tensor, last: Tensor, length: int) -> Tensor:
        """Set the scores (rows, V) of words that must not follow the words `last` (rows,) to -inf, in place.

        length: number of the word that is chosen, from 1.
        """
        scores[:, list(self.forbidden) + [EOS] * (length <= self.min_length)] = -torch.inf
        if self.bad_endings:
            bad_endings = torch.tensor(self.bad_endings, device=last.device)
            scores[torch.isin(last, bad_endings), EOS] = -torch.inf
            if length == self.max_length:
                scores[:, bad_endings] = -torch.inf
        return scores


def repeated_ngrams(tokens: Tensor, n: int, vocabulary_size: int) -> Tensor:
    """Words that would repeat an n-gram of the caption or its last word.

    tokens: (n, B, t) -> bool (n, B, V), True for words that must not follow.
    """
    images, beams, words = tokens.shape
    mask = torch.zeros(images, beams, vocabulary_size + 1, dtype=torch.bool, device=tokens.device)
    if words >= n:
        windows = tokens.unfold(2, n, 1)  # (n, B, t - n + 1, n)
        matches = (windows[..., :-1] == tokens[:, :, None, words - n + 1 :]).all(-1)
        # Windows that do not match mark column V, which is cut off.
        mask.scatter_(2, torch.where(matches, windows[..., -1], vocabulary_size), True)
    mask.scatter_(2, tokens[..., -1:], True)
    return mask[..., :vocabulary_size]


def repeated_conjuncts(tokens: Tensor, conjunctions: Tensor, vocabulary_size: int) -> Tensor:
    """After a conjunction, the word before it: excludes "white and white".

    tokens: (n, B, t), conjunctions: ids -> bool (n, B, V), True for words that must not follow.
    """
    mask = torch.zeros(*tokens.shape[:2], vocabulary_size + 1, dtype=torch.bool, device=tokens.device)
    if tokens.shape[2] >= 2:
        after_conjunction = torch.isin(tokens[..., -1:], conjunctions)
        mask.scatter_(2, torch.where(after_conjunction, tokens[..., -2:-1], vocabulary_size), True)
    return mask[..., :vocabulary_size]


def require_positive(**sizes: int) -> None:
    """Raise ValueError for a size below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}; it must be at least 1")


# Words that people do end captions in are left out: "looks on", "walks by", "jumps up", "another runs behind".
DETERMINERS = "a an the this these my your his its our their some several many each every no very"
PREPOSITIONS = (
    "about across after against among amongst at atop before beneath beside between during for from in into like near "
    "next of onto through to toward towards under upon with within without"
)
CONJUNCTIONS = "and as because but if or than when where which while who whose"
VERBS = "am are be been being can had has have having is was were carrying holding wearing"
BAD_ENDINGS = frozenset(f"{DETERMINERS} {PREPOSITIONS} {CONJUNCTIONS} {VERBS}".split())
COORDINATING = frozenset(("and", "or"))


def bad_endings(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids of the words that no caption ends in."""
    return _ids(BAD_ENDINGS, vocabulary)


def conjunctions(vocabulary: Vocabulary) -> tuple[int, ...]:
    """Ids of the conjunctions that must not join a word with itself."""
    return _ids(COORDINATING, vocabulary)


def _ids(words: Collection[str], vocabulary: Vocabulary) -> tuple[int, ...]:
    return tuple(sorted(set(vocabulary.encode(words)) - {UNK}))

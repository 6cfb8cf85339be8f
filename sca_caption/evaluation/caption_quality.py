"""What is wrong with captions that CIDEr still likes: loops, and ends that leave a reader waiting.

Training on CIDEr itself can buy points with both (Guo et al. 2018, "Improving reinforcement learning based image
captioning with natural language prior", arXiv 1809.06227, saw one caption in two end in "a", "with a" or "of").
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sca_caption.decoding.rules import BAD_ENDINGS

PHRASE = 3  # words; people's captions have two in a row twice in one of 27 (as "in a"), three in one of 200


@dataclass(frozen=True)
class Quality:
    """Of the captions of a set of images."""

    repeats: float  # % of captions that have a word twice in a row, or a phrase twice
    dangling: float  # % that end in a word that cannot end a sentence
    length: float  # mean number of words

    def __str__(self) -> str:
        flaws = f"{self.repeats:.1f}% repeat a phrase, {self.dangling:.1f}% end in a dangling word"
        return f"{flaws}, {self.length:.1f} words"


def quality(captions: Sequence[Sequence[str]]) -> Quality:
    """Of captions as words, at least one caption."""
    share = 100 / len(captions)
    return Quality(
        share * sum(map(repeats, captions)),
        share * sum(map(dangles, captions)),
        share * sum(map(len, captions)) / 100,
    )


def repeats(words: Sequence[str]) -> bool:
    phrases = [tuple(words[i : i + PHRASE]) for i in range(len(words) - PHRASE + 1)]
    return len(set(phrases)) < len(phrases) or any(a == b for a, b in pairwise(words))


def dangles(words: Sequence[str]) -> bool:
    return bool(words) and words[-1] in BAD_ENDINGS

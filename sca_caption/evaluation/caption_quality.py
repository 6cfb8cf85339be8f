"""Two defects of captions that CIDEr does not penalise: repeated phrases and bad endings.

Self-critical training increases CIDEr with both: half of the captions of Guo et al. ended in "a", "with a" or "of"
("Improving reinforcement learning based image captioning with natural language prior", EMNLP 2018, arXiv 1809.06227).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from sca_caption.decoding.rules import BAD_ENDINGS

# Words. In reference captions, 1 of 27 repeats two words in a row and 1 of 200 repeats three.
PHRASE_LENGTH = 3


@dataclass(frozen=True)
class Quality:
    """Rates of defects in a set of captions."""

    repeats: float  # % of captions with a word twice in a row or a phrase of PHRASE_LENGTH words twice
    dangling: float  # % of captions that end in a word of BAD_ENDINGS
    length: float  # mean number of words

    def __str__(self) -> str:
        flaws = f"{self.repeats:.1f}% repeat a phrase, {self.dangling:.1f}% end in a dangling word"
        return f"{flaws}, {self.length:.1f} words"


def quality(captions: Sequence[Sequence[str]]) -> Quality:
    """Quality of at least one caption, each as a list of words."""
    share = 100 / len(captions)
    return Quality(
        share * sum(map(repeats, captions)),
        share * sum(map(has_bad_ending, captions)),
        share * sum(map(len, captions)) / 100,
    )


def repeats(words: Sequence[str]) -> bool:
    """True if a caption has a word twice in a row or a phrase of PHRASE_LENGTH words twice."""
    phrases = [tuple(words[i : i + PHRASE_LENGTH]) for i in range(len(words) - PHRASE_LENGTH + 1)]
    return len(set(phrases)) < len(phrases) or any(a == b for a, b in pairwise(words))


def has_bad_ending(words: Sequence[str]) -> bool:
    """True if a caption ends in a word of BAD_ENDINGS, such as "a" or "with"."""
    return bool(words) and words[-1] in BAD_ENDINGS

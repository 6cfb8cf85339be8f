"""N-gram counts, which BLEU and CIDEr share."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

MAX_N = 4  # longest n-grams of BLEU and CIDEr, in words
Tokens = Sequence[str]


def count_ngrams(words: Tokens | Counter) -> Counter:
    """Count the n-grams of 1 to MAX_N words of a sentence. A Counter is returned unchanged."""
    if isinstance(words, Counter):
        return words
    shifted = [words[start:] for start in range(MAX_N)]
    return Counter(chain.from_iterable(zip(*shifted[:n], strict=False) for n in range(1, MAX_N + 1)))


def sentence_length(ngrams: Counter) -> int:
    """Number of words of a sentence, given its n-gram counts."""
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 1)

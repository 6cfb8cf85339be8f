"""How good captions are: the figures of the field, on words.

`Cider` is pure Python, so that training can validate by it where pycocoevalcap and Java are absent.
"""

import math
from collections import Counter
from collections.abc import Sequence

from .ptb import ptb_tokenize

__all__ = ["Cider", "cider", "ptb_tokenize"]

Tokens = Sequence[str]


class Cider:
    """CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015, arXiv 1411.5726) against references prepared once.

    The n-grams (1 to 4) of a sentence are weighted by tf-idf, the document frequency being the number of the
    given images with the n-gram in one of their references. The score of a candidate against a reference is
    the cosine of their weights, for each n, with the candidate's clipped to the reference's (so that repeating
    a word does not pay) and a Gaussian penalty on the difference of lengths; then the mean over n and over
    references. Same numbers as pycocoevalcap's `Cider`, in the 0-100 form: its 1.0 is 100.0 here (a perfect
    caption, 10 there, is 1000).
    """

    N = 4
    SIGMA = 6.0  # of the length penalty, in words

    def __init__(self, references: Sequence[Sequence[Tokens]]):
        """`references`: for each image, its reference sentences (one or more), each a list of words."""
        if not all(references):
            raise ValueError("CIDEr needs at least one reference for every image")
        counts = [[_ngrams(sentence, self.N) for sentence in sentences] for sentences in references]
        frequency = Counter(ngram for image in counts for ngram in set().union(*image))
        self.unseen = math.log(len(references)) if references else 0.0  # idf of an n-gram in no reference
        self.idf = {ngram: self.unseen - math.log(images) for ngram, images in frequency.items()}
        self.references = [[self._weigh(sentence) for sentence in image] for image in counts]

    def _weigh(self, counts: Counter) -> tuple[dict, list[float], int]:
        """tf-idf weight of each n-gram, their norm for each n, and the number of bigrams (which is the length)."""
        weights, squares, bigrams = {}, [0.0] * self.N, 0
        for ngram, count in counts.items():
            weights[ngram] = weight = count * self.idf.get(ngram, self.unseen)
            squares[len(ngram) - 1] += weight * weight
            bigrams += count if len(ngram) == 2 else 0
        return weights, [math.sqrt(square) for square in squares], bigrams

    def score(self, candidates: Sequence[Tokens]) -> tuple[float, list[float]]:
        """`candidates`: one sentence an image, in the references' order. Returns (mean, one score an image)."""
        if len(candidates) != len(self.references):
            raise ValueError(f"{len(candidates)} candidates for {len(self.references)} images with references")
        scores = [self._image(*pair) for pair in zip(candidates, self.references, strict=True)]
        return (sum(scores) / len(scores) if scores else 0.0), scores

    def _image(self, candidate: Tokens, references: list) -> float:
        weights, norms, bigrams = self._weigh(_ngrams(candidate, self.N))
        total = 0.0
        for reference_weights, reference_norms, reference_bigrams in references:
            products = [0.0] * self.N
            for ngram, weight in weights.items():
                theirs = reference_weights.get(ngram)
                if theirs:
                    products[len(ngram) - 1] += min(weight, theirs) * theirs
            cosines = sum(
                product / (ours * theirs)
                for product, ours, theirs in zip(products, norms, reference_norms, strict=True)
                if ours and theirs
            )
            total += cosines * math.exp(-((bigrams - reference_bigrams) ** 2) / (2 * self.SIGMA**2))
        return 1000.0 * total / (self.N * len(references))


def cider(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[float, list[float]]:
    """CIDEr-D of one candidate an image: (mean over images, one score an image), 0-100 form; see `Cider`."""
    return Cider(references).score(candidates)


def _ngrams(words: Tokens, longest: int) -> Counter:
    """How often each run of 1 to `longest` words occurs."""
    return Counter(
        tuple(words[start : start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1)
    )

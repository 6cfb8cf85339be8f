"""CIDEr-D (Vedantam, Zitnick and Parikh, CVPR 2015, arXiv 1411.5726), with the same numbers as pycocoevalcap.

Pure Python, so training can validate by CIDEr without pycocoevalcap and Java. Scores are in the 0-100 form: 1.0 in
pycocoevalcap is 100.0 here. A perfect caption has 10 there and 1000 here.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain

from sca_caption.evaluation.ngrams import MAX_N, Tokens, count_ngrams


class Cider:
    """CIDEr-D scorer of a set of images. Document frequencies and reference vectors are computed once.

    The n-grams (n = 1 to 4) of a sentence are weighted by tf-idf. The document frequency of an n-gram is the number of
    images with the n-gram in at least one reference. The score of a candidate against a reference is, per n, the
    cosine of their weight vectors, with the candidate's counts clipped to the reference's counts, multiplied by a
    Gaussian penalty on the difference of lengths. The score of an image is the mean over n and over references.
    """

    SIGMA = 6.0  # of the length penalty, in words

    def __init__(self, references: Sequence[Sequence[Tokens | Counter]]):
        """references: per image one or more sentences, each as words or as n-gram counts."""
        if not all(references):
            raise ValueError("CIDEr needs at least one reference per image")
        counts = [[count_ngrams(sentence) for sentence in sentences] for sentences in references]
        document_frequency = Counter(chain.from_iterable(set().union(*image) for image in counts))
        self.unseen_idf = math.log(len(references)) if references else 0.0  # of an n-gram in no reference
        self.idf = {ngram: self.unseen_idf - math.log(images) for ngram, images in document_frequency.items()}
        self.references = [[self.vectorize(sentence) for sentence in image] for image in counts]

    @property
    def can_vary(self) -> bool:
        """False if every caption scores 0, because each n-gram of the references occurs in those of every image.

        So it is with a single image.
        """
        return any(idf > 0 for idf in self.idf.values())

    def vectorize(self, counts: Counter) -> tuple[Counter, list[float], int]:
        """N-gram counts -> (the counts, norm of the tf-idf vector per n, number of bigrams).

        As in pycocoevalcap, the number of bigrams is the length for the length penalty.
        """
        squares, bigrams = [0.0] * MAX_N, 0
        for ngram, count in counts.items():
            weight = count * self.idf.get(ngram, self.unseen_idf)
            squares[len(ngram) - 1] += weight * weight
            bigrams += count if len(ngram) == 2 else 0
        return counts, [math.sqrt(square) for square in squares], bigrams

    def score(self, candidates: Sequence[Tokens | Counter]) -> tuple[float, list[float]]:
        """Score one candidate per image, in the order of the references. Returns (mean, score per image)."""
        if len(candidates) != len(self.references):
            raise ValueError(f"{len(candidates)} candidates for references of {len(self.references)} images")
        scores = [self.score_image(*pair) for pair in zip(candidates, self.references, strict=True)]
        return (sum(scores) / len(scores) if scores else 0.0), scores

    def score_image(self, candidate: Tokens | Counter, references: list) -> float:
        """Score a candidate against references as `vectorize` returns them, such as `self.references[image]`."""
        counts, norms, bigrams = self.vectorize(count_ngrams(candidate))
        total = 0.0
        for reference_counts, reference_norms, reference_bigrams in references:
            products = [0.0] * MAX_N
            for ngram, count in counts.items():
                if reference_count := reference_counts.get(ngram):
                    idf = self.idf[ngram]
                    products[len(ngram) - 1] += (min(count, reference_count) * idf) * (reference_count * idf)
            cosines = sum(
                product / (norm * reference_norm)
                for product, norm, reference_norm in zip(products, norms, reference_norms, strict=True)
                if norm and reference_norm
            )
            total += cosines * math.exp(-((bigrams - reference_bigrams) ** 2) / (2 * self.SIGMA**2))
        return 1000.0 * total / (MAX_N * len(references))


def cider(
    candidates: Sequence[Tokens | Counter], references: Sequence[Sequence[Tokens | Counter]]
) -> tuple[float, list[float]]:
    """CIDEr-D of one candidate per image: (mean over images, score per image), 0-100 form. See `Cider`."""
    return Cider(references).score(candidates)

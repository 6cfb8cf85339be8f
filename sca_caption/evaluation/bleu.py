"""BLEU-1 to BLEU-4 (Papineni et al., ACL 2002), with the same numbers as pycocoevalcap.

N is the number of images. Each image has one candidate caption and one or more reference captions.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sca_caption.evaluation.ngrams import sentence_length


def bleu_statistics(candidates: Sequence[Counter], references: Sequence[Sequence[Counter]]) -> np.ndarray:
    """Sufficient statistics of BLEU per image, float (N, 10). A corpus has the sum of its images' rows.

    candidates: n-gram counts of one caption per image. references: n-gram counts of the image's references. Both are
    from `ngrams.count_ngrams`. Columns 0 to 3 count the candidate's n-grams (n = 1 to 4) that occur in a reference,
    clipped to the largest count in one reference. Columns 4 to 7 count all its n-grams. Column 8 is its length, and
    column 9 is the length of the reference closest to it in length, in words.
    """
    statistics = np.zeros((len(candidates), 10))
    for row, candidate, sentences in zip(statistics, candidates, references, strict=True):
        for ngram, count in candidate.items():
            row[len(ngram) - 1] += min(count, max([sentence.get(ngram, 0) for sentence in sentences]))
            row[len(ngram) + 3] += count
        row[8] = row[4]
        row[9] = min((abs(length - row[4]), length) for length in map(sentence_length, sentences))[1]
    return statistics


def bleu(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 of statistics (..., 10) as `bleu_statistics` computes them: (..., 4), 0 to 100."""
    small, tiny = 1e-9, 1e-15  # pycocoevalcap's constants against division by zero
    precisions = (statistics[..., 0:4] + tiny) / (statistics[..., 4:8] + small)
    means = np.exp(np.cumsum(np.log(precisions), -1) / np.arange(1, 5))  # geometric
    ratio = (statistics[..., 8:9] + tiny) / (statistics[..., 9:10] + small)
    return 100 * means * np.exp(np.minimum(0, 1 - 1 / ratio))

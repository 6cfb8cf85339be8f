"""The rating of a caption by the words that annotators are expected to use: the part of CIDEr of single words.

Vedantam et al. 2015, eq. 1, n = 1: the cosine of tf-idf vectors.
"""

import math
import operator
from collections import Counter
from collections.abc import Sequence

from torch import Tensor


def tfidf_cosine(tokens: Sequence[int], idf: Sequence[float], expected: Tensor) -> float:
    """Dot product of a caption's unit tf-idf vector with an expected vector (W,); 0 without informative words.

    tokens: ids of the caption's words. Those from len(idf) on, which guides have added, count for nothing.
    """
    counts = Counter(token for token in tokens if token < len(idf))
    vector = {token: count * idf[token] for token, count in counts.items()}
    norm = math.sqrt(sum(value * value for value in vector.values()))
    if not norm:
        return 0.0
    return sum(map(operator.mul, vector.values(), expected[list(vector)].tolist())) / norm

"""ROUGE-L (Lin, 2004), with the same numbers as pycocoevalcap."""

from collections import Counter
from collections.abc import Mapping, Sequence


def rouge_l(candidate: str, references: Sequence[str]) -> float:
    """ROUGE-L of a caption, 0 to 1: the F-measure of its best recall and best precision over the references.

    Captions are words joined by single spaces. Recall and precision are the length of the longest common subsequence,
    divided by the length of the reference and of the candidate.
    """
    words, beta = candidate.split(" "), 1.2
    positions: Counter[str] = Counter()  # word -> bit mask of its positions in the candidate
    for position, word in enumerate(words):
        positions[word] |= 1 << position
    recall = precision = 0.0
    for reference in references:
        others = reference.split(" ")
        common = common_subsequence_length(positions, len(words), others)
        recall, precision = max(recall, common / len(others)), max(precision, common / len(words))
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if recall else 0.0


def common_subsequence_length(positions: Mapping[str, int], length: int, others: Sequence[str]) -> int:
    """Length of the longest common subsequence of a sentence of `length` words and the words `others`.

    positions: word -> bit mask of its positions in the sentence. A row of the dynamic programme is a bit vector with a 0
    where the row increases, and the next row is a sum (Crochemore et al., "A fast and practical bit-vector algorithm for
    the longest common subsequence problem", 2001).
    """
    row = all_ones = (1 << length) - 1
    for word in others:
        if matches := row & positions.get(word, 0):
            row = row + matches | row - matches
    return length - (row & all_ones).bit_count()

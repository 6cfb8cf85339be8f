"""Significance of differences between several methods and a control that were run with the same few seeds.

A seed decides the split of the data, the initial weights that methods share and the order of images, so scores of one
seed are paired. The unit is the run: a test over test images (McNemar's) would only say that these trained networks
differ, and not whether networks of other seeds do. But few runs are weak evidence. With three seeds a sign-flip
permutation test has no p-value below 2/8, and a paired t-test has two degrees of freedom.

The estimate of the spread is therefore pooled over all methods, as in a randomized block design: score = seed + method +
noise, with (methods - 1)(seeds - 1) degrees of freedom. With one method and the control this is the paired t-test. The
noise is assumed to be equally strong for all methods. A method whose training fails with some seeds breaks that
assumption: pooled, it would hide differences of all others and make its own seem significant. A method with more than
`ERRATIC` times the usual spread is therefore left out of the pool and has a paired t-test of its own.

Scores on random splits of one data set are not independent, because the training sets overlap. Nadeau and Bengio (2003,
"Inference for the generalization error", Machine Learning 52) replace the factor 1/S of the variance of a mean over S
splits by 1/S + (test images / training images). With an official split the factor is 1/S; the result then holds for this
training set and these test images.

Several methods are compared with the control, so p-values are corrected by Holm's method (1979, "A simple sequentially
rejective multiple test procedure"), which bounds the probability of any false positive.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ERRATIC = 5.0  # times the median over methods; with three seeds, equal noise exceeds it in 1 of 50 comparisons at most


@dataclass(frozen=True)
class Comparison:
    """A method against the control."""

    difference: float  # of the means over seeds; positive: better than the control
    p: float  # two-sided, of this comparison alone
    adjusted: float  # p by Holm's method
    erratic: bool = False  # compared by its own spread, see the module


def compare_with_control(scores: np.ndarray, test_to_train: float = 0.0) -> tuple[list[Comparison], float]:
    """Compare the methods in rows 1, 2, ... of `scores` (methods, seeds) with the control in row 0.

    test_to_train: test images divided by training images if each seed has a random split of its own, 0 for a fixed one.
    Returns one comparison per row after the first, and the half-width of the 95% interval of a single difference. Needs
    at least two rows and two seeds.
    """
    methods, seeds = scores.shape
    assert methods >= 2 and seeds >= 2, scores.shape
    differences = scores[1:].mean(1) - scores[0].mean()
    erratic = erratic_rows(scores)
    kept = scores[~erratic]
    noise = kept - kept.mean(1, keepdims=True) - kept.mean(0, keepdims=True) + kept.mean()
    freedom = (len(kept) - 1) * (seeds - 1)
    variance = float((noise**2).sum()) / freedom
    error = math.sqrt(2 * variance * (1 / seeds + test_to_train))
    # Scores of a few images can agree in all seeds; nothing is then known about their spread.
    p_values = [student_p(float(d) / error, freedom) if error > 1e-9 else 1.0 for d in differences]
    for row in np.flatnonzero(erratic).tolist():  # of two methods none is erratic
        (pair,), _ = compare_with_control(scores[[0, row]], test_to_train)
        p_values[row - 1] = pair.p
    found = [
        Comparison(float(d), p, adjusted, bool(alone))
        for d, p, adjusted, alone in zip(differences, p_values, holm(p_values), erratic[1:], strict=True)
    ]
    return found, error * student_quantile(0.05, freedom)


def erratic_rows(scores: np.ndarray) -> np.ndarray:
    """Which methods have more than `ERRATIC` times the usual spread over seeds, (methods,); never the control.

    The spread is that of the distance from the seed's median method, which is without the seed's own effect. Two seeds
    say too little about it, so no method is then erratic.
    """
    methods, seeds = scores.shape
    if seeds < 3:
        return np.zeros(methods, bool)
    spread = (scores - np.median(scores, axis=0)).std(1, ddof=1)
    erratic = spread > ERRATIC * max(float(np.median(spread)), 1e-9)
    erratic[0] = False
    return erratic


def student_p(t: float, freedom: int) -> float:
    """Two-sided p-value of Student's t with a whole number of degrees of freedom (Abramowitz and Stegun, 26.7.3-4)."""
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    # For odd freedoms cos + 2/3 cos^3 + ..., for even ones 1 + 1/2 cos^2 + ...
    term = (cosine if freedom > 1 else 0.0) if odd else 1.0
    total = 0.0
    for k in range(2 + odd, freedom + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return min(1.0, max(0.0, 1 - inside))


def student_quantile(p: float, freedom: int) -> float:
    """The t whose two-sided p-value is `p`, by bisection."""
    low, high = 0.0, 1.0
    while student_p(high, freedom) > p:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > p else (low, middle)
    return high


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values by Holm's method, in the order of `p_values`."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted

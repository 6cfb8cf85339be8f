"""Calibrated confidence: the probability that a caption is a good one.

A caption is good if its CIDEr is above the median of the model's captions of photographs it was not trained on. Of
several data files, each has its own median. The model is a logistic regression on the mean log-probability of a caption's
words and on its ratings by other guides (see `consensus`). What else a search knows (margins, agreement, length) adds
nothing, see docs/experiments.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sca_caption.guidance.guide import Guide, TrainedGuide
from sca_caption.vocab import Vocabulary

RIDGE = 1e-3  # keeps the slope finite if every good caption scores above every poor one
MAX_BINS, MIN_BIN_SIZE = 10, 20  # of a reliability diagram: bins, and captions in each


class ConfidenceModel(TrainedGuide):
    """P(good) = 1 / (1 + exp(-(slope x + sum_g ratings[g] r_g + intercept))).

    x: mean log-probability per word, in nats, the end word included. r_g: the caption's rating by guide g.
    """

    def __init__(self, slope: float, intercept: float, ratings: Mapping[str, float] | None = None):
        super().__init__()
        self.slope, self.intercept, self.ratings = slope, intercept, dict(ratings or {})

    def settings(self) -> dict[str, Any]:
        return {"slope": self.slope, "intercept": self.intercept, "ratings": self.ratings}

    def probability(self, mean_log_prob: float, ratings: Mapping[str, float] | None = None) -> float:
        known = ratings or {}
        rated = sum(weight * known.get(name, 0.0) for name, weight in self.ratings.items())
        return float(1 / (1 + np.exp(-(self.slope * mean_log_prob + rated + self.intercept))))


class ConfidenceGuide(Guide):
    """Gives every caption its calibrated confidence."""

    name = "confidence"
    trained_type = ConfidenceModel
    gives_confidence = True

    def __init__(self, model: ConfidenceModel):
        self.model = model

    @classmethod
    def from_trained(cls, trained: ConfidenceModel, vocabulary: Vocabulary) -> Self:
        return cls(trained)

    @classmethod
    def from_json(cls, description: Mapping[str, Any], vocabulary: Vocabulary) -> Self:
        return cls(ConfidenceModel(description["slope"], description["intercept"], description["ratings"]))

    def to_json(self) -> dict[str, Any]:
        return self.model.settings()

    def confidence(self, mean_log_prob: float, ratings: Mapping[str, float]) -> float:
        return self.model.probability(mean_log_prob, ratings)


def fit_confidence(
    mean_log_probs: np.ndarray, good: np.ndarray, ratings: Mapping[str, np.ndarray] | None = None
) -> ConfidenceModel:
    """The maximum-likelihood curve, by Newton's method.

    mean_log_probs (N,), good (N,) of 0 and 1, ratings: per guide (N,).
    """
    ratings = ratings or {}
    x = np.stack([mean_log_probs, *ratings.values(), np.ones(len(mean_log_probs))], 1)
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (good - p) - RIDGE * weights
        weights = weights + np.linalg.solve(
            (x.T * (p * (1 - p))) @ x + RIDGE * np.eye(len(weights)), gradient
        )
    slope, *of_ratings, intercept = weights.tolist()
    return ConfidenceModel(slope, intercept, dict(zip(ratings, of_ratings, strict=True)))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 0 (N,); equal values share their mean rank."""
    _, value, count = np.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[value]


@dataclass(frozen=True)
class HeldOut:
    """Captions with the confidence of a model that was not fitted to them; arrays (N,).

    Attributes:
        confidence: probability that the caption is good.
        quality: what captions are compared by, their CIDEr.
        good: whether the quality is above the median of the captions of the same data file.
    """

    confidence: np.ndarray
    quality: np.ndarray
    good: np.ndarray


def reliability_bins(confidence: np.ndarray, good: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean confidence, share of good captions and number of captions per bin, (K,) each, by ascending confidence.

    The bins hold equal numbers of captions, up to one: K is at most MAX_BINS, and so small that no bin has fewer than
    MIN_BIN_SIZE captions, unless it is the only one.
    """
    K = max(1, min(MAX_BINS, len(confidence) // MIN_BIN_SIZE))
    bins = np.array_split(confidence.argsort(kind="stable"), K)
    means, shares = (np.array([values[each].mean() for each in bins]) for values in (confidence, good))
    return means, shares, np.array([len(each) for each in bins])


def expected_calibration_error(confidence: np.ndarray, good: np.ndarray) -> float:
    """The mean over captions of |share of good captions - mean confidence| of their bin, see `reliability_bins`.

    Guo et al. 2017, arXiv 1706.04599, equation 3, with bins of equal count instead of equal width.
    """
    means, shares, counts = reliability_bins(confidence, good)
    return float(np.average(np.abs(shares - means), weights=counts))

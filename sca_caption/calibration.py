"""From the log-probability of a caption to the probability that it is a good one.

Good is: CIDEr above the median of the model's captions of photographs it was not trained on. A logistic curve over the
mean log-probability of a caption's words; what else a search knows (margins, agreement, length) adds nothing, see
docs/decoding.md.
"""

from dataclasses import dataclass

import numpy as np

RIDGE = 1e-3  # keeps the slope finite where every good caption scores above every poor one


@dataclass(frozen=True)
class Calibration:
    """P(good) = 1 / (1 + exp(-(slope * x + intercept))), x in nats a word."""

    slope: float
    intercept: float

    def probability(self, mean_log_prob: float) -> float:
        return float(1 / (1 + np.exp(-(self.slope * mean_log_prob + self.intercept))))

    @classmethod
    def of(cls, metrics: dict) -> "Calibration | None":
        """That of a checkpoint's metrics, if it has one."""
        names = ("confidence_slope", "confidence_intercept")
        return cls(*(metrics[name] for name in names)) if all(name in metrics for name in names) else None

    def metrics(self) -> dict[str, float]:
        return {"confidence_slope": self.slope, "confidence_intercept": self.intercept}


def fit(mean_log_probs: np.ndarray, good: np.ndarray) -> Calibration:
    """The likeliest curve (Newton's method): mean_log_probs (N,), good (N,) of 0 and 1."""
    x = np.stack([mean_log_probs, np.ones(len(mean_log_probs))], 1)
    weights = np.zeros(2)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (good - p) - RIDGE * weights
        weights = weights + np.linalg.solve((x.T * (p * (1 - p))) @ x + RIDGE * np.eye(2), gradient)
    return Calibration(float(weights[0]), float(weights[1]))


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def ranks(x: np.ndarray) -> np.ndarray:
    _, value, count = np.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[value]

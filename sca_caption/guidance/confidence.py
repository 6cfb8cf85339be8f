"""From what is known of a caption to the probability that it is a good one.

Good is: CIDEr above the median of the model's captions of photographs it was not trained on. A logistic curve over the
mean log-probability of a caption's words and, where the model knows it, the consensus that it can expect (see
`consensus`); what else a search knows (margins, agreement, length) adds nothing, see docs/decoding.md.
"""

from dataclasses import dataclass, fields

import numpy as np

RIDGE = 1e-3  # keeps the slope finite where every good caption scores above every poor one


@dataclass(frozen=True)
class Calibration:
    """P(good) = 1 / (1 + exp(-(slope * x + consensus * c + intercept))), x in nats a word, c the consensus."""

    slope: float
    intercept: float
    consensus: float = 0.0

    def probability(self, mean_log_prob: float, consensus: float | None = None) -> float:
        odds = self.slope * mean_log_prob + self.consensus * (consensus or 0) + self.intercept
        return float(1 / (1 + np.exp(-odds)))

    @classmethod
    def of(cls, metrics: dict) -> "Calibration | None":
        """That of a checkpoint's metrics, if it has one."""
        found = {
            field.name: metrics[_metric(field.name)]
            for field in fields(cls)
            if _metric(field.name) in metrics
        }
        return cls(**found) if {"slope", "intercept"} <= set(found) else None

    def metrics(self) -> dict[str, float]:
        return {_metric(name): value for name, value in vars(self).items()}


def _metric(name: str) -> str:
    return f"confidence_{name}"


def fit(mean_log_probs: np.ndarray, good: np.ndarray, consensus: np.ndarray | None = None) -> Calibration:
    """The likeliest curve (Newton's method): mean_log_probs and consensus (N,), good (N,) of 0 and 1."""
    known = [mean_log_probs] if consensus is None else [mean_log_probs, consensus]
    x = np.stack([*known, np.ones(len(mean_log_probs))], 1)
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (good - p) - RIDGE * weights
        weights = weights + np.linalg.solve(
            (x.T * (p * (1 - p))) @ x + RIDGE * np.eye(len(weights)), gradient
        )
    slope, *further, intercept = weights.tolist()
    return Calibration(slope, intercept, *further)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; equal values share their mean rank."""
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def ranks(x: np.ndarray) -> np.ndarray:
    _, value, count = np.unique(x, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count + 1) / 2)[value]

"""Classification metrics: top-1, top-5 and per-class accuracy, and the confusion matrix.

N images, K classes. Accuracies are in per cent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 95  # per cent, of the interval of top-1
Z = 1.959964  # the standard normal quantile for CONFIDENCE


@dataclass(frozen=True)
class Scores:
    """The result of `score`. A class without images has accuracy None and is not part of the mean."""

    images: int
    top1: float
    interval: tuple[float, float]  # Wilson interval of top1
    top5: float
    mean_per_class: float
    per_class: dict[str, float | None]
    confusion: np.ndarray  # (K, K) counts: rows are true classes, columns predicted classes

    def metrics(self) -> dict[str, float]:
        """The accuracies, by their names in reports and results files."""
        return {"top-1": self.top1, "top-5": self.top5, "mean per-class": self.mean_per_class}


def score(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Scores:
    """Score logits (N, K) against labels (N,); N is at least 1.

    The lower class index wins a tie. NaN counts as -inf, so a diverged model scores like a random one.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    count, K = logits.shape
    assert count and labels.shape == (count,) and len(classes) == K, (
        logits.shape,
        labels.shape,
        len(classes),
    )
    logits = np.where(np.isnan(logits), -np.inf, logits)
    true_logit = logits[np.arange(count), labels][:, None]
    before = (logits > true_logit) | ((logits == true_logit) & (np.arange(K) < labels[:, None]))
    rank = before.sum(1)  # (N,), of the true class; 0 is best
    confusion = np.zeros((K, K), np.int64)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    totals, correct = confusion.sum(1), confusion.diagonal()
    per_class = [100 * float(c) / int(n) if n else None for c, n in zip(correct, totals, strict=True)]
    return Scores(
        images=count,
        top1=100 * float((rank < 1).mean()),
        interval=wilson_interval(int(correct.sum()), count),
        top5=100 * float((rank < 5).mean()),
        mean_per_class=float(np.mean([accuracy for accuracy in per_class if accuracy is not None])),
        per_class=dict(zip(classes, per_class, strict=True)),
        confusion=confusion,
    )


def wilson_interval(correct: int, count: int, z: float = Z) -> tuple[float, float]:
    """Wilson score interval of a proportion, in per cent (Wilson, 1927).

    Unlike the normal interval, it stays within 0 to 100 and is valid if none or all are correct.
    """
    proportion, spread = correct / count, z * z / count
    centre = (proportion + spread / 2) / (1 + spread)
    half = (spread * (proportion * (1 - proportion) + spread / 4)) ** 0.5 / (1 + spread)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def worst_classes(scores: Scores, limit: int = 5) -> list[tuple[str, float]]:
    """The `limit` classes with the lowest accuracy, lowest first, without classes of 100 %."""
    wrong = [(name, right) for name, right in scores.per_class.items() if right is not None and right < 100]
    return sorted(wrong, key=lambda each: each[1])[:limit]


def most_confused(scores: Scores, limit: int = 5) -> list[tuple[str, str, int]]:
    """The `limit` most frequent mistakes: (true class, predicted class, count)."""
    classes, mistakes = list(scores.per_class), scores.confusion.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = (np.unravel_index(each, mistakes.shape) for each in order)
    return [(classes[i], classes[j], int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def best_mean(values: Sequence[float], n: int = 5) -> float:
    """Mean of the n highest values, or of all if there are fewer: the accuracy that the CIFAR comparison reports.

    The recipe validates on the test images, so selecting epochs favours all models slightly.
    """
    assert len(values), "no epoch was validated"
    return float(np.mean(sorted(values)[-n:]))

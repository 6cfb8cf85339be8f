"""How well images were classified: top-1 and top-5, class by class, and what was taken for what.

N images, K classes. Accuracies go from 0 to 100.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # of the normal distribution, for intervals of CONFIDENCE %
CONFIDENCE = 95


@dataclass(frozen=True)
class Scores:
    """What `score` finds. A class of which there was no image has accuracy None and does not count in the mean."""

    images: int
    top1: float
    interval: tuple[float, float]  # Wilson's, of top1
    top5: float
    mean_per_class: float
    per_class: dict[str, float | None]
    confusion: np.ndarray  # (K, K) counts: rows are the truth, columns what was predicted

    def metrics(self) -> dict[str, float]:
        """The figures by the names that reports and result files give them."""
        return {"top-1": self.top1, "top-5": self.top5, "mean per-class": self.mean_per_class}


def score(logits: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Scores:
    """Score logits (N, K) against labels (N,), N at least 1.

    Of equal logits the lower class comes first; NaN comes last, so that a diverged model scores as chance does.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    count, K = logits.shape
    assert labels.shape == (count,) and count and len(classes) == K, (
        logits.shape,
        labels.shape,
        len(classes),
    )
    logits = np.where(np.isnan(logits), -np.inf, logits)
    own = logits[np.arange(count), labels][:, None]
    before = (logits > own) | ((logits == own) & (np.arange(K) < labels[:, None]))
    rank = before.sum(1)  # (N,), 0 where the truth was the first choice
    confusion = np.zeros((K, K), np.int64)
    np.add.at(confusion, (labels, logits.argmax(1)), 1)
    there, right = confusion.sum(1), confusion.diagonal()
    per_class = [100 * float(r) / int(n) if n else None for r, n in zip(right, there, strict=True)]
    return Scores(
        images=count,
        top1=100 * float((rank < 1).mean()),
        interval=wilson(int(right.sum()), count),
        top5=100 * float((rank < 5).mean()),
        mean_per_class=float(np.mean([each for each in per_class if each is not None])),
        per_class=dict(zip(classes, per_class, strict=True)),
        confusion=confusion,
    )


def wilson(right: int, count: int, z: float = Z) -> tuple[float, float]:
    """Interval of a share, 0 to 100 (Wilson 1927): unlike the normal one it stays inside, and holds at 0 and at all."""
    share, spread = right / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = (spread * (share * (1 - share) + spread / 4)) ** 0.5 / (1 + spread)
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)


def worst_classes(scores: Scores, most: int = 5) -> list[tuple[str, float]]:
    """The classes least often recognised, with their accuracy; those without a mistake are no part of it."""
    wrong = [(name, right) for name, right in scores.per_class.items() if right is not None and right < 100]
    return sorted(wrong, key=lambda each: each[1])[:most]


def most_confused(scores: Scores, most: int = 5) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: truth, what it was taken for, and how often."""
    classes, mistakes = list(scores.per_class), scores.confusion.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:most]
    pairs = (np.unravel_index(each, mistakes.shape) for each in order)
    return [(classes[i], classes[j], int(mistakes[i, j])) for i, j in pairs if mistakes[i, j]]


def best_mean(values: Sequence[float], n: int = 5) -> float:
    """The mean of the best n epochs, or of all if they are fewer: the figure of the CIFAR comparison.

    The recipe validates on the test images, so that picking epochs favours every model a little.
    """
    assert len(values), "no epoch was validated"
    return float(np.mean(sorted(values)[-n:]))

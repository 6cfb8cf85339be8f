"""Classification metrics against cases counted by hand and against brute force."""

import itertools
import math

import numpy as np
import pytest
import torch

from sca_caption.evaluation.classification_metrics import (  # fmt: skip
    Scores,
    best_mean,
    most_confused,
    score,
    wilson_interval,
    worst_classes,
)

CLASSES = ("ant", "bee", "cow")


def by_hand() -> Scores:
    """Five images: two ants and a bee are right, an ant is predicted as bee, a bee as cow; there is no cow."""
    logits = [[3, 1, 0], [2, 1, 1], [0, 5, 1], [0, 1, 2], [-4, -1, -2]]
    return score(np.array(logits, float), np.array([0, 0, 0, 1, 1]), CLASSES)


def test_metrics_counted_by_hand():
    found = by_hand()
    assert found.images == 5 and found.top1 == pytest.approx(60)
    assert found.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert found.per_class == {"ant": pytest.approx(200 / 3), "bee": 50.0, "cow": None}
    assert found.mean_per_class == pytest.approx((200 / 3 + 50) / 2)
    assert found.top5 == 100  # of three classes
    assert found.metrics() == {"top-1": found.top1, "top-5": 100, "mean per-class": found.mean_per_class}
    assert worst_classes(found) == [("bee", 50.0), ("ant", pytest.approx(200 / 3))]
    assert worst_classes(found, 1) == [("bee", 50.0)]
    assert most_confused(found) == [("ant", "bee", 1), ("bee", "cow", 1)]


def test_metrics_equal_brute_force():
    rng = np.random.default_rng(0)
    logits, labels = rng.integers(0, 4, (200, 9)).astype(np.float32), rng.integers(0, 9, 200)  # many ties
    found = score(logits, labels, [str(i) for i in range(9)])
    orders = [sorted(range(9), key=lambda k, row=row: (-row[k], k)) for row in logits]
    first = [order[0] for order in orders]
    assert found.top1 == pytest.approx(100 * np.mean([a == b for a, b in zip(first, labels, strict=True)]))
    inside = [label in order[:5] for label, order in zip(labels, orders, strict=True)]
    assert found.top5 == pytest.approx(100 * np.mean(inside))
    for truth, guess in itertools.product(range(9), repeat=2):
        pairs = zip(labels, first, strict=True)
        assert found.confusion[truth, guess] == sum(pair == (truth, guess) for pair in pairs)
    assert found.confusion.trace() / 2 == pytest.approx(found.top1)


def test_torch_tensors_are_accepted():
    logits, labels = torch.eye(6)[[0, 1, 2, 2]], torch.tensor([0, 1, 2, 5])
    found = score(logits, labels, list("abcdef"))
    assert found.top1 == 75 and found.per_class["f"] == 0 and found.per_class["d"] is None
    assert found.top5 == 75  # f ties with a, b, d and e, which have lower indices


def test_nan_logits_score_like_chance():
    labels = np.arange(40) % 4
    found = score(np.full((40, 4), np.nan), labels, list("abcd"))
    assert found.top1 == 25 and found.confusion[:, 0].tolist() == [10] * 4


def test_wilson_interval():
    assert wilson_interval(8, 10) == (pytest.approx(49.02, abs=0.01), pytest.approx(94.33, abs=0.01))
    assert wilson_interval(0, 10) == (0, pytest.approx(27.75, abs=0.01))
    assert wilson_interval(10, 10) == (pytest.approx(100 - 27.75, abs=0.01), pytest.approx(100))


@pytest.mark.parametrize(("right", "count"), [(1, 7), (30, 40), (9000, 10000)])
def test_wilson_bounds_solve_the_score_test(right, count):
    for bound in wilson_interval(right, count):
        share = bound / 100
        z = abs(right / count - share) / math.sqrt(share * (1 - share) / count)
        assert z == pytest.approx(1.96, abs=1e-4)


def test_mean_of_the_best_epochs():
    assert best_mean([90, 95, 10, 94, 93, 92, 91]) == 93
    assert best_mean([3, 1]) == 2 and best_mean([1, 5, 3], n=2) == 4


def test_perfect_predictions_have_no_worst_class():
    found = score(np.eye(3), np.arange(3), CLASSES)
    assert worst_classes(found) == [] and most_confused(found) == [] and found.top1 == 100

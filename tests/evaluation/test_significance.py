"""Comparisons with a control: closed forms of Student's t, the paired t-test, least squares, and Holm's method."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest

from sca_caption.evaluation.significance import (
    compare_with_control,
    erratic_rows,
    holm,
    student_p,
    student_quantile,
)


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, -2.5, 40.0])
def test_students_t_in_closed_form(t):
    """One degree of freedom is Cauchy's distribution; those of two and three have elementary integrals."""
    a = abs(t)
    assert student_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(a), abs=1e-12)
    assert student_p(t, 2) == pytest.approx(1 - a / math.sqrt(2 + a * a), abs=1e-12)
    angle = math.atan(a / math.sqrt(3))
    assert student_p(t, 3) == pytest.approx(
        1 - 2 / math.pi * (angle + math.sin(angle) * math.cos(angle)), abs=1e-12
    )


@pytest.mark.parametrize("freedom", [4, 7, 26])
def test_students_t_is_the_integral_of_its_density(freedom):
    t, steps = 1.7, 20_000
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(math.pi * freedom)
    middles = (np.arange(steps) + 0.5) * t / steps
    inside = 2 * scale * float(((1 + middles**2 / freedom) ** (-(freedom + 1) / 2)).sum()) * t / steps
    assert student_p(t, freedom) == pytest.approx(1 - inside, abs=1e-8)


@pytest.mark.parametrize(
    ("freedom", "p", "t"),
    [(2, 0.05, 4.303), (4, 0.05, 2.776), (6, 0.01, 3.707), (26, 0.05, 2.056), (26, 0.01, 2.779)],
)  # from printed tables
def test_critical_values_of_tables(freedom, p, t):
    assert student_quantile(p, freedom) == pytest.approx(t, abs=6e-4)


def test_one_method_is_the_paired_t_test():
    plain, block = [81.0, 82.5, 80.0, 83.0], [82.0, 84.5, 80.5, 85.5]
    pairs = [b - a for a, b in zip(plain, block, strict=True)]  # 1, 2, 0.5, 2.5: mean 1.5, squares 2.5 / 3
    t = 1.5 / (statistics.stdev(pairs) / 2)
    (found,), limit = compare_with_control(np.array([plain, block]))
    assert found.difference == pytest.approx(1.5)
    assert found.p == found.adjusted == pytest.approx(student_p(t, 3))
    assert limit == pytest.approx(3.1824463 * statistics.stdev(pairs) / 2)


def test_overlapping_splits_widen_the_interval_as_nadeau_and_bengio_say():
    scores = np.array([[81.0, 82.5, 80.0], [82.0, 84.5, 80.5]])
    limits = [compare_with_control(scores, ratio)[1] for ratio in (0.0, 0.25)]
    assert (limits[1] / limits[0]) ** 2 == pytest.approx((1 / 3 + 0.25) / (1 / 3))


def test_several_methods_are_a_fit_of_seeds_and_methods():
    rng = np.random.default_rng(0)
    scores = rng.normal(80, 1, (4, 3)) + rng.normal(0, 5, 3)
    rows, columns = [], []
    for method, seed in itertools.product(range(4), range(3)):
        rows.append([seed == s for s in range(3)] + [method == m for m in range(1, 4)])
        columns.append(scores[method, seed])
    design, y = np.array(rows, float), np.array(columns)
    weights, (squares,), _, _ = np.linalg.lstsq(design, y, rcond=None)
    error = np.sqrt(squares / (12 - 6) * np.linalg.inv(design.T @ design).diagonal())
    found, limit = compare_with_control(scores)
    assert [each.difference for each in found] == pytest.approx(weights[3:])
    assert [each.p for each in found] == pytest.approx(
        [student_p(w / e, 6) for w, e in zip(weights, error, strict=True)][3:]
    )
    assert limit == pytest.approx(error[3] * student_quantile(0.05, 6))


def test_no_false_positive_in_95_of_100_comparisons():
    """Thirteen blocks that change nothing, three seeds: some p below 0.05 in at most 5% of comparisons, up to noise."""
    rng = np.random.default_rng(1)
    false = [
        min(
            each.adjusted for each in compare_with_control(rng.normal(0, 1, (14, 3)) + rng.normal(0, 3, 3))[0]
        )
        < 0.05
        for _ in range(1000)
    ]
    assert 0.02 < np.mean(false) < 0.07


def test_an_erratic_method_is_tested_alone_and_hides_no_other():
    rng = np.random.default_rng(2)
    steady = rng.normal(80, 0.5, (9, 3)) + rng.normal(0, 2, 3)
    steady[4] -= 4
    erratic = np.array([[44.0, 67.0, 66.0]])
    alone, limit = compare_with_control(steady, 0.4)
    (*others, last), limit_with = compare_with_control(np.concatenate([steady, erratic]), 0.4)
    assert [(each.p, each.erratic) for each in others] == [(each.p, False) for each in alone]
    assert limit_with == limit and others[3].p < 0.001
    pair, _ = compare_with_control(np.concatenate([steady[:1], erratic]), 0.4)
    assert last.erratic and last.p == pytest.approx(pair[0].p)  # the paired t-test
    assert not any(each.erratic for each in pair)


def test_equal_noise_is_seldom_erratic():
    rng = np.random.default_rng(3)
    for methods, most in ((2, 0.0), (3, 0.03), (14, 0.003)):
        drawn = (rng.normal(0, 1, (methods, 3)) + rng.normal(0, 3, 3) for _ in range(2000))
        assert np.mean([erratic_rows(scores).any() for scores in drawn]) <= most
    assert not erratic_rows(np.array([[80.0, 80], [81, 80], [80, 20]])).any()


def test_equal_scores_are_no_evidence():
    (found,), _ = compare_with_control(np.array([[50.0, 50.0], [25.0, 25.0]]))
    assert (found.difference, found.p) == (-25, 1)


def test_holm_by_hand():
    """0.01 x 4; 0.02 x 3 = 0.06; 0.03 x 2 = 0.06; 0.5 x 1. Later ones are at least as large as earlier ones."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.04, 0.011]) == pytest.approx([0.04, 0.022])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_holm_rejects_what_its_sequential_procedure_rejects():
    rng = random.Random(0)
    for _ in range(200):
        p_values = [rng.choice((0.001, 0.01, 0.02, 0.04, 0.3)) for _ in range(rng.randint(1, 6))]
        rejected, level = set(), 0.05
        for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[index] > level / (len(p_values) - rank):
                break
            rejected.add(index)
        assert {i for i, p in enumerate(holm(p_values)) if p <= level + 1e-12} == rejected

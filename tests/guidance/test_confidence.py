"""Calibrated confidence: the fit against the curve that made the data, and the program on a tiny captioner."""

import numpy as np
import pytest

from sca_caption import checkpoint
from sca_caption.cli import caption, fit
from sca_caption.datasets.sources.records import Source
from sca_caption.guidance.confidence import (
    RIDGE,
    expected_calibration_error,
    fit_confidence,
    reliability_bins,
    spearman,
)
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.training.fit_guidance import held_out_confidence
from tests.helpers.made_photos import record, write


def made(count=40_000):
    random = np.random.default_rng(0)
    x = random.normal(-1, 0.5, count)
    return x, random.random(count) < 1 / (1 + np.exp(-(3 * x + 2)))


def test_the_fit_has_the_maximum_likelihood():
    x, good = made()
    found = fit_confidence(x, good)
    assert (found.slope, found.intercept) == pytest.approx((3, 2), abs=0.1)
    error = good - np.array([found.probability(each) for each in x])
    assert error.sum() == pytest.approx(RIDGE * found.intercept, abs=1e-6), "as many good ones as it says"
    assert (error * x).sum() == pytest.approx(RIDGE * found.slope, abs=1e-6)


def test_separable_data_have_a_finite_slope():
    found = fit_confidence(np.array([-2.0, -1.5, -1.0, -0.5]), np.array([0, 0, 1, 1]))
    assert found.probability(-2) < 0.05 and found.probability(-0.5) > 0.95 and np.isfinite(found.slope)


def test_held_out_confidence_is_calibrated():
    x, good = made(20_000)
    confidence = held_out_confidence(x, good, {})
    for quarter in np.array_split(confidence.argsort(), 4):
        low, high = confidence[quarter].min(), confidence[quarter].max()
        assert low - 0.02 <= good[quarter].mean() <= high + 0.02


def test_bins_and_calibration_error_by_hand():
    """45 captions are two bins, of 23 and 22: a third would leave only 15 for each."""
    confidence = np.array([0.1] * 20 + [0.4] * 3 + [0.6] * 12 + [0.9] * 10)
    good = np.array([1] * 5 + [0] * 18 + [1] * 6 + [0] * 6 + [1] * 8 + [0] * 2).astype(bool)
    means, shares, counts = reliability_bins(confidence, good)
    assert counts.tolist() == [23, 22]
    assert means == pytest.approx([(20 * 0.1 + 3 * 0.4) / 23, (12 * 0.6 + 10 * 0.9) / 22])
    assert shares == pytest.approx([5 / 23, 14 / 22])
    # Captions that are expected to be good, and those that are: 3.2 and 5, then 16.2 and 14, of 45.
    error = (abs(5 - 3.2) + abs(14 - 16.2)) / 45
    assert expected_calibration_error(confidence, good) == pytest.approx(error)
    order = np.random.default_rng(0).permutation(
        45
    )  # mixes captions of equal confidence only within their bin
    assert expected_calibration_error(confidence[order], good[order]) == pytest.approx(error)


@pytest.mark.parametrize(
    ("captions", "sizes"),
    [
        (5, [5]),
        (39, [39]),
        (40, [20, 20]),
        (199, [23] + [22] * 8),
        (200, [20] * 10),
        (1001, [101] + [100] * 9),
    ],
)
def test_bins_have_equal_counts(captions, sizes):
    confidence = np.random.default_rng(0).permutation(np.linspace(0.2, 0.8, captions))
    means, shares, counts = reliability_bins(confidence, confidence > 0.5)
    assert counts.tolist() == sizes and (np.diff(means) > 0).all() and (np.diff(shares) >= 0).all()


def test_true_probabilities_have_no_calibration_error():
    """Up to chance; a constant one half has that of each share's distance from it."""
    random = np.random.default_rng(0)
    confidence = random.random(200_000)
    good = random.random(200_000) < confidence
    assert expected_calibration_error(confidence, good) < 0.005
    assert expected_calibration_error(confidence / 2, good) == pytest.approx(0.25, abs=0.005)
    assert expected_calibration_error(good.astype(float), good) == 0


def test_spearman_with_ties():
    assert spearman(np.array([1, 2, 3, 4]), np.array([10, 20, 30, 400])) == pytest.approx(1)
    # ranks 1.5 1.5 3 and 1 2 3
    assert spearman(np.array([5, 5, 7]), np.array([1, 2, 3])) == pytest.approx(np.sqrt(3) / 2)


def test_scores_are_probabilities_once_confidence_is_fitted(tiny_checkpoint, tmp_path, photos, capsys):
    path, data = tmp_path / "best.pt", tmp_path / "made.h5"
    path.write_bytes(tiny_checkpoint.read_bytes())
    words = ["red dog runs", "a cat sits on grass", "two men", "blue water", "the woman runs"]
    records = [record(0), record(1)] + [record(i + 2, "val", [words[i % 5], words[i % 3]]) for i in range(20)]
    write(Source("made", "made for a test", records), data)

    assert caption.main([str(photos[0]), "--scores", "--checkpoint", str(path)]) == 0
    score, text = capsys.readouterr().out.rstrip("\n").split("\t")
    (plain,) = next(CaptionPipeline.load(path).stream(photos[:1])).captions
    assert (float(score), text, plain.confidence) == (
        pytest.approx(plain.mean_log_prob, abs=0.006),
        plain.text,
        None,
    )
    assert plain.mean_log_prob == pytest.approx(plain.log_prob / (len(text.split()) + plain.finished))

    before = checkpoint.load(path)
    assert fit.main(["confidence", str(path), "--data", str(data)]) == 0
    assert "over 20 images" in capsys.readouterr().out
    after = checkpoint.load(path)
    assert after.metrics["CIDEr"] == before.metrics["CIDEr"]
    expected = after.guides["confidence"].probability(plain.mean_log_prob)
    assert caption.main([str(photos[0]), "--scores", "--checkpoint", str(path)]) == 0
    assert float(capsys.readouterr().out.split("\t")[0]) == pytest.approx(expected, abs=0.006)
    for name in ("out.json", "out.csv"):
        assert (
            caption.main([*map(str, photos[:2]), "--output", str(tmp_path / name), "--checkpoint", str(path)])
            == 0
        )
        assert "confidence" in (tmp_path / name).read_text()

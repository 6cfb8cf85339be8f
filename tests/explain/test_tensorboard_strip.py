"""The picture of what was attended shows the weights of each layer under the right words."""

import numpy as np
import pytest
from PIL import Image

from sca_caption.explain.overlay import multiples, paint
from sca_caption.explain.tensorboard_strip import CHANNELS, draw, strip
from sca_caption.images import Transform
from sca_caption.models.attention_trace import LayerTrace, Trace

WORDS = ["a", "dog", "runs"]
T, S, C, SIDE = len(WORDS), 28, 40, 7


def made_image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (S, S, 3), np.uint8)


def peaked() -> np.ndarray:
    """(T, SIDE, SIDE): word t attends to the position (t, 2 t) alone."""
    weights = np.zeros((T, SIDE, SIDE), np.float32)
    weights[range(T), range(T), [2 * t for t in range(T)]] = 1
    return weights


def channels() -> np.ndarray:
    """(T, C): word t attends to channel 10 t four times as much as to the others."""
    weights = np.ones((T, C), np.float32)
    weights[range(T), [10 * t for t in range(T)]] = 4
    return weights / weights.sum(1, keepdims=True)


def trace_of(*layers: tuple) -> Trace:
    return Trace(np.full(T, 0.5, np.float32), tuple(LayerTrace(*layer) for layer in layers))


def test_rows_are_layers_and_columns_words():
    figure = draw(
        made_image(), WORDS, trace_of(("low", peaked(), channels()), ("high", peaked(), None)), "a.jpg"
    )
    bar = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    low, high, rest = figure.axes[:T], figure.axes[T : 2 * T], figure.axes[2 * T :]
    assert figure.get_suptitle() == "a.jpg" and len(rest) == 2 and len(bar) == 1
    assert [axes.get_title() for axes in low] == WORDS and low[0].get_ylabel() == "low"
    assert [axes.get_title() for axes in high] == [""] * T and high[0].get_ylabel() == "high"
    assert [axes.get_xlabel() for axes in low] == ["49.0×"] * T  # times even attention
    for t, axes in enumerate(low):
        shares = multiples(peaked()[t], (S, S), Transform(S))
        expected = paint(Image.fromarray(made_image()), shares, SIDE**2, Transform(S))
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)
        # It is lit where the weight is, and grey elsewhere.
        coloured, cell = np.ptp(expected.astype(int), axis=2) > 2, S // SIDE
        centre = ((t + 0.5) * cell, (2 * t + 0.5) * cell)
        assert coloured[int(centre[0]), int(centre[1])]
        for places, at in zip(np.nonzero(coloured), centre, strict=True):
            assert np.abs(places + 0.5 - at).max() <= 2.5 * cell


def test_channels_are_the_strongest_at_any_word_as_multiples_of_even():
    figure = draw(made_image(), WORDS, trace_of(("top", None, channels())))
    axes = figure.axes[T]
    named = [int(label.get_text()) for label in axes.get_yticklabels()]
    assert len(named) == CHANNELS and named[:3] == [0, 10, 20]
    np.testing.assert_allclose(axes.images[0].get_array(), channels()[:, named].T * C)
    np.testing.assert_array_equal(
        figure.axes[0].images[0].get_array(), made_image()
    )  # as it is: nothing spatial


@pytest.mark.parametrize("count", [1, 3, 20])
def test_pixels_for_any_number_of_words(count):
    even = np.full((count, 2, 2), 0.25, np.float32)
    found = strip(
        made_image(), ["word"] * count, trace_of(("top", even, np.full((count, 3), 1 / 3, np.float32)))
    )
    assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
    assert found.shape[1] >= 60 * count and np.ptp(found) > 200

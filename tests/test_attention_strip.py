"""The picture of what was attended shows the weights at their places, under the right words."""

import numpy as np
import pytest

from sca_caption.attention_strip import CHANNELS, draw, overlaid, strip
from sca_caption.attention_trace import LayerTrace, Trace

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


def test_the_image_is_lit_where_the_weight_is_and_grey_elsewhere():
    image = made_image()
    grey = np.rint(image @ [0.299, 0.587, 0.114])[..., None]
    scale = S // SIDE
    for t, weights in enumerate(peaked()):
        coloured = np.abs(overlaid(image, weights) - np.broadcast_to(grey, image.shape)).max(2) > 2
        rows, columns = np.nonzero(coloured)
        centre = ((t + 0.5) * scale, (2 * t + 0.5) * scale)
        assert coloured[int(centre[0]), int(centre[1])]
        assert np.abs(rows + 0.5 - centre[0]).max() <= 2.5 * scale
        assert np.abs(columns + 0.5 - centre[1]).max() <= 2.5 * scale
    assert not np.ptp(overlaid(np.full_like(image, 7), np.full((SIDE, SIDE), 1 / SIDE**2)), axis=(0, 1)).any()


def test_even_attention_is_half_as_strong_as_a_peak():
    black = np.zeros((S, S, 3), np.uint8)
    even = overlaid(black, np.full((SIDE, SIDE), 1 / SIDE**2, np.float32))[0, 0].sum()
    alone = overlaid(black, np.ones((1, 1), np.float32))[
        0, 0
    ].sum()  # a peak that is everywhere, but even too
    top = overlaid(black, peaked()[1]).sum(2).max()
    assert 0 < even == alone < 0.6 * top


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
        np.testing.assert_array_equal(axes.images[0].get_array(), overlaid(made_image(), peaked()[t]))


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

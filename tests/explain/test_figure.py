"""The figure has a panel for every word, its text fits and says what the weights are, for every kind of model."""

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ElementTree

import matplotlib.pyplot
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from sca_caption.explain.channel_figure import ChannelPanel
from sca_caption.explain.channel_patches import relative_changes, rising_channels, strongest_channels
from sca_caption.explain.figure import image_dpi, panel_columns
from sca_caption.runtime.figures import DPI, fit_text, text_width, wrap_text
from tests.helpers.explanations import WORDS, made_explanation

SENTENCE = (
    "a very photographically overexposed man is standing on one of the extraordinarily long skateboards in front of "
    "two tall buildings"
)
LONG = tuple(SENTENCE.split())  # 20 words
TWO = (("layer3.5", 24, 6, 6), ("layer4.2.conv3", 2048, 3, 3))


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("words", [WORDS, LONG, ("dog",)])
def test_every_word_has_a_panel_with_its_numbers(words):
    made = made_explanation(words)
    figure = made.figure()
    shapes = [axes.images[0].get_array().shape[:2] for axes in figure.axes if axes.images]
    assert max(shapes.count(shape) for shape in set(shapes[1:]) - {(1, 256)}) >= len(words)
    found = texts(figure)
    for t, word in enumerate(words):
        assert found.count(word) >= 2 * words.count(word)  # above its panel and before its row
        spatial = made.trace.layers[0].spatial[t]
        assert f"max ×{spatial.max() * 35:.1f}" in found or f"max ×{spatial.max() * 35:.0f}" in found
        assert f"p {made.trace.probabilities[t]:.2f}" in found or made.trace.probabilities[t] < 0.005
    assert matplotlib.pyplot.get_fignums() == []


def test_the_channels_are_the_strongest_and_the_most_changed():
    made = made_explanation()
    weights = made.trace.layers[0].channel
    strong = strongest_channels(weights, 6)
    changed = rising_channels(weights, 6, strong)
    found = texts(made.figure())
    start = found.index(str(strong[0]))
    numbers = [text for text in found[start:] if text.isdigit()]
    assert numbers[:12] == [str(channel) for channel in (*strong, *changed)]
    for t, channel in itertools.product(range(len(WORDS)), strong):
        assert f"{weights[t, channel] * 40:.2f}" in found
    for t, channel in itertools.product(range(len(WORDS)), changed):
        percent = f"{100 * relative_changes(weights)[t, channel]:+.0f}".replace("-", "−")
        assert percent in found or percent[1:] == "0"


def test_channels_that_are_zero_in_the_photograph_are_left_out():
    made = made_explanation()
    weights, maps = made.trace.layers[0].channel, made.maps[0].copy()
    zero = [*strongest_channels(weights, 4), *rising_channels(weights, 3)]
    maps[zero] = 0
    found = ChannelPanel(dataclasses.replace(made, maps=(maps,)), 0)
    assert len(found.strongest) == len(found.rising) == 6 and len({*found.strongest, *found.rising}) == 12
    assert not {*found.strongest, *found.rising} & set(zero)
    assert found.strongest == strongest_channels(weights, 6, zero)
    # If too few channels are left, all are shown.
    none = ChannelPanel(dataclasses.replace(made, maps=(0 * maps,)), 0)
    assert none.strongest == strongest_channels(weights, 6)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["S", "C", "SC"])
@pytest.mark.parametrize("layers", [(("top", 40, 4, 4),), TWO])
def test_a_kind_of_attention_that_the_model_lacks_is_left_out(kinds, layers):
    found = texts(made_explanation(kinds=kinds, layers=layers).figure())
    assert found.count("Spatial attention") == len(layers) * ("S" in kinds)
    assert found.count("Channel attention") == len(layers) * ("C" in kinds)
    letters = [text for text in found if re.fullmatch("[b-f]", text)]
    assert letters == list("bcdef"[: len(layers) * len(kinds) - 1])
    assert any("Spatial weight" in text for text in found) == ("S" in kinds)
    assert any("Top patch" in text for text in found) == ("C" in kinds)


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        made_explanation(LONG, layers=TWO),
        made_explanation(LONG, size=(30, 300)),
        made_explanation(size=(600, 60), mode="crop"),
        made_explanation(("extraordinarilyphotographically" * 3,), size=(3, 2)),
        made_explanation(even=True),
        made_explanation(("$5", "$x^2$", "'s"), layers=(("one", 3, 2, 2),)),
    ],
    ids=["long", "portrait", "panorama", "tiny", "even", "odd"],
)
def test_text_is_legible_inside_the_page_and_nothing_is_over_anything(made):
    figure = made.figure()
    renderer = FigureCanvasAgg(figure).get_renderer()
    width, height = figure.get_size_inches() * figure.dpi
    assert width == pytest.approx(7.2 * figure.dpi)
    boxes = []
    figure.draw(renderer)  # places the labels of ticks
    labels = [label for axes in figure.axes if axes.axison for label in axes.get_xticklabels()]
    for text in (*figure.texts, *(text for axes in figure.axes for text in axes.texts), *labels):
        assert text.get_text() and text.get_fontsize() >= 7
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text.get_text()
        boxes.append((text.get_text(), box.shrunk(0.98, 0.7)))
    for (one, a), (other, b) in itertools.combinations(boxes, 2):
        assert not a.overlaps(b), (one, other)
    places = [axes.get_window_extent(renderer).shrunk(0.99, 0.99) for axes in figure.axes]
    for a, b in itertools.combinations(places, 2):
        assert not a.overlaps(b)
    for name, box in boxes:
        inside = [place for place in places if box.overlaps(place)]
        assert len(inside) <= 1, name  # a number on its cell, a tick at its bar


def test_even_attention_has_no_colour():
    figure = made_explanation(even=True).figure()
    panels = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    grey = [image for image in panels if np.ptp(image.astype(int), axis=2).max() <= 1]
    assert len(grey) == len(WORDS)


def test_svg_has_its_text_as_text(tmp_path):
    made_explanation().save(tmp_path / "why.svg")
    written = [each.text for each in ElementTree.parse(tmp_path / "why.svg").findall(".//{*}text")]
    for text in ("Spatial attention", "Channel attention", "a dog runs on the grass", "grass"):
        assert text in written


@pytest.mark.slow
def test_svg_and_pdf_of_a_long_caption_are_of_a_sensible_size(tmp_path):
    made = made_explanation(LONG, layers=(("top", 64, 9, 9),))
    noise = np.random.default_rng(0).integers(0, 256, (125, 100, 3), np.uint8)
    made = dataclasses.replace(made, photograph=Image.fromarray(noise).resize((800, 1000)))
    assert image_dpi(made.figure()) < image_dpi(made_explanation(("dog",)).figure()) <= DPI
    for kind in ("svg", "pdf"):
        made.save(tmp_path / f"why.{kind}")
        assert (tmp_path / f"why.{kind}").stat().st_size < 2e6


def test_rows_of_panels_are_full_and_wide_enough():
    for count, shape in itertools.product(range(1, 25), (0.42, 0.75, 1.5, 7.0)):
        columns, width = panel_columns(count, shape)
        assert columns >= 2 and width >= 1.0 and columns * width <= 6.9
    assert panel_columns(10, 1.5)[0] == 5


def test_text_is_made_to_fit():
    assert fit_text("short", 5, 9, 7) == ("short", 9)
    text, size = fit_text("a rather long heading", 1.2, 9, 7)
    assert 7 <= size < 9 and text_width(text, size) <= 1.21
    text, size = fit_text("far too long for any such place", 0.5, 9, 7)
    assert size == 7 and text.endswith("…") and text_width(text, 7) <= 0.51
    lines = wrap_text("one two three four five six", 0.6, 10)
    assert " ".join(lines) == "one two three four five six" and len(lines) > 2
    assert all(text_width(line, 10) <= 0.6 for line in lines)

"""Figure of an explanation: photograph, caption, and each attended layer's spatial and channel attention per word.

Lengths are in inches, text sizes in points.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sca_caption.explain.channel_figure import ChannelPanel
from sca_caption.explain.overlay import multiples, paint, scale_strip, scale_ticks, scale_top
from sca_caption.models.attention_trace import LayerTrace
from sca_caption.runtime.figures import DPI, Page, fit_text, text_width, wrap_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sca_caption.explain.explanation import Explanation


WIDTH, MARGIN, GAP = 7.2, 0.15, 0.26
TITLE_SIZE, HEADING_SIZE, WORD_SIZE, SMALL_SIZE = 13.0, 9.5, 8.5, 7.0
DARK_GREY, GREY = "0.1", "0.4"
# Header
PHOTOGRAPH = (2.6, 1.6)  # maximum width and height
TITLE_LINE = 0.235
BAR = (2.6, 0.1)
# Panels
SHAPES = (0.42, 7.0)  # minimum and maximum width / height of panels
PANEL_AREA, MIN_PANEL_WIDTH = 1.35, 1.02
PANEL_GAP = 0.09
HEADING_LINE = 0.26
SMALL_LINE = 0.135
ABOVE, BELOW = 0.17, 0.19  # heights of the word above a panel and of the numbers below it
PIXELS = 500_000  # of all images together in .svg and .pdf; bounds the file size


@dataclass
class Section:
    """A section of the page: its height, and a function `draw(page, top)`."""

    height: float
    draw: Callable[[Page, float], None]


def draw(explanation: "Explanation") -> "Figure":
    """Draw an `explanation.Explanation`."""
    sections = list(sections_of(explanation))
    page = Page(WIDTH, 2 * MARGIN + sum(section.height for section in sections) + GAP * (len(sections) - 1))
    page.figure.set_facecolor("white")
    top = MARGIN
    for section in sections:
        section.draw(page, top)
        top += section.height + GAP
    return page.figure


def sections_of(explanation: "Explanation") -> Iterator[Section]:
    layers = explanation.trace.layers
    top = scale_top(*(layer.spatial for layer in layers))
    yield header(explanation, top if any(layer.spatial is not None for layer in layers) else None)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for index, layer in enumerate(layers):
        if layer.spatial is not None:
            yield spatial_section(explanation, layer, top, next(letters))
        if layer.channel is not None:
            channels = ChannelPanel(explanation, index)
            letter = next(letters)
            yield Section(HEADING_LINE + channels.height, partial(draw_channels, channels, letter))
    yield notes(explanation)


def draw_channels(channels: ChannelPanel, letter: str, page: Page, y: float) -> None:
    heading(page, y, letter, "Channel attention", channels.subtitle)
    channels.draw(page, MARGIN, y + HEADING_LINE, WIDTH - 2 * MARGIN)


def notes(explanation: "Explanation") -> Section:
    """Explain the terms of the figure in small print."""
    layers, examples = explanation.trace.layers, explanation.examples
    text = "Uniform: the weight of a position, or channel, if all were equal. A word's weights are those that predict it."
    if any(layer.channel is not None for layer in layers):
        among = f"in {examples.image_count:,} training images" if examples else "in this photograph"
        text += f" Top patch: around the maximum of a channel {among}."
        text += " Active at: values of the channel over this photograph, from 0 to their maximum."
    lines = wrap_text(text, WIDTH - 2 * MARGIN, SMALL_SIZE)

    def draw(page: Page, top: float) -> None:
        for number, line in enumerate(lines):
            page.text(MARGIN, top + number * SMALL_LINE, line, SMALL_SIZE, color=GREY)

    return Section(SMALL_LINE * len(lines) - 0.08, draw)


def heading(page: Page, top: float, letter: str, title: str, subtitle: str) -> None:
    baseline = top + 0.12
    page.text(MARGIN, baseline, letter, HEADING_SIZE, weight="bold", color=DARK_GREY)
    page.text(MARGIN + 0.17, baseline, title, HEADING_SIZE, weight="bold", color=DARK_GREY)
    left = MARGIN + 0.17 + text_width(title, HEADING_SIZE, "bold") + 0.12
    text, size = fit_text(subtitle, WIDTH - MARGIN - left, 7.5, SMALL_SIZE)
    page.text(left, baseline, text, size, color=GREY)


def header(explanation: "Explanation", top: float | None) -> Section:
    """Photograph, caption, and colour bar of the spatial weights from 1 to `top` (None: no spatial attention)."""
    photograph = explanation.photograph
    max_width, max_height = PHOTOGRAPH
    scale = min(max_width / photograph.width, max_height / photograph.height)
    width, height = (max(side * scale, 0.15) for side in photograph.size)
    left = MARGIN + width + 0.25
    room = WIDTH - MARGIN - left
    lines = wrap_text(explanation.caption.text, room, TITLE_SIZE, "bold") or [""]
    text_height = 0.2 + TITLE_LINE * (len(lines) - 1) + (0.2 if top is None else 0.86)
    words = "each word" if len(explanation.words) != 1 else "the word"

    def draw(page: Page, y: float) -> None:
        taller = max(height, text_height)
        shown = at_size(photograph, width, height)
        page.image(MARGIN, y + (taller - height) / 2, width, height, np.asarray(shown))
        y += (taller - text_height) / 2 + 0.17
        for line in lines:
            text, size = fit_text(line, room, TITLE_SIZE, SMALL_SIZE, "bold")
            page.text(left, y, text, size, weight="bold", color=DARK_GREY)
            y += TITLE_LINE
        page.text(left, y - 0.03, f"Attention of the model when it predicts {words}", 8, color=GREY)
        if top is not None:
            colour_bar(page, left, y + 0.19, min(BAR[0], room), top)

    return Section(max(height, text_height), draw)


def colour_bar(page: Page, left: float, y: float, width: float, top: float) -> None:
    """Colour bar of the spatial weights: its title above, multiples of uniform attention below."""
    page.text(left, y, "Spatial weight as a multiple of uniform; grey: below 1", SMALL_SIZE, color=DARK_GREY)
    axes = page.axes(left, y + 0.07, width, BAR[1])
    axes.imshow(scale_strip(top, 256), aspect="auto", extent=(0, np.log2(top), 0, 1), interpolation="nearest")
    ticks = scale_ticks(top)
    if np.log2(top / ticks[-1]) < 0.1 * np.log2(top):
        ticks.pop()
    axes.set_yticks([])
    axes.set_xticks(
        [*np.log2(ticks), np.log2(top)],
        [*(f"×{tick:g}" for tick in ticks), f"×{multiple(top).removesuffix('.0')}"],
    )
    axes.tick_params(labelsize=SMALL_SIZE, length=2, width=0.5, pad=1.5, colors=DARK_GREY)
    for side in axes.spines.values():
        side.set_linewidth(0.5)


def spatial_section(explanation: "Explanation", layer: LayerTrace, top: float, letter: str) -> Section:
    """Photograph with the spatial weights of a layer, one panel per word."""
    spatial = layer.spatial
    assert spatial is not None
    T, H, W = spatial.shape
    photograph, words = explanation.photograph, explanation.words
    shape = min(max(photograph.width / photograph.height, SHAPES[0]), SHAPES[1])
    columns, width = panel_columns(T, shape)
    height = width / shape
    rows = -(-T // columns)
    step = ABOVE + height + BELOW
    subtitle = f"layer {layer.name}, {H} × {W} positions: uniform is 1/{H * W}; p: probability of the word"

    def draw(page: Page, y: float) -> None:
        heading(page, y, letter, "Spatial attention", subtitle)
        small = at_size(photograph, width, height)
        for t in range(T):
            x = MARGIN + t % columns * (width + PANEL_GAP)
            row_top = y + HEADING_LINE + t // columns * step
            weights = multiples(spatial[t], small.size, explanation.transform)
            picture = paint(small, weights, top, explanation.transform)
            page.image(x, row_top + ABOVE, width, height, picture)
            text, size = fit_text(words[t], width, WORD_SIZE, SMALL_SIZE, "bold")
            page.text(x, row_top + ABOVE - 0.05, text, size, weight="bold", color=DARK_GREY)
            below = row_top + ABOVE + height + 0.12
            page.text(
                x, below, f"p {probability(explanation.trace.probabilities[t])}", SMALL_SIZE, color=GREY
            )
            greatest = f"max ×{multiple(spatial[t].max() * H * W)}"
            page.text(x + width, below, greatest, SMALL_SIZE, color=GREY, ha="right")

    return Section(HEADING_LINE + rows * step - 0.05, draw)


def panel_columns(panels: int, shape: float) -> tuple[int, float]:
    """Choose columns and panel width: panels of about PANEL_AREA, and a last row that is nearly full."""
    room = WIDTH - 2 * MARGIN

    def cost(columns: int) -> float:
        width = (room - (columns - 1) * PANEL_GAP) / columns
        empty = (-panels % columns) / columns
        return abs(np.log(width * width / shape / PANEL_AREA)) + 0.6 * empty

    possible = range(2, 1 + int((room + PANEL_GAP) / (MIN_PANEL_WIDTH + PANEL_GAP)))
    columns = min(possible, key=cost) if panels > 1 else 3
    return columns, (room - (columns - 1) * PANEL_GAP) / columns


def image_dpi(figure: "Figure") -> int:
    """Resolution of a figure's images in .svg and .pdf, in pixels per inch."""
    width, height = figure.get_size_inches()
    places = (axes.get_position() for axes in figure.axes if axes.images)
    area = width * height * sum(place.width * place.height for place in places)  # square inches
    return int(min(DPI, (PIXELS / area) ** 0.5))


def at_size(photograph: Image.Image, width: float, height: float) -> Image.Image:
    """Resize a photograph to fit a rectangle in inches."""
    scale = min(width * DPI / photograph.width, height * DPI / photograph.height)
    size = max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale))
    return photograph.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def multiple(value: float) -> str:
    """Format a multiple of uniform attention: 1.6, 12."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def probability(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else "< 0.01"

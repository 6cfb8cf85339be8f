"""The figure of an explanation: the photograph and its caption; for each attended layer where the model looked and what
it selected, word by word.

Lengths are inches, sizes of text points.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sca_caption.explain.channel_figure import Channels
from sca_caption.explain.overlay import multiples, painted, scale_strip, scale_ticks, scale_top
from sca_caption.models.attention_trace import LayerTrace
from sca_caption.runtime.figures import DPI, Page, fit_text, text_width, wrap_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sca_caption.explain.explanation import Explanation


WIDTH, MARGIN, GAP = 7.2, 0.15, 0.26
TITLE, HEADING, WORD, SMALL = 13.0, 9.5, 8.5, 7.0
INK, FAINT = "0.1", "0.4"
# Header
PHOTOGRAPH = (2.6, 1.6)  # at most, width and height
TITLE_LINE = 0.235
BAR = (2.6, 0.1)
# Panels
SHAPES = (0.42, 7.0)  # width / height of panels; what is narrower or wider stands inside one
PANEL_AREA, LEAST_PANEL = 1.35, 1.02
BETWEEN = 0.09
HEADING_LINE = 0.26
SMALL_LINE = 0.135
ABOVE, BELOW = 0.17, 0.19  # the word, and its numbers
PIXELS = 500_000  # of all images together in .svg and .pdf, which bounds their size


@dataclass
class Block:
    """A part of the page: how high it is, and how it is drawn from a place `top` on."""

    height: float
    draw: Callable[[Page, float], None]


def draw(explanation: "Explanation") -> "Figure":
    """Draw an `explain.Explanation`."""
    blocks = list(blocks_of(explanation))
    page = Page(WIDTH, 2 * MARGIN + sum(block.height for block in blocks) + GAP * (len(blocks) - 1))
    page.figure.set_facecolor("white")
    top = MARGIN
    for block in blocks:
        block.draw(page, top)
        top += block.height + GAP
    return page.figure


def blocks_of(explanation: "Explanation") -> Iterator[Block]:
    layers = explanation.trace.layers
    top = scale_top(*(layer.spatial for layer in layers))
    yield header(explanation, top if any(layer.spatial is not None for layer in layers) else None)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for index, layer in enumerate(layers):
        if layer.spatial is not None:
            yield where(explanation, layer, top, next(letters))
        if layer.channel is not None:
            channels = Channels(explanation, index)
            letter = next(letters)
            yield Block(
                HEADING_LINE + channels.height,
                lambda page, y, letter=letter, channels=channels: (
                    heading(page, y, letter, "What it selected", channels.subtitle),
                    channels.draw(page, MARGIN, y + HEADING_LINE, WIDTH - 2 * MARGIN),
                ),
            )
    yield notes(explanation)


def notes(explanation: "Explanation") -> Block:
    """What the terms of the figure mean, in small print."""
    layers, examples = explanation.trace.layers, explanation.examples
    text = "Even share: what each would have if nothing were preferred. The weights of a word are those that chose it."
    if any(layer.channel is not None for layer in layers):
        among = f"in {examples.looked_at:,} training images" if examples else "in this photograph"
        text += f" Top patch: around the place {among} where a channel is greatest."
        text += " Active at: the channel's values over this photograph, from 0 to their maximum."
    lines = wrap_text(text, WIDTH - 2 * MARGIN, SMALL)

    def draw(page: Page, top: float) -> None:
        for number, line in enumerate(lines):
            page.text(MARGIN, top + number * SMALL_LINE, line, SMALL, color=FAINT)

    return Block(SMALL_LINE * len(lines) - 0.08, draw)


def heading(page: Page, top: float, letter: str, title: str, subtitle: str) -> None:
    baseline = top + 0.12
    page.text(MARGIN, baseline, letter, HEADING, weight="bold", color=INK)
    page.text(MARGIN + 0.17, baseline, title, HEADING, weight="bold", color=INK)
    left = MARGIN + 0.17 + text_width(title, HEADING, "bold") + 0.12
    text, size = fit_text(subtitle, WIDTH - MARGIN - left, 7.5, SMALL)
    page.text(left, baseline, text, size, color=FAINT)


def header(explanation: "Explanation", top: float | None) -> Block:
    """The photograph, the caption, and the scale of the spatial weights, which ends at `top`, if there are any."""
    photograph = explanation.photograph
    most_wide, most_high = PHOTOGRAPH
    scale = min(most_wide / photograph.width, most_high / photograph.height)
    width, height = (max(side * scale, 0.15) for side in photograph.size)
    left = MARGIN + width + 0.25
    room = WIDTH - MARGIN - left
    lines = wrap_text(explanation.caption.text, room, TITLE, "bold") or [""]
    text_height = 0.2 + TITLE_LINE * (len(lines) - 1) + (0.2 if top is None else 0.86)
    words = "as it chose each word" if len(explanation.words) != 1 else "as it chose the word"

    def draw(page: Page, y: float) -> None:
        block = max(height, text_height)
        shown = at_size(photograph, width, height)
        page.image(MARGIN, y + (block - height) / 2, width, height, np.asarray(shown))
        y += (block - text_height) / 2 + 0.17
        for line in lines:
            text, size = fit_text(line, room, TITLE, SMALL, "bold")
            page.text(left, y, text, size, weight="bold", color=INK)
            y += TITLE_LINE
        page.text(left, y - 0.03, f"What the model attended to {words}", 8, color=FAINT)
        if top is not None:
            colour_bar(page, left, y + 0.19, min(BAR[0], room), top)

    return Block(max(height, text_height), draw)


def colour_bar(page: Page, left: float, y: float, width: float, top: float) -> None:
    """The scale of the spatial weights, what it measures above and multiples of an even share below."""
    page.text(left, y, "Spatial weight in even shares; grey: less than one", SMALL, color=INK)
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
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5, colors=INK)
    for side in axes.spines.values():
        side.set_linewidth(0.5)


def where(explanation: "Explanation", layer: LayerTrace, top: float, letter: str) -> Block:
    """The photograph under the spatial weights of a layer, once a word."""
    T, H, W = layer.spatial.shape
    photograph, words = explanation.photograph, explanation.words
    shape = min(max(photograph.width / photograph.height, SHAPES[0]), SHAPES[1])
    columns, width = panel_columns(T, shape)
    height = width / shape
    rows = -(-T // columns)
    step = ABOVE + height + BELOW
    subtitle = (
        f"layer {layer.name}, {H} × {W} positions: an even share is 1/{H * W}; p: the word's probability"
    )

    def draw(page: Page, y: float) -> None:
        heading(page, y, letter, "Where it looked", subtitle)
        small = at_size(photograph, width, height)
        for t in range(T):
            x = MARGIN + t % columns * (width + BETWEEN)
            row_top = y + HEADING_LINE + t // columns * step
            weights = multiples(layer.spatial[t], small.size, explanation.transform)
            picture = painted(small, weights, top, explanation.transform)
            page.image(x, row_top + ABOVE, width, height, picture)
            text, size = fit_text(words[t], width, WORD, SMALL, "bold")
            page.text(x, row_top + ABOVE - 0.05, text, size, weight="bold", color=INK)
            below = row_top + ABOVE + height + 0.12
            page.text(x, below, f"p {probability(explanation.trace.probabilities[t])}", SMALL, color=FAINT)
            greatest = f"max ×{multiple(layer.spatial[t].max() * H * W)}"
            page.text(x + width, below, greatest, SMALL, color=FAINT, ha="right")

    return Block(HEADING_LINE + rows * step - 0.05, draw)


def panel_columns(panels: int, shape: float) -> tuple[int, float]:
    """How many panels stand in a row, and how wide one is: near the usual area, and the last row nearly full."""
    room = WIDTH - 2 * MARGIN

    def badness(columns: int) -> float:
        width = (room - (columns - 1) * BETWEEN) / columns
        empty = (-panels % columns) / columns
        return abs(np.log(width * width / shape / PANEL_AREA)) + 0.6 * empty

    possible = range(2, 1 + int((room + BETWEEN) / (LEAST_PANEL + BETWEEN)))
    columns = min(possible, key=badness) if panels > 1 else 3
    return columns, (room - (columns - 1) * BETWEEN) / columns


def image_dpi(figure: "Figure") -> int:
    """How many pixels an inch the images of a figure have in .svg and .pdf."""
    width, height = figure.get_size_inches()
    places = (axes.get_position() for axes in figure.axes if axes.images)
    area = width * height * sum(place.width * place.height for place in places)  # square inches
    return int(min(DPI, (PIXELS / area) ** 0.5))


def at_size(photograph: Image.Image, width: float, height: float) -> Image.Image:
    """A photograph for a rectangle of inches."""
    scale = min(width * DPI / photograph.width, height * DPI / photograph.height)
    size = tuple(max(1, round(side * scale)) for side in photograph.size)
    return photograph.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def multiple(value: float) -> str:
    """A multiple of an even share: 1.6, 12."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def probability(value: float) -> str:
    return f"{value:.2f}" if value >= 0.005 else "< 0.01"

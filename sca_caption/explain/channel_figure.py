"""The part of the figure that shows channels: what the strongest are about, and how their weights change with the words.

Shapes: T words, C channels of an attended layer. Lengths are inches, sizes of text points.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sca_caption.explain.channel_patches import changes, most_changed, patch, peaks, strongest
from sca_caption.runtime.figures import Page, fit_text, text_width

if TYPE_CHECKING:
    from sca_caption.explain.explanation import Explanation


GROUP = 6  # channels of each kind
WORD, SMALL = 8.0, 7.0
INK, FAINT = "0.1", "0.4"
WORDS = (0.5, 0.95)  # width of the column of words, from and to
BETWEEN = 0.22  # the two groups
ROW, PATCH_GAP = 0.19, 0.03
TITLES, NUMBERS, ABOVE_ROWS = 0.2, 0.15, 0.06
SHARP = 120  # pixels an inch
WEIGHTS, CHANGES = "YlGnBu", "PuOr_r"
LEAST_WEIGHT = 2.0  # the weights' colours end no lower, in even shares
LEAST_CHANGE = 0.25  # and those of changes
FADED = 0.4  # how far towards white goes the photograph where a channel is shown to be active
ACTIVE = (0.0, 0.5, 0.5)


class Channels:
    """The strongest channels of an attended layer of an `explain.Explanation`, and those that change most.

    height: of the whole; subtitle: the weights of all channels, in a line.
    """

    def __init__(self, explanation: "Explanation", layer: int):
        self.explanation, self.layer = explanation, layer
        self.channel = explanation.trace.layers[layer].channel
        T, C = self.channel.shape
        self.shares = self.channel * C  # in even shares
        self.strong = strongest(self.channel, GROUP if T > 1 else 2 * GROUP)
        self.changed = most_changed(self.channel, GROUP, self.strong) if T > 1 else []
        columns = 2 * GROUP
        self.left = max(
            WORDS[0], min(WORDS[1], max(text_width(word, WORD) for word in explanation.words) + 0.08)
        )
        self.cell = (6.9 - self.left - BETWEEN) / columns
        self.patches = 1 if explanation.examples is None else max(1, self._kept())
        self.heads = TITLES + NUMBERS + (self.patches + 1) * (self.cell + PATCH_GAP)
        self.height = self.heads + ABOVE_ROWS + T * ROW
        name, grid = explanation.trace.layers[layer].name, explanation.maps[layer].shape[1:]
        self.grid = grid
        low, high = self.shares.min(), self.shares.max()
        between = f"{share(low)} to {share(high)}"
        self.subtitle = f"layer {name}, {C:,} channels: all weights are {between} even shares of 1/{C}"

    def _kept(self) -> int:
        return len(self.explanation.examples.patches(self.layer, self.strong[0]))

    def draw(self, page: Page, left: float, top: float, width: float) -> None:
        rows = top + self.heads + ABOVE_ROWS
        for t, word in enumerate(self.explanation.words):
            text, size = fit_text(word, self.left - 0.06, WORD, SMALL)
            page.text(left + self.left - 0.06, rows + (t + 0.7) * ROW, text, size, ha="right", color=INK)
        names = ("top patches" if self.patches > 1 else "top patch", "active at")
        for row, name in ((0, names[0]), (self.patches, names[1])):
            middle = top + TITLES + NUMBERS + (row + 0.5) * (self.cell + PATCH_GAP)
            first, second = name.rsplit(" ", 1)
            for text, y in ((first, middle - 0.01), (second, middle + 0.1)):
                page.text(left + self.left - 0.06, y, text, SMALL, ha="right", color=FAINT)
        x = left + self.left
        self._group(page, x, top, self.strong, "Strongest channels: weight, in even shares", self._weights())
        if self.changed:
            x += GROUP * self.cell + BETWEEN
            title = "Rising most: % above or below own mean"
            self._group(page, x, top, self.changed, title, self._changes())

    def _weights(self) -> tuple[np.ndarray, list, str, float, float]:
        high = max(LEAST_WEIGHT, self.shares.max())
        return self.shares, [[share(value) for value in row] for row in self.shares], WEIGHTS, 1.0, high

    def _changes(self) -> tuple[np.ndarray, list, str, float, float]:
        values = changes(self.channel)
        texts = [[signed(100 * value) for value in row] for row in values]
        values = np.log(np.maximum(1 + values, 1e-6))  # twice is as far from the mean as half
        bound = max(np.log(1 + LEAST_CHANGE), values[:, self.changed].max())
        return values.clip(-bound, bound), texts, CHANGES, -bound, bound

    def _group(
        self, page: Page, left: float, top: float, channels: Sequence[int], title: str, cells: tuple
    ) -> None:
        """Some channels side by side: number, patches, where each is active, and a value for every word."""
        from matplotlib import colormaps

        values, texts, colours, low, high = cells
        text, size = fit_text(title, len(channels) * self.cell, 7.5, SMALL)
        page.text(left, top + 0.1, text, size, color=INK)
        for column, channel in enumerate(channels):
            x = left + column * self.cell
            y = top + TITLES
            page.text(x + self.cell / 2, y + 0.1, f"{channel}", SMALL, ha="center", color=FAINT)
            y += NUMBERS
            for picture in (*self._patches(channel), self._active(channel)):
                side = self.cell - PATCH_GAP
                page.image(x + PATCH_GAP / 2, y, side, side, picture)
                y += self.cell + PATCH_GAP
        T = len(values)
        axes = page.axes(left, top + self.heads + ABOVE_ROWS, len(channels) * self.cell, T * ROW)
        shown = values[:, list(channels)]
        axes.pcolormesh(shown, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=0.8)
        axes.set_ylim(T, 0)
        axes.set_axis_off()
        for (t, column), value in np.ndenumerate(shown):
            red, green, blue, _ = colormaps[colours]((value - low) / (high - low))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(column + 0.5, t + 0.54, texts[t][channels[column]], fontsize=SMALL, ha="center", va="center",
                      color="white" if dark else INK, parse_math=False)  # fmt: skip

    def _patches(self, channel: int) -> list[np.ndarray]:
        """What excites a channel most, in the images of a data file or else in this one."""
        if self.explanation.examples is None:
            at = int(peaks(self.explanation.maps[self.layer][channel])[0])
            found = [patch(self.explanation.photograph, at, self.grid, self.explanation.transform)]
        else:
            found = self.explanation.examples.patches(self.layer, channel)[: self.patches]
        pixels = round(SHARP * self.cell)
        return [np.asarray(each.resize((pixels, pixels), Image.Resampling.BICUBIC)) for each in found]

    def _active(self, channel: int) -> np.ndarray:
        """The photograph, faded to grey where a channel is not active."""
        from sca_caption.explain.overlay import multiples

        photograph = self.explanation.photograph.copy()
        side = SHARP * self.cell
        scale = side / max(photograph.size)
        size = tuple(max(1, round(edge * scale)) for edge in photograph.size)
        photograph = photograph.resize(size, Image.Resampling.BICUBIC)
        values = np.maximum(self.explanation.maps[self.layer][channel], 0)
        amount = multiples(values / max(values.sum(), 1e-9), size, self.explanation.transform)
        amount = (amount / max(amount.max(), 1e-9))[:, :, None]
        grey = np.asarray(photograph.convert("L"), np.float32)[:, :, None] / 255
        faded = FADED + (1 - FADED) * grey
        opacity = 0.8 * amount
        return (255 * (np.array(ACTIVE) * opacity + faded * (1 - opacity)) + 0.5).astype(np.uint8)


def share(value: float) -> str:
    """A weight in even shares, in three digits: 0.95, 1.51, 12.3, 240."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def signed(percent: float) -> str:
    """A change with its sign, 0 without."""
    return f"{percent:+.0f}".replace("-", "−") if abs(percent) >= 0.5 else "0"

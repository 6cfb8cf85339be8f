"""Channel panel of the figure: patches of the strongest and of the most rising channels, and their weights per word.

Shapes: T words, C channels of an attended layer. Lengths are in inches, text sizes in points.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sca_caption.explain.channel_patches import (
    crop_patch,
    find_peaks,
    relative_changes,
    rising_channels,
    strongest_channels,
)
from sca_caption.runtime.figures import Page, fit_text, text_width

if TYPE_CHECKING:
    from sca_caption.explain.explanation import Explanation


GROUP = 6  # channels per group
WORD_SIZE, SMALL_SIZE = 8.0, 7.0
DARK_GREY, GREY = "0.1", "0.4"
WORD_COLUMN = (0.5, 0.95)  # minimum and maximum width of the column of words
GROUP_GAP = 0.22
ROW_HEIGHT, PATCH_GAP = 0.19, 0.03
TITLE_HEIGHT, NUMBER_HEIGHT, ROWS_GAP = 0.2, 0.15, 0.06
PATCH_DPI = 120
WEIGHT_COLORMAP, CHANGE_COLORMAP = "YlGnBu", "PuOr_r"
# Lower bound of the colour scale's maximum for weights, as a multiple of uniform attention.
MIN_WEIGHT_MAX = 2.0
MIN_CHANGE_MAX = 0.25  # the same for relative changes
FADING = 0.4  # how far the photograph is faded to white under a channel's activation
ACTIVE_COLOR = (0.0, 0.5, 0.5)


class ChannelPanel:
    """Panel of the strongest and the most rising channels of an attended layer of an `explanation.Explanation`.

    Channels that are zero everywhere in the photograph are left out, because their weights change nothing.
    height: height of the panel. subtitle: range of the weights of all channels.
    """

    def __init__(self, explanation: "Explanation", layer: int):
        self.explanation, self.layer = explanation, layer
        channel = explanation.trace.layers[layer].channel
        assert channel is not None
        self.channel = channel
        T, C = self.channel.shape
        self.multiples = self.channel * C  # of uniform attention
        silent = np.flatnonzero(~explanation.maps[layer].any((1, 2))).tolist()
        if C - len(silent) < 2 * GROUP:
            silent = []
        self.strongest = strongest_channels(self.channel, GROUP if T > 1 else 2 * GROUP, silent)
        self.rising = rising_channels(self.channel, GROUP, [*self.strongest, *silent]) if T > 1 else []
        columns = 2 * GROUP
        self.left = max(
            WORD_COLUMN[0],
            min(WORD_COLUMN[1], max(text_width(word, WORD_SIZE) for word in explanation.words) + 0.08),
        )
        self.cell = (6.9 - self.left - GROUP_GAP) / columns
        self.patch_rows = self._patch_count()
        self.header_height = TITLE_HEIGHT + NUMBER_HEIGHT + (self.patch_rows + 1) * (self.cell + PATCH_GAP)
        self.height = self.header_height + ROWS_GAP + T * ROW_HEIGHT
        name, grid = explanation.trace.layers[layer].name, explanation.maps[layer].shape[1:]
        self.grid = grid
        low, high = self.multiples.min(), self.multiples.max()
        span = f"{format_multiple(low)} to {format_multiple(high)}"
        self.subtitle = f"layer {name}, {C:,} channels: all weights are {span} times the uniform 1/{C}"

    def _patch_count(self) -> int:
        examples = self.explanation.examples
        return 1 if examples is None else max(1, len(examples.patches(self.layer, self.strongest[0])))

    def draw(self, page: Page, left: float, top: float, width: float) -> None:
        rows = top + self.header_height + ROWS_GAP
        for t, word in enumerate(self.explanation.words):
            text, size = fit_text(word, self.left - 0.06, WORD_SIZE, SMALL_SIZE)
            page.text(
                left + self.left - 0.06,
                rows + (t + 0.7) * ROW_HEIGHT,
                text,
                size,
                ha="right",
                color=DARK_GREY,
            )
        names = ("top patches" if self.patch_rows > 1 else "top patch", "active at")
        for row, name in ((0, names[0]), (self.patch_rows, names[1])):
            middle = top + TITLE_HEIGHT + NUMBER_HEIGHT + (row + 0.5) * (self.cell + PATCH_GAP)
            first, second = name.rsplit(" ", 1)
            for text, y in ((first, middle - 0.01), (second, middle + 0.1)):
                page.text(left + self.left - 0.06, y, text, SMALL_SIZE, ha="right", color=GREY)
        x = left + self.left
        self._group(page, x, top, self.strongest, "Strongest channels: weight, × uniform", self._weights())
        if self.rising:
            x += GROUP * self.cell + GROUP_GAP
            title = "Most rising: % above or below own mean"
            self._group(page, x, top, self.rising, title, self._changes())

    def _weights(self) -> tuple[np.ndarray, list, str, float, float]:
        high = max(MIN_WEIGHT_MAX, self.multiples.max())
        texts = [[format_multiple(value) for value in row] for row in self.multiples]
        return self.multiples, texts, WEIGHT_COLORMAP, 1.0, high

    def _changes(self) -> tuple[np.ndarray, list, str, float, float]:
        values = relative_changes(self.channel)
        texts = [[format_signed(100 * value) for value in row] for row in values]
        values = np.log(np.maximum(1 + values, 1e-6))  # twice the mean and half the mean get equal distances
        bound = max(np.log(1 + MIN_CHANGE_MAX), values[:, self.rising].max())
        return values.clip(-bound, bound), texts, CHANGE_COLORMAP, -bound, bound

    def _group(
        self, page: Page, left: float, top: float, channels: Sequence[int], title: str, cells: tuple
    ) -> None:
        """Draw channels side by side: number, patches, activation, and one value per word."""
        from matplotlib import colormaps

        values, texts, colormap, low, high = cells
        text, size = fit_text(title, len(channels) * self.cell, 7.5, SMALL_SIZE)
        page.text(left, top + 0.1, text, size, color=DARK_GREY)
        for column, channel in enumerate(channels):
            x = left + column * self.cell
            y = top + TITLE_HEIGHT
            page.text(x + self.cell / 2, y + 0.1, f"{channel}", SMALL_SIZE, ha="center", color=GREY)
            y += NUMBER_HEIGHT
            for picture in (*self._patches(channel), self._activation(channel)):
                side = self.cell - PATCH_GAP
                page.image(x + PATCH_GAP / 2, y, side, side, picture)
                y += self.cell + PATCH_GAP
        T = len(values)
        axes = page.axes(left, top + self.header_height + ROWS_GAP, len(channels) * self.cell, T * ROW_HEIGHT)
        shown = values[:, list(channels)]
        axes.pcolormesh(shown, cmap=colormap, vmin=low, vmax=high, edgecolors="white", linewidth=0.8)
        axes.set_ylim(T, 0)
        axes.set_axis_off()
        for (t, column), value in np.ndenumerate(shown):
            red, green, blue, _ = colormaps[colormap]((value - low) / (high - low))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            axes.text(column + 0.5, t + 0.54, texts[t][channels[column]], fontsize=SMALL_SIZE, ha="center", va="center",
                      color="white" if dark else DARK_GREY, parse_math=False)  # fmt: skip

    def _patches(self, channel: int) -> list[np.ndarray]:
        """Return the patches that excite a channel most, from training images if available, else from this image."""
        if self.explanation.examples is None:
            at = int(find_peaks(self.explanation.maps[self.layer][channel])[0])
            found = [crop_patch(self.explanation.photograph, at, self.grid, self.explanation.transform)]
        else:
            found = self.explanation.examples.patches(self.layer, channel)[: self.patch_rows]
        pixels = round(PATCH_DPI * self.cell)
        return [np.asarray(each.resize((pixels, pixels), Image.Resampling.BICUBIC)) for each in found]

    def _activation(self, channel: int) -> np.ndarray:
        """Return the photograph in grey, coloured where the channel is active: uint8 (h, w, 3)."""
        from sca_caption.explain.overlay import multiples

        photograph = self.explanation.photograph.copy()
        side = PATCH_DPI * self.cell
        scale = side / max(photograph.size)
        size = max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale))
        photograph = photograph.resize(size, Image.Resampling.BICUBIC)
        values = np.maximum(self.explanation.maps[self.layer][channel], 0)
        amount = multiples(values / max(values.sum(), 1e-9), size, self.explanation.transform)
        amount = (amount / max(amount.max(), 1e-9))[:, :, None]
        grey = np.asarray(photograph.convert("L"), np.float32)[:, :, None] / 255
        faded = FADING + (1 - FADING) * grey
        opacity = 0.8 * amount
        return (255 * (np.array(ACTIVE_COLOR) * opacity + faded * (1 - opacity)) + 0.5).astype(np.uint8)


def format_multiple(value: float) -> str:
    """Format a multiple of uniform attention with three digits: 0.95, 1.51, 12.3, 240."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def format_signed(percent: float) -> str:
    """Format a change in percent with its sign; 0 has none."""
    return f"{percent:+.0f}".replace("-", "−") if abs(percent) >= 0.5 else "0"

"""Attention of a caption as one small image, which is logged to TensorBoard at every validation.

Shapes: T words, C channels and H x W positions of an attended layer, S the side of the model's input in pixels.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sca_caption.explain.overlay import multiples, paint, scale_top
from sca_caption.images import Transform

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sca_caption.models.attention_trace import Trace


CHANNELS = 12  # channels shown per layer: those with the largest weight at any word
CELL = 1.4  # inches per word
DPI = 72
# Minimum half-range of the channels' colour scale around uniform, so that noise stays invisible.
UNIFORM_MARGIN = 0.05


def strip(image: np.ndarray, words: Sequence[str], trace: "Trace", title: str = "") -> np.ndarray:
    """Render `draw` to pixels: uint8 (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(draw(image, words, trace, title))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def draw(image: np.ndarray, words: Sequence[str], trace: "Trace", title: str = "") -> "Figure":
    """Draw one column per word, with one row per layer of spatial weights, then one of channel weights.

    image: uint8 (S, S, 3), the model's input. words: the T >= 1 words of `trace`. Weights are multiples of uniform
    attention, 1 / (H W) or 1 / C, on one colour scale. The largest multiple is printed below each panel.
    """
    from matplotlib.figure import Figure

    T = len(words)
    spatial = [layer for layer in trace.layers if layer.spatial is not None]
    channel = [(layer.name, layer.channel) for layer in trace.layers if layer.channel is not None]
    photograph, transform = Image.fromarray(image), Transform(len(image))
    top = scale_top(*(layer.spatial for layer in spatial))
    rows = len(spatial) + len(channel) + (not spatial)  # without spatial attention, a row of images
    figure = Figure((CELL * max(T, 4) + 1, CELL * rows + 0.7), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(rows, T)
    figure.suptitle(title, fontsize=9, x=0.01, ha="left")
    for row in range(max(1, len(spatial))):
        weights = spatial[row].spatial if spatial else None
        for t, word in enumerate(words):
            axes = figure.add_subplot(grid[row, t])
            values = None if weights is None else multiples(weights[t], photograph.size, transform)
            axes.imshow(photograph if values is None else paint(photograph, values, top, transform))
            axes.set(xticks=[], yticks=[])
            if weights is not None:
                axes.set_xlabel(f"{weights[t].max() * weights[t].size:.1f}×", fontsize=8, labelpad=2)
            if row == 0:
                axes.set_title(word, fontsize=11)
            if t == 0 and spatial:
                axes.set_ylabel(spatial[row].name, fontsize=8)
    for row, (name, beta) in enumerate(channel, rows - len(channel)):
        C = beta.shape[1]
        strongest = np.argsort(-beta.max(0), kind="stable")[:CHANNELS]
        axes = figure.add_subplot(grid[row, :])
        times = beta[:, strongest].T * C
        scale = {"vmin": min(times.min(), 1 - UNIFORM_MARGIN), "vmax": max(times.max(), 1 + UNIFORM_MARGIN)}
        shown = axes.imshow(times, cmap="magma", aspect="auto", **scale)
        axes.set(xticks=[], yticks=range(len(strongest)))
        axes.set_yticklabels(strongest.tolist(), fontsize=6)
        axes.set_ylabel(f"{name}\nchannels", fontsize=8)
        figure.colorbar(shown, ax=axes, fraction=0.02, pad=0.01, format="%.2f×").ax.tick_params(labelsize=7)
    return figure

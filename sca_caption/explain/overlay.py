"""Overlay of spatial attention on the photograph: grey, coloured where the weight exceeds uniform attention.

Shapes: H x W positions of an attended layer, h x w pixels of the photograph.
"""

import numpy as np
from PIL import Image

from sca_caption.images import Transform, crop_box

MIN_SCALE_MAX = 4.0  # lower bound of the scale's maximum, so that nearly uniform attention looks uniform
OPACITY = 0.82
COLORMAP = "inferno"
COLORMAP_START = 0.36  # violet; darker colours would hide the photograph
GREY_LEVELS = (0.2, 0.84)  # black and white of the photograph, so that colours stand out from both
MIN_CONTRAST = 16  # range of 8-bit levels below which a photograph's contrast is not stretched
UNSEEN_FADING = 0.82  # how far the part outside the model's view is faded to white


def multiples(weights: np.ndarray, size: tuple[int, int], transform: Transform) -> np.ndarray:
    """Upsample spatial weights (H, W) to a photograph of `size` (width, height), as multiples of uniform attention.

    Returns float32 (h, w), by bicubic interpolation between the centres of the positions. The mean over the model's view
    is 1, or 0 if all weights are 0. Values outside the view are 0.
    """
    found = np.zeros(size[::-1], np.float32)
    left, top, right, bottom = _view(size, transform)
    grid = Image.fromarray(weights.astype(np.float32))
    values = np.asarray(grid.resize((right - left, bottom - top), Image.Resampling.BICUBIC)).clip(0)
    found[top:bottom, left:right] = values / max(values.mean(), np.finfo(np.float32).tiny)
    return found


def _view(size: tuple[int, int], transform: Transform) -> tuple[int, int, int, int]:
    """Return the model's view of a photograph in whole pixels: left, top, right, bottom."""
    left, top, right, bottom = crop_box(size, transform)
    return int(left), int(top), int(left) + round(right - left), int(top) + round(bottom - top)


def scale_top(*weights: np.ndarray | None) -> float:
    """Maximum of the colour scale for all words of all layers, each (T, H, W) or None, as a multiple of uniform."""
    greatest = [each.max() * each[0].size for each in weights if each is not None]
    return float(max(MIN_SCALE_MAX, *greatest)) if greatest else MIN_SCALE_MAX


def strength(values: np.ndarray, top: float) -> np.ndarray:
    """Map multiples of uniform attention to 0..1: 0 up to 1, then logarithmic, 1 at `top`."""
    return (np.log(np.maximum(values, 1e-6)) / np.log(top)).clip(0, 1)


def paint(photograph: Image.Image, values: np.ndarray, top: float, transform: Transform) -> np.ndarray:
    """Paint multiples of uniform attention (h, w), on a scale from 1 to `top`, over a photograph: uint8 (h, w, 3)."""
    mixed = blend(_grey(photograph), strength(values, top))
    left, upper, right, lower = _view(photograph.size, transform)
    unseen = np.ones((*mixed.shape[:2], 1), np.float32)
    unseen[upper:lower, left:right] = 0
    mixed += (1 - mixed) * UNSEEN_FADING * unseen
    return (255 * mixed.clip(0, 1) + 0.5).astype(np.uint8)


def blend(grey: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Blend grey levels (h, w) with the colours of strengths (h, w), both in 0..1: (h, w, 3)."""
    from matplotlib import colormaps

    colour = colormaps[COLORMAP](COLORMAP_START + (1 - COLORMAP_START) * strengths)[:, :, :3]
    opacity = opacity_of(strengths)[:, :, None]
    return grey[:, :, None] * (1 - opacity) + colour * opacity


def opacity_of(strengths: np.ndarray) -> np.ndarray:
    """Opacity of the colours: 0 at strength 0, rising steeply at first, OPACITY at strength 1."""
    return OPACITY * (1 - (1 - strengths) ** 2)


def _grey(photograph: Image.Image) -> np.ndarray:
    """Convert a photograph to grey and stretch its contrast to GREY_LEVELS: float32 (h, w)."""
    levels = np.asarray(photograph.convert("L"), np.float32)
    low, high = np.percentile(levels, (1, 99))
    if high - low < MIN_CONTRAST:
        low, high = 0, 255
    black, white = GREY_LEVELS
    return black + (white - black) * ((levels - low) / (high - low)).clip(0, 1)


def scale_strip(top: float, pixels: int) -> np.ndarray:
    """Colour bar of the scale from 1 to `top`, over middle grey: uint8 (1, pixels, 3)."""
    values = top ** np.linspace(0, 1, pixels)[None]
    return paint(Image.new("RGB", (pixels, 1), (128, 128, 128)), values, top, Transform())


def scale_ticks(top: float) -> list[float]:
    """Ticks of the scale: powers of 2, at most five and none above `top`."""
    powers = [2.0**k for k in range(int(np.floor(np.log2(top) + 1e-6)) + 1)]
    return powers[:: max(1, -(-len(powers) // 5))]

"""Where attention goes, painted over the photograph: grey, and coloured where a place has more than an even share.

Shapes: H x W positions of an attended layer, h x w pixels of the photograph.
"""

import numpy as np
from PIL import Image

from sca_caption.images import Transform, crop_box

LEAST_TOP = (
    4.0  # multiples of an even share; the scale ends no lower, so that nearly even attention looks even
)
OPACITY = 0.82
COLOURS = "inferno"
DARKEST = 0.36  # the scale begins here, in violet: what is darker hides the photograph
GREY = (0.2, 0.84)  # the photograph's black and white, so that colours stand out from either
LEAST_RANGE = 16  # of its levels, to be stretched
UNSEEN = 0.82  # how far towards white goes what the model does not see


def multiples(weights: np.ndarray, size: tuple[int, int], transform: Transform) -> np.ndarray:
    """Spatial weights (H, W) as float32 (h, w) over a photograph of `size` (width, height), in even shares.

    Bicubic between the positions' centres. The mean is 1 over what the model sees of the photograph; elsewhere, and where
    there are no weights but 0, it is 0.
    """
    found = np.zeros(size[::-1], np.float32)
    left, top, right, bottom = _seen(size, transform)
    grid = Image.fromarray(weights.astype(np.float32))
    values = np.asarray(grid.resize((right - left, bottom - top), Image.Resampling.BICUBIC)).clip(0)
    found[top:bottom, left:right] = values / max(values.mean(), np.finfo(np.float32).tiny)
    return found


def _seen(size: tuple[int, int], transform: Transform) -> tuple[int, int, int, int]:
    """What the model sees of a photograph, in whole pixels."""
    left, top, right, bottom = crop_box(size, transform)
    return int(left), int(top), int(left) + round(right - left), int(top) + round(bottom - top)


def scale_top(*weights: np.ndarray | None) -> float:
    """Where the scale ends for all words and layers, (T, H, W) each: the greatest weight, in even shares."""
    greatest = [each.max() * each[0].size for each in weights if each is not None]
    return float(max(LEAST_TOP, *greatest)) if greatest else LEAST_TOP


def strength(values: np.ndarray, top: float) -> np.ndarray:
    """Multiples of an even share to 0..1: 0 up to one share, then by its logarithm, 1 at `top`."""
    return (np.log(np.maximum(values, 1e-6)) / np.log(top)).clip(0, 1)


def painted(photograph: Image.Image, values: np.ndarray, top: float, transform: Transform) -> np.ndarray:
    """A photograph (h, w) under multiples of an even share (h, w), on a scale that ends at `top`: uint8 (h, w, 3)."""
    mixed = blended(_grey(photograph), strength(values, top))
    left, upper, right, lower = _seen(photograph.size, transform)
    unseen = np.ones((*mixed.shape[:2], 1), np.float32)
    unseen[upper:lower, left:right] = 0
    mixed += (1 - mixed) * UNSEEN * unseen
    return (255 * mixed.clip(0, 1) + 0.5).astype(np.uint8)


def blended(grey: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """Levels of grey (h, w) under the colours of strengths (h, w), both 0..1: (h, w, 3)."""
    from matplotlib import colormaps

    colour = colormaps[COLOURS](DARKEST + (1 - DARKEST) * amount)[:, :, :3]
    opacity = opacity_of(amount)[:, :, None]
    return grey[:, :, None] * (1 - opacity) + colour * opacity


def opacity_of(amount: np.ndarray) -> np.ndarray:
    return OPACITY * (1 - (1 - amount) ** 2)  # faint just above an even share, soon plain


def _grey(photograph: Image.Image) -> np.ndarray:
    """A photograph between the GREY levels, its own range stretched to them: float32 (h, w)."""
    levels = np.asarray(photograph.convert("L"), np.float32)
    low, high = np.percentile(levels, (1, 99))
    if high - low < LEAST_RANGE:
        low, high = 0, 255
    black, white = GREY
    return black + (white - black) * ((levels - low) / (high - low)).clip(0, 1)


def scale_strip(top: float, pixels: int) -> np.ndarray:
    """The scale itself from 1 to `top`, over middle grey: uint8 (1, pixels, 3)."""
    values = top ** np.linspace(0, 1, pixels)[None]
    return painted(Image.new("RGB", (pixels, 1), (128, 128, 128)), values, top, Transform())


def scale_ticks(top: float) -> list[float]:
    """Multiples to be named on the scale: powers of 2, at most five and never beyond the end."""
    powers = [2.0**k for k in range(int(np.floor(np.log2(top) + 1e-6)) + 1)]
    return powers[:: max(1, -(-len(powers) // 5))]

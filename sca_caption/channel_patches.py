"""What a channel is about: which channels to show, and the patches of photographs that excite them most.

Shapes: T words, C channels and H x W positions of an attended layer.
"""

from collections.abc import Collection

import numpy as np
from PIL import Image

from sca_caption.images import Transform, seen_box

SHARE = 0.25  # a patch's side, of the side of what the model sees: about what a position of an upper layer sees best
EQUAL = 1e-6  # maxima that differ by less, relatively, are equal: ReLU6 makes many that are


def strongest(channel: np.ndarray, count: int) -> list[int]:
    """Channels with the greatest weights (T, C): first every word's greatest, then every word's second, ...

    Among those of one rank the greater weight comes first. In the order of the words that they are greatest at.
    """
    return _of_every_word(channel, count)


def changes(channel: np.ndarray) -> np.ndarray:
    """How far each weight (T, C) is from its channel's mean over the caption, as a share of that mean."""
    return channel / channel.mean(0) - 1


def most_changed(channel: np.ndarray, count: int, other_than: Collection[int] = ()) -> list[int]:
    """Channels whose weights (T, C) rise most above their means over the caption; every word's first, as `strongest`."""
    return _of_every_word(changes(channel), count, other_than)


def _of_every_word(values: np.ndarray, count: int, other_than: Collection[int] = ()) -> list[int]:
    T, C = values.shape
    count = min(count, C - len(other_than))
    order = np.argsort(-values, axis=1, kind="stable")  # (T, C), best first
    words = np.arange(T)
    chosen: dict[int, int] = {}  # channel -> the word that brings it
    for rank in range(C):
        channels = order[:, rank]
        for t in words[np.argsort(-values[words, channels], kind="stable")]:
            channel = int(channels[t])
            if len(chosen) < count and channel not in other_than:
                chosen.setdefault(channel, int(t))
        if len(chosen) == count:
            break
    return sorted(chosen, key=lambda channel: (chosen[channel], -values[chosen[channel], channel]))


def peaks(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where maps (..., H, W) are greatest: flat positions (...), the values there, and the means of 3 x 3 around.

    Of equal maxima it is the one with the greatest mean around it.
    """
    H, W = maps.shape[-2:]
    padded = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    around = sum(padded[..., i : i + H, j : j + W] for i in range(3) for j in range(3)) / 9
    flat, around = (x.reshape(*maps.shape[:-2], H * W) for x in (maps, around))
    greatest = flat.max(-1, keepdims=True)
    equal = flat >= greatest - EQUAL * np.abs(greatest)
    at = np.where(equal, around, -np.inf).argmax(-1)
    return at, greatest[..., 0], np.take_along_axis(around, at[..., None], -1)[..., 0]


def patch(image: Image.Image, at: int, grid: tuple[int, int], transform: Transform) -> Image.Image:
    """The square of an image around flat position `at` of a layer's grid (H, W), moved inside where it would stick out.

    Its area is SHARE**2 of what the model sees of the image.
    """
    H, W = grid
    left, top, right, bottom = seen_box(image.size, transform)
    side = min(SHARE * ((right - left) * (bottom - top)) ** 0.5, right - left, bottom - top)
    x = left + (at % W + 0.5) / W * (right - left) - side / 2
    y = top + (at // W + 0.5) / H * (bottom - top) - side / 2
    x, y = min(max(x, left), right - side), min(max(y, top), bottom - side)
    pixels = max(1, round(side))
    return image.resize((pixels, pixels), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))

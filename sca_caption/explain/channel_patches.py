"""The images of a data file that excite each channel of the attended layers most.

Shapes: C channels and H x W positions of an attended layer, N images that are kept for each channel.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sca_caption import images
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.images import Transform, seen_box
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.attention_trace import attended_maps
from sca_caption.runtime.errors import UserError

KEPT = 3  # N
MOST = 1000  # images that are looked at


@dataclass(frozen=True)
class LayerExamples:
    """Of one layer: the images that excite each channel most, best first, and where.

    rows: int (N, C), rows of the data file, -1 where it has fewer images. at: int (N, C), flat positions. grid: (H, W).
    """

    rows: np.ndarray
    at: np.ndarray
    grid: tuple[int, int]


@dataclass(frozen=True)
class Examples:
    """The images of a data file that excite channels most: those of each attended layer."""

    data: CaptionDataset
    transform: Transform
    layers: tuple[LayerExamples, ...]
    looked_at: int  # images

    def patches(self, layer: int, channel: int) -> list[Image.Image]:
        """What excites a channel most, cut from the images that do, best first."""
        found = self.layers[layer]
        return [
            patch(Image.fromarray(image_of(self.data, row, self.transform)), int(at), found.grid, Transform())
            for row, at in zip(found.rows[:, channel], found.at[:, channel], strict=True)
            if row >= 0
        ]


def find_examples(
    pipeline: CaptionPipeline,
    data: CaptionDataset,
    most: int = MOST,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Examples:
    """Look at the training images of a data file, at most `most`, evenly spread, for those that excite channels most.

    An image excites a channel by its greatest value there; among equal ones (ReLU6 cuts all at 6) the one with the
    greatest mean around it. progress: wraps the batches, as tqdm does. Raises UserError for a file without images, and
    for several models that speak as one.
    """
    speaker, rows = pipeline.sca_cnn, data.indices("train")
    if data.encoding == "features" or not len(rows):
        what = "features" if data.encoding == "features" else "no training images"
        raise UserError(f"{data.path} holds {what}, and patches need photographs; give another data file")
    rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
    kept: list[np.ndarray] = []  # of each layer (4, N, C): value, mean around it, row, position
    grids: list[tuple[int, int]] = []
    for first in progress(range(0, len(rows), pipeline.batch_size)):
        batch = rows[first : first + pipeline.batch_size]
        pixels = stack([image_of(data, row, pipeline.transform) for row in batch])
        maps = attended_maps(speaker, pixels)
        if not kept:
            kept = [np.full((4, KEPT, each.shape[1]), -np.inf) for each in maps]
            grids = [each.shape[2:] for each in maps]
        for layer, each in enumerate(maps):
            at, greatest, around = peaks(each)  # (B, C)
            found = np.stack([greatest, around, np.broadcast_to(batch[:, None], at.shape), at])
            found = np.concatenate([kept[layer], found], 1)
            order = np.lexsort((-found[1], -found[0]), axis=0)[:KEPT]
            kept[layer] = np.take_along_axis(found, order[None], 1)
    layers = (
        LayerExamples(
            np.where(np.isfinite(row), row, -1).astype(int),
            np.where(np.isfinite(at), at, 0).astype(int),
            grid,
        )
        for (_, _, row, at), grid in zip(kept, grids, strict=True)
    )
    return Examples(data, pipeline.transform, tuple(layers), len(rows))


def image_of(data: CaptionDataset, row: int, transform: Transform) -> np.ndarray:
    """An image of a data file at the size of a model that may have been trained from another: uint8 (S, S, 3)."""
    pixels = data.image(int(row))
    return pixels if data.transform == transform else images.fit(Image.fromarray(pixels), transform)


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

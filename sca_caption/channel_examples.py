"""The images of a data file that excite each channel of the attended layers most.

Shapes: C channels and H x W positions of an attended layer, N images that are kept for each channel.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sca_caption import images
from sca_caption.attention_trace import attended_maps
from sca_caption.channel_patches import patch, peaks
from sca_caption.errors import UserError
from sca_caption.images import Transform
from sca_caption.inference import Describer, stack
from sca_caption.store import CaptionData

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

    data: CaptionData
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
    describer: Describer,
    data: CaptionData,
    most: int = MOST,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Examples:
    """Look at the training images of a data file, at most `most`, evenly spread, for those that excite channels most.

    An image excites a channel by its greatest value there; among equal ones (ReLU6 cuts all at 6) the one with the
    greatest mean around it. progress: wraps the batches, as tqdm does. Raises UserError for a file without images, and
    for several models that speak as one.
    """
    speaker, rows = describer.speaker, data.indices("train")
    if data.encoding == "features" or not len(rows):
        what = "features" if data.encoding == "features" else "no training images"
        raise UserError(f"{data.path} holds {what}, and patches need photographs; give another data file")
    rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(int)]
    kept: list[np.ndarray] = []  # of each layer (4, N, C): value, mean around it, row, position
    grids: list[tuple[int, int]] = []
    for first in progress(range(0, len(rows), describer.batch_size)):
        batch = rows[first : first + describer.batch_size]
        pixels = stack([image_of(data, row, describer.transform) for row in batch])
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
    return Examples(data, describer.transform, tuple(layers), len(rows))


def image_of(data: CaptionData, row: int, transform: Transform) -> np.ndarray:
    """An image of a data file at the size of a model that may have been trained from another: uint8 (S, S, 3)."""
    pixels = data.image(int(row))
    return pixels if data.transform == transform else images.fit(Image.fromarray(pixels), transform)

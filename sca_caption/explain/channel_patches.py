"""Channels of an attended layer: which ones to show for a caption, and the image patches that excite them most.

`strongest_channels` and `rising_channels` select channels by their attention weights. `find_peaks` finds where a channel
is most active, and `crop_patch` cuts the patch around this position out of the image. `find_examples` searches the
training images of a data file for the patches that excite each channel most.

Shapes: T words, C channels and H x W positions of an attended layer, N images kept per channel.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sca_caption import images
from sca_caption.datasets.hdf5_reader import CaptionDataset
from sca_caption.images import Transform, crop_box
from sca_caption.inference.batching import stack
from sca_caption.inference.captioning import CaptionPipeline
from sca_caption.models.attention_trace import unattended_maps
from sca_caption.runtime.errors import UserError

TOP_IMAGES = 3  # N
MAX_IMAGES = 1000  # training images that are searched by default
# Side of a patch, relative to the model's view: about an upper layer's effective receptive field.
PATCH_SHARE = 0.25
TIE_TOLERANCE = 1e-6  # relative difference below which maxima count as equal; ReLU6 makes many equal ones


# ---- selection of channels by their weights --------------------------------------------------------------------------


def strongest_channels(channel: np.ndarray, count: int, exclude: Collection[int] = ()) -> list[int]:
    """Select the channels with the greatest weights (T, C): each word's greatest first, then each word's second, ...

    Within a rank, greater weights come first. The result is ordered by the word at which a channel was selected.
    """
    return _select_per_word(channel, count, exclude)


def relative_changes(channel: np.ndarray) -> np.ndarray:
    """Difference of each weight (T, C) from its channel's mean over the caption, as a share of the mean."""
    return channel / channel.mean(0) - 1


def rising_channels(channel: np.ndarray, count: int, exclude: Collection[int] = ()) -> list[int]:
    """Select the channels whose weights (T, C) rise most above their mean; ranked as in `strongest_channels`."""
    return _select_per_word(relative_changes(channel), count, exclude)


def _select_per_word(values: np.ndarray, count: int, exclude: Collection[int] = ()) -> list[int]:
    T, C = values.shape
    count = min(count, C - len(exclude))
    order = np.argsort(-values, axis=1, kind="stable")  # (T, C), greatest first
    words = np.arange(T)
    chosen: dict[int, int] = {}  # channel -> the word at which it was selected
    for rank in range(C):
        channels = order[:, rank]
        for t in words[np.argsort(-values[words, channels], kind="stable")]:
            channel = int(channels[t])
            if len(chosen) < count and channel not in exclude:
                chosen.setdefault(channel, int(t))
        if len(chosen) == count:
            break
    return sorted(chosen, key=lambda channel: (chosen[channel], -values[chosen[channel], channel]))


# ---- patches ---------------------------------------------------------------------------------------------------------


def find_peaks(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the maximum of each map (..., H, W).

    Returns flat positions, the values there and their 3 x 3 means, each (...). Among equal maxima, the position with the
    greatest 3 x 3 mean is taken.
    """
    H, W = maps.shape[-2:]
    padded = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    shifted = (padded[..., i : i + H, j : j + W] for i in range(3) for j in range(3))
    means = sum(shifted, start=np.zeros((), maps.dtype)) / 9
    flat, means = (x.reshape(*maps.shape[:-2], H * W) for x in (maps, means))
    greatest = flat.max(-1, keepdims=True)
    equal = flat >= greatest - TIE_TOLERANCE * np.abs(greatest)
    positions = np.where(equal, means, -np.inf).argmax(-1)
    return positions, greatest[..., 0], np.take_along_axis(means, positions[..., None], -1)[..., 0]


def crop_patch(image: Image.Image, position: int, grid: tuple[int, int], transform: Transform) -> Image.Image:
    """Crop the square around flat position `position` of a layer's grid (H, W), shifted to lie inside the model's view.

    The square has PATCH_SHARE**2 of the area of the model's view.
    """
    H, W = grid
    left, top, right, bottom = crop_box(image.size, transform)
    side = min(PATCH_SHARE * ((right - left) * (bottom - top)) ** 0.5, right - left, bottom - top)
    x = left + (position % W + 0.5) / W * (right - left) - side / 2
    y = top + (position // W + 0.5) / H * (bottom - top) - side / 2
    x, y = min(max(x, left), right - side), min(max(y, top), bottom - side)
    pixels = max(1, round(side))
    return image.resize((pixels, pixels), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))


# ---- patches from training images ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerExamples:
    """Images that excite each channel of one layer most, in descending order.

    rows: int (N, C), rows of the data file; -1 if fewer than N images were searched. positions: int (N, C), flat
    positions of the maxima. grid: (H, W).
    """

    rows: np.ndarray
    positions: np.ndarray
    grid: tuple[int, int]


@dataclass(frozen=True)
class ChannelExamples:
    """Images of a data file that excite the channels of each attended layer most, see `find_examples`."""

    data: CaptionDataset
    transform: Transform
    layers: tuple[LayerExamples, ...]
    image_count: int  # images searched

    def patches(self, layer: int, channel: int) -> list[Image.Image]:
        """Crop the patches that excite a channel most, in descending order."""
        found = self.layers[layer]
        return [
            crop_patch(
                Image.fromarray(load_image(self.data, row, self.transform)),
                int(position),
                found.grid,
                Transform(),
            )
            for row, position in zip(found.rows[:, channel], found.positions[:, channel], strict=True)
            if row >= 0
        ]


def find_examples(
    pipeline: CaptionPipeline,
    data: CaptionDataset,
    max_images: int = MAX_IMAGES,
    progress: Callable[[Iterable], Iterable] = iter,
) -> ChannelExamples:
    """Find the training images that excite each channel most, among at most `max_images` evenly spaced ones.

    Images are ranked by the channel's maximum; among equal maxima (ReLU6 clips all at 6) by the 3 x 3 mean around it.
    progress: wraps the iterable of batches, as tqdm does. Raises UserError for a data file without images and for a
    pipeline of several models.
    """
    model, rows = pipeline.sca_cnn, data.indices("train")
    if data.encoding == "features" or not len(rows):
        found = "features" if data.encoding == "features" else "no training images"
        raise UserError(f"{data.path} holds {found}, and patches need photographs; give another data file")
    rows = rows[np.linspace(0, len(rows) - 1, min(max_images, len(rows))).round().astype(int)]
    best: list[np.ndarray] = []  # per layer (4, N, C): maximum, 3 x 3 mean, row, position
    grids: list[tuple[int, int]] = []
    for first in progress(range(0, len(rows), pipeline.batch_size)):
        batch = rows[first : first + pipeline.batch_size]
        pixels = stack([load_image(data, row, pipeline.transform) for row in batch])
        maps = unattended_maps(model, pixels)
        if not best:
            best = [np.full((4, TOP_IMAGES, each.shape[1]), -np.inf) for each in maps]
            grids = [each.shape[2:] for each in maps]
        for layer, layer_maps in enumerate(maps):
            positions, greatest, means = find_peaks(layer_maps)  # (B, C)
            candidates = np.stack(
                [greatest, means, np.broadcast_to(batch[:, None], positions.shape), positions]
            )
            candidates = np.concatenate([best[layer], candidates], 1)
            order = np.lexsort((-candidates[1], -candidates[0]), axis=0)[:TOP_IMAGES]
            best[layer] = np.take_along_axis(candidates, order[None], 1)
    layers = (
        LayerExamples(
            np.where(np.isfinite(row), row, -1).astype(int),
            np.where(np.isfinite(position), position, 0).astype(int),
            grid,
        )
        for (_, _, row, position), grid in zip(best, grids, strict=True)
    )
    return ChannelExamples(data, pipeline.transform, tuple(layers), len(rows))


def load_image(data: CaptionDataset, row: int, transform: Transform) -> np.ndarray:
    """Load an image of a data file at model size, uint8 (S, S, 3). The file may have another transform than the model."""
    pixels = data.image(int(row))
    return pixels if data.transform == transform else images.fit(Image.fromarray(pixels), transform)

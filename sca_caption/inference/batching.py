"""Batches of items, read in threads while the model computes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sca_caption import images
from sca_caption.images import Transform
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError, warn

if TYPE_CHECKING:
    # It imports h5py, which captioning does not need.
    from sca_caption.datasets.hdf5_reader import CaptionDataset
    from sca_caption.datasets.mixture import Mixture

READERS = 2  # threads that decode images; Pillow releases the interpreter lock while it decodes


def in_batches(
    items: Iterable,
    read: Callable[[Any], Any],
    answer: Callable[[list], Iterable],
    batch_size: int,
    take: Callable[[Any], Any] = lambda item: item,
) -> Iterator[tuple[Any, Any]]:
    """Yield each item with its answer, in order, or with the UserError that reading it raised.

    `take(item)` runs in the caller's thread as the item comes: whoever yields one object again and again changes it
    afterwards. `read` runs on its results in other threads, one batch ahead; `answer` takes the results of `read` for the
    items of a batch and returns one answer per item.
    """
    items, readers = iter(items), ThreadPoolExecutor(READERS)

    def start(item: Any) -> Future:
        try:
            return readers.submit(read, take(item))
        except UserError as error:
            refused: Future = Future()
            refused.set_exception(error)
            return refused

    def submit() -> list[tuple[Any, Future]]:
        return [(item, start(item)) for item in islice(items, batch_size)]

    try:
        following = submit()
        while following:
            current, following = following, submit()
            contents, errors = [], {}
            for index, (_, future) in enumerate(current):
                try:
                    contents.append(future.result())
                except UserError as error:
                    errors[index] = error
            answers = iter(answer(contents) if contents else ())
            for index, (item, _) in enumerate(current):
                yield item, errors[index] if index in errors else next(answers)
    finally:  # also if the caller stops iterating
        readers.shutdown(wait=False, cancel_futures=True)


@overload
def stack(contents: list[np.ndarray]) -> Tensor: ...
@overload
def stack(contents: list[tuple[np.ndarray, ...]]) -> tuple[Tensor, ...]: ...
def stack(contents: list[Any]) -> Tensor | tuple[Tensor, ...]:
    """Images (S, S, 3) -> (B, 3, S, S); feature tuples -> a tuple of (B, ...)."""
    if isinstance(contents[0], tuple):
        return tuple(torch.from_numpy(np.stack(x)) for x in zip(*contents, strict=True))
    return torch.from_numpy(np.stack(contents)).permute(0, 3, 1, 2)


def reader(
    data: "CaptionDataset | Mixture", networks: Sequence[SCACNN], transform: Transform
) -> Callable[[int], np.ndarray | tuple[np.ndarray, ...]]:
    """A function that reads one row of a data file, or of several, as the model's input: an image, or stored features.

    Raises UserError for features of another encoder than the networks'.
    """
    for network in networks:
        config = network.config
        data.require_features_of(config.backbone, config.layers, config.backbone_attention)
    if data.encoding == "features":
        return data.features
    if data.transform == transform:
        return data.image
    warn(
        f"{data.path} holds {data.transform}, the model takes {transform}: they are resized once more, which may cost "
        f"quality; preprocess with --image-size {transform.size}"
    )
    return lambda row: images.fit(Image.fromarray(data.image(row)), transform)

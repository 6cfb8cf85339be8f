"""Many images in, captions out: a checkpoint at work in batches, with images decoded while the model runs."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sca_caption import checkpoint as checkpoints
from sca_caption import decode, images
from sca_caption.checkpoint import Checkpoint
from sca_caption.devices import find_device
from sca_caption.errors import UserError
from sca_caption.search import BATCH_SIZE, SearchConfig

READERS = 2  # threads that decode images; Pillow leaves the interpreter free meanwhile


@dataclass(frozen=True)
class Caption:
    """A caption in words. `log_prob` is natural; `score` is what captions were ranked by (see `decode`)."""

    text: str
    log_prob: float
    score: float
    finished: bool


@dataclass(frozen=True)
class Result:
    """What became of one item: its captions, best first, or the reason why there are none."""

    item: Any
    captions: tuple[Caption, ...] = ()
    error: UserError | None = None


class Describer:
    """A model with its vocabulary and transform, ready to caption on one device.

    Args:
        checkpoint: a loaded checkpoint, the path of one, or None for the model that ships. device: "cpu",
        "cuda", "cuda:1", ... or "auto": the first GPU, or the CPU. batch_size: images searched at once, an
        upper bound on memory: batch_size * beam_size captions grow together.

    Raises UserError for a checkpoint that cannot be used and for a device that is not there.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | Path | None = None,
        *,
        search: SearchConfig | None = None,
        device: str = "auto",
        batch_size: int = BATCH_SIZE,
    ):
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: must be at least 1")
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = checkpoints.load(checkpoint)
        self.device = find_device(device)
        self.model = checkpoint.model.to(self.device).eval()
        self.vocabulary, self.transform = checkpoint.vocabulary, checkpoint.transform
        self.search, self.batch_size = search or SearchConfig(), batch_size

    @torch.inference_mode()
    def caption_batch(self, batch: Tensor | tuple[Tensor, ...]) -> list[tuple[Caption, ...]]:
        """Images uint8 (B, 3, S, S), or features as a tuple of (B, ...) -> captions of each, best first."""
        batch = (
            batch.to(self.device) if isinstance(batch, Tensor) else tuple(x.to(self.device) for x in batch)
        )
        found = decode.beam_search(
            self.model, self.model.start(self.model.encode(batch)), **vars(self.search)
        )
        return [
            tuple(
                Caption(self.vocabulary.decode(h.tokens), h.log_prob, h.score, h.finished) for h in hypotheses
            )
            for hypotheses in found
        ]

    def stream(self, items: Iterable, read: Callable[[Any], Any] | None = None) -> Iterator[Result]:
        """Caption `items` one batch after another and yield a Result for each, in order.

        `read(item)` gives an image at model size, uint8 (S, S, 3), or a tuple of features. It runs in other
        threads, ahead of the model by one batch; by default it opens the item as an image file. An item that
        it raises UserError for yields a Result with that error, and the others go on.
        """
        read = read or partial(images.load, transform=self.transform)
        items, readers = iter(items), ThreadPoolExecutor(READERS)
        try:
            following = self._submit(readers, items, read)
            while following:
                current, following = following, self._submit(readers, items, read)
                yield from self._finish(current)
        finally:  # also when the caller stops listening
            readers.shutdown(wait=False, cancel_futures=True)

    def _submit(
        self, readers: ThreadPoolExecutor, items: Iterator, read: Callable
    ) -> list[tuple[Any, Future]]:
        return [(item, readers.submit(read, item)) for item in islice(items, self.batch_size)]

    def _finish(self, batch: list[tuple[Any, Future]]) -> Iterator[Result]:
        contents, errors = [], {}
        for index, (_, future) in enumerate(batch):
            try:
                contents.append(future.result())
            except UserError as error:
                errors[index] = error
        captions = iter(self.caption_batch(_stack(contents)) if contents else [])
        for index, (item, _) in enumerate(batch):
            yield Result(item, error=errors[index]) if index in errors else Result(item, next(captions))


def _stack(contents: list[np.ndarray] | list[tuple[np.ndarray, ...]]) -> Tensor | tuple[Tensor, ...]:
    """Images (S, S, 3) -> (B, 3, S, S); feature tuples -> a tuple of (B, ...)."""
    if isinstance(contents[0], tuple):
        return tuple(torch.from_numpy(np.stack(x)) for x in zip(*contents, strict=True))
    return torch.from_numpy(np.stack(contents)).permute(0, 3, 1, 2)

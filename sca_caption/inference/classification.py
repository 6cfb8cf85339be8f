"""Classification of many images with a classifier checkpoint."""

import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sca_caption import checkpoint as checkpoints
from sca_caption import images
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import BATCH_SIZE
from sca_caption.inference.batching import in_batches, stack
from sca_caption.runtime.devices import find_device, require_usable
from sca_caption.runtime.errors import UserError


class ClassificationPipeline:
    """A classifier and its transform on one device. Arguments and errors are those of CaptionPipeline."""

    def __init__(
        self, checkpoint: Checkpoint | str | Path, *, device: str = "auto", batch_size: int = BATCH_SIZE
    ):
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: must be at least 1")
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = checkpoints.load(checkpoint, task="classify")
        self.device, self.batch_size = find_device(device), batch_size
        self._loaded_in = os.getpid()
        self.model, self.transform = checkpoint.classifier.to(self.device).eval(), checkpoint.transform
        self.classes = self.model.config.classes

    @torch.inference_mode()
    def logits(self, batch: Tensor) -> np.ndarray:
        """Images uint8 (B, 3, S, S) -> logits float32 (B, K)."""
        require_usable(self._loaded_in, survives_fork=self.device.type == "cpu")
        return self.model(batch.to(self.device)).float().cpu().numpy()

    def stream(
        self, items: Iterable, read: Callable[[Any], np.ndarray] | None = None
    ) -> Iterator[tuple[Any, np.ndarray | UserError]]:
        """Yield each item with its logits (K,), in order, or with the UserError that `read(item)` raised.

        `read` gives an image at model size, uint8 (S, S, 3); by default it opens the item as an image file.
        """
        read = read or partial(images.load, transform=self.transform)
        return in_batches(items, read, lambda contents: self.logits(stack(contents)), self.batch_size)

"""Exponential moving average of a model's weights, which often scores better than the weights of any single step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AVERAGE = "average."  # prefix of the averaged weights among a checkpoint's extra tensors


class EMA:
    """Exponential moving average of a model's weights and floating-point buffers; other buffers are copied.

    The average starts at the model's current weights. The decay is min(decay, (1 + step) / (10 + step)), so that early
    weights lose their influence quickly.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.step = decay, 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights; to be called after every optimizer step."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        self.step += 1
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights inside the `with` block, and its own weights back after it."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights under their names in a checkpoint."""
        return {AVERAGE + name: value for name, value in self.values.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        """Load the averaged weights from a checkpoint that was written after `step` updates."""
        self.step = step
        for name, value in self.values.items():
            value.copy_(tensors[AVERAGE + name])

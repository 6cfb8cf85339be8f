"""A moving average of a model's weights, which often does better than any of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

AVERAGE = "average."  # prefix of the averaged weights among a checkpoint's extra tensors


class EMA:
    """Exponential moving average of all of a model's weights and buffers, from its weights at this moment on.

    The decay rises to `decay` in the first steps as (1 + step) / (10 + step), so that the start is soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay, self.step = decay, 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        self.step += 1
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the averaged weights inside the `with`, and its own again after it."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def tensors(self) -> dict[str, Tensor]:
        return {AVERAGE + name: value for name, value in self.values.items()}

    def restore(self, tensors: dict[str, Tensor], step: int) -> None:
        self.step = step
        for name, value in self.values.items():
            value.copy_(tensors[AVERAGE + name])

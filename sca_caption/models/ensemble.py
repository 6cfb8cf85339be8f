"""Several captioners that speak as one: every word has the mean of the probabilities that they give it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sca_caption.decoding.stepper import State


@dataclass
class States:
    """A state of each model, all of the same rows."""

    states: tuple[State, ...]

    def __len__(self) -> int:
        return len(self.states[0])

    @property
    def device(self) -> torch.device:
        return self.states[0].device

    def select(self, rows: Tensor) -> "States":
        return States(tuple(state.select(rows) for state in self.states))


class Ensemble(nn.Module):
    """Captioners of one vocabulary that decode together, with the interface of a single captioner."""

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def encode(self, images: Tensor | tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
        return tuple(model.encode(images) for model in self.models)

    def start(self, encoded: tuple[tuple[Tensor, ...], ...]) -> States:
        return States(tuple(model.start(maps) for model, maps in zip(self.models, encoded, strict=True)))

    def step(self, tokens: Tensor, state: States) -> tuple[Tensor, States]:
        """tokens (rows,) -> the logarithm of the mean probability (rows, V), which is its own log-softmax."""
        logits, states = zip(
            *(model.step(tokens, each) for model, each in zip(self.models, state.states, strict=True)),
            strict=True,
        )
        return mean_log_probability(logits), States(states)


def mean_log_probability(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the models' probabilities, of the logits (rows, V) of each."""
    log_probs = torch.stack([each.float().log_softmax(1) for each in logits])
    return log_probs.logsumexp(0) - math.log(len(logits))

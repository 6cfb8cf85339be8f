"""Ensemble of captioners: the probability of a word is the mean of the captioners' probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from sca_caption.models.sca_cnn import SCACNN, State


@dataclass
class EnsembleState:
    """One decoding state per captioner; all have the same rows."""

    states: tuple[State, ...]

    def __len__(self) -> int:
        return len(self.states[0])

    @property
    def device(self) -> torch.device:
        return self.states[0].device

    def select(self, rows: Tensor) -> "EnsembleState":
        return EnsembleState(tuple(state.select(rows) for state in self.states))


class Ensemble(nn.Module):
    """Captioners with the same vocabulary that decode jointly, with the interface of a single captioner."""

    def __init__(self, models: Sequence[SCACNN]):
        super().__init__()
        self.models = cast(Sequence[SCACNN], nn.ModuleList(models))

    def encode(self, images: Tensor | tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
        """Encode images with all models."""
        return tuple(model.encode(images) for model in self.models)

    def start(self, encoded: tuple[tuple[Tensor, ...], ...]) -> EnsembleState:
        return EnsembleState(
            tuple(model.start(maps) for model, maps in zip(self.models, encoded, strict=True))
        )

    def step(self, tokens: Tensor, state: EnsembleState) -> tuple[Tensor, EnsembleState]:
        """Words (rows,) -> log of the mean probability (rows, V). Normalised: log-softmax leaves it unchanged."""
        logits, states = zip(
            *(
                model.step(tokens, model_state)
                for model, model_state in zip(self.models, state.states, strict=True)
            ),
            strict=True,
        )
        return log_mean_probability(logits), EnsembleState(states)


def log_mean_probability(logits: Sequence[Tensor]) -> Tensor:
    """Log of the mean of the models' probabilities, from one logits tensor (rows, V) per model."""
    log_probs = torch.stack([each.float().log_softmax(1) for each in logits])
    return log_probs.logsumexp(0) - math.log(len(logits))

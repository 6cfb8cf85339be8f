"""TorchCaptioner: SCACNN or an ensemble, with the trained halves of guides, as `CaptionPipeline` runs it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sca_caption.checkpoint import Checkpoint
from sca_caption.guidance import GUIDES
from sca_caption.guidance.guide import Guide, TrainedGuide
from sca_caption.images import Transform
from sca_caption.models.ensemble import Ensemble
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import Vocabulary

Inputs = Tensor | tuple[Tensor, ...]  # images uint8 (B, 3, S, S), or stored features as a tuple of (B, ...)


class TorchCaptioner:
    """Encoder and decoder, and what the trained guides predict of images.

    Attributes:
        networks: the captioners; several are an ensemble.
    """

    def __init__(
        self,
        networks: Sequence[SCACNN],
        trained: Mapping[str, TrainedGuide],
        vocabulary: Vocabulary,
        transform: Transform,
        device: torch.device,
    ):
        self.networks, self.trained, self.device = list(networks), dict(trained), device
        self.survives_fork = device.type == "cpu"
        self.vocabulary, self.transform = vocabulary, transform
        self.decoder: Any = self.networks[0] if len(self.networks) == 1 else Ensemble(self.networks)

    @classmethod
    def from_checkpoints(
        cls, checkpoints: Sequence[Checkpoint], device: torch.device
    ) -> tuple["TorchCaptioner", list[Guide]]:
        """The captioner and its guides, on a device. An ensemble of several checkpoints has no guides.

        Raises UserError for a guide that reads predicted words, with a captioner that predicts none.
        """
        first = checkpoints[0]
        assert first.vocabulary is not None
        networks = [checkpoint.captioner.to(device).eval() for checkpoint in checkpoints]
        guides, trained = [], {}
        if len(checkpoints) == 1:
            trained = {name: part.to(device) for name, part in first.guides.items()}
            for name, part in trained.items():
                if part.reads_words:
                    require_word_predictor(first.captioner, name)
            guides = [
                kind.from_trained(trained[name], first.vocabulary)
                for name, kind in GUIDES.items()
                if name in trained
            ]
        return cls(networks, trained, first.vocabulary, first.transform, device), guides

    @property
    def sca_cnn(self) -> SCACNN:
        """The network whose attention can be shown. Raises UserError for an ensemble."""
        if len(self.networks) > 1:
            raise UserError(
                f"the attention of {len(self.networks)} models cannot be shown at once; give one --checkpoint"
            )
        return self.networks[0]

    def encode(self, batch: Inputs) -> tuple[Tensor, ...]:
        """The encoder's maps, (B, ...) each."""
        batch = (
            batch.to(self.device) if isinstance(batch, Tensor) else tuple(x.to(self.device) for x in batch)
        )
        return self.decoder.encode(batch)

    def start(self, batch: Inputs, guides: Sequence[Guide]) -> tuple[Any, dict[str, Tensor]]:
        """The state before the first word, one row per image, and the predictions of guides by name."""
        state = self.decoder.start(self.encode(batch))
        predictions = {}
        for guide in guides:
            if guide.prediction:
                predictions[guide.name] = self.trained[guide.name](state)
        return state, predictions

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Previous words (rows,) -> logits of all words (rows, W), and the state after them."""
        return self.decoder.step(tokens, state)


def require_word_predictor(captioner: SCACNN, guide: str) -> None:
    """Raise UserError if a guide that reads predicted words has none to read."""
    if captioner.word_predictor is None:
        raise UserError(
            f"the guide {guide} reads predicted words, but this captioner has no word predictor; train one with "
            "--word-rank"
        )

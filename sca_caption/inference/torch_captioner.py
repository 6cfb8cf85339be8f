"""TorchCaptioner: SCACNN or an ensemble, with the trained halves of guides, as `CaptionPipeline` runs it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sca_caption.checkpoint import Checkpoint
from sca_caption.guidance import GUIDES
from sca_caption.guidance.guide import FeatureEncoder, Guide, TrainedGuide, extend_vocabulary
from sca_caption.images import Transform
from sca_caption.models.ensemble import Ensemble
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.errors import UserError
from sca_caption.vocab import SPECIALS, Vocabulary

Inputs = Tensor | tuple[Tensor, ...]  # images uint8 (B, 3, S, S), or stored features as a tuple of (B, ...)


class TorchCaptioner:
    """Encoder and decoder, and what the trained guides predict of images.

    Attributes:
        networks: the captioners; several are an ensemble.
        vocabulary: all words, those that guides add at the end. vocabulary_size: how many are the captioner's own.
    """

    def __init__(
        self,
        networks: Sequence[SCACNN],
        trained: Mapping[str, TrainedGuide],
        vocabulary: Vocabulary,
        vocabulary_size: int,
        transform: Transform,
        device: torch.device,
    ):
        self.networks, self.trained, self.device = list(networks), dict(trained), device
        self.survives_fork = device.type == "cpu"
        self.vocabulary, self.vocabulary_size, self.transform = vocabulary, vocabulary_size, transform
        self.decoder: Any = self.networks[0] if len(self.networks) == 1 else Ensemble(self.networks)
        encoders = [each for each in self.trained.values() if isinstance(each, FeatureEncoder)]
        self.feature_encoder = encoders[0] if encoders else None

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
        words, guides, trained = first.vocabulary, [], {}
        if len(checkpoints) == 1:
            trained = {name: part.to(device) for name, part in first.guides.items()}
            for name, part in trained.items():
                if part.reads_words:
                    require_word_predictor(first.captioner, name)
            guides = [
                kind.from_trained(trained[name], words) for name, kind in GUIDES.items() if name in trained
            ]
        for guide in guides:
            if guide.new_words and guide.word_weights is not None:
                networks = [extend_vocabulary(network, guide.word_weights) for network in networks]
                words = Vocabulary([*words.words[len(SPECIALS) :], *guide.new_words])
        return cls(networks, trained, words, len(first.vocabulary), first.transform, device), guides

    @property
    def sca_cnn(self) -> SCACNN:
        """The network whose attention can be shown. Raises UserError for an ensemble."""
        if len(self.networks) > 1:
            raise UserError(
                f"the attention of {len(self.networks)} models cannot be shown at once; give one --checkpoint"
            )
        return self.networks[0]

    def encode(self, batch: Inputs, guides: Sequence[Guide]) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The encoder's maps, and the feature encoder's features (B, C') if one of the guides reads them.

        For stored maps, of which there are no pixels, the features are None.
        """
        batch = (
            batch.to(self.device) if isinstance(batch, Tensor) else tuple(x.to(self.device) for x in batch)
        )
        needed = any(guide.prediction and self.trained[guide.name].reads_features for guide in guides)
        if not needed or self.feature_encoder is None:
            return self.decoder.encode(batch), None
        with self.feature_encoder.capture_input(self.networks[0].backbone) as inputs:
            maps = self.decoder.encode(batch)
        features = self.feature_encoder.image_features(torch.cat(inputs)) if inputs else None
        return maps, features

    def start(self, batch: Inputs, guides: Sequence[Guide]) -> tuple[Any, dict[str, Tensor]]:
        """The state before the first word, one row per image, and the predictions of guides by name.

        A guide whose inputs are missing has no prediction.
        """
        maps, features = self.encode(batch, guides)
        state = self.decoder.start(maps)
        predictions = {}
        for guide in guides:
            trained = self.trained[guide.name]
            if guide.prediction and (features is not None or not trained.reads_features):
                words = state.words if trained.reads_words else None
                predictions[guide.name] = trained.predict(maps[0], features, words)
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

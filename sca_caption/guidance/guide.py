"""The protocol of guides, which steer decoding in addition to the captioner.

A guide has two halves.

- `TrainedGuide` has the tensors and settings that a checkpoint stores. From the decoder's first state it predicts one row
  per image, in PyTorch or as an output of an exported graph.
- `Guide` answers the search: which words to exclude from an image's captions, how to score a finished caption, how
  confident to be in it. It is created from the trained half, or from its JSON description in an exported model. It reads
  only the prediction, so it works with PyTorch and onnxruntime alike.

A new guide is one file in this package and one line in `guidance.GUIDES`.

Shapes: B images, W words.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from sca_caption.models.sca_cnn import State
from sca_caption.vocab import Vocabulary

# Per image, per group, word ids; see `decoding.lexical_constraints`.
ForcedWords = Sequence[Sequence[Collection[int]]]


class TrainedGuide(nn.Module):
    """The trained half of a guide."""

    reads_words: ClassVar[bool] = False  # whether `forward` needs a captioner with a word predictor

    def settings(self) -> dict[str, Any]:
        """Arguments of `restore` in addition to the tensors, as JSON values."""
        return {}

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], vocabulary_size: int
    ) -> Self:
        """The guide that `settings()` and `state_dict()` describe. Raises RuntimeError or KeyError if they disagree."""
        guide = cls(**settings)
        guide.load_state_dict(dict(tensors))
        return guide.eval()

    def forward(self, state: State) -> Tensor:
        """The captioner's state before the first word -> one row per image."""
        raise TypeError(f"{type(self).__name__} predicts nothing of images")


class Guide:
    """The half that steers a search. Every hook does nothing unless a guide overrides it."""

    name: ClassVar[str]  # in checkpoints, in model.json and in `guidance.GUIDES`
    prediction: ClassVar[str | None] = None  # name of its row per image, if it predicts one
    trained_type: ClassVar[type[TrainedGuide]]
    # Whether `banned_words` has something to say; turned off by --no-guidance.
    excludes: ClassVar[bool] = False
    rates: ClassVar[bool] = False  # whether `rate` does
    gives_confidence: ClassVar[bool] = False  # whether `confidence` does

    @classmethod
    def from_trained(cls, trained: Any, vocabulary: Vocabulary) -> Self:
        """From the trained half and the captioner's vocabulary."""
        raise NotImplementedError(cls.__name__)

    @classmethod
    def from_json(cls, description: Mapping[str, Any], vocabulary: Vocabulary) -> Self:
        """From what `to_json` returned and the captioner's vocabulary."""
        raise NotImplementedError(cls.__name__)

    def to_json(self) -> dict[str, Any]:
        """The description that `from_json` and the JavaScript search read; see `export.onnx_folder` for its fields."""
        raise NotImplementedError(type(self).__name__)

    def banned_words(self, predicted: Tensor, forced: ForcedWords, words: int) -> Tensor | None:
        """Words to exclude from every caption of an image, bool (B, words), or None for no word."""
        return None

    def rate(self, predicted: Tensor, image: int, tokens: Sequence[int]) -> float:
        """The score of a finished caption, which the search adds to its own times `SearchConfig.rerank_weight`."""
        return 0.0

    def confidence(self, mean_log_prob: float, ratings: Mapping[str, float]) -> float | None:
        """Probability that a caption is good, or None if the guide gives no confidence."""
        return None

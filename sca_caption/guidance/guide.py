"""The protocol of guides, which steer decoding in addition to the captioner.

A guide has two halves.

- `TrainedGuide` has the tensors and settings that a checkpoint stores. From the encoders' output it predicts one row per
  image, in PyTorch or as an output of an exported graph.
- `Guide` answers the search: which words to exclude from an image's captions, which word to insert, how to score a
  finished caption, how confident to be in it. It is created from the trained half, or from its JSON description in an
  exported model. It reads only the prediction, so it works with PyTorch and onnxruntime alike.

A new guide is one file in this package and one line in `guidance.GUIDES`.

Shapes: B images, C channels of the encoder's map, C' features of a second image network, W words.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from sca_caption.guidance.masking import MaskedWords
from sca_caption.models.backbone import Backbone
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.vocab import Vocabulary

# Per image, per group, word ids; see `decoding.lexical_constraints`.
ForcedWords = Sequence[Sequence[Collection[int]]]


class TrainedGuide(nn.Module):
    """The trained half of a guide."""

    int8_convolutions: ClassVar[bool] = False  # whether its 1x1 convolutions may be stored as int8
    reads_words: ClassVar[bool] = (
        False  # whether `predict` needs the logits of the captioner's word predictor
    )

    @property
    def reads_features(self) -> bool:
        """Whether `forward` needs the features of a `FeatureEncoder`."""
        return False

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

    def forward(self, maps: Tensor, features: Tensor | None) -> Tensor:
        """The encoder's map (B, C, H, W) and a FeatureEncoder's features (B, C') -> one row per image."""
        raise TypeError(f"{type(self).__name__} predicts nothing of images")

    def predict(self, maps: Tensor, features: Tensor | None, words: Tensor | None) -> Tensor:
        """Its row per image: by default what `forward` computes of maps and features.

        words: `State.words`, the logits of the captioner's word predictor (B, W), for a guide that `reads_words`.
        """
        return self(maps, features)


class FeatureEncoder(TrainedGuide):
    """A trained guide with an image network of its own, whose pooled features other guides may read.

    Attributes:
        first: number of the captioner's CNN's block whose input it reads; 0: it reads normalised images.
        size: pixels per side of the images that it was trained on. features_size: C'.
    """

    first: int
    size: int
    features_size: int

    def capture_input(self, backbone: Backbone) -> AbstractContextManager[list[Tensor]]:
        """Collect what the network reads, while the captioner's CNN runs."""
        raise NotImplementedError(type(self).__name__)

    def image_features(self, inputs: Tensor) -> Tensor:
        """Inputs collected by `capture_input`, (B, ...) -> features (B, C')."""
        raise NotImplementedError(type(self).__name__)

    def pooled(self, inputs: Tensor) -> Tensor:
        """As above, for inputs that have the network's size."""
        raise NotImplementedError(type(self).__name__)


@dataclass(frozen=True)
class Insertion:
    """A constrained search that a guide asks for: words that captions of some images must contain.

    images: rows of the batch. words: per image, ids of which one must come. mask: words to exclude from this search.
    margins: per image, how many nats of its score a caption may lose.
    """

    images: Sequence[int]
    words: Sequence[Sequence[int]]
    mask: MaskedWords
    margins: Sequence[float]


class Guide:
    """The half that steers a search. Every hook does nothing unless a guide overrides it."""

    name: ClassVar[str]  # in checkpoints, in model.json and in `guidance.GUIDES`
    prediction: ClassVar[str | None] = None  # name of its row per image, if it predicts one
    trained_type: ClassVar[type[TrainedGuide]]
    about_objects: ClassVar[bool] = False  # turned off by --no-objects
    rates: ClassVar[bool] = False  # whether `rate` has something to say
    inserts: ClassVar[bool] = False  # whether `insertion` has something to say
    gives_confidence: ClassVar[bool] = False  # whether `confidence` does

    new_words: Sequence[str] = ()  # words that it adds to the captioner's vocabulary
    word_weights: Tensor | None = None  # (new, known): weights of known words in each new word's vectors

    @classmethod
    def from_trained(cls, trained: Any, vocabulary: Vocabulary) -> Self:
        """From the trained half and the captioner's vocabulary."""
        raise NotImplementedError(cls.__name__)

    @classmethod
    def from_json(cls, description: Mapping[str, Any], vocabulary: Vocabulary) -> Self:
        """From what `to_json` returned; vocabulary: all words, including those that guides add."""
        raise NotImplementedError(cls.__name__)

    def to_json(self) -> dict[str, Any]:
        """The description that `from_json` and the JavaScript search read; see `export.onnx_folder` for its fields."""
        raise NotImplementedError(type(self).__name__)

    def banned_words(self, predicted: Tensor, forced: ForcedWords, words: int) -> Tensor | None:
        """Words to exclude from every caption of an image, bool (B, words), or None for no word."""
        return None

    def insertion(
        self, predicted: Tensor, captions: Sequence[str], forced: ForcedWords, banned: Tensor
    ) -> Insertion | None:
        """The search that would insert a word into the best captions (B), or None.

        banned: words that other guides exclude and new words, bool (B, W).
        """
        return None

    def rate(self, predicted: Tensor, image: int, tokens: Sequence[int]) -> float:
        """The score of a finished caption, which the search adds to its own times `SearchConfig.rerank_weight`."""
        return 0.0

    def confidence(self, mean_log_prob: float, ratings: Mapping[str, float]) -> float | None:
        """Probability that a caption is good, or None if the guide gives no confidence."""
        return None


def extend_vocabulary(model: SCACNN, word_weights: Tensor) -> SCACNN:
    """The captioner with more words, each the weighted mean of known ones; everything else is shared.

    word_weights: (new, known).
    """
    extended = copy.copy(model)
    extended._modules = dict(model._modules)
    known, size = model.embedding.weight.shape

    def extend(values: Tensor) -> Tensor:
        return torch.cat([values, word_weights.to(values.device) @ values]).detach()

    extended.embedding = nn.Embedding(known + len(word_weights), size, _weight=extend(model.embedding.weight))
    extended.word = nn.Linear(size, known + len(word_weights), device="meta")
    extended.word.weight = nn.Parameter(extend(model.word.weight))
    extended.word.bias = nn.Parameter(extend(model.word.bias))
    return extended

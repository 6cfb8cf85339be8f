"""What a captioner attended at every word of a caption: where in the image, and which channels.

Shapes: T words, C channels and H x W positions of an attended layer, S the side of the image that the model sees.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sca_caption.decoding.stepper import log_probs
from sca_caption.decoding.teacher_forcing import padded
from sca_caption.models.sca_cnn import SCACNN, State
from sca_caption.vocab import BOS


@dataclass(frozen=True)
class LayerTrace:
    """The attention of one layer. None stands for a kind of attention that the model lacks.

    spatial: float32 (T, H, W), alpha; every word's weights sum to 1, and 1 / (H W) is attention to nowhere in particular.
    channel: float32 (T, C), beta; every word's weights sum to 1.
    """

    name: str
    spatial: np.ndarray | None
    channel: np.ndarray | None

    def first(self, words: int) -> "LayerTrace":
        """That of the first words alone."""
        kinds = (self.spatial, self.channel)
        return LayerTrace(self.name, *(None if each is None else each[:words] for each in kinds))


@dataclass(frozen=True)
class Trace:
    """The attention at every word of one caption. probabilities: float32 (T,), of each word after those before it."""

    probabilities: np.ndarray
    layers: tuple[LayerTrace, ...]

    def first(self, words: int) -> "Trace":
        """That of the first words alone."""
        return Trace(self.probabilities[:words], tuple(layer.first(words) for layer in self.layers))


@torch.inference_mode()
def trace(
    model: SCACNN, state: State, captions: Sequence[Sequence[int]], vocabulary_size: int | None = None
) -> list[Trace]:
    """Have the model say a given caption in every row of a state before the first word, and note what it attends.

    captions: lists of word ids, without BOS and EOS, one for each row. What is noted of a word is what was attended to
    choose it, so it knows the words before but not the word itself.
    """
    words = padded(captions).long().to(state.device)  # (B, T)
    last = torch.full((len(captions),), BOS, device=state.device)
    probabilities, attention = [], []
    for word in words.unbind(1):
        logits, state = model.step(last, state)
        probabilities.append(log_probs(logits, vocabulary_size).exp().gather(1, word[:, None])[:, 0])
        attention.append(state.attention)
        last = word
    return [
        Trace(
            _stacked(probabilities, row, len(caption)),
            tuple(
                _layer(name, [of_word[index] for of_word in attention], row, len(caption))
                for index, name in enumerate(model.backbone.layers)
            ),
        )
        for row, caption in enumerate(captions)
    ]


@torch.inference_mode()
def attended_maps(model: SCACNN, images: Tensor) -> list[np.ndarray]:
    """What each attended layer holds before anything is attended: float32 (B, C, H, W) of images uint8 (B, 3, S, S)."""
    maps = model.encode(images.to(model.word.weight.device))
    found = [maps[0]]
    for index in range(len(model.backbone.layers) - 1):
        maps = model.backbone.segment(index, maps[0], maps[1:])
        found.append(maps[0])
    return [each.float().cpu().numpy() for each in found]


def numbers(trace: Trace, words: Sequence[str]) -> dict:
    """A trace for JSON, to four digits.

    {"words": [T], "probabilities": [T], "layers": [{"layer": name, "grid": [H, W], "spatial": [T lists of H W weights,
    row by row, of sum 1] or null, "channel": [T lists of C weights of sum 1] or null}]}. "grid" is null without spatial
    attention.
    """
    return {
        "words": list(words),
        "probabilities": rounded(trace.probabilities),
        "layers": [
            {
                "layer": layer.name,
                "grid": None if layer.spatial is None else list(layer.spatial.shape[1:]),
                "spatial": None
                if layer.spatial is None
                else [rounded(each.ravel()) for each in layer.spatial],
                "channel": None if layer.channel is None else [rounded(each) for each in layer.channel],
            }
            for layer in trace.layers
        ],
    }


def rounded(values: np.ndarray) -> list[float]:
    """Weights (N,) for JSON, to four significant digits."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def _layer(name: str, weights: list[tuple[Tensor | None, Tensor | None]], row: int, words: int) -> LayerTrace:
    """One image's part of what a layer attended at all words: (beta, alpha) of all images each."""
    channel, spatial = ([pair[kind] for pair in weights] for kind in (0, 1))
    channel = None if channel[0] is None else _stacked(channel, row, words)
    spatial = None if spatial[0] is None else _stacked(spatial, row, words)
    if spatial is not None:
        side = math.isqrt(spatial.shape[1])  # images are square, and so are their maps
        spatial = spatial.reshape(words, side, -1)
    return LayerTrace(name, spatial, channel)


def _stacked(values: list[Tensor], row: int, words: int) -> np.ndarray:
    return torch.stack([each[row] for each in values[:words]]).float().cpu().numpy()

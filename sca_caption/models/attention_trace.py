"""Attention trace of a caption: the spatial and channel weights of every attended layer at every word.

Shapes: T words, C channels and H x W positions of an attended layer, S the side of the model's input in pixels.
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
    """Attention weights of one layer, each None if the model has no attention of this type.

    spatial: alpha, float32 (T, H, W); the weights of a word sum to 1, and uniform attention is 1 / (H W).
    channel: beta, float32 (T, C); the weights of a word sum to 1.
    """

    name: str
    spatial: np.ndarray | None
    channel: np.ndarray | None

    def truncate(self, words: int) -> "LayerTrace":
        """Return the trace of the first `words` words."""
        weights = (self.spatial, self.channel)
        return LayerTrace(self.name, *(None if each is None else each[:words] for each in weights))


@dataclass(frozen=True)
class Trace:
    """Attention at every word of one caption. probabilities: float32 (T,), of each word given the previous words."""

    probabilities: np.ndarray
    layers: tuple[LayerTrace, ...]

    def truncate(self, words: int) -> "Trace":
        """Return the trace of the first `words` words."""
        return Trace(self.probabilities[:words], tuple(layer.truncate(words) for layer in self.layers))


@torch.inference_mode()
def trace(model: SCACNN, state: State, captions: Sequence[Sequence[int]]) -> list[Trace]:
    """Run the model on given captions and record its attention. state: as `SCACNN.start` returns it.

    captions: one list of word ids per row of the state, without BOS and EOS. The attention of a word is the attention
    from which the word is predicted, so it depends on the previous words but not on the word itself.
    """
    words = padded(captions).long().to(state.device)  # (B, T)
    last = torch.full((len(captions),), BOS, device=state.device)
    probabilities, attention = [], []
    for word in words.unbind(1):
        logits, state = model.step(last, state)
        probabilities.append(log_probs(logits).exp().gather(1, word[:, None])[:, 0])
        attention.append(state.attention)
        last = word
    return [
        Trace(
            _stack_words(probabilities, row, len(caption)),
            tuple(
                _layer_trace(name, [weights[index] for weights in attention], row, len(caption))
                for index, name in enumerate(model.attended)
            ),
        )
        for row, caption in enumerate(captions)
    ]


@torch.inference_mode()
def unattended_maps(model: SCACNN, images: Tensor) -> list[np.ndarray]:
    """Return the unattended map of each attended layer, float32 (B, C, H, W), for images uint8 (B, 3, S, S)."""
    maps = model.encode(images.to(model.word.weight.device))
    found = [maps[0]]
    for index in range(len(model.backbone.layers) - 1):
        maps = model.backbone.segment(index, maps[0], maps[1:])
        found.append(maps[0])
    return [each.float().cpu().numpy() for each in found[model.unattended :]]


def trace_to_json(trace: Trace, words: Sequence[str]) -> dict:
    """Convert a trace to JSON values with four significant digits.

    {"words": [T], "probabilities": [T], "layers": [{"layer": name, "grid": [H, W], "spatial": [T lists of H W weights,
    row by row, of sum 1] or null, "channel": [T lists of C weights of sum 1] or null}]}. "grid" is null without spatial
    attention.
    """
    return {
        "words": list(words),
        "probabilities": to_json_list(trace.probabilities),
        "layers": [
            {
                "layer": layer.name,
                "grid": None if layer.spatial is None else list(layer.spatial.shape[1:]),
                "spatial": None
                if layer.spatial is None
                else [to_json_list(each.ravel()) for each in layer.spatial],
                "channel": None if layer.channel is None else [to_json_list(each) for each in layer.channel],
            }
            for layer in trace.layers
        ],
    }


def to_json_list(values: np.ndarray) -> list[float]:
    """Convert values (N,) to a list for JSON, rounded to four significant digits."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def _layer_trace(
    name: str, weights: list[tuple[Tensor | None, Tensor | None]], row: int, words: int
) -> LayerTrace:
    """Trace of one layer for one row. weights: (beta, alpha) of all rows, per word."""
    channel, spatial = (_weights_of_words([pair[index] for pair in weights], row, words) for index in (0, 1))
    if spatial is not None:
        side = math.isqrt(spatial.shape[1])  # images are square, and so are their maps
        spatial = spatial.reshape(words, side, -1)
    return LayerTrace(name, spatial, channel)


def _weights_of_words(values: list[Tensor | None], row: int, words: int) -> np.ndarray | None:
    present = [each for each in values if each is not None]
    return _stack_words(present, row, words) if present else None


def _stack_words(values: list[Tensor], row: int, words: int) -> np.ndarray:
    return torch.stack([each[row] for each in values[:words]]).float().cpu().numpy()

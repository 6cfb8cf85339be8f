"""A captioner that loads and captions in milliseconds and says nonsense."""

import torch

from sca_caption.config import ModelConfig
from sca_caption.models.sca_cnn import SCACNN

TINY = ModelConfig(
    backbone="resnet18",
    layers=("layer1.0", "layer1.1"),
    attention_width=8,
    embedding_size=8,
    lstm_size=16,
    pool_norm=30.0,
)
TINY_WORDS = ["a", "the", "dog", "cat", "man", "woman", "runs", "sits"]
TINY_WORDS += ["on", "in", "grass", "water", "red", "blue", "ball", "two"]


def tiny_captioner(vocabulary_size: int = len(TINY_WORDS) + 4, config: ModelConfig = TINY) -> SCACNN:
    """A captioner of random weights, the same at every call, spread so that colours change its captions."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SCACNN(config, vocabulary_size).eval()
        with torch.no_grad():
            model.hidden_to_word.weight *= 10
            model.embedding.weight *= 5
            model.word.weight *= 3
    return model

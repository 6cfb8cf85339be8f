"""A captioner that loads and captions in milliseconds and says nonsense."""

import dataclasses
from pathlib import Path

import torch

from sca_caption import checkpoint
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import ModelConfig
from sca_caption.images import Transform
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.vocab import Vocabulary

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
STYLES = ("made", "everyday", "news")


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


def save_styled(path: Path) -> Path:
    """Write the checkpoint of a captioner whose three STYLES say different things of one image."""
    model = tiny_captioner(config=dataclasses.replace(TINY, styles=STYLES))
    with torch.no_grad():
        model.style.weight.normal_(0, 6, generator=torch.Generator().manual_seed(3))
    checkpoint.save(path, Checkpoint(model, Vocabulary(TINY_WORDS), Transform(32)))
    return path

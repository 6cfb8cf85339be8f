"""A tiny captioner with every guide that a checkpoint can hold."""

import dataclasses

import torch
from torch import Tensor

from sca_caption.checkpoint import Checkpoint
from sca_caption.guidance.confidence import ConfidenceModel
from sca_caption.guidance.consensus import ConsensusPredictor, fit_consensus
from sca_caption.guidance.words import PredictedWords
from sca_caption.images import Transform, fit
from sca_caption.inference.batching import stack
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.vocab import EOS, Vocabulary
from tests.helpers.made_photos import photo
from tests.helpers.tiny_captioner import TINY, TINY_WORDS, tiny_captioner

SIZE = 32  # pixels per side
WORDS = Vocabulary(TINY_WORDS)
THRESHOLDS = {"people": 0.5, "dogs": 0.5, "cat": 0.5, "red": 0.5, "blue": 0.5}


def pixels(count: int, size: int = SIZE) -> Tensor:
    """The first made photographs, uint8 (B, 3, S, S)."""
    return stack([fit(photo(number), Transform(size)) for number in range(count)])


@torch.no_grad()
def predicting_words(**changes) -> SCACNN:
    """A tiny captioner that predicts each word of some of `pixels(8)`, with logits of mean 0 and deviation 2.

    changes: of its config.
    """
    model = tiny_captioner(config=dataclasses.replace(TINY, word_rank=6, **changes))
    generator = torch.Generator().manual_seed(0)
    up = model.word_predictor.up
    up.weight.normal_(0, 3, generator=generator)
    up.bias.zero_()
    model.word_predictor.idf.uniform_(0.5, 3, generator=generator)
    logits = model.start(model.encode(pixels(8))).words
    scale = 2 / logits.std(0)
    up.weight *= scale[:, None]
    up.bias.copy_(-scale * logits.mean(0))
    return model


def made_consensus(channels: int) -> ConsensusPredictor:
    """Fitted to random features and random captions."""
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(4, len(WORDS), (40, 2, 5), generator=generator).tolist()
    features = torch.rand(40, channels, generator=generator)
    return fit_consensus(features, captions, len(WORDS), 16, 0.1)


def guided_checkpoint() -> Checkpoint:
    """A captioner with all guides, each of which changes captions of `pixels(8)`: of some images, not of all."""
    model = predicting_words()
    model.word.bias.data[EOS] += 0.15  # captions of one word, of twenty, and between
    guides = {
        "consensus": made_consensus(model.backbone.channels[0]),
        "words": PredictedWords(THRESHOLDS),
        "confidence": ConfidenceModel(2.0, 1.5, {"consensus": 4.0}),
    }
    return Checkpoint(model.requires_grad_(False), WORDS, Transform(SIZE), {"CIDEr": 1.0}, guides=guides)

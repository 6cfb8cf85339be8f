"""Captioners on a random MobileNetV2 for images of 64 pixels, and every guide that a checkpoint can hold."""

import torch
from torch import Tensor

from sca_caption.checkpoint import Checkpoint
from sca_caption.config import ModelConfig
from sca_caption.guidance.confidence import ConfidenceModel
from sca_caption.guidance.consensus import ConsensusPredictor, fit_consensus
from sca_caption.guidance.hallucination import PresenceClassifier
from sca_caption.guidance.image_features import signed_sqrt_pool
from sca_caption.guidance.object_classifier import ObjectClassifier, pretrained_classifier
from sca_caption.images import MEAN, STD, Transform, fit
from sca_caption.inference.batching import stack
from sca_caption.models.backbone import Backbone
from sca_caption.models.sca_cnn import SCACNN
from sca_caption.runtime.torchvision_compat import torchvision
from sca_caption.vocab import EOS, Vocabulary
from tests.helpers.made_photos import photo
from tests.helpers.tiny_captioner import TINY_WORDS

SIZE = 64  # pixels per side
TUNED = 14  # the first block that was fine-tuned for captions
LAYERS = ("features.17", "features.18")
CONFIG = ModelConfig(layers=LAYERS, attention_width=4, embedding_size=8, lstm_size=8)
WORDS = Vocabulary([*TINY_WORDS, "an", "is"])
CHANNELS = (320, 1280)  # of features.17, and of the object classifier
MENTIONED = ("man", "woman", "dog", "red")  # words that the hallucination mask excludes


@torch.no_grad()
def imagenet_network() -> torch.nn.Module:
    """torchvision's MobileNetV2 whose batch norms fit `pixels(8)`, and a classifier that is sure of some images."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # running statistics are plain means
    network.train()((pixels(8) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
    network.classifier[1].weight *= 60
    return network.eval()


def tuned(network: torch.nn.Module, first: int = TUNED, layers: tuple[str, ...] = LAYERS) -> SCACNN:
    """A captioner with seven words whose blocks from `first` on were fine-tuned."""
    weights = Backbone("mobilenet_v2", layers, network.state_dict()).state_dict()
    for name, value in weights.items():
        if int(name.split(".")[2]) >= first:
            value += 0.1 * value.abs().mean() * torch.randn_like(value)
    torch.manual_seed(1)
    model = SCACNN(CONFIG, 7).eval()
    model.backbone.load_state_dict(weights)
    return model


def speaking(network: torch.nn.Module, words: Vocabulary, first: int = TUNED) -> SCACNN:
    """The same with other words."""
    model = tuned(network, first)
    torch.manual_seed(2)
    model.embedding, model.word = torch.nn.Embedding(len(words), 8), torch.nn.Linear(8, len(words))
    return model


def reading_both(words: Vocabulary) -> ConsensusPredictor:
    """Fitted to random features of both networks and random captions."""
    generator = torch.Generator().manual_seed(0)
    captions = torch.randint(4, len(words), (40, 2, 5), generator=generator).tolist()
    features = torch.rand(40, sum(CHANNELS), generator=generator)
    return fit_consensus(features, captions, len(words), 16, 0.1, channels=CHANNELS)


def pixels(count: int, size: int = SIZE) -> Tensor:
    """The first made photographs, uint8 (B, 3, S, S)."""
    return stack([fit(photo(number), Transform(size)) for number in range(count)])


def guided_checkpoint(network: torch.nn.Module | None = None) -> Checkpoint:
    """A captioner with all four guides, each of which changes captions of `pixels(8)`: of some images, not of all.

    Object classifier, consensus predictor and presence classifier read images; the last two read both networks.
    """
    network = network or imagenet_network()
    model = speaking(network, WORDS)
    objects = pretrained_classifier(network.state_dict(), model.backbone)
    presence = PresenceClassifier(CHANNELS, ("people", "dogs", "red"))
    with torch.no_grad():
        maps, features = features_of(model, objects, pixels(8))
        pooled = signed_sqrt_pool(maps, features)
        for layer in (model.initial_hidden, model.initial_cell, model.hidden_to_word):
            layer.weight *= 10
        model.word.weight *= 5
        model.word.bias[[EOS, *WORDS.encode(MENTIONED)]] += 1.5
    generator = torch.Generator().manual_seed(3)
    presence.center.copy_(pooled.mean(0))
    presence.classifier.weight.copy_(4 * torch.randn(3, sum(CHANNELS), generator=generator))
    presence.classifier.bias.fill_(-3.0)
    guides = {"objects": objects, "presence": presence, "consensus": reading_both(WORDS)}
    guides["confidence"] = ConfidenceModel(2.0, 1.5, {"consensus": 4.0})
    return Checkpoint(model.requires_grad_(False), WORDS, Transform(SIZE), {"CIDEr": 1.0}, guides=guides)


@torch.inference_mode()
def features_of(model: SCACNN, objects: ObjectClassifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's first map, and the object classifier's features."""
    with objects.capture_input(model.backbone) as inputs:
        maps = model.encode(images)
    return maps[0], objects.image_features(torch.cat(inputs))

"""ImageNet's classifier beside the captioner: which objects are in a photograph.

A CNN that is fine-tuned for captions forgets most of ImageNet's classes. So a pretrained network stands beside it: an
EfficientNet-Lite, which knows the classes better, or MobileNetV2. If the captioner's lower blocks were never fine-tuned,
they are shared and only the upper blocks are stored here. A captioner whose images have another size than ImageNet's
shares nothing: on a map of 288 pixels, a quarter fewer of Caltech-101's objects were named.

Its pooled features also describe what fine-tuning has lost; other guides read them (see `consensus`, `hallucination`).

Shapes: B images, C channels, C' = 1280 features.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.guidance.guide import FeatureEncoder
from sca_caption.guidance.object_nouns import CLASSES, Noun, read_nouns
from sca_caption.models import efficientnet_lite, mobilenet_v2
from sca_caption.models.backbone import Backbone, forward_in_chunks
from sca_caption.runtime.errors import UserError

MOBILENET = "mobilenet_v2"
SIZE = 224  # pixels per side of the images that MobileNetV2 was trained on
TOLERANCE = 2e-3  # relative difference of weights that float16 storage explains, with room to spare


class ObjectClassifier(FeatureEncoder):
    """A pretrained classifier with folded batch norms: MobileNetV2 from block `first` on, or an EfficientNet-Lite.

    It reads the input of block `first` of the captioner's MobileNetV2; block 0 reads the image itself. Its prediction
    is the probability of each noun, (B, nouns).
    """

    int8_convolutions = True

    def __init__(self, first: int = 0, network: str = MOBILENET, nouns: Sequence[Noun] | None = None):
        super().__init__()
        self.first, self.network, self.features_size = first, network, mobilenet_v2.HEAD_CHANNELS
        self.nouns = tuple(nouns or read_nouns())
        if network == MOBILENET:
            blocks, self.size, self.sharpness = mobilenet_v2.MobileNetV2().features, SIZE, 1.0
            self.pixels: nn.Module = nn.Identity()
            self.features = nn.Sequential(OrderedDict((str(i), blocks[i]) for i in range(first, len(blocks))))
        else:
            self.size, self.sharpness = efficientnet_lite.VARIANTS[network][2], efficientnet_lite.LOGIT_SCALE
            self.pixels = efficientnet_lite.InputScaling()
            self.features = efficientnet_lite.EfficientNetLite(network)
        self.classifier = nn.Linear(self.features_size, CLASSES)
        membership = torch.zeros(CLASSES, len(self.nouns))
        for column, noun in enumerate(self.nouns):
            membership[list(noun.classes), column] = 1
        self.membership: Tensor  # (classes, nouns)
        self.register_buffer("membership", membership, persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def reads_features(self) -> bool:
        return True

    def settings(self) -> dict[str, Any]:
        return {"first": self.first, "network": self.network}

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], vocabulary_size: int
    ) -> Self:
        # Not on torch.device("meta"), which imports all of torch._dynamo.
        classifier = cls(**settings)
        classifier.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
        classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return classifier.requires_grad_(False).eval()

    def forward(self, maps: Tensor, features: Tensor | None) -> Tensor:
        """Features (B, C') -> the probability of each noun (B, nouns), the sum over its classes."""
        assert features is not None
        return self.class_probabilities(features) @ self.membership

    def image_features(self, inputs: Tensor) -> Tensor:
        """The input of block `first`, (B, C, H, W) -> the mean over positions of the last map, (B, C')."""
        if not self.first and inputs.shape[2:] != (self.size, self.size):
            inputs = F.interpolate(inputs, (self.size, self.size), mode="bilinear", antialias=True)
        (features,) = forward_in_chunks(lambda part: (self.pooled(part),), inputs)
        return features

    def pooled(self, inputs: Tensor) -> Tensor:
        """As above, for a map that has this network's size."""
        return self.features(self.pixels(inputs)).mean((2, 3))

    def class_probabilities(self, features: Tensor) -> Tensor:
        """Features (B, C') -> probabilities of ImageNet's classes (B, 1000)."""
        return (self.sharpness * self.classifier(features)).softmax(1)

    @contextmanager
    def capture_input(self, backbone: Backbone) -> Iterator[list[Tensor]]:
        """Collect the inputs of block `first` of the captioner's CNN while it runs."""
        maps: list[Tensor] = []
        block = backbone.network.features[self.first]
        hook = block.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        try:
            yield maps
        finally:
            hook.remove()


def pretrained_classifier(
    weights: dict[str, Tensor], backbone: Backbone, size: int = SIZE
) -> ObjectClassifier:
    """The classifier with ImageNet weights, without the blocks that it shares with a captioner's CNN.

    weights: MobileNetV2's in torchvision's layout, or an EfficientNet-Lite's in that of efficientnet_lite_pytorch, which
    shares no block. size: pixels per side of the captioner's images.

    Raises UserError for a captioner with another CNN than MobileNetV2, for weights without a classifier, and, with
    MobileNetV2 at ImageNet's size, for a CNN whose lower blocks differ from these weights.
    """
    blocks = mobilenet_v2.block_numbers(backbone.layers) if backbone.name == "mobilenet_v2" else []
    if not blocks or backbone.blocks():
        raise UserError(
            f"only captioners with a plain mobilenet_v2, attended after whole blocks, can name ImageNet's objects; found "
            f"{backbone.name}, attended at {' '.join(backbone.layers)}"
        )
    lite = efficientnet_lite.identify(weights)
    layer = "_fc" if lite else "classifier.1"
    head = {name: weights.get(f"{layer}.{name}") for name in ("weight", "bias")}
    if any(value is None or len(value) != CLASSES for value in head.values()):
        raise UserError(f"these weights have no classifier of {CLASSES} classes ({layer}); give ImageNet's")
    head = {f"classifier.{name}": value.float() for name, value in head.items() if value is not None}
    if lite:
        classifier = ObjectClassifier(network=lite)
        try:
            features = efficientnet_lite.fold_batch_norms(weights)
            classifier.load_state_dict({f"features.{name}": value for name, value in features.items()} | head)
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"these weights are not all of {lite} ({reason}); copy the file again") from error
        return classifier.eval()
    whole = Backbone("mobilenet_v2", ["features.18"], weights).network.state_dict()
    shared = size == SIZE
    first = common_blocks(whole, backbone.network.state_dict(), blocks[0]) if shared else 0
    if shared and not first:
        raise UserError(
            "block features.0 of the captioner's CNN differs from these weights: it was trained from others, or "
            "fine-tuned all through; give the weights that it started from, or train with --finetune-from features.14"
        )
    classifier = ObjectClassifier(first)
    upper = {name: value for name, value in whole.items() if _block(name) >= first}
    classifier.load_state_dict(upper | head)
    return classifier.eval()


def common_blocks(ours: dict[str, Tensor], theirs: dict[str, Tensor], most: int) -> int:
    """Number of lowest blocks, at most `most`, with equal weights in both state dicts."""
    for block in range(most):
        for name, value in ours.items():
            other = theirs.get(name)
            if _block(name) == block and (
                other is None
                or other.shape != value.shape
                or (other - value).norm() > TOLERANCE * value.norm()
            ):
                return block
    return most


def _block(name: str) -> int:
    """ "features.14.conv.0.0.weight" -> 14."""
    return int(name.split(".")[1])

"""What ImageNet's classifier sees in a photograph, read from the map that the captioner's own CNN computes.

Fine-tuned for captions, the upper blocks of a MobileNetV2 forget most of the thousand classes that they knew. The lower
ones are left as they were, so a second, original copy of the upper blocks and of the classifier stands on their map.
Beside a captioner that sees images at another size than ImageNet's stands the whole network, which sees them at
ImageNet's: on the map of 288 pixels a quarter fewer of Caltech-101's objects were named.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption import mobilenet
from sca_caption.backbones import Backbone
from sca_caption.errors import UserError
from sca_caption.nouns import CLASSES

SIZE = 224  # pixels at a side of the images that ImageNet's weights were trained on
SAME = 2e-3  # relative difference that storing weights as float16 may make, with room to spare


class Objects(nn.Module):
    """MobileNetV2 from block `first` on, as ImageNet taught it, batch norms folded; block 0 reads the image itself."""

    def __init__(self, first: int):
        super().__init__()
        blocks = mobilenet.MobileNetV2().features
        self.first = first
        self.features = nn.Sequential(OrderedDict((str(i), blocks[i]) for i in range(first, len(blocks))))
        self.classifier = nn.Linear(mobilenet.TOP, CLASSES)
        self.to(memory_format=torch.channels_last)

    def forward(self, below: Tensor) -> Tensor:
        """The map (B, C, H, W) that block `first` reads -> probabilities of the classes (B, 1000)."""
        if not self.first and below.shape[2:] != (SIZE, SIZE):
            below = F.interpolate(below, (SIZE, SIZE), mode="bilinear", antialias=True)
        return self.classifier(self.features(below).mean((2, 3))).softmax(1)

    @contextmanager
    def watching(self, backbone: Backbone) -> Iterator[list[Tensor]]:
        """Collects the maps that block `first` of the captioner's CNN reads meanwhile."""
        maps: list[Tensor] = []
        block = backbone.network.features[self.first]
        hook = block.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        try:
            yield maps
        finally:
            hook.remove()


def original(weights: dict[str, Tensor], backbone: Backbone, size: int = SIZE) -> Objects:
    """ImageNet's network above the blocks that a captioner's CNN, which sees `size` pixels, has in common with it.

    weights: MobileNetV2's, in torchvision's layout. Raises UserError for another CNN than MobileNetV2, weights without a
    classifier, and, at ImageNet's size, a CNN whose lower blocks are not these weights' (trained from others, or
    fine-tuned all through).
    """
    blocks = mobilenet.blocks_of(backbone.layers) if backbone.name == "mobilenet_v2" else []
    if not blocks or backbone.blocks():
        raise UserError(
            f"only captioners with a plain mobilenet_v2, attended after whole blocks, can name ImageNet's objects; found "
            f"{backbone.name}, attended at {' '.join(backbone.layers)}"
        )
    head = {name: weights.get(f"classifier.1.{name}") for name in ("weight", "bias")}
    if any(value is None or len(value) != CLASSES for value in head.values()):
        raise UserError(
            f"these weights have no classifier of {CLASSES} classes (classifier.1); give ImageNet's"
        )
    whole = Backbone("mobilenet_v2", ["features.18"], weights).network.state_dict()
    shared = size == SIZE
    first = common_blocks(whole, backbone.network.state_dict(), blocks[0]) if shared else 0
    if shared and not first:
        raise UserError(
            "block features.0 of the captioner's CNN differs from these weights: it was trained from others, or "
            "fine-tuned all through; give the weights that it started from, or train with --finetune-from features.14"
        )
    objects = Objects(first)
    upper = {name: value for name, value in whole.items() if _block(name) >= first}
    objects.load_state_dict(upper | {f"classifier.{name}": value for name, value in head.items()})
    return objects.eval()


def common_blocks(ours: dict[str, Tensor], theirs: dict[str, Tensor], most: int) -> int:
    """How many of the lowest blocks are the same in both state dicts, at most `most`."""
    for block in range(most):
        for name, value in ours.items():
            other = theirs.get(name)
            if _block(name) == block and (
                other is None or other.shape != value.shape or (other - value).norm() > SAME * value.norm()
            ):
                return block
    return most


def _block(name: str) -> int:
    """ "features.14.conv.0.0.weight" -> 14."""
    return int(name.split(".")[1])

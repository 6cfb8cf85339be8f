"""What ImageNet's classifier sees in a photograph, beside what the captioner's own CNN computes.

Fine-tuned for captions, the upper blocks of a MobileNetV2 forget most of the thousand classes that they knew. So a
network that ImageNet taught stands beside it: an EfficientNet-Lite, which knows more of them, or MobileNetV2 itself, as
it was. Of that the lower blocks may be the captioner's, where those were left as they were; then the upper ones stand on
their map.
Beside a captioner that sees images at another size than ImageNet's stands the whole network, which sees them at
ImageNet's: on the map of 288 pixels a quarter fewer of Caltech-101's objects were named.

The mean of its last map also says something about a photograph that fine-tuning has lost; see `consensus`.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.guidance.object_nouns import CLASSES
from sca_caption.models import efficientnet_lite, mobilenet_v2
from sca_caption.models.backbone import Backbone, in_parts
from sca_caption.runtime.errors import UserError

MOBILENET = "mobilenet_v2"
SIZE = 224  # pixels at a side of the images that MobileNetV2's weights were trained on
SAME = 2e-3  # relative difference that storing weights as float16 may make, with room to spare


class Objects(nn.Module):
    """A network as ImageNet taught it, batch norms folded: MobileNetV2 from block `first` on, or an EfficientNet-Lite.

    What it reads is what block `first` of the captioner's MobileNetV2 reads; block 0 reads the image itself.
    """

    def __init__(self, first: int = 0, network: str = MOBILENET):
        super().__init__()
        self.first, self.network = first, network
        if network == MOBILENET:
            blocks, self.size, self.sharpness = mobilenet_v2.MobileNetV2().features, SIZE, 1.0
            self.pixels: nn.Module = nn.Identity()
            self.features = nn.Sequential(OrderedDict((str(i), blocks[i]) for i in range(first, len(blocks))))
        else:
            self.size, self.sharpness = efficientnet_lite.SIZES[network][2], efficientnet_lite.SHARPNESS
            self.pixels = efficientnet_lite.Pixels()
            self.features = efficientnet_lite.EfficientNetLite(network)
        self.classifier = nn.Linear(mobilenet_v2.TOP, CLASSES)
        self.to(memory_format=torch.channels_last)

    def forward(self, below: Tensor) -> Tensor:
        """The map (B, C, H, W) that block `first` reads -> the means of the last map's channels (B, 1280)."""
        if not self.first and below.shape[2:] != (self.size, self.size):
            below = F.interpolate(below, (self.size, self.size), mode="bilinear", antialias=True)
        (seen,) = in_parts(lambda part: (self.pooled(part),), below)
        return seen

    def pooled(self, below: Tensor) -> Tensor:
        """The same, of images at this network's size."""
        return self.features(self.pixels(below)).mean((2, 3))

    def classes(self, seen: Tensor) -> Tensor:
        """What `forward` answers -> probabilities of the classes (B, 1000)."""
        return (self.sharpness * self.classifier(seen)).softmax(1)

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
    """ImageNet's network beside a captioner's CNN, which sees `size` pixels, without the blocks that both have in common.

    weights: MobileNetV2's, in torchvision's layout, or an EfficientNet-Lite's, in that of the package
    efficientnet_lite_pytorch, which has no block in common. Raises UserError for another CNN than MobileNetV2, weights
    without a classifier, and, for MobileNetV2's at ImageNet's size, a CNN whose lower blocks are not these weights'
    (trained from others, or fine-tuned all through).
    """
    blocks = mobilenet_v2.blocks_of(backbone.layers) if backbone.name == "mobilenet_v2" else []
    if not blocks or backbone.blocks():
        raise UserError(
            f"only captioners with a plain mobilenet_v2, attended after whole blocks, can name ImageNet's objects; found "
            f"{backbone.name}, attended at {' '.join(backbone.layers)}"
        )
    lite = efficientnet_lite.recognised(weights)
    classifier = "_fc" if lite else "classifier.1"
    head = {name: weights.get(f"{classifier}.{name}") for name in ("weight", "bias")}
    if any(value is None or len(value) != CLASSES for value in head.values()):
        raise UserError(
            f"these weights have no classifier of {CLASSES} classes ({classifier}); give ImageNet's"
        )
    head = {f"classifier.{name}": value.float() for name, value in head.items()}
    if lite:
        objects = Objects(network=lite)
        try:
            features = efficientnet_lite.folded(weights)
            objects.load_state_dict({f"features.{name}": value for name, value in features.items()} | head)
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"these weights are not all of {lite} ({reason}); copy the file again") from error
        return objects.eval()
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
    objects.load_state_dict(upper | head)
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

"""An image classifier: a network with attention blocks in it (see `networks`), and its training loss.

Shapes: B images, S their side in pixels, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.config import ClassifierConfig
from sca_caption.images import MEAN, STD
from sca_caption.models.networks import build_network, load_pretrained
from sca_caption.runtime.errors import UserError


class Classifier(nn.Module):
    """`config.backbone` with `config.attention` at the stages `config.at`, for the classes `config.classes`.

    weights: ImageNet weights in torchvision's layout, loaded underneath the blocks; None starts at random. `fresh` names
    the parameters that they did not bring. Raises UserError for unknown names, and for weights that do not fit.
    """

    def __init__(self, config: ClassifierConfig, weights: dict[str, Tensor] | None = None):
        super().__init__()
        if len(config.classes) < 2:
            raise UserError(f"a classifier needs two classes or more, found {len(config.classes)}")
        self.config = config
        self.network = build_network(
            config.backbone,
            len(config.classes),
            stem=config.stem,
            attention=config.attention,
            at=config.at,
        )
        self.fresh = load_pretrained(self.network, weights, config.backbone) if weights is not None else []
        # 1x1 and depthwise convolutions are fastest in this layout
        self.network.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, S, S) -> logits (B, K)."""
        return self.network(self.normalise(images))

    def normalise(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, S, S) as the network takes them."""
        return ((images / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def loss(
        self, images: Tensor, labels: Tensor, label_smoothing: float = 0.0, mixup: float = 0.0
    ) -> Tensor:
        """Mean cross-entropy an image (nats).

        With mixup (Zhang et al. 2018, arXiv 1710.09412), of images blended with others of the batch in proportion
        lambda ~ Beta(mixup, mixup), against both labels in that proportion.
        """
        if not mixup:
            return F.cross_entropy(self(images), labels, label_smoothing=label_smoothing)
        share = torch.distributions.Beta(mixup, mixup).sample().item()
        other = torch.randperm(len(labels)).to(labels.device)
        logits = self.network(self.normalise(images * share + images[other] * (1 - share)))
        one, two = (
            F.cross_entropy(logits, y, label_smoothing=label_smoothing) for y in (labels, labels[other])
        )
        return share * one + (1 - share) * two

"""Image classifier: a network of `networks` with attention blocks, and its training loss.

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
    """The network `config.backbone` with `config.attention` in the stages `config.at`, for `config.classes`.

    weights: ImageNet weights with torchvision's names, or None for random ones. `unloaded` lists the parameters that
    `weights` do not contain. Raises UserError for unknown names, fewer than two classes, and weights that do not fit.
    """

    def __init__(self, config: ClassifierConfig, weights: dict[str, Tensor] | None = None):
        super().__init__()
        if len(config.classes) < 2:
            raise UserError(f"a classifier needs at least two classes, found {len(config.classes)}")
        self.config = config
        self.network = build_network(
            config.backbone,
            len(config.classes),
            stem=config.stem,
            attention=config.attention,
            at=config.at,
        )
        self.unloaded = load_pretrained(self.network, weights, config.backbone) if weights is not None else []
        # 1x1 and depthwise convolutions are fastest with channels last.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 (B, 3, S, S) -> logits (B, K)."""
        return self.network(self.normalize(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images uint8 (B, 3, S, S) with ImageNet's mean and standard deviation."""
        return ((images / 255 - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def loss(
        self, images: Tensor, labels: Tensor, label_smoothing: float = 0.0, mixup: float = 0.0
    ) -> Tensor:
        """Mean cross-entropy per image (nats).

        mixup: alpha of Zhang et al. 2018, arXiv 1710.09412. If positive, each image is mixed with another one of the
        batch, and the losses of both labels are weighted alike, with lambda ~ Beta(alpha, alpha).
        """
        if not mixup:
            return F.cross_entropy(self(images), labels, label_smoothing=label_smoothing)
        lam = torch.distributions.Beta(mixup, mixup).sample().item()
        other = torch.randperm(len(labels)).to(labels.device)
        logits = self.network(self.normalize(images * lam + images[other] * (1 - lam)))
        loss, other_loss = (
            F.cross_entropy(logits, y, label_smoothing=label_smoothing) for y in (labels, labels[other])
        )
        return lam * loss + (1 - lam) * other_loss

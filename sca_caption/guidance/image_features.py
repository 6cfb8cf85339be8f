"""Pooled image features that guides are fitted on.

Shapes: B images, C channels of the encoder's map, C' features of the object classifier.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.guidance.guide import TrainedGuide


def signed_sqrt_pool(maps: Tensor, features: Tensor | None = None) -> Tensor:
    """Mean over positions, then sign(x) sqrt(|x|), so that a few strong channels do not outweigh the others.

    maps (B, C, H, W), features (B, C') that are pooled already -> (B, C + C').
    """
    means = maps.mean((2, 3))
    means = means if features is None else torch.cat((means, features), 1)
    return means.sign() * means.abs().sqrt()


def center_and_normalize(features: Tensor, center: Tensor, channels: Sequence[int]) -> Tensor:
    """Subtract the center and scale to unit length, (B, C) -> (B, C); each network's channels have an equal share."""
    parts = [F.normalize(part, dim=1) for part in (features - center).split(tuple(channels), 1)]
    return torch.cat(parts, 1) / math.sqrt(len(parts))


class PooledFeaturesGuide(TrainedGuide):
    """A trained guide whose prediction is computed from centred and normalised pooled features.

    channels: number of features of the encoder's map and, if it reads them, of the object classifier.
    """

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.channels = tuple(channels)
        self.center = nn.Parameter(torch.zeros(sum(channels)), requires_grad=False)

    @property
    def reads_features(self) -> bool:
        return len(self.channels) > 1

    def inputs(self, maps: Tensor, features: Tensor | None) -> Tensor:
        """maps (B, C, H, W), features (B, C') -> (B, sum of channels)."""
        pooled = signed_sqrt_pool(maps, features if self.reads_features else None)
        return center_and_normalize(pooled, self.center, self.channels)

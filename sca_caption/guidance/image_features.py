"""Pooled image features that guides are fitted on.

Shapes: B images, C channels of the encoder's map, C' features of the object classifier.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


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

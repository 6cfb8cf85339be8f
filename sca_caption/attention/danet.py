"""Dual attention network, DANet: position attention, channel attention, and the head that combines them (Fu et al. 2019,
arXiv 1809.02983; code: junfu1115/DANet, encoding/nn/da_att.py and encoding/models/sseg/danet.py).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca_caption.attention.common import BatchNorm, reduced_width


class PositionAttention(nn.Module):
    """out_i = gamma sum_j softmax_j(q_i . k_j) v_j + x_i over positions i and j (eqs. 1-2). The softmax has no scale.

    reduction: q and k have C // reduction channels. Raises UserError for a reduction below one.

    Shapes: (B, C, H, W) -> (B, C, H, W). gamma is initially zero, so the block starts as the identity.
    """

    def __init__(self, channels: int, *, reduction: int = 8):
        super().__init__()
        inner = reduced_width(channels, reduction)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        # One head: query and key (B, 1, N, C // reduction), value (B, 1, N, C).
        query, key, value = (
            conv(x).flatten(2).mT.unsqueeze(1) for conv in (self.query, self.key, self.value)
        )
        out = F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)  # (B, N, C)
        return self.gamma * out.mT.unflatten(2, x.shape[2:]) + x


class DANetChannelAttention(nn.Module):
    """out_i = gamma sum_j softmax_j(max_j(e_ij) - e_ij) x_j + x_i over channels, e_ij = x_i . x_j (eqs. 3-4).

    Subtracting from the maximum of the row gives the largest weights to the least similar channels. The authors' code
    does so, the equation in the paper does not. gamma is the only parameter.

    Shapes: (B, C, H, W) -> (B, C, H, W). gamma is initially zero, so the block starts as the identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        # Energies are sums over all positions. Rounding them to half precision would change the softmax too much.
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.attend(x.float())
        return self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        """Compute the block without autocast."""
        flat = x.flatten(2)  # (B, C, N)
        energy = flat @ flat.mT  # (B, C, C)
        weights = (energy.amax(2, keepdim=True) - energy).softmax(2)
        return self.gamma * (weights @ flat).view_as(x) + x


class DANet(nn.Module):
    """The segmentation head of the paper as a block: position and channel attention in two branches, summed.

    Each branch: 3x3 convolution to C // reduction channels, BN, ReLU -> attention -> 3x3 convolution, BN, ReLU. After
    the sum, the authors' 1x1 convolution returns to C channels here instead of to classes. Their dropout and the two
    side outputs of their segmentation loss are omitted.

    Shapes: (B, C, H, W) -> (B, C, H, W). The head is not residual, so it does not start as the identity.
    Raises UserError for a reduction below one.
    """

    def __init__(self, channels: int, *, reduction: int = 4):
        super().__init__()
        inner = reduced_width(channels, reduction)
        self.position = nn.Sequential(
            *conv3x3(channels, inner), PositionAttention(inner), *conv3x3(inner, inner)
        )
        self.channel = nn.Sequential(
            *conv3x3(channels, inner), DANetChannelAttention(inner), *conv3x3(inner, inner)
        )
        self.out = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.position(x) + self.channel(x))


def conv3x3(channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """3x3 convolution without bias, BN, ReLU: (B, channels, H, W) -> (B, out_channels, H, W)."""
    convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return convolution, BatchNorm(out_channels), nn.ReLU()

"""Dual attention: over positions and over channels, and the head of both (Fu et al. 2019, arXiv 1809.02983; code:
junfu1115/DANet, encoding/nn/da_att.py and encoding/models/sseg/danet.py)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca_caption.attention.common import BatchNorm, reduced


class PositionAttention(nn.Module):
    """out = gamma sum_j softmax_j(q_i . k_j) v_j + x_i over positions i and j, the softmax unscaled (eqs. 1-2).

    reduction: q and k have C / reduction channels. Raises UserError for one below 1.

    Shapes: (B, C, H, W) -> the same. gamma starts at zero: at the start the block is the identity.
    """

    def __init__(self, channels: int, *, reduction: int = 8):
        super().__init__()
        inner = reduced(channels, reduction)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        # One head, so (B, 1, N, C / reduction) for the first two and (B, 1, N, C) for the third.
        query, key, value = (
            conv(x).flatten(2).mT.unsqueeze(1) for conv in (self.query, self.key, self.value)
        )
        out = F.scaled_dot_product_attention(query, key, value, scale=1.0).squeeze(1)  # (B, N, C)
        return self.gamma * out.mT.unflatten(2, x.shape[2:]) + x


class DANetChannelAttention(nn.Module):
    """out = gamma sum_j softmax_j(max_j(e_ij) - e_ij) x_j + x_i over channels, e_ij = x_i . x_j (eqs. 3-4).

    The difference from the row's maximum gives the channels least like a channel the most weight: it is in the
    authors' code, not in the paper's equation. gamma is the one parameter.

    Shapes: (B, C, H, W) -> the same. gamma starts at zero: at the start the block is the identity.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        device = x.device.type
        # A channel's energies are sums over all positions: half precision rounds them by more than the softmax can bear.
        if torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):
                return self.attend(x.float())
        return self.attend(x)

    def attend(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)  # (B, C, N)
        energy = flat @ flat.mT  # (B, C, C)
        weights = (energy.amax(2, keepdim=True) - energy).softmax(2)
        return self.gamma * (weights @ flat).view_as(x) + x


class DANet(nn.Module):
    """The authors' head: the two attentions side by side on a narrower map, each between 3x3 convolutions, and summed.

    Each branch: 3x3 to C / reduction, BN, ReLU -> attention -> 3x3, BN, ReLU. After the sum the authors' 1x1
    convolution, which there gives classes and here goes back to C channels; their dropout before it, and the two side
    outputs that only their segmentation loss reads, are left out.

    Shapes: (B, C, H, W) -> the same. Not residual: at the start both attentions are the identity, the head is not.
    Raises UserError for a reduction below 1.
    """

    def __init__(self, channels: int, *, reduction: int = 4):
        super().__init__()
        inner = reduced(channels, reduction)
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
    convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
    return convolution, BatchNorm(out_channels), nn.ReLU()

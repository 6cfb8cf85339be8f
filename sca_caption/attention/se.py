"""Squeeze-and-excitation, SE (Hu et al. 2018, arXiv 1709.01507, section 3; code: hujie-frank/SENet)."""

import torch
from torch import Tensor, nn

from sca_caption.attention.common import init_he, reduced_width


class SE(nn.Module):
    """x * sigmoid(W_2 relu(W_1 z)), where z are the channel means (eqs. 2-4): (B, C, H, W) -> (B, C, H, W).

    The hidden width is max(1, C // reduction). The authors' released networks have biases in both layers; the paper's
    equation and many ports have none (`bias=False`). Initialisation by He et al., as in section 5 of the paper. Raises
    UserError for a reduction below one.
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = True):
        super().__init__()
        width = reduced_width(channels, reduction)
        self.reduce = nn.Linear(channels, width, bias=bias)  # W_1
        self.expand = nn.Linear(width, channels, bias=bias)  # W_2
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3))  # (B, C)
        weights = torch.sigmoid(self.expand(torch.relu(self.reduce(squeezed))))
        return x * weights[:, :, None, None]

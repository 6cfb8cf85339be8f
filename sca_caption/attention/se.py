"""Squeeze-and-excitation (Hu et al. 2018, arXiv 1709.01507, section 3; authors' code: hujie-frank/SENet)."""

import torch
from torch import Tensor, nn

from sca_caption.attention.common import init_he, reduced


class SE(nn.Module):
    """x * sigmoid(W_2 relu(W_1 z)), z the mean of each channel (eqs. 2-4): (B, C, H, W) -> (B, C, H, W).

    The authors' released networks have biases on both layers; the paper's equation and many ports have none
    (`bias=False`). The hidden width is max(1, C // reduction). Weights start as in He et al., as the paper's
    section 5 says. Raises UserError for a reduction below one.
    """

    def __init__(self, channels: int, *, reduction: int = 16, bias: bool = True):
        super().__init__()
        width = reduced(channels, reduction)
        self.reduce = nn.Linear(channels, width, bias=bias)  # W_1
        self.expand = nn.Linear(width, channels, bias=bias)  # W_2
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        squeezed = x.mean((2, 3))  # (B, C)
        weights = torch.sigmoid(self.expand(torch.relu(self.reduce(squeezed))))
        return x * weights[:, :, None, None]

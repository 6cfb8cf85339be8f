"""Coordinate attention (Hou et al. 2021, arXiv 2103.02907, section 3.2; code: houqb/CoordAttention)."""

import torch
from torch import Tensor, nn

from sca_caption.attention.common import init_he, reduced_width


class CoordinateAttention(nn.Module):
    """x * a_h * a_w, where each channel has one weight per row and one per column: (B, C, H, W) -> (B, C, H, W).

    The means over W and over H (eqs. 4-5) are concatenated and go through a 1x1 convolution to max(8, C // reduction)
    channels, batch norm and h-swish (eq. 6). They are then split again, and each part goes through a 1x1 convolution and
    a sigmoid (eqs. 7-8).

    Initialisation as in the authors' code: He et al. with fan-out, biases zero. Raises UserError for a reduction below
    one.
    """

    def __init__(self, channels: int, *, reduction: int = 32):
        super().__init__()
        width = reduced_width(channels, reduction, least=8)
        self.reduce = nn.Conv2d(channels, width, 1)
        self.bn = nn.BatchNorm2d(width)  # has H + W >= 2 values per channel
        self.rows = nn.Conv2d(width, channels, 1)  # F_h
        self.columns = nn.Conv2d(width, channels, 1)  # F_w
        init_he(self, "fan_out")

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        rows = x.mean(3, keepdim=True)  # (B, C, H, 1)
        columns = x.mean(2, keepdim=True).transpose(2, 3)  # (B, C, W, 1)
        joint = nn.functional.hardswish(self.bn(self.reduce(torch.cat([rows, columns], 2))))
        rows, columns = joint.split([height, width], 2)
        a_h = torch.sigmoid(self.rows(rows))  # (B, C, H, 1)
        a_w = torch.sigmoid(self.columns(columns.transpose(2, 3)))  # (B, C, 1, W)
        return x * a_h * a_w

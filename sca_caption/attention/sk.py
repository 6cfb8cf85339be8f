"""Selective kernel convolution, SK (Li et al. 2019, arXiv 1903.06586, section 3.1; code: implus/SKNet)."""

import torch
from torch import Tensor, nn

from sca_caption.attention.common import BatchNorm, init_he, reduced_width, require_positive
from sca_caption.runtime.errors import UserError


class SK(nn.Module):
    """Two branches with kernels 3x3 and 3x3 dilated by 2 (a 5x5 field), weighted per channel by a softmax over both.

    The block replaces the 3x3 convolution of a bottleneck. Each branch is a grouped convolution without bias, batch norm
    and ReLU. The sum of the branches is pooled and reduced to max(least, out_channels // reduction) channels (eq. 4). A
    linear layer without bias then gives a score per channel and branch (eq. 5). Initialisation by He et al.

    Shapes: (B, C, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride)); out_channels is C by default.
    Raises UserError if `groups` does not divide both numbers of channels, and for a number below one.
    """

    def __init__(
        self,
        channels: int,
        *,
        out_channels: int | None = None,
        stride: int = 1,
        groups: int = 32,
        reduction: int = 16,
        least: int = 32,
    ):
        super().__init__()
        out_channels = channels if out_channels is None else out_channels
        require_positive(out_channels=out_channels, stride=stride, groups=groups)
        if channels % groups or out_channels % groups:
            raise UserError(
                f"sk: groups={groups} does not divide {channels} input and {out_channels} output channels; use a divisor"
            )
        width = reduced_width(out_channels, reduction, least)

        def branch(dilation: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, out_channels, 3, stride, dilation, dilation, groups, bias=False),
                BatchNorm(out_channels),
                nn.ReLU(),
            )

        self.branches = nn.ModuleList([branch(1), branch(2)])
        self.reduce = nn.Sequential(nn.Linear(out_channels, width, bias=False), BatchNorm(width), nn.ReLU())
        self.score = nn.Linear(width, 2 * out_channels, bias=False)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        near, far = (branch(x) for branch in self.branches)  # (B, C, H, W) each
        pooled = (near + far).mean((2, 3))  # (B, C)
        scores = self.score(self.reduce(pooled)).unflatten(1, (2, -1))  # (B, 2, C)
        a, b = torch.softmax(scores, 1)[..., None, None].unbind(1)
        return a * near + b * far

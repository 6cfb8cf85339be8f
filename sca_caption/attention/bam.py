"""Bottleneck attention module, BAM (Park et al. 2018, arXiv 1807.06514, section 3; code: Jongchan/attention-module)."""

import torch
from torch import Tensor, nn

from sca_caption.attention.common import BatchNorm, init_he, reduced_width, require_positive
from sca_caption.runtime.errors import choice

COMBINE = ("mul", "add")


class BAM(nn.Module):
    """x * (1 + sigmoid(M_c op M_s)): (B, C, H, W) -> (B, C, H, W). The paper inserts it between the stages of a network.

    M_c (B, C, 1, 1) is computed from the channel means, M_s (B, 1, H, W) by a bottleneck with two dilated 3x3
    convolutions. The paper (eq. 2) adds M_c and M_s (`combine="add"`). The authors' code multiplies them, and their
    published weights were trained so (`combine="mul"`, the default).

    If a training batch has one image, the channel branch has one value per channel and is normalised by the running
    statistics (see `BatchNorm`). Initialisation as in the authors' code: convolutions by He et al. with fan-out, biases
    zero. Raises UserError for an unknown `combine` and for a reduction or dilation below one.
    """

    def __init__(self, channels: int, *, reduction: int = 16, dilation: int = 4, combine: str = "mul"):
        super().__init__()
        self.combine = choice(combine, COMBINE, "combine of bam")
        require_positive(dilation=dilation)
        width = reduced_width(channels, reduction)
        self.channel = nn.Sequential(
            nn.Linear(channels, width), BatchNorm(width), nn.ReLU(), nn.Linear(width, channels)
        )

        def dilated() -> nn.Conv2d:
            return nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)

        self.spatial = nn.Sequential(
            *(nn.Conv2d(channels, width, 1), BatchNorm(width), nn.ReLU()),
            *(dilated(), BatchNorm(width), nn.ReLU()),
            *(dilated(), BatchNorm(width), nn.ReLU()),
            nn.Conv2d(width, 1, 1),
        )
        init_he(self.spatial, "fan_out")
        for linear in (self.channel[0], self.channel[3]):
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        channel = self.channel(x.mean((2, 3)))[:, :, None, None]  # (B, C, 1, 1)
        spatial = self.spatial(x)  # (B, 1, H, W)
        joint = channel * spatial if self.combine == "mul" else channel + spatial
        return x * (1 + torch.sigmoid(joint))

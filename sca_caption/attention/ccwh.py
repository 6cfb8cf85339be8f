"""CCWH: attention over channel and width, height and channel, and channels (Wang and Liao, "CCWH: Convolutional Attention
Module"; code: Willamjie/CCWH, from which it is implemented).
"""

import torch
from torch import Tensor, nn


class CCWH(nn.Module):
    """out = (g1 + g2) / 2 + g3, without an identity term. The block has 41 parameters for any number of channels.

    g1 = sigmoid(conv3x3([max_H, mean_H] x)) x: a weight per channel and column, from pooling over the height;
    g2 = sigmoid(conv3x3([max_W, mean_W] x)) x: a weight per row and channel, from pooling over the width;
    g3 = sigmoid(conv3(mean_HW x)) x: a weight per channel, from its neighbours in channel order as in ECA
    (Wang et al. 2020, arXiv 1910.03151).

    Shapes: (B, C, H, W) -> (B, C, H, W). Initially every gate is near 1/2, so the output is near x.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.along_height = nn.Conv2d(2, 1, 3, padding=1)  # over (C, W)
        self.along_width = nn.Conv2d(2, 1, 3, padding=1)  # over (H, C)
        self.channel = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        height = torch.stack([x.amax(2), x.mean(2)], 1)  # (B, 2, C, W)
        height = self.along_height(height).sigmoid().transpose(1, 2)  # (B, C, 1, W)
        width = torch.stack([x.amax(3), x.mean(3)], 1).transpose(2, 3)  # (B, 2, H, C)
        width = self.along_width(width).sigmoid().permute(0, 3, 2, 1)  # (B, C, H, 1)
        channel = self.channel(x.mean((2, 3)).unsqueeze(1)).sigmoid()  # (B, 1, C)
        return x * ((height + width) / 2 + channel.squeeze(1)[:, :, None, None])

"""Channel-spatial hybrid attention module, CSHAM (Pan et al., "A channel-spatial hybrid attention mechanism using
channel weight transfer strategy"; code in TensorFlow: attention/MY.py in HuHaigen's repository of the same name).

Defaults of TensorFlow are reproduced: SAME padding, which is asymmetric at stride 2 on even maps; batch norm with epsilon
1e-3 and momentum 0.99; nearest-neighbour upsampling by pixel centres; the initialisation of the weights.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca_caption.attention.common import BatchNorm
from sca_caption.runtime.errors import choice

CONNECTIONS = ("plain", "alternate")
# Momentum is 0.99 in Keras, where it weights the old value; in PyTorch it weights the new one.
KERAS_NORM: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}


class ChannelWeights(nn.Module):
    """w = sigmoid(f([f_a(mean), f_m(maximum)])), each f a convolution of width 3 over the channels: 15 parameters."""

    def __init__(self, relu: bool = False):
        super().__init__()
        self.average = nn.Conv1d(1, 1, 3, padding=1)
        self.maximum = nn.Conv1d(1, 1, 3, padding=1)
        self.fuse = nn.Conv1d(2, 1, 3, padding=1)
        self.act = nn.ReLU() if relu else nn.Identity()
        for conv in (self.average, self.maximum, self.fuse):
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> w (B, C, 1, 1), in (0, 1)."""
        average = self.act(self.average(x.mean((2, 3)).unsqueeze(1)))  # (B, 1, C)
        maximum = self.act(self.maximum(x.amax((2, 3)).unsqueeze(1)))
        weights = self.act(self.fuse(torch.cat([average, maximum], 1))).sigmoid()  # (B, 1, C)
        return weights.squeeze(1)[:, :, None, None]


class SpatialWeights(nn.Module):
    """Spatial weights with neighbour enhancement: the score of a position plus the score of its neighbourhood.

    s = sigmoid(BN(conv7x7([mean, max over channels])) + up(BN(conv3x3/2(AvgPool2(x))))): 9 C + 102 parameters.
    """

    def __init__(self, channels: int, relu: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = BatchNorm(1, **KERAS_NORM)
        self.act = nn.ReLU() if relu else nn.Identity()
        self.down = nn.Conv2d(channels, 1, 3, stride=2, bias=False)
        self.down_norm = BatchNorm(1, **KERAS_NORM)
        for conv in (self.conv, self.down):
            nn.init.kaiming_normal_(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> s (B, 1, H, W), in (0, 1)."""
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)  # (B, 2, H, W)
        position = self.act(self.norm(self.conv(summary)))  # (B, 1, H, W)
        neighbourhood = F.interpolate(self.neighbourhood(x), x.shape[2:], mode="nearest-exact")
        return (position + neighbourhood).sigmoid()

    def neighbourhood(self, x: Tensor) -> Tensor:
        """One score per 4x4 positions, approximately: (B, C, H, W) -> (B, 1, ceil(H // 2 / 2), ceil(W // 2 / 2))."""
        H, W = x.shape[2:]
        # Drops the last row and column of an odd map, as the authors' pooling does. A side of one pixel is not pooled.
        pooled = F.avg_pool2d(x, (min(2, H), min(2, W)))
        height, width = pooled.shape[2:]
        # SAME padding at stride 2: one row at the bottom of even maps, one row on both sides of odd maps.
        return self.down_norm(self.down(F.pad(pooled, (width % 2, 1, height % 2, 1))))


class CSHAM(nn.Module):
    """y = w x, out = s(y) y: channel weights w (`ChannelWeights`), then spatial weights s (`SpatialWeights`).

    relu: the authors' second variant, with a ReLU after each Conv1d and after the batch norm of the 7x7 convolution.
    Its dropout is omitted.

    connection="alternate" is our INTERPRETATION of the abstract, which mentions a transfer of the channel weights that
    is not in the released code: the channel weights are computed once and applied again before a second spatial module,

        w = channel(x);  y = w x;  z = s1(y) y;  z' = w z;  out = s2(z') z'

    Shapes: (B, C, H, W) -> (B, C, H, W). Initially the gates vary around 1/2. Raises UserError for an unknown
    connection.
    """

    def __init__(self, channels: int, *, relu: bool = False, connection: str = "plain"):
        super().__init__()
        self.connection = choice(connection, CONNECTIONS, "connection of csham")
        self.channel = ChannelWeights(relu)
        self.spatial = SpatialWeights(channels, relu)
        self.spatial2 = SpatialWeights(channels, relu) if connection == "alternate" else None

    def forward(self, x: Tensor) -> Tensor:
        w = self.channel(x)  # (B, C, 1, 1)
        x = w * x
        x = self.spatial(x) * x
        if self.spatial2 is not None:
            x = w * x
            x = self.spatial2(x) * x
        return x

"""MobileNetV2 with folded batch norms, which can be cut into segments after any block (Sandler et al. 2018).

Network and parameter names are those of torchvision's MobileNetV2 after `backbone` has traced and folded it. Importing
torchvision and tracing would take longer than captioning a photograph, and the shipped model uses this network.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

# Sandler et al. 2018 (arXiv 1801.04381), table 2: expansion t, channels c, blocks n, stride s of the first block.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
HEAD_CHANNELS = 1280  # of the last block


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        expanded = inputs * expansion
        layers = [_convolution(inputs, expanded, 1)] if expansion > 1 else []
        layers += [
            _convolution(expanded, expanded, 3, stride, groups=expanded),
            nn.Conv2d(expanded, outputs, 1),
        ]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class Segment(nn.Sequential):
    """Consecutive blocks. Returns a tuple, as the segments of traced networks do."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class MobileNetV2(nn.Module):
    """The first `count` of the 19 blocks, initialised as in torchvision. channels[i]: output channels of block i."""

    def __init__(self, count: int = 19):
        super().__init__()
        width = 32
        blocks: list[nn.Module] = [_convolution(3, width, 3, 2)]
        self.channels = [width]
        for expansion, channels, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(width, channels, stride if i == 0 else 1, expansion))
                width = channels
                self.channels.append(width)
        blocks.append(_convolution(width, HEAD_CHANNELS, 1))
        self.channels.append(HEAD_CHANNELS)
        self.features = nn.Sequential(*blocks[:count])
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def cut(self, blocks: Sequence[int]) -> list[Segment]:
        """Cut the network after the given blocks (lowest first). The segments share its parameters."""
        starts = [0, *(block + 1 for block in blocks)]
        return [Segment(*self.features[a:b]) for a, b in pairwise(starts)]

    def split(self, segment: Segment) -> tuple[Segment, Segment] | None:
        """Split a segment before its first trainable block; None if this is the segment's first block."""
        first = [any(p.requires_grad for p in block.parameters()) for block in segment].index(True)
        return (Segment(*segment[:first]), Segment(*segment[first:])) if first else None


def block_numbers(layers: Sequence[str]) -> list[int]:
    """Block numbers of layers that are whole blocks, lowest first: ("features.17", "features.18") -> [17, 18].

    Returns an empty list for any other layers; the network must then be traced.
    """
    matches = [re.fullmatch(r"features\.(\d|1[0-8])", layer) for layer in layers]
    blocks = [int(match[1]) for match in matches if match]
    return blocks if len(blocks) == len(layers) and blocks == sorted(set(blocks)) else []


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups), nn.ReLU6(inplace=True)
    )

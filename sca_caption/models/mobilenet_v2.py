"""MobileNetV2 as captioners hold it, each batch norm folded into its convolution, in pieces that end at whole blocks.

The same network and parameter names as torchvision's, traced and folded. But importing torchvision and tracing take
longer than to caption a photograph, and the model that ships is of this kind.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

# Sandler et al. 2018 (arXiv 1801.04381), table 2: expansion t, channels c, blocks n, stride s of the first of them.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
TOP = 1280


class InvertedResidual(nn.Module):
    """(B, in, H, W) -> (B, out, H / stride, W / stride): 1x1 to the expanded width, depthwise 3x3, 1x1 without ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        layers = [_convolution(inputs, wide, 1)] if expansion > 1 else []
        layers += [_convolution(wide, wide, 3, stride, groups=wide), nn.Conv2d(wide, outputs, 1)]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class Piece(nn.Sequential):
    """Some blocks in a row; as the pieces of any network do, it returns a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class MobileNetV2(nn.Module):
    """The first `count` of the 19 blocks, with random weights of torchvision's distribution."""

    def __init__(self, count: int = 19):
        super().__init__()
        width = 32
        blocks: list[nn.Module] = [_convolution(3, width, 3, 2)]
        self.channels = [width]  # of each block's output
        for expansion, channels, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(width, channels, stride if i == 0 else 1, expansion))
                width = channels
                self.channels.append(width)
        blocks.append(_convolution(width, TOP, 1))
        self.channels.append(TOP)
        self.features = nn.Sequential(*blocks[:count])
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                nn.init.zeros_(module.bias)

    def cut(self, blocks: Sequence[int]) -> list[Piece]:
        """The pieces that end at `blocks` (lowest first), sharing this network's parameters."""
        starts = [0, *(block + 1 for block in blocks)]
        return [Piece(*self.features[a:b]) for a, b in pairwise(starts)]

    def split(self, piece: Piece) -> tuple[Piece, Piece] | None:
        """The blocks of `piece` before the first that learns, and the others; None where the first does."""
        learns = [any(p.requires_grad for p in block.parameters()) for block in piece].index(True)
        return (Piece(*piece[:learns]), Piece(*piece[learns:])) if learns else None


def blocks_of(layers: Sequence[str]) -> list[int]:
    """Numbers of the blocks that `layers` name, lowest first: ("features.17", "features.18") -> [17, 18].

    Empty where they name anything else, which is for tracing to find or to refuse.
    """
    matches = [re.fullmatch(r"features\.(\d|1[0-8])", layer) for layer in layers]
    blocks = [int(match[1]) for match in matches if match]
    return blocks if len(blocks) == len(layers) and blocks == sorted(set(blocks)) else []


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups), nn.ReLU6(inplace=True)
    )

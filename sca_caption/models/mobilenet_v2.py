"""MobileNetV2 with folded batch norms, which can be cut into segments after any block (Sandler et al. 2018).

Network and parameter names are those of torchvision's MobileNetV2 after `backbone` has traced and folded it. Importing
torchvision and tracing would take longer than captioning a photograph, and the shipped model uses this network.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from sca_caption.models import block_network
from sca_caption.models.block_network import BlockNetwork

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
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280  # of the first and the last block
BLOCK_COUNT = sum(repeats for _, _, repeats, _ in STAGES) + 2


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        expanded = inputs * expansion
        layers: list[nn.Module] = [_convolution(inputs, expanded, 1)] if expansion > 1 else []
        layers += [
            _convolution(expanded, expanded, 3, stride, groups=expanded),
            nn.Conv2d(expanded, outputs, 1),
        ]
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(BlockNetwork):
    """The first `count` of the blocks, initialised as in torchvision."""

    def __init__(self, count: int = BLOCK_COUNT):
        width = STEM_CHANNELS
        blocks: list[nn.Module] = [_convolution(3, width, 3, 2)]
        channels = [width]
        for expansion, outputs, repeats, stride in STAGES:
            for i in range(repeats):
                blocks.append(InvertedResidual(width, outputs, stride if i == 0 else 1, expansion))
                width = outputs
                channels.append(width)
        blocks.append(_convolution(width, HEAD_CHANNELS, 1))
        channels.append(HEAD_CHANNELS)
        super().__init__(blocks[:count], channels[:count])
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                assert module.bias is not None
                nn.init.zeros_(module.bias)


def block_numbers(layers: Sequence[str]) -> list[int]:
    """As `block_network.block_numbers`, for MobileNetV2."""
    return block_network.block_numbers(layers, BLOCK_COUNT)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, groups=groups), nn.ReLU6(inplace=True)
    )

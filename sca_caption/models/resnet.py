"""ResNet's units with an insertion point for attention, and ResNet-20 for CIFAR, which torchvision does not have.

He et al. 2016, "Deep residual learning for image recognition", CVPR (arXiv 1512.03385).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.runtime.torchvision_compat import torchvision

CIFAR_WIDTHS = (16, 32, 64)  # channels of the three stages, at 32 x 32, 16 x 16 and 8 x 8 positions


class BasicBlock(torchvision.models.resnet.BasicBlock):
    """Torchvision's unit with an insertion point, `attention`, before the sum."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.attention = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(torchvision.models.resnet.Bottleneck):
    """Torchvision's unit with an insertion point, `attention`, before the sum."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.attention = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ZeroPadShortcut(nn.Module):
    """Shortcut without parameters (option A): every second position, and zeros for the new channels.

    (B, C, H, W) -> (B, out, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, out_channels: int):
        super().__init__()
        self.out_channels = out_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, ::2, ::2]
        return F.pad(x, (0, 0, 0, 0, 0, self.out_channels - x.shape[1]))


class CifarResNet(nn.Module):
    """ResNet of 6n + 2 layers for CIFAR (section 4.2): (B, 3, H, W) -> logits (B, classes). H, W: 32 in the paper.

    A 3x3 convolution, three stages of n units with CIFAR_WIDTHS channels, average pooling and a linear layer. The
    shortcuts are option A, as in the paper: the network has exactly as many parameters as its plain counterpart. With
    n = 3 (ResNet-20) and ten classes these are 269,722; implementations with 1x1 convolutions and batch norms in two
    shortcuts (option B) have 272,474.
    """

    def __init__(self, units: int, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, CIFAR_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(CIFAR_WIDTHS[0])
        self.relu = nn.ReLU(inplace=True)
        one, two, three = CIFAR_WIDTHS
        self.layer1 = cifar_stage(one, one, units)
        self.layer2 = cifar_stage(one, two, units)
        self.layer3 = cifar_stage(two, three, units)
        self.fc = nn.Linear(three, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def cifar_stage(in_channels: int, channels: int, units: int) -> nn.Sequential:
    """The units of a stage; the first one has stride 2 if it changes the number of channels."""
    if in_channels == channels:
        first = BasicBlock(channels, channels)
    else:
        first = BasicBlock(in_channels, channels, stride=2, downsample=ZeroPadShortcut(channels))
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(units - 1)))

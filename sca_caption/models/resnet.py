"""ResNet's units with an insertion point for attention, and ResNet-20 for CIFAR, which torchvision does not have.

He et al. 2016, "Deep residual learning for image recognition", CVPR (arXiv 1512.03385).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.runtime.torchvision_compat import torchvision

tv_resnet = torchvision.models.resnet
CIFAR_WIDTHS = (16, 32, 64)  # channels of the three stages, at 32 x 32, 16 x 16 and 8 x 8 positions


class BasicBlock(tv_resnet.BasicBlock):
    """Torchvision's unit with an insertion point, `attention`, before the sum."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.attention = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(tv_resnet.Bottleneck):
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
        width = CIFAR_WIDTHS[0]
        for stage, channels in enumerate(CIFAR_WIDTHS, 1):
            first = (
                BasicBlock(width, channels)
                if width == channels
                else BasicBlock(width, channels, stride=2, downsample=ZeroPadShortcut(channels))
            )
            others = [BasicBlock(channels, channels) for _ in range(units - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *others))
            width = channels
        self.fc = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))

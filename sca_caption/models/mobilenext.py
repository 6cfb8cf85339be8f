"""MobileNeXt (Zhou et al. 2020, "Rethinking Bottleneck Structure for Efficient Mobile Network Design", ECCV;
code: yitu-opensource/MobileNeXt). torchvision does not have it.
"""

import math

from torch import Tensor, nn

# Table 2 of the paper: reduction t, channels c, units n, stride s of the first unit.
SANDGLASS_STAGES = ((2, 96, 1, 2), (6, 144, 1, 1), (6, 192, 3, 2), (6, 288, 3, 2),
                    (6, 384, 4, 1), (6, 576, 4, 2), (6, 960, 3, 1), (6, 1280, 1, 1))  # fmt: skip


class Sandglass(nn.Module):
    """Sandglass block (section 3.2): (B, in, H, W) -> (B, out, H / stride, W / stride).

    Depthwise 3x3, BN, ReLU6; 1x1 to the bottleneck width, BN; 1x1 to `out` channels, BN, ReLU6; depthwise 3x3 with the
    stride, BN. The shortcut connects input and output if their shapes agree. `spatial=False` is the authors' variant for
    units that change the number of channels: without the first depthwise convolution, and without the last one unless
    the stride is above 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        reduction: int = 6,
        spatial: bool = True,
        shortcut: bool = True,
    ):
        super().__init__()
        narrow = in_channels // reduction
        if narrow < out_channels / 6:
            narrow = round_to_16(math.ceil(out_channels / 6))
        self.shortcut = shortcut and stride == 1 and in_channels == out_channels
        layers: list[nn.Module] = []
        if spatial:
            layers += [depthwise(in_channels), nn.BatchNorm2d(in_channels), nn.ReLU6(inplace=True)]
        layers += [nn.Conv2d(in_channels, narrow, 1, bias=False), nn.BatchNorm2d(narrow)]
        layers += [nn.Conv2d(narrow, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
        layers += [nn.ReLU6(inplace=True)]
        if spatial or stride > 1:
            layers += [depthwise(out_channels, stride), nn.BatchNorm2d(out_channels)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNeXt(nn.Module):
    """MobileNeXt (table 2): (B, 3, H, W) -> logits (B, classes). 3,535,416 parameters with 1000 classes.

    small_images: the stem and the first unit have stride 1, so that 32 x 32 pixels give 4 x 4 positions.
    """

    def __init__(self, classes: int = 1000, small_images: bool = False, dropout: float = 0.2):
        super().__init__()
        first, width = (1 if small_images else 2), 32
        stem = nn.Conv2d(3, width, 3, first, padding=1, bias=False)
        layers: list[nn.Module] = [nn.Sequential(stem, nn.BatchNorm2d(width), nn.ReLU6(inplace=True))]
        for t, channels, units, stride in SANDGLASS_STAGES:
            for i in range(units):
                # In the first stage and in stages of one unit: complete units without a shortcut. In the others: the
                # first unit only changes the width, and the following ones keep it and have a shortcut.
                single = units == 1 and stride == 1
                spatial = t == 2 or single or width == channels
                step = first if len(layers) == 1 else stride if i == 0 else 1
                layers.append(Sandglass(width, channels, step, t, spatial, shortcut=not single))
                width = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def depthwise(channels: int, stride: int = 1) -> nn.Conv2d:
    """Depthwise 3x3 convolution without bias."""
    return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)


def round_to_16(width: int) -> int:
    """Round to the nearest multiple of 16 that is at most 10 % below `width` (the authors' rule)."""
    rounded = max(16, (width + 8) // 16 * 16)
    return rounded + 16 if rounded < 0.9 * width else rounded

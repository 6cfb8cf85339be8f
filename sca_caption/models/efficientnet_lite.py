"""EfficientNet-Lite0 to 2, with each batch norm folded into its convolution, from the weights that Google published.

EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, for small devices: the
blocks of MobileNetV2, some of them 5x5. torchvision has none of them. At the cost of one to three MobileNetV2s they know
ImageNet better (by their authors, 75.1 to 77.6% of its photographs are told right, for 71.8). Convolutions pad as
TensorFlow's "SAME" does: with a stride of 2 and a 3x3 on an even side, below and to the right alone.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.images import MEAN, STD

# Table 1 of the paper: expansion t, kernel k, channels c, blocks n, stride s of the first of them.
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
STEM, TOP = 32, 1280  # channels, the same in every size
# Width and depth of each size, and the pixels at a side that it was trained for.
SIZES = {
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
}
EPSILON = 1e-3  # of the batch norms
CENTRE, SPREAD = 127.0, 128.0  # pixels 0..255 come in as (pixel - CENTRE) / SPREAD
# Taught with smoothed labels, it is less sure than it is right: its logits are multiplied by this before the softmax.
# Chosen with `naming.Limits`, on the same photographs.
SHARPNESS = 1.2


class Pixels(nn.Module):
    """(B, 3, H, W), pixels as torchvision's networks read them -> as these do."""

    def __init__(self):
        super().__init__()
        factor = [255 * std / SPREAD for std in STD]
        shift = [(255 * mean - CENTRE) / SPREAD for mean in MEAN]
        # Not in the state dict: they belong to the pixels, not to what was learnt.
        self.register_buffer("factor", torch.tensor(factor).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor + self.shift


class Convolution(nn.Module):
    """(B, in, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)), with ReLU6 unless `linear`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        self.stride, self.groups, self.linear = stride, groups, linear

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[2]
        padding = kernel // 2
        if self.stride > 1:
            x = F.pad(x, (*self._same(x.shape[3], kernel), *self._same(x.shape[2], kernel)))
            padding = 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return x if self.linear else F.relu6(x, inplace=True)

    def _same(self, side: int, kernel: int) -> tuple[int, int]:
        """Zeros before and after a side."""
        zeros = max((math.ceil(side / self.stride) - 1) * self.stride + kernel - side, 0)
        return zeros // 2, zeros - zeros // 2


class Block(nn.Sequential):
    """1x1 to the expanded width, depthwise kxk, 1x1 without ReLU; beside a shortcut where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        wide = inputs * expansion
        layers = [Convolution(inputs, wide, 1)] if expansion > 1 else []
        super().__init__(
            *layers,
            Convolution(wide, wide, kernel, stride, groups=wide),
            Convolution(wide, outputs, 1, linear=True),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x) if self.shortcut else super().forward(x)


class EfficientNetLite(nn.Sequential):
    """Pixels as (x - CENTRE) / SPREAD, (B, 3, S, S), -> the last map (B, 1280, S / 32, S / 32). name: one of SIZES."""

    def __init__(self, name: str):
        width, depth, _ = SIZES[name]
        blocks: list[nn.Module] = [Convolution(3, STEM, 3, 2)]
        inputs = STEM
        for (expansion, kernel, channels, _, stride), count in zip(STAGES, depths(depth), strict=True):
            outputs = rounded(channels * width)
            for i in range(count):
                blocks.append(Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        super().__init__(*blocks, Convolution(inputs, TOP, 1))


def depths(factor: float) -> list[int]:
    """Blocks of each stage; the first and the last keep theirs."""
    counts = [count for *_, count, _ in STAGES]
    return [counts[0], *(math.ceil(count * factor) for count in counts[1:-1]), counts[-1]]


def rounded(channels: float) -> int:
    """A multiple of 8, at most a tenth below `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def recognised(weights: dict[str, Tensor]) -> str | None:
    """Of which of SIZES a state dict is, in the layout of the package efficientnet_lite_pytorch; None: of none."""
    if not {"_conv_stem.weight", "_conv_head.weight", "_fc.weight"} <= set(weights):
        return None
    blocks, top = _blocks(weights), weights["_conv_head.weight"].shape[1]
    for name, (width, depth, _) in SIZES.items():
        if (blocks, top) == (sum(depths(depth)), rounded(STAGES[-1][2] * width)):
            return name
    return None


def folded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an `EfficientNetLite` from one of that package's. KeyError where tensors are missing."""
    blocks = _blocks(weights)
    places = {"0": ("_conv_stem", "_bn0"), str(blocks + 1): ("_conv_head", "_bn1")}
    for block in range(blocks):
        theirs = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        theirs = theirs if f"_blocks.{block}._expand_conv.weight" in weights else theirs[1:]
        for i, (convolution, norm) in enumerate(theirs):
            places[f"{block + 1}.{i}"] = f"_blocks.{block}.{convolution}", f"_blocks.{block}.{norm}"
    found = {}
    for ours, (convolution, norm) in places.items():
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + EPSILON).sqrt()
        found[f"{ours}.weight"] = weights[f"{convolution}.weight"] * scale[:, None, None, None]
        found[f"{ours}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return found


def _blocks(weights: dict[str, Tensor]) -> int:
    """How many blocks such a state dict has."""
    return len({found[1] for name in weights if (found := re.match(r"_blocks\.(\d+)\.", name))})

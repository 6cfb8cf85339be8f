"""EfficientNet-Lite0 to 2 with batch norms folded into the convolutions, from the weights that Google published.

EfficientNet (Tan and Le 2019, arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, for mobile devices. It has
the blocks of MobileNetV2, some with 5x5 kernels. torchvision does not contain it. At one to three times the cost of
MobileNetV2, its authors report a top-1 accuracy of 75.1 to 77.6 % on ImageNet, against 71.8 % of MobileNetV2.
Convolutions use TensorFlow's "SAME" padding: a 3x3 kernel with stride 2 on an even side pads only below and to the right.
"""

import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sca_caption.images import MEAN, STD
from sca_caption.models.block_network import BlockNetwork
from sca_caption.runtime.errors import UserError

# Table 1 of the paper: expansion t, kernel size k, channels c, blocks n, stride s of the first block.
STAGES = (
    (1, 3, 16, 1, 1),
    (6, 3, 24, 2, 2),
    (6, 5, 40, 2, 2),
    (6, 3, 80, 3, 2),
    (6, 5, 112, 3, 1),
    (6, 5, 192, 4, 2),
    (6, 3, 320, 1, 1),
)
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280  # in all variants
# Width multiplier, depth multiplier and training resolution in pixels.
VARIANTS = {
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
}
EPSILON = 1e-3  # of the batch norms, as in TensorFlow
PIXEL_MEAN, PIXEL_STD = 127.0, 128.0  # normalisation of pixels from 0 to 255


class InputScaling(nn.Module):
    """Convert images normalised by ImageNet's mean and deviation to this network's normalisation: (B, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.factor: Tensor
        self.shift: Tensor
        factor = [255 * std / PIXEL_STD for std in STD]
        shift = [(255 * mean - PIXEL_MEAN) / PIXEL_STD for mean in MEAN]
        # Constants, so they are not in the state dict.
        self.register_buffer("factor", torch.tensor(factor).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor + self.shift


class Convolution(nn.Module):
    """Convolution with "SAME" padding, and ReLU6 unless `linear`: (B, in, H, W) -> (B, out, ceil(H / s), ceil(W / s))."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.kaiming_normal_(self.weight, mode="fan_out")
        self.in_channels, self.out_channels = inputs, outputs
        self.stride, self.groups, self.linear = (stride, stride), groups, linear

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.weight.shape[2]
        padding = kernel // 2
        if self.stride[0] > 1:
            x = F.pad(x, (*self._same_padding(x.shape[3], kernel), *self._same_padding(x.shape[2], kernel)))
            padding = 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return x if self.linear else F.relu6(x, inplace=True)

    def _same_padding(self, side: int, kernel: int) -> tuple[int, int]:
        """Numbers of zeros before and after a side of the map."""
        stride = self.stride[0]
        zeros = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        return zeros // 2, zeros - zeros // 2


class InvertedResidual(nn.Sequential):
    """1x1 to the expanded width, depthwise kxk, 1x1 without ReLU; with a shortcut if the shape does not change."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        expanded = inputs * expansion
        layers = [Convolution(inputs, expanded, 1)] if expansion > 1 else []
        super().__init__(
            *layers,
            Convolution(expanded, expanded, kernel, stride, groups=expanded),
            Convolution(expanded, outputs, 1, linear=True),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x) if self.shortcut else super().forward(x)


class EfficientNetLite(nn.Sequential):
    """Images (B, 3, S, S), see `InputScaling`, -> the last feature map (B, 1280, S / 32, S / 32). name: in VARIANTS.

    channels[i]: output channels of block i.
    """

    def __init__(self, name: str):
        width, depth, _ = VARIANTS[name]
        blocks: list[nn.Module] = [Convolution(3, STEM_CHANNELS, 3, 2)]
        channels = [STEM_CHANNELS]
        for (expansion, kernel, base, _, stride), count in zip(STAGES, block_counts(depth), strict=True):
            outputs = round_channels(base * width)
            for i in range(count):
                blocks.append(
                    InvertedResidual(channels[-1], outputs, kernel, stride if i == 0 else 1, expansion)
                )
                channels.append(outputs)
        super().__init__(*blocks, Convolution(channels[-1], HEAD_CHANNELS, 1))
        self.channels = (*channels, HEAD_CHANNELS)


def lite_backbone(name: str, count: int) -> BlockNetwork:
    """The first `count` blocks of EfficientNetLite(name) for images normalised by ImageNet's mean and deviation."""
    network = EfficientNetLite(name)
    return BlockNetwork(list(network)[:count], network.channels[:count], scaling=InputScaling())


def total_blocks(name: str) -> int:
    """Number of blocks of EfficientNetLite(name), with the first and the last convolution."""
    return sum(block_counts(VARIANTS[name][1])) + 2


def block_counts(depth: float) -> list[int]:
    """Number of blocks per stage for a depth multiplier, which does not apply to the first and the last stage."""
    counts = [count for *_, count, _ in STAGES]
    return [counts[0], *(math.ceil(count * depth) for count in counts[1:-1]), counts[-1]]


def round_channels(channels: float) -> int:
    """Round to the nearest multiple of 8, but by at most 10 % downwards."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def identify(weights: dict[str, Tensor]) -> str | None:
    """Return which of VARIANTS a state dict of the package efficientnet_lite_pytorch holds; None for any other."""
    if not {"_conv_stem.weight", "_conv_head.weight", "_fc.weight"} <= set(weights):
        return None
    return _variant(_block_count(weights), weights["_conv_head.weight"])


def _variant(blocks: int, head: Tensor) -> str | None:
    """Return the variant with this number of inverted residuals and this weight of the last convolution."""
    for name, (width, depth, _) in VARIANTS.items():
        outputs = round_channels(STAGES[-1][2] * width)
        if (blocks, head.shape) == (sum(block_counts(depth)), (HEAD_CHANNELS, outputs, 1, 1)):
            return name
    return None


def folded_weights(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of EfficientNetLite(name) from a state dict of the package efficientnet_lite_pytorch or from one of ours.

    Ours is that of EfficientNetLite, or of a module whose `features` it is. Raises UserError for any other state dict,
    and for that of another variant.
    """
    found = identify(weights)
    if found is not None:
        try:
            folded = fold_batch_norms(weights)
        except KeyError as error:
            raise UserError(f"these weights of {found} have no {error}; copy the file again") from error
    else:
        ours = {key: re.fullmatch(r"(?:features\.)?((\d+)\..+)", key) for key in weights}
        folded = {match[1]: weights[key] for key, match in ours.items() if match}
        last = max((int(match[2]) for match in ours.values() if match), default=0)
        head = folded.get(f"{last}.weight")
        found = None if head is None else _variant(last - 1, head)
    if found is None:
        raise UserError(
            f"these weights are not those of an EfficientNet-Lite ({len(weights)} tensors, first "
            f"{next(iter(weights), 'none')!r}); give a state dict of {name} with the names of efficientnet_lite_pytorch"
        )
    if found != name:
        raise UserError(f"these weights are those of {found}, not of {name}; choose --backbone {found}")
    return folded


def fold_batch_norms(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of that package to one of `EfficientNetLite`. Raises KeyError if tensors are missing."""
    blocks = _block_count(weights)
    layers = {"0": ("_conv_stem", "_bn0"), str(blocks + 1): ("_conv_head", "_bn1")}
    for block in range(blocks):
        theirs = [("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        theirs = theirs if f"_blocks.{block}._expand_conv.weight" in weights else theirs[1:]
        for i, (convolution, norm) in enumerate(theirs):
            layers[f"{block + 1}.{i}"] = f"_blocks.{block}.{convolution}", f"_blocks.{block}.{norm}"
    found = {}
    for ours, (convolution, norm) in layers.items():
        scale = weights[f"{norm}.weight"] / (weights[f"{norm}.running_var"] + EPSILON).sqrt()
        found[f"{ours}.weight"] = weights[f"{convolution}.weight"] * scale[:, None, None, None]
        found[f"{ours}.bias"] = weights[f"{norm}.bias"] - weights[f"{norm}.running_mean"] * scale
    return found


def _block_count(weights: dict[str, Tensor]) -> int:
    """Number of blocks in a state dict of that package."""
    return len({found[1] for name in weights if (found := re.match(r"_blocks\.(\d+)\.", name))})

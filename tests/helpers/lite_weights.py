"""Random weights of EfficientNet-Lite in the published layout, and the network written out, batch norms and all."""

import math

import torch
import torch.nn.functional as F

from sca_caption.models.efficientnet_lite import STAGES

# Output channels and blocks of each stage, by the network's authors.
WIDTHS = {
    "efficientnet_lite0": (16, 24, 40, 80, 112, 192, 320),
    "efficientnet_lite1": (16, 24, 40, 80, 112, 192, 320),
    "efficientnet_lite2": (16, 24, 48, 88, 120, 208, 352),
}
DEPTHS = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite1": (1, 3, 3, 4, 4, 5, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}


def lite_weights(name: str = "efficientnet_lite0") -> dict[str, torch.Tensor]:
    """A state dict in the published layout, with batch norms that do something and a classifier with opinions."""
    made = torch.Generator().manual_seed(0)
    found = {}

    def convolution(path: str, norm: str, outputs: int, inputs: int, kernel: int) -> None:
        scale = math.sqrt(2 / (inputs * kernel * kernel))
        found[f"{path}.weight"] = torch.randn(outputs, inputs, kernel, kernel, generator=made) * scale
        found[f"{norm}.weight"] = torch.rand(outputs, generator=made) * 0.4 + 0.8
        found[f"{norm}.bias"] = torch.randn(outputs, generator=made) * 0.3
        found[f"{norm}.running_mean"] = torch.randn(outputs, generator=made) * 0.1
        found[f"{norm}.running_var"] = torch.rand(outputs, generator=made) * 0.4 + 0.8
        found[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", "_bn0", 32, 3, 3)
    inputs, block = 32, 0
    for (expansion, kernel, *_), outputs, depth in zip(STAGES, WIDTHS[name], DEPTHS[name], strict=True):
        for _ in range(depth):
            at, wide = f"_blocks.{block}", inputs * expansion
            if expansion > 1:
                convolution(f"{at}._expand_conv", f"{at}._bn0", wide, inputs, 1)
            convolution(f"{at}._depthwise_conv", f"{at}._bn1", wide, 1, kernel)
            convolution(f"{at}._project_conv", f"{at}._bn2", outputs, wide, 1)
            inputs, block = outputs, block + 1
    convolution("_conv_head", "_bn1", 1280, inputs, 1)
    found["_fc.weight"] = torch.randn(1000, 1280, generator=made) * 0.5
    found["_fc.bias"] = torch.randn(1000, generator=made)
    return found


def same(x: torch.Tensor, weight: torch.Tensor, stride: int, groups: int = 1) -> torch.Tensor:
    """TensorFlow's "SAME" convolution by its definition: an output at every stride-th place, zeros around in equal parts,
    the odd one after."""
    kernel = weight.shape[2]
    sides = []
    for side in (x.shape[3], x.shape[2]):
        out = -(-side // stride)
        zeros = max(0, (out - 1) * stride + kernel - side)
        sides += [zeros // 2, zeros - zeros // 2]
    return F.conv2d(F.pad(x, sides), weight, stride=stride, groups=groups)


def written_out(weights: dict[str, torch.Tensor], x: torch.Tensor, name: str) -> torch.Tensor:
    def normed(x, path, act=True):
        parts = (weights[f"{path}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        x = F.batch_norm(x, *parts, eps=1e-3)
        return x.clamp(0, 6) if act else x

    x = normed(same(x, weights["_conv_stem.weight"], 2), "_bn0")
    block = 0
    for (*_, stride), depth in zip(STAGES, DEPTHS[name], strict=True):
        for i in range(depth):
            at, before = f"_blocks.{block}", x
            if f"{at}._expand_conv.weight" in weights:
                x = normed(F.conv2d(x, weights[f"{at}._expand_conv.weight"]), f"{at}._bn0")
            depthwise = weights[f"{at}._depthwise_conv.weight"]
            x = normed(same(x, depthwise, stride if i == 0 else 1, len(depthwise)), f"{at}._bn1")
            x = normed(F.conv2d(x, weights[f"{at}._project_conv.weight"]), f"{at}._bn2", act=False)
            x = x + before if i else x
            block += 1
    return normed(F.conv2d(x, weights["_conv_head.weight"]), "_bn1")

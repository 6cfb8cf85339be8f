"""MobileNeXt against the equation and table of its paper, and the layer sizes of LeNet-5."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sca_caption.models.lenet import LeNet
from sca_caption.models.mobilenext import MobileNeXt, Sandglass, round_to_16


def filled(module: nn.Module) -> nn.Module:
    """Set all parameters and statistics to values of a sine, in the order of the state dict."""
    with torch.no_grad():
        for index, value in enumerate(module.state_dict().values()):
            if value.is_floating_point():
                wave = torch.sin(torch.arange(value.numel()) * 0.7 + index).view(value.shape)
                value.copy_(0.2 + 0.5 * wave if value.dim() > 1 else 1 + 0.5 * wave)
    return module.eval()


def picture(channels: int, size: int) -> torch.Tensor:
    return torch.cos(torch.arange(channels * size * size) * 0.37).view(1, channels, size, size)


def normalise(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@torch.inference_mode()
def test_the_sandglass_agrees_with_the_equation(stride):
    unit = filled(Sandglass(12, 12, stride))
    names = [type(module).__name__ for module in unit.conv]
    assert names == ["Conv2d", "BatchNorm2d", "ReLU6", "Conv2d", "BatchNorm2d", "Conv2d", "BatchNorm2d", "ReLU6",
                     "Conv2d", "BatchNorm2d"]  # fmt: skip
    c, x = unit.conv, picture(12, 5)
    wide = normalise(F.conv2d(x, c[0].weight, padding=1, groups=12), c[1]).clamp(0, 6)
    narrow = normalise(F.conv2d(wide, c[3].weight), c[4])  # linear
    wide = normalise(F.conv2d(narrow, c[5].weight), c[6]).clamp(0, 6)
    out = normalise(F.conv2d(wide, c[8].weight, stride=stride, padding=1, groups=12), c[9])  # linear
    torch.testing.assert_close(unit(x), out + x if stride == 1 else out)


# Recorded when the unit agreed with the authors' code (yitu-opensource/MobileNeXt, models/mnext.py, SGBlock).
RECORDED = {
    1: [0.33759, 17.97528, 11.54529, -0.951, 3.29799, 1.46695, 1.14672, 11.62402, 27.26632],
    2: [-0.66241, 17.54287, 12.17133, 0.02283, 4.21555, 0.59939, 0.25004, 11.38147, 14.36453],
}


@pytest.mark.parametrize("stride", RECORDED)
@torch.inference_mode()
def test_recorded_outputs(stride):
    out = filled(Sandglass(12, 12, stride))(picture(12, 5))
    found = out.flatten()[:: 37 if stride == 1 else 13]
    torch.testing.assert_close(found, torch.tensor(RECORDED[stride]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "convolutions"),
    [
        ((96, 96, 1), ["dw", "96-16", "16-96", "dw"]),
        ((32, 96, 2, 2), ["dw", "32-16", "16-96", "dw/2"]),
        ((144, 192, 2, 6, False), ["144-32", "32-192", "dw/2"]),
        ((288, 384, 1, 6, False), ["288-64", "64-384"]),
        ((960, 1280, 1), ["dw", "960-208", "208-1280", "dw"]),
    ],
)
def test_the_layers_of_a_unit(arguments, convolutions):
    with torch.device("meta"):
        unit = Sandglass(*arguments)
    found = []
    for m in unit.conv:
        if isinstance(m, nn.Conv2d):
            stride = "/2" if m.stride == (2, 2) else ""
            found.append((f"{m.in_channels}-{m.out_channels}" if m.groups == 1 else "dw") + stride)
    assert found == convolutions
    assert unit.shortcut == (arguments[0] == arguments[1])


def test_widths_are_rounded_to_multiples_of_16():
    widths = {1: 16, 16: 16, 23: 32, 24: 32, 26: 32, 27: 32, 160: 160, 214: 208}
    assert {width: round_to_16(width) for width in widths} == widths


def test_the_table_of_the_paper():
    """Channels and sizes of the maps for images of 224 pixels, from table 2."""
    with torch.device("meta"):
        model = MobileNeXt()
        x, found = torch.zeros(1, 3, 224, 224), []
        for layer in model.features:
            x = layer(x)
            found.append((x.shape[1], x.shape[2]))
    assert list(dict.fromkeys(found)) == [(32, 112), (96, 56), (144, 56), (192, 28), (288, 14), (384, 14),
                                          (576, 7), (960, 7), (1280, 7)]  # fmt: skip
    assert len(found) == 21
    assert sum(p.numel() for p in model.parameters()) == 3_535_416
    shortcuts = [i for i, unit in enumerate(model.features) if getattr(unit, "shortcut", False)]
    assert shortcuts == [4, 5, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19]


def test_the_layer_sizes_of_lenet():
    x, sizes = torch.zeros(1, 3, 32, 32), []
    model = LeNet()
    for layer in model.features:
        x = layer(x)
        sizes.append(tuple(x.shape[1:]))
    assert sizes[::3] == [(6, 28, 28), (16, 10, 10)]
    assert sizes[2::3] == [(6, 14, 14), (16, 5, 5)]
    assert [m.out_features for m in model.classifier if isinstance(m, nn.Linear)] == [120, 84, 10]


@pytest.mark.parametrize("size", [(16, 16), (45, 33), (120, 160)])
def test_lenet_accepts_other_sizes(size):
    assert LeNet(7)(torch.zeros(2, 3, *size)).shape == (2, 7)

"""ResNet-20 for CIFAR against section 4.2 of its paper: layers, parameters, multiply-adds, shapes and shortcuts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sca_caption.models.networks import attention_blocks
from sca_caption.models.resnet import CifarResNet, ZeroPadShortcut
from tests.helpers.networks import images, on_meta, randomised

WIDTHS = (16, 32, 64)


def parameters_of_the_paper(units: int, projections: bool = False) -> int:
    """3x3 convolutions without bias, a batch norm (two numbers per channel) after each, and a linear layer."""
    count, before = 3 * 16 * 9 + 2 * 16, 16
    for width in WIDTHS:
        for unit in range(units):
            first = before if unit == 0 else width
            count += first * width * 9 + 2 * width + width * width * 9 + 2 * width
        if projections and before != width:
            count += before * width + 2 * width
        before = width
    return count + 64 * 10 + 10


@pytest.mark.parametrize("units", [3, 5, 9])
def test_layers_and_parameters(units):
    with torch.device("meta"):
        model = CifarResNet(units)
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == 6 * units + 2
    assert sum(p.numel() for p in model.parameters()) == parameters_of_the_paper(units)


def test_published_parameter_counts():
    """0.27 M in table 6: without parameters in the shortcuts, and as published with option B."""
    assert sum(p.numel() for p in on_meta("resnet20", 10).parameters()) == 269_722
    assert parameters_of_the_paper(3, projections=True) == 272_474


def test_multiply_adds():
    """Each 3x3 convolution: 9 C_in C_out per output position; 32 x 32, 16 x 16 and 8 x 8 of them."""
    first, linear = 3 * 16 * 9 * 1024, 640
    stage1 = 6 * 16 * 16 * 9 * 1024
    stage2 = (16 * 32 + 5 * 32 * 32) * 9 * 256
    stage3 = (32 * 64 + 5 * 64 * 64) * 9 * 64
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        CifarResNet(3).eval()(images()[:1])
    assert counter.get_total_flops() == 2 * (first + stage1 + stage2 + stage3 + linear) == 2 * 40_551_040


def test_shapes_of_the_stages():
    model, found = on_meta("resnet20", 7).eval(), {}
    for stage in ("layer1", "layer2", "layer3"):
        model.get_submodule(stage).register_forward_hook(
            lambda module, inputs, output, stage=stage: found.update({stage: tuple(output.shape[1:])})
        )
    assert model(images().to("meta")).shape == (2, 7)
    assert found == {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)}


def test_shortcuts_take_every_second_position_and_add_zero_channels():
    x = torch.arange(2 * 3 * 5 * 4, dtype=torch.float).view(2, 3, 5, 4)
    out = ZeroPadShortcut(7)(x)
    assert out.shape == (2, 7, 3, 2)
    assert torch.equal(out[:, :3], F.max_pool2d(x, 1, 2)) and not out[:, 3:].any()


@torch.inference_mode()
def test_output_is_that_of_the_equations():
    model = randomised(CifarResNet(3, 5))
    weights, x = model.state_dict(), images()

    def conv_norm(x, conv, norm, stride=1):
        x = F.conv2d(x, weights[f"{conv}.weight"], stride=stride, padding=1)
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{norm}.{name}"] for name in names))

    x = conv_norm(x, "conv1", "bn1").relu()
    for stage in (1, 2, 3):
        for unit in range(3):
            name, stride = f"layer{stage}.{unit}", 2 if stage > 1 and unit == 0 else 1
            y = conv_norm(x, f"{name}.conv1", f"{name}.bn1", stride).relu()
            y = conv_norm(y, f"{name}.conv2", f"{name}.bn2")
            kept = torch.zeros_like(y)
            kept[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
            x = (y + kept).relu()
    logits = x.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(model(images()), logits)


def test_selective_kernels_have_groups_that_divide_the_channels():
    blocks = attention_blocks(on_meta("resnet20", 10, attention="sk"))
    groups = [block.branches[0][0].groups for block in blocks.values()]
    assert groups == [16, 16, 16, 16, 32, 32, 32, 32, 32]

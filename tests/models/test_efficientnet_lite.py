"""EfficientNet-Lite against a functional implementation with batch norms, and "SAME" padding against its definition."""

import pytest
import torch

from sca_caption.models.efficientnet_lite import (
    VARIANTS,
    Convolution,
    EfficientNetLite,
    fold_batch_norms,
    identify,
    round_channels,
)
from tests.helpers.lite_weights import lite_weights, same, written_out

PARAMETERS = {
    "efficientnet_lite0": 4_652_008,
    "efficientnet_lite1": 5_416_680,
    "efficientnet_lite2": 6_092_072,
}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("side", [64, 75])
@torch.inference_mode()
def test_it_agrees_with_the_functional_implementation(name, side):
    weights = lite_weights(name)
    network = EfficientNetLite(name).eval()
    network.load_state_dict(fold_batch_norms(weights))
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    wanted = written_out(weights, x, name)
    assert wanted.shape == (2, 1280, -(-side // 32), -(-side // 32)) and wanted.std() > 0.1
    torch.testing.assert_close(network(x), wanted, rtol=1e-3, atol=1e-3)
    assert identify(weights) == name
    norms = sum(
        p.numel() for name, p in weights.items() if name.endswith(("running_mean", "running_var", "tracked"))
    )
    assert sum(p.numel() for p in weights.values()) - norms == PARAMETERS[name]


@pytest.mark.parametrize("side", range(5, 12))
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@torch.inference_mode()
def test_padding_is_that_of_tensorflow(side, kernel, stride):
    layer = Convolution(2, 3, kernel, stride, linear=True)
    x = torch.randn(1, 2, side, side + 1)
    torch.testing.assert_close(layer(x), same(x, layer.weight, stride), rtol=1e-4, atol=1e-5)


def test_widths_are_multiples_of_8():
    assert [round_channels(channels) for channels in (16.0, 17.6, 26.4, 44.0, 88.0, 123.2, 211.2, 352.0)] == [
        16, 16, 24, 48, 88, 120, 208, 352
    ]  # fmt: skip


def test_other_state_dicts_are_not_identified():
    weights = lite_weights()
    assert identify({"features.0.0.weight": weights["_conv_stem.weight"]}) is None
    fewer = {name: value for name, value in weights.items() if not name.startswith("_blocks.15.")}
    assert identify(fewer) is None

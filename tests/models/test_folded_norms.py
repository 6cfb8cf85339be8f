"""Batch norms that were folded into convolutions are found, and unfolded without a change of what is computed."""

import pytest
import torch
from torch import nn

from sca_caption.models.folded_norms import has_folded_norms, unfold_norms


def network() -> nn.Sequential:
    """Convolutions and batch norms with statistics that fit no image."""
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 16, 3, groups=8, bias=False), nn.BatchNorm2d(16), nn.ReLU6(),
    )  # fmt: skip
    for norm in layers[1::3]:
        nn.init.normal_(norm.weight, 1, 0.2)
        nn.init.normal_(norm.bias, 0, 2)
        nn.init.normal_(norm.running_mean, 0, 0.1)
        nn.init.uniform_(norm.running_var, 0.01, 0.1)
    return layers.eval()


@torch.no_grad()
def fold(layers: nn.Sequential, dtype: torch.dtype) -> None:
    """As for inference: scale the convolutions, leave the biases to the norms."""
    for conv, norm in zip(layers[::3], layers[1::3], strict=True):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        conv.weight *= scale[:, None, None, None]
        norm.bias -= norm.running_mean * scale
        norm.weight.fill_(1)
        norm.running_mean.zero_()
        norm.running_var.copy_(torch.tensor(1 - norm.eps).to(dtype))


IMAGES = torch.rand(32, 3, 12, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_folded_norms_are_found(dtype):
    layers = network()
    assert not has_folded_norms(layers.state_dict())
    fold(layers, dtype)
    assert has_folded_norms(layers.state_dict())


def test_new_norms_and_networks_without_norms_are_not_folded():
    assert not has_folded_norms(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).state_dict())
    assert not has_folded_norms(nn.Conv2d(3, 8, 3).state_dict())


def test_unfolded_norms_compute_the_same_and_have_the_statistics_of_the_images():
    layers = network()
    expected = layers(IMAGES)
    fold(layers, torch.float32)
    torch.testing.assert_close(layers(IMAGES), expected, rtol=1e-4, atol=1e-4)
    far = layers.train()(IMAGES)
    assert (far - expected).abs().mean() > 0.2, "folded norms compute something else in training"
    layers = network()
    fold(layers, torch.float32)
    unfold_norms(layers, IMAGES.split(12))
    assert not has_folded_norms(layers.state_dict())
    torch.testing.assert_close(layers(IMAGES), expected, rtol=1e-4, atol=1e-4)
    # The batch of all images has the statistics that the norms have now.
    torch.testing.assert_close(layers.train()(IMAGES), expected, rtol=1e-3, atol=1e-3)

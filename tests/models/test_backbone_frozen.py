"""The frozen part of the trunk runs without gradients and in chunks of images; results and gradients do not change."""

import pytest
import torch

from sca_caption.models.backbone import CPU_CHUNK, Backbone


def traced_mobilenet() -> Backbone:
    from sca_caption.runtime.torchvision_compat import torchvision

    weights = torchvision.models.mobilenet_v2(weights=None).state_dict()
    return Backbone("mobilenet_v2", ["features.17"], weights)


NETWORKS = {
    "mobilenet_v2": lambda: Backbone("mobilenet_v2", ["features.17"]),
    "mobilenet_v2, traced": traced_mobilenet,
    "efficientnet_lite0": lambda: Backbone("efficientnet_lite0", ["features.16"]),
    "resnet18": lambda: Backbone("resnet18", ["layer4.1.relu", "layer4.1"]),  # the trunk carries a shortcut
    "resnet18 with blocks": lambda: Backbone("resnet18", ["layer4.1"], attention="se", at=["layer3"]),
}
FIRST = {
    "mobilenet_v2": ("features.3", "features.14.conv.1"),
    "efficientnet_lite0": ("features.3", "features.14.1"),
    "resnet18": ("layer1.1", "layer4.1.conv1"),
}


def gradients(backbone: Backbone, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    backbone.zero_grad()
    maps = backbone.trunk(images)
    if any(x.requires_grad for x in maps):
        sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in maps).backward()
    return maps[0], {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("part", ["all", "lower", "upper", "none"])
def test_gradients_agree_with_the_whole_trunk(name, part):
    torch.manual_seed(0)
    backbone = NETWORKS[name]()
    images = torch.rand(CPU_CHUNK + 2, 3, 64, 64)
    first = {"lower": 0, "upper": 1}.get(part)
    lower = "" if first is None else FIRST[name.split(",")[0].split(" ")[0]][first]
    backbone.set_trainable(part != "none", lower)
    found_map, found = gradients(backbone, images)
    backbone._trunk_parts = None  # not split
    wanted_map, wanted = gradients(backbone, images)
    torch.testing.assert_close(found_map, wanted_map)
    assert found.keys() == wanted.keys()
    assert (not found) == (part == "none" and "blocks" not in name)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[key], rtol=1e-4, atol=1e-4 * gradient.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_frozen_part_follows_set_trainable(name):
    backbone = NETWORKS[name]()
    images = torch.rand(2, 3, 64, 64)
    backbone.set_trainable(False)
    backbone.set_trainable(True)
    assert len(gradients(backbone, images)[1]) == len(list(backbone._segments[0].parameters()))

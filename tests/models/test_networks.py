"""The networks without blocks against torchvision's, their stems and sizes, and weights underneath."""

import pytest
import torch
from torch import nn

from sca_caption.models.networks import (
    NETWORKS,
    attention_blocks,
    build_network,
    gradcam_layer,
    load_pretrained,
    stages,
)
from sca_caption.runtime.torchvision_compat import torchvision
from tests.helpers.made_photos import message
from tests.helpers.networks import images, on_meta, randomised, shapes, theirs_on_meta

OURS = ("mobilenext", "lenet", "resnet20")
THEIRS = [name for name in NETWORKS if name not in OURS]
# Small enough to run, one of each form.
RUN = ("resnet18", "resnet20", "mobilenet_v2", "mobilenext", "densenet121", "lenet")


# ---- torchvision's ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", THEIRS)
def test_names_and_shapes_are_torchvisions_in_its_order(name):
    model = on_meta(name)
    assert list(shapes(model).items()) == list(shapes(theirs_on_meta(name)).items())
    assert attention_blocks(model) == {}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
@torch.inference_mode()
def test_outputs_are_torchvisions(name):
    theirs = randomised(torchvision.models.get_model(name, num_classes=10))
    ours = build_network(name, 10)
    assert load_pretrained(ours, theirs.state_dict(), name) == []
    assert torch.equal(ours.eval()(images(64, 48)), theirs(images(64, 48)))


@pytest.mark.parametrize(
    ("name", "classes", "stem", "parameters"),
    [
        ("resnet18", 100, "cifar", 11_220_132),
        ("resnet50", 1000, "imagenet", 25_557_032),
        ("mobilenet_v2", 1000, "imagenet", 3_504_872),
        ("mobilenext", 1000, "imagenet", 3_535_416),
        # LeNet-5 with three colours, every connection of conv2, and linear outputs:
        ("lenet", 10, "imagenet", (75 * 6 + 6) + (150 * 16 + 16) + (400 * 120 + 120) + (120 * 84 + 84) + 850),
    ],
)
def test_parameter_counts(name, classes, stem, parameters):
    assert sum(p.numel() for p in on_meta(name, classes, stem=stem).parameters()) == parameters


# ---- stems and sizes -------------------------------------------------------------------------------------------------


def map_size(model: nn.Module, name: str) -> tuple[int, int]:
    """Of the last feature map of 64 x 96 pixels."""
    seen = []
    gradcam_layer(model, name).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.inference_mode():
        model.eval()(images(64, 96).to("meta"))
    return tuple(seen[0].shape[2:])


@pytest.mark.parametrize(
    ("name", "imagenet", "cifar"),
    [
        ("resnet50", (2, 3), (8, 12)),
        ("resnext50_32x4d", (2, 3), (8, 12)),
        ("resnet20", (16, 24), (16, 24)),
        ("vgg16", (4, 6), (4, 6)),
        ("vgg19_bn", (4, 6), (4, 6)),
        ("mobilenet_v2", (2, 3), (8, 12)),
        ("mobilenext", (2, 3), (8, 12)),
        ("densenet121", (2, 3), (8, 12)),
        ("lenet", (26, 42), (26, 42)),  # before pooling: (64 - 4) / 2 - 4, (96 - 4) / 2 - 4
    ],
)
def test_the_cifar_stem_keeps_maps_large(name, imagenet, cifar):
    assert map_size(on_meta(name), name) == imagenet
    assert map_size(on_meta(name, stem="cifar"), name) == cifar


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("stem", ["imagenet", "cifar"])
def test_small_and_odd_images_and_every_gradient(name, stem):
    torch.manual_seed(0)
    model = build_network(name, 7, stem=stem)
    for height, width in ((32, 32), (45, 33)):
        model.zero_grad()
        logits = model(images(height, width))
        assert logits.shape == (2, 7)
        logits.square().sum().backward()
        still = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        # Two images: a map of one position has no spread after a batch norm, and no gradient below it, but in LeNet.
        assert not still or (height, stem) == (32, "imagenet")


def test_vgg_for_small_images_has_a_small_head():
    model = on_meta("vgg16_bn", 10, stem="cifar")
    heads = [key for key in shapes(model) if not key.startswith("features.")]
    assert heads == ["classifier.0.weight", "classifier.0.bias"]
    assert model(images().to("meta")).shape == (2, 10)


# ---- weights underneath ----------------------------------------------------------------------------------------------


def test_a_head_for_other_classes_starts_at_random():
    weights = torchvision.models.mobilenet_v2().state_dict()
    model = build_network("mobilenet_v2", 5)
    before = model.classifier[1].weight.clone()
    assert load_pretrained(model, weights, "mobilenet_v2") == ["classifier.1.weight", "classifier.1.bias"]
    assert torch.equal(model.classifier[1].weight, before)
    assert torch.equal(model.features[18][0].weight, weights["features.18.0.weight"])


def test_of_vggs_head_only_the_last_layer_is_for_the_classes():
    left = load_pretrained(on_meta("vgg16", 5), theirs_on_meta("vgg16").state_dict(), "vgg16")
    assert left == ["classifier.6.weight", "classifier.6.bias"]


def test_counters_and_heads_may_be_missing():
    weights = {
        key: value
        for key, value in torchvision.models.resnet18().state_dict().items()
        if not key.endswith("num_batches_tracked") and not key.startswith("fc.")
    }
    assert load_pretrained(build_network("resnet18"), weights, "resnet18") == ["fc.weight", "fc.bias"]


def test_what_does_not_fit_is_one_line_and_changes_nothing():
    model = build_network("resnet18", stem="cifar")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    text = message(lambda: load_pretrained(model, torchvision.models.resnet18().state_dict(), "resnet18"))
    for part in (
        "fit resnet18: 1 of 102 tensors",
        "'conv1.weight'",
        "(64, 3, 7, 7)",
        "(64, 3, 3, 3)",
        "the same stem",
    ):
        assert part in text
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    text = message(lambda: load_pretrained(model, {}, "resnet18"))
    assert "100 of 102 tensors" in text and "'conv1.weight', which is missing" in text


# ---- names -----------------------------------------------------------------------------------------------------------


def test_stages():
    assert stages("resnext50_32x4d") == ("layer1", "layer2", "layer3", "layer4")
    assert stages("resnet20") == ("layer1", "layer2", "layer3")
    assert stages("vgg19") == ("conv1", "conv2", "conv3", "conv4", "conv5")
    assert stages("mobilenet_v2") == tuple(f"stage{i}" for i in range(1, 8))
    assert stages("mobilenext") == tuple(f"stage{i}" for i in range(1, 9))
    assert stages("densenet121") == tuple(f"denseblock{i}" for i in range(1, 5))
    assert stages("lenet") == ("conv1", "conv2")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "resnet19"}, "unknown backbone 'resnet19'; one of: densenet121, lenet, mobilenet_v2, "),
        ({"stem": "small"}, "unknown stem 'small'; one of: cifar, imagenet"),
        ({"attention": "cbma"}, "unknown attention 'cbma'; one of: bam, cbam, "),
        ({"attention": "se:ratio=4"}, "'se:ratio=4': unknown option 'ratio' of se; "),
        (
            {"attention": "se", "at": ("layer2", "layer5")},
            "unknown stage of lenet 'layer2'; one of: conv1, conv2",
        ),
        ({"at": ("conv1",)}, "stages conv1 "),
        ({"attention": "sk:stride=2"}, "'sk:stride=2': stride "),
        ({"attention": "sk:groups=4"}, "sk: groups=4 does not divide 6 "),
    ],
)
def test_wrong_names_are_one_line(options, text):
    assert message(lambda: build_network(**{"name": "lenet"} | options)).startswith(text)


@pytest.mark.parametrize("function", [stages, lambda n: gradcam_layer(nn.Identity(), n)])
def test_unknown_networks(function):
    message(lambda: function("toy"), "'toy'", "densenet121, ")

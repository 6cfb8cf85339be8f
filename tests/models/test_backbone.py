"""Backbones cut into segments against torchvision's networks with random batch-norm statistics."""

import pytest
import torch
from torch import nn

from sca_caption.models import backbone as backbones
from sca_caption.models.backbone import ATTENDED, Backbone, attended_layers
from sca_caption.models.pretrained import pretrained_weights
from sca_caption.runtime.torchvision_compat import torchvision
from tests.helpers.made_photos import message
from tests.helpers.networks import assert_near, attend, factors, pictures, randomised

# Networks with plain layers, both types of shortcuts, concatenations, channel shuffles, branches and layer scales.
CUT = {
    "vgg": ("features.20", "features.24", "features.27"),  # after their ReLUs
    "vgg before relu": ("features.22", "features.26"),  # a convolution, a batch norm
    "resnet18": ("layer3.1", "layer4.0", "layer4.1.relu", "layer4.1"),
    "resnet50": ("layer4.2.relu", "layer4.2.relu_1", "layer4.2"),
    "mobilenet_v2": ("features.16", "features.17", "features.18"),
    "densenet121": ("features.denseblock3.denselayer24", "features.transition3", "features.denseblock4"),
    "shufflenet_v2_x0_5": ("stage3", "stage4", "conv5"),
    "squeezenet1_1": ("features.9", "features.12"),
    "convnext_tiny": ("features.5", "features.7"),
}


class Vgg11(nn.Module):
    """The convolutions of torchvision's vgg11_bn without its head, which has a hundred million weights."""

    def __init__(self):
        super().__init__()
        self.features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["A"], batch_norm=True)

    def forward(self, x):
        return self.features(x)


@pytest.fixture
def whole(request, monkeypatch) -> tuple[str, nn.Module]:
    """The name for Backbone, and torchvision's network of that name with random statistics."""
    name = request.param.split()[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name != "vgg":
            return name, randomised(torchvision.models.get_model(name, weights=None))
        monkeypatch.setattr(backbones, "_build", lambda name: Vgg11())
        return name, randomised(Vgg11())


@pytest.mark.parametrize(("whole", "layers"), CUT.items(), ids=list(CUT), indirect=["whole"])
@torch.inference_mode()
def test_segments_agree_with_the_network_with_attention_at_its_layers(whole, layers):
    name, model = whole
    backbone = Backbone(name, layers, model.state_dict())
    wanted = attend(model, layers)
    model(pictures())
    maps = backbone.trunk(pictures())
    for i, layer in enumerate(layers):
        assert_near(maps[0], wanted[layer], layer)
        assert backbone.channels[i] == maps[0].shape[1]
        if i + 1 < len(layers):
            maps = backbone.segment(i, maps[0] * factors(maps[0], i), maps[1:])
    assert len(wanted) == len(layers)
    assert not maps[1:]  # nothing is carried above the last layer


@pytest.mark.parametrize("whole", ["resnet18"], indirect=True)
@torch.inference_mode()
def test_a_shortcut_is_carried_past_an_attended_layer_inside_its_block(whole):
    name, model = whole
    before = torchvision.models.feature_extraction.create_feature_extractor(model, ["layer4.0"])
    trunk = Backbone(name, ("layer4.1.relu", "layer4.1"), model.state_dict()).trunk(pictures())
    assert len(trunk) == 2
    assert_near(trunk[1], before(pictures())["layer4.0"], "layer4.0")


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
@torch.inference_mode()
def test_networks_with_another_normalisation_agree_with_torchvision(name, monkeypatch):
    """With the weights of a mocked download."""
    torch.manual_seed(0)
    made = randomised(torchvision.models.get_model(name, weights=None, init_weights=False)).state_dict()
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: made)
    layer, size = {"googlenet": ("inception4e", 64), "inception_v3": ("Mixed_6b", 96)}[name]
    backbone = Backbone(name, [layer], pretrained_weights(name))
    model = torchvision.models.get_model(name, weights="DEFAULT").eval()
    wanted = attend(model, (layer,))
    model(pictures(size))
    assert_near(backbone.trunk(pictures(size))[0], wanted[layer], layer)


def test_only_layers_below_the_last_attended_one_are_kept():
    model = randomised(torchvision.models.resnet18())
    backbone = Backbone("resnet18", ("layer1.0", "layer2.0"), model.state_dict())
    parents = {name.rpartition(".")[0] for name, _ in backbone.network.named_parameters()}
    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    below = [n for n in convolutions if n < "layer2.1"]
    assert parents == set(below)  # no head, nothing above the last attended layer, all batch norms folded
    assert all(not isinstance(m, nn.BatchNorm2d) for m in backbone.modules())


@pytest.mark.parametrize("whole", ["densenet121"], indirect=True)
def test_training_mode_does_not_update_batch_norms(whole):
    """The batch norms of DenseNet precede their convolutions and cannot be folded."""
    name, model = whole
    backbone = Backbone(name, ["features.denseblock1"], model.state_dict())
    wanted = backbone.trunk(pictures())[0]
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert any("running_mean" in key for key in before)
    assert backbone.train() is backbone
    assert torch.equal(backbone.trunk(pictures())[0], wanted)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert not any(module.training for module in backbone.modules())


@pytest.mark.parametrize(
    ("name", "layers", "first"),
    [
        ("resnet18", ("layer4.0", "layer4.1"), "layer4.1"),
        ("resnet18", ("layer4.0", "layer4.1"), "layer3"),
        ("resnet18", ("layer4.0", "layer4.1"), "layer4.0.conv2"),
        ("mobilenet_v2", ("features.17",), "features.1"),  # and not features.10
        ("mobilenet_v2", ("features.17",), "features.14.conv.1"),
    ],
)
def test_layers_below_the_first_trained_one_stay_frozen(name, layers, first):
    backbone = Backbone(name, layers)
    keys = [
        key for key, _ in torchvision.models.get_model(name).named_parameters()
    ]  # in the order of computation
    start = next(i for i, key in enumerate(keys) if key.startswith(f"{first}."))
    above = {key.rpartition(".")[0] for key in keys[start:]}
    backbone.set_trainable(True, first)
    trainable = {key: parameter.requires_grad for key, parameter in backbone.network.named_parameters()}
    assert trainable == {key: key.rpartition(".")[0] in above for key in trainable}
    assert True in trainable.values() and False in trainable.values()
    backbone.set_trainable(False, first)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    backbone.set_trainable(True)
    assert all(parameter.requires_grad for parameter in backbone.parameters())


def test_only_trained_layers_get_gradients():
    backbone = Backbone("resnet18", ("layer2.0", "layer2.1"))
    backbone.set_trainable(True, "layer2.0")
    maps = backbone.trunk(pictures())
    backbone.segment(0, maps[0], maps[1:])[0].sum().backward()
    touched = {key.split(".")[0] for key, p in backbone.network.named_parameters() if p.grad is not None}
    assert touched == {"layer2"}


# ---- default layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTENDED)
def test_a_count_selects_the_last_layers(name):
    everything = attended_layers(name, ("3",))
    assert attended_layers(name, ["2"]) == everything[1:]
    assert attended_layers(name, ("1",)) == everything[2:]
    assert attended_layers(name, ("layer1", "layer2")) == ("layer1", "layer2")
    assert attended_layers(name, ("features",)) == ("features",)


def test_default_layers_of_vgg19_are_conv5_2_to_conv5_4():
    with torch.device("meta"):
        features = torchvision.models.vgg19().features
    block, convolution, named = 1, 0, {}
    for i, module in enumerate(features):
        if isinstance(module, nn.MaxPool2d):
            block, convolution = block + 1, 0
        elif isinstance(module, nn.Conv2d):
            convolution += 1
        else:
            named[f"conv{block}_{convolution}"] = f"features.{i}"  # the ReLU after it
    assert ATTENDED["vgg19"] == (named["conv5_2"], named["conv5_3"], named["conv5_4"])


@pytest.mark.parametrize("name", ["resnet50", "resnet101", "resnet152"])
def test_default_layers_of_resnets_are_in_res5c(name):
    """a, b and c are the blocks of the fifth stage; branch2a and branch2b end with the first two calls of relu."""
    with torch.device("meta"):
        stage = torchvision.models.get_model(name).layer4
    assert [block for block, _ in stage.named_children()] == ["0", "1", "2"]
    assert ATTENDED[name] == ("layer4.2.relu", "layer4.2.relu_1", "layer4.2")


def test_default_layers_of_mobilenet_v2_are_its_last_stages():
    with torch.device("meta"):
        features = torchvision.models.mobilenet_v2().features
    assert ATTENDED["mobilenet_v2"] == tuple(f"features.{i}" for i in range(len(features)))[-3:]


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_default_layers_of_small_resnets_are_in_their_last_two_blocks(name):
    with torch.device("meta"):
        blocks = list(dict(torchvision.models.get_model(name).layer4.named_children()))
    before, last = (f"layer4.{block}" for block in blocks[-2:])
    assert ATTENDED[name] == (before, f"{last}.relu", last)


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_unknown_backbones_list_the_choices():
    for call in (
        lambda: Backbone("resnet51", ["layer4"]),
        lambda: pretrained_weights("resnet51"),
        lambda: attended_layers("resnet51", ["2"]),
    ):
        text = message(call, "'resnet51'", "alexnet, ", ", resnet50, ")
        assert "deeplab" not in text


@pytest.mark.parametrize("count", ["0", "4", "17"])
def test_counts_out_of_range(count):
    message(lambda: attended_layers("resnet152", [count]), f"--layers {count}", "resnet152", "1 to 3")


def test_a_backbone_without_default_layers():
    message(lambda: attended_layers("squeezenet1_1", ["2"]), "'squeezenet1_1'", "lowest first", "vgg19")


def test_unknown_layers_list_the_choices():
    text = message(lambda: Backbone("squeezenet1_1", ["features.10", "layer4"]), "'layer4'", "features.3, ")
    assert "expand3x3" not in text


@pytest.mark.parametrize(
    "layers", [("features.12", "features.10"), ("features.9", "features.9"), ("features.12", "features"), ()]
)
def test_layers_in_the_wrong_order(layers):
    message(lambda: Backbone("squeezenet1_1", layers), "lowest first", " ".join(layers))


@pytest.mark.parametrize("layer", ["flatten", "fc"])
def test_a_layer_that_is_not_a_feature_map(layer):
    message(lambda: Backbone("resnet18", ["layer1.0", layer]), repr(layer), "resnet18", "feature map")


def test_an_unknown_first_trained_layer():
    backbone = Backbone("squeezenet1_1", ["features.4"])
    above = "features.5"
    message(
        lambda: backbone.set_trainable(True, above),
        f"--finetune-from '{above}'",
        "squeezenet1_1",
        "features.4",
    )

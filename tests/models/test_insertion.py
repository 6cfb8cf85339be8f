"""Attention blocks in networks: insertion points, names and weights of torchvision, and running the networks."""

import pytest
import torch
from torch import nn

from sca_caption import attention
from sca_caption.attention import BLOCKS
from sca_caption.models.networks import (
    attention_blocks,
    build_network,
    gradcam_layer,
    load_pretrained,
    stages,
)
from sca_caption.runtime.torchvision_compat import torchvision
from tests.helpers.networks import images, on_meta, randomised, shapes, theirs_on_meta

IN_UNITS = ("se", "cbam", "ccwh", "coord")
LAST = ("self_attention", "danet_position", "danet_channel", "danet", "sca")


def parameters(*args, **options) -> int:
    return sum(p.numel() for p in on_meta(*args, **options).parameters())


@pytest.mark.parametrize(
    ("name", "classes", "stem", "block", "wanted"),
    [
        ("resnet18", 100, "cifar", "bam", 11_243_123),
        ("resnet18", 100, "cifar", "cbam", 11_310_012),
        ("resnet50", 1000, "imagenet", "bam", 25_915_099),
        ("resnet50", 1000, "imagenet", "cbam", 28_089_624),
        ("mobilenet_v2", 1000, "imagenet", "coord", 3_950_648),
    ],
)
def test_parameter_counts(name, classes, stem, block, wanted):
    assert parameters(name, classes, stem=stem, attention=block) == wanted


@pytest.mark.parametrize(
    ("block", "at", "added"),
    [
        ("se:bias=false", (), 87_040),
        ("se", (), 89_080),
        ("ccwh", (), 328),
        ("csham", (), 8_415),
        ("csham", ("layer1", "layer2", "layer3", "layer4"), 18_216),
    ],
)
def test_parameters_added_to_resnet18(block, at, added):
    assert parameters("resnet18", attention=block, at=at) - parameters("resnet18") == added


# ---- insertion points ------------------------------------------------------------------------------------------------


def units(*counts: int) -> list[str]:
    return [f"layer{i}.{unit}" for i, count in enumerate(counts, 1) for unit in range(count)]


RESNET50 = [f"{unit}.attention" for unit in units(3, 4, 6, 3)]
RESNET20 = [f"{unit}.attention" for unit in units(3, 3, 3)]
RESNET18 = [f"{unit}.attention" for unit in units(2, 2, 2, 2)]
LAYERS = [f"layer{i}.attention" for i in (1, 2, 3)]
VGG = [f"features.conv{i}_attention" for i in range(1, 6)]
MOBILENET_V2 = [f"features.{i}.conv.1.attention" for i in range(2, 18)]
# Units that keep the width, and the first units of stages 1, 2 and 8.
FULL = [1, 2, 4, 5, 7, 8, 10, 11, 12, 14, 15, 16, 18, 19, 20]
MOBILENEXT = [f"features.{i}.conv.attention" for i in FULL]
DENSE = [f"features.denseblock{i}_attention" for i in range(1, 5)]
LENET = [f"features.conv{i}_attention" for i in (1, 2)]

INSERTION_POINTS = {
    **{("resnet50", block): RESNET50 for block in IN_UNITS},
    ("resnet50", "csham"): [f"layer{i}.0.attention" for i in (2, 3, 4)],
    ("resnet50", "sk"): [f"{unit}.conv2" for unit in units(3, 4, 6, 3)],
    ("resnet50", "bam"): LAYERS,
    # Wang et al., section 5.1: five blocks in ResNet-50, two in res3 and three in res4, after every other unit.
    ("resnet50", "nonlocal"): [f"layer{i}.attention{u}" for i, u in ((2, 1), (2, 3), (3, 1), (3, 3), (3, 5))],
    **{("resnet50", block): ["layer4.attention"] for block in LAST},
    ("resnet18", "se"): RESNET18,
    ("resnet18", "sk"): [f"{unit}.conv1" for unit in units(2, 2, 2, 2)],
    ("resnet18", "nonlocal"): ["layer2.attention1", "layer3.attention1"],
    **{("resnet20", block): RESNET20 for block in IN_UNITS},
    ("resnet20", "csham"): ["layer2.0.attention", "layer3.0.attention"],
    ("resnet20", "sk"): [f"{unit}.conv1" for unit in units(3, 3, 3)],
    ("resnet20", "bam"): LAYERS[:2],
    ("resnet20", "nonlocal"): ["layer2.attention1", "layer3.attention1"],
    **{("resnet20", block): ["layer3.attention"] for block in LAST},
    **{("vgg16", block): VGG for block in (*IN_UNITS, "csham", "sk")},
    ("vgg19_bn", "bam"): VGG[:4],
    ("vgg19_bn", "nonlocal"): VGG[3:],
    ("vgg19_bn", "danet"): VGG[4:],
    **{("mobilenet_v2", block): MOBILENET_V2 for block in IN_UNITS},
    ("mobilenet_v2", "csham"): [f"features.{i}.conv.1.attention" for i in (2, 4, 7, 14)],
    ("mobilenet_v2", "sk"): [f"features.{i}.conv.1.0" for i in range(2, 18)],
    ("mobilenet_v2", "bam"): [f"features.stage{i}_attention" for i in (1, 2, 3, 5)],
    ("mobilenet_v2", "nonlocal"): [f"features.attention{i}" for i in (5, 8, 10, 12)],
    ("mobilenet_v2", "danet"): ["features.stage7_attention"],
    **{("mobilenext", block): MOBILENEXT for block in (*IN_UNITS, "csham")},
    ("mobilenext", "sk"): [f"features.{i}.conv.0" for i in FULL],
    ("mobilenext", "bam"): [f"features.stage{i}_attention" for i in (2, 3, 5)],
    ("mobilenext", "nonlocal"): [f"features.attention{i}" for i in (4, 7, 10, 12)],
    ("mobilenext", "sca"): ["features.stage8_attention"],
    **{("densenet121", block): DENSE for block in (*IN_UNITS, "csham", "sk")},
    ("densenet121", "bam"): DENSE[:3],
    ("densenet121", "nonlocal"): DENSE[1:3],
    ("densenet121", "danet_channel"): DENSE[3:],
    **{("lenet", block): LENET for block in (*IN_UNITS, "csham", "sk")},
    ("lenet", "bam"): LENET[:1],
    ("lenet", "nonlocal"): LENET[1:],
    ("lenet", "self_attention"): LENET[1:],
}


@pytest.mark.parametrize("network", sorted({network for network, _ in INSERTION_POINTS}))
def test_default_insertion_points(network):
    for (name, block), paths in INSERTION_POINTS.items():
        if name == network:
            assert sorted(attention_blocks(on_meta(name, attention=block))) == sorted(paths), block


def test_named_stages():
    for name, block, at, paths in (
        ("resnet18", "se", ("layer4",), ["layer4.0.attention", "layer4.1.attention"]),
        ("resnet18", "csham", ("layer1",), ["layer1.0.attention", "layer1.1.attention"]),
        ("resnet18", "sk", ("layer2",), ["layer2.0.conv1", "layer2.1.conv1"]),
        ("resnet18", "bam", ("layer4", "layer1"), ["layer1.attention", "layer4.attention"]),
        ("resnet50", "nonlocal", ("layer4",), ["layer4.attention1"]),
        ("resnet18", "danet", ("layer3",), ["layer3.attention"]),
        ("mobilenet_v2", "coord", ("stage1",), ["features.1.conv.0.attention"]),
        ("mobilenet_v2", "sk", ("stage1",), ["features.1.conv.0.0"]),
        ("mobilenet_v2", "nonlocal", ("stage7",), ["features.attention17"]),
        ("mobilenet_v2", "sca", ("stage6",), ["features.stage6_attention"]),
        ("mobilenext", "se", ("stage4",), ["features.7.conv.attention", "features.8.conv.attention"]),
        ("vgg16", "se", ("conv5",), ["features.conv5_attention"]),
        ("densenet121", "bam", ("denseblock4",), ["features.denseblock4_attention"]),
        ("lenet", "cbam", ("conv1",), ["features.conv1_attention"]),
    ):
        assert sorted(attention_blocks(on_meta(name, attention=block, at=at))) == paths, (name, block)


@pytest.mark.parametrize(
    ("name", "attention", "at", "block", "reads", "read_by"),
    [
        ("resnet50", "se", (), "layer2.1.attention", "layer2.1.bn3", None),  # followed by the sum
        ("resnet18", "cbam", (), "layer2.1.attention", "layer2.1.bn2", None),
        ("resnet50", "sk", (), "layer2.0.conv2", "layer2.0.relu", "layer2.0.bn2"),
        ("resnet50", "bam", (), "layer1.attention", "layer1.2", "layer2.0"),
        ("resnet50", "nonlocal", (), "layer3.attention3", "layer3.3", "layer3.4"),
        ("resnet50", "danet", (), "layer4.attention", "layer4.2", "avgpool"),
        ("mobilenet_v2", "coord", (), "features.2.conv.1.attention", "features.2.conv.1.2", "features.2.conv.2"),
        ("mobilenet_v2", "coord", ("stage1",), "features.1.conv.0.attention", "features.1.conv.0.2", "features.1.conv.1"),
        ("mobilenet_v2", "bam", (), "features.stage2_attention", "features.3", "features.4"),
        ("mobilenet_v2", "nonlocal", (), "features.attention8", "features.8", "features.9"),
        ("mobilenet_v2", "danet", (), "features.stage7_attention", "features.17", "features.18"),
        ("mobilenext", "coord", (), "features.4.conv.attention", "features.4.conv.2", "features.4.conv.3"),
        ("vgg16", "csham", (), "features.conv3_attention", "features.15", "features.16"),
        ("vgg16_bn", "csham", (), "features.conv1_attention", "features.5", "features.6"),
        ("densenet121", "bam", (), "features.denseblock1_attention", "features.denseblock1", "features.transition1"),
        ("densenet121", "sca", (), "features.denseblock4_attention", "features.denseblock4", "features.norm5"),
        ("lenet", "cbam", (), "features.conv1_attention", "features.relu1", "features.pool1"),
    ],
)  # fmt: skip
def test_the_layers_before_and_after_a_block(name, attention, at, block, reads, read_by):
    model = on_meta(name, attention=attention, at=at).eval()
    if attention != "sk":  # some blocks cannot run on the meta device
        for path in attention_blocks(model):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, Copy())
    calls = {}

    def keep(path):
        def hook(module, inputs, output):
            calls.setdefault(path, []).append((inputs[0], output))

        model.get_submodule(path).register_forward_hook(hook)

    for path in filter(None, (block, reads, read_by)):
        keep(path)
    model(images(64, 64).to("meta"))
    ((found, out),) = calls[block]
    assert any(found is output for _, output in calls[reads])
    assert read_by is None or any(out is given for given, _ in calls[read_by])


class Copy(nn.Module):
    def forward(self, x):
        return x.clone()


# ---- weights ---------------------------------------------------------------------------------------------------------


# The other networks use the same code with more layers.
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "vgg16_bn", "mobilenet_v2", "densenet121"])
@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_torchvision_weights_are_loaded_with_every_block(name):
    theirs = theirs_on_meta(name)
    weights, wanted = theirs.state_dict(), shapes(theirs)
    for block in BLOCKS if name in ("resnet18", "vgg16_bn") else ("se", "sk", "bam", "nonlocal", "sca"):
        model = on_meta(name, attention=block)
        left = load_pretrained(model, weights, name)
        inside = tuple(f"{path}." for path in attention_blocks(model))
        found = shapes(model)
        assert left and all(key.startswith(inside) for key in left)
        kept = {key: shape for key, shape in found.items() if not key.startswith(inside)}
        # SK replaces a 3x3 convolution and its batch norm; all other names of torchvision are kept.
        assert kept.items() <= wanted.items()
        lost = {key.rpartition(".")[0] for key in wanted.keys() - kept.keys()}
        replaced = [path for path in attention_blocks(model) if path in dict(theirs.named_modules())]
        assert len(lost) == 2 * len(replaced) and lost.issuperset(replaced)
        assert bool(replaced) == (block == "sk" and name.startswith(("resn", "mobile")))


@pytest.mark.parametrize("block", ["nonlocal", "danet_position", "danet_channel"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@torch.inference_mode()
def test_networks_with_identity_blocks_agree_with_torchvision(name, block):
    theirs = randomised(torchvision.models.get_model(name, num_classes=10))
    for at in ((), stages(name)):
        ours = build_network(name, 10, attention=block, at=at)
        load_pretrained(ours, theirs.state_dict(), name)
        torch.testing.assert_close(ours.eval()(images(64, 48)), theirs(images(64, 48)), rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_block_changes_the_output():
    theirs = randomised(torchvision.models.resnet18(num_classes=10))
    ours = build_network("resnet18", 10, attention="se")
    load_pretrained(ours, theirs.state_dict(), "resnet18")
    plain = ours.layer3[1].attention, ours.eval()(images())
    with torch.no_grad():
        for parameter in plain[0].parameters():
            parameter.normal_(0, 3)
    assert not torch.allclose(ours(images()), plain[1])


def test_weights_of_blocks_are_loaded_and_wrong_ones_refused():
    made = build_network("lenet", 5, attention="se")
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    model = build_network("lenet", 5, attention="se")
    assert load_pretrained(model, made.state_dict(), "lenet") == []
    assert all(torch.equal(v, made.state_dict()[k]) for k, v in model.state_dict().items())
    other = build_network("lenet", 5, attention="se:reduction=2").state_dict()
    with pytest.raises(
        Exception, match=r"do not fit lenet: .* first 'features\.conv1_attention\..* has shape"
    ):
        load_pretrained(model, other, "lenet")


class Marked(nn.Module):
    """A block with all layers that constructors of networks initialise; its parameters are 0.25."""

    def __init__(self, channels: int):
        super().__init__()
        self.parts = nn.ModuleList(
            [nn.Conv2d(channels, 1, 1), nn.BatchNorm2d(channels), nn.Linear(channels, 1)]
        )
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.25)

    def forward(self, x):
        return x


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenext", "densenet121", "lenet"])
def test_networks_do_not_reinitialise_their_blocks(name, monkeypatch):
    monkeypatch.setitem(attention.BLOCKS, "se", Marked)
    found = attention_blocks(build_network(name, 3, attention="se"))
    assert found and all((p == 0.25).all() for block in found.values() for p in block.parameters())


# ---- running ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
def test_every_parameter_gets_a_gradient(block):
    for name in ("resnet18", "resnet20", "mobilenet_v2", "mobilenext", "lenet"):
        torch.manual_seed(0)
        model = build_network(name, 5, stem="cifar", attention=block, at=stages(name)[-2:])
        logits = model(images(32, 40))
        assert logits.shape == (2, 5) and logits.isfinite().all(), name
        logits.square().sum().backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == [], name
        # If gamma is initially zero, only gamma has a gradient.
        assert all(
            any(p.grad.any() for p in module.parameters()) for module in attention_blocks(model).values()
        ), name


@pytest.mark.parametrize("name", ["densenet121", "resnext50_32x4d"])
@pytest.mark.parametrize("block", ["cbam", "sk"])
def test_large_networks_run(name, block):
    model = build_network(name, 5, attention=block).eval()
    with torch.inference_mode():
        assert model(images(40, 33)).shape == (2, 5)


def test_nested_attention_is_one_block():
    (path,) = attention_blocks(build_network("lenet", 5, attention="danet"))
    assert path == "features.conv2_attention"


@pytest.mark.parametrize(
    ("name", "block", "layer"),
    [
        ("resnet18", "danet", "layer4"),
        ("resnet20", "", "layer3"),
        ("vgg16", "", "features.29"),  # the ReLU before the last pooling
        ("vgg16", "se", "features.conv5_attention"),
        ("lenet", "", "features.relu2"),
        ("lenet", "cbam", "features.conv2_attention"),
        ("mobilenet_v2", "se", "features"),
        ("mobilenext", "se", "features"),
        ("densenet121", "se", "features"),
    ],
)
def test_the_layer_of_grad_cam(name, block, layer):
    model = on_meta(name, attention=block)
    assert gradcam_layer(model, name) is model.get_submodule(layer)

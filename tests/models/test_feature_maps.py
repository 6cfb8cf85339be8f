"""Feature maps of every network with every block: shapes, strides, gradients, weights; torchvision's models on them."""

import copy
import itertools
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from sca_caption import checkpoint
from sca_caption.attention import BLOCKS
from sca_caption.checkpoint import Checkpoint
from sca_caption.config import ClassifierConfig
from sca_caption.images import Transform
from sca_caption.models.classifier import Classifier
from sca_caption.models.efficientnet_lite import lite_backbone
from sca_caption.models.feature_maps import FeatureMaps
from sca_caption.models.networks import (
    LITE_NETWORKS,
    NETWORKS,
    attention_blocks,
    build_network,
    feature_maps,
    feature_stages,
    stages,
)
from sca_caption.runtime.torchvision_compat import torchvision
from tests.helpers.lite_weights import lite_weights
from tests.helpers.made_photos import message
from tests.helpers.networks import images, randomised, theirs_on_meta
from tests.helpers.thorough import THOROUGH

# One of each form; the others run the same code with more layers.
FORMS = ("resnet18", "vgg16_bn", "mobilenet_v2", "mobilenext", "densenet121", "lenet", "efficientnet_lite0")
DEEP = ("resnet101", "resnet152", "resnext50_32x4d", "vgg19", "vgg19_bn")  # slow, and no other code
OTHERS = [
    name for name in (*NETWORKS, *LITE_NETWORKS) if name not in FORMS and (THOROUGH or name not in DEEP)
]
# Of torchvision's networks without named stages.
THEIRS = ("squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf")
STRIDES = {
    "resnet18": (4, 8, 16, 32),
    "vgg16_bn": (1, 2, 4, 8, 16),
    "mobilenet_v2": (2, 4, 8, 16, 16, 32, 32),
    "mobilenext": (4, 4, 8, 16, 16, 32, 32, 32),
    "densenet121": (4, 8, 16, 32),
    "lenet": (1, 2),
    "efficientnet_lite0": (2, 4, 8, 16, 16, 32, 32),
    "squeezenet1_1": (2, 4, 8, 16),
    "shufflenet_v2_x0_5": (2, 8, 16, 32),
    "mobilenet_v3_small": (2, 4, 8, 16, 32),
    "mnasnet0_5": (2, 4, 8, 16, 32),
    "regnet_y_400mf": (2, 4, 8, 16, 32),
}
CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "vgg16_bn": (64, 128, 256, 512, 512),
    "mobilenet_v2": (16, 24, 32, 64, 96, 160, 320),
    "mobilenext": (96, 144, 192, 288, 384, 576, 960, 1280),
    "densenet121": (256, 512, 1024, 1024),
    "lenet": (6, 16),
    "efficientnet_lite0": (16, 24, 40, 80, 112, 192, 320),
}


def made(name: str, *args, **options) -> FeatureMaps:
    """In evaluation mode, every parameter random: blocks that start at zero would pass no gradient on.

    The network is first made without numbers, which takes a VGG's large head no time.
    """
    with nullcontext() if name.startswith("regnet") else torch.device("meta"):  # see `skeleton`
        maps = feature_maps(name, *args, **options)
    maps = maps.to_empty(device="cpu").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for key, value in maps.named_parameters():
            if value.dim() > 1:
                value.uniform_(-1, 1).mul_((3 / value[0].numel()) ** 0.5)
            elif key.endswith("bias"):
                value.uniform_(-0.2, 0.2)
            else:
                value.uniform_(0.5, 1.5)
        for key, value in maps.named_buffers():
            value.fill_(1 if key.endswith(("running_var", "factor")) else 0)
    return maps


def check_maps(name: str, block: str) -> None:
    """Channels and sizes as `channels` and `strides` say, and a gradient for every parameter."""
    maps = made(name, block, at=feature_stages(name)[-2:])
    assert maps.blocks and not {"fc", "classifier"} & {path for path, _ in maps.trunk.named_children()}
    small, large = (maps(images(32, width)) for width in (64, 128))
    assert list(small) == list(maps.channels) == list(maps.strides) == list(feature_stages(name))
    for stage, x in small.items():
        rows, columns = x.shape[2:]
        assert x.shape[:2] == (2, maps.channels[stage])
        assert (large[stage].shape[3] - columns) * maps.strides[stage] == 64
        assert abs(rows - 32 / maps.strides[stage]) < 7  # LeNet does not pad
    assert maps.out_channels == [*maps.channels.values()]
    torch.stack([x.square().mean() for x in small.values()]).sum().backward()
    assert [key for key, p in maps.named_parameters() if p.grad is None] == []
    # A bias before a softmax has no effect: a block must have some gradient, and every other parameter one.
    inside = tuple(f"trunk.{path}." for path in maps.blocks)
    still = [key for key, p in maps.named_parameters() if not p.grad.any()]
    assert [key for key in still if not key.startswith(inside)] == []
    for path in maps.blocks:
        assert any(p.grad.any() for p in maps.trunk.get_submodule(path).parameters()), path


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("name", FORMS)
def test_maps_and_gradients_of_every_form_of_network_and_block(name, block):
    check_maps(name, block)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_maps_and_gradients_of_every_network_and_block(name):
    for block in [*BLOCKS][:: 1 if THOROUGH else 3]:  # the forms above have all
        check_maps(name, block)


@pytest.mark.parametrize("name", STRIDES)
def test_strides_and_channels(name):
    maps = made(name)
    assert tuple(maps.strides.values()) == STRIDES[name]
    assert tuple(maps.channels.values()) == CHANNELS.get(name, tuple(maps.channels.values()))


@pytest.mark.parametrize("name", STRIDES)
@torch.inference_mode()
def test_a_change_moves_by_the_stride(name):
    """The middle of the change of a map moves by one position where that of the image moves by the stride."""
    maps = made(name)
    plain = torch.zeros(1, 3, 32, 512)
    left, right = plain.clone(), plain.clone()
    left[..., 160:192], right[..., 320:352] = 1, 1
    for stage, (before, *after) in zip(
        maps.strides, zip(*(maps(x).values() for x in (plain, left, right)), strict=True), strict=True
    ):
        middles = []
        for x in after:
            change = (x - before).square().sum((0, 1, 2))
            middles.append((change * torch.arange(len(change))).sum() / change.sum())
        assert float(middles[1] - middles[0]) * maps.strides[stage] == pytest.approx(160, rel=0.1), stage


# ---- values ----------------------------------------------------------------------------------------------------------

READ_BLOCKS = ("", "coord", "bam", "nonlocal", "danet", "sk")
# The modules of classifiers that read the maps of the stages: an oracle that knows nothing of blocks.
READ_BY = {
    "resnet18": ("layer2", "layer3", "layer4", "avgpool"),
    "vgg16_bn": [f"features.{i}" for i in (6, 13, 23, 33, 43)],  # max-pooling
    "mobilenet_v2": [f"features.{i}" for i in (2, 4, 7, 11, 14, 17, 18)],
    "densenet121": [f"features.transition{i}" for i in (1, 2, 3)],
    "mobilenext": [f"features.{i}" for i in (2, 3, 6, 9, 13, 17, 20)],
    "lenet": ("features.pool1", "features.pool2"),
}


@pytest.mark.parametrize("name", [name for name in READ_BY if name != "vgg16_bn"])
@pytest.mark.parametrize("block", READ_BLOCKS)
@torch.inference_mode()
def test_maps_are_those_of_the_classifier(name, block):
    check_against_the_classifier(name, block)


@pytest.mark.slow
@pytest.mark.parametrize("block", READ_BLOCKS)
@torch.inference_mode()
def test_maps_of_vgg_are_those_of_the_classifier(block):
    check_against_the_classifier("vgg16_bn", block)


def check_against_the_classifier(name: str, block: str) -> None:
    network = randomised(build_network(name, 5, stem="cifar", attention=block))
    maps = feature_maps(name, block, stem="cifar").eval()
    assert maps.load(network.state_dict()) == []
    read = {}

    def keep(path: str, x: Tensor) -> None:
        read[path] = x.clone()  # before the network changes it in place

    for path in READ_BY[name]:
        network.get_submodule(path).register_forward_pre_hook(
            lambda _, given, path=path: keep(path, given[0])
        )
    if hasattr(network, "features"):
        network.features.register_forward_hook(lambda _, given, out: keep("features", out))
    network(images(48, 32))
    wanted = [*(read[path] for path in READ_BY[name]), read.get("features")]
    found = maps(images(48, 32))
    assert len(found) in (len(wanted), len(wanted) - 1)
    for x, y in zip(found.values(), wanted, strict=False):
        torch.testing.assert_close(x, y)


@torch.inference_mode()
def test_maps_of_efficientnet_lite_are_those_of_its_published_weights():
    weights = lite_weights()
    maps = feature_maps("efficientnet_lite0", stages=("stage3", "stage7"), weights=weights).eval()
    network = lite_backbone("efficientnet_lite0", 18)
    network.features.load_state_dict(
        {k.removeprefix("features."): v for k, v in maps.trunk.state_dict().items()}, strict=False
    )
    trunk, segment, _ = network.cut([5, 16, 17])
    (third,) = trunk(images(64, 96))
    torch.testing.assert_close(list(maps(images(64, 96)).values()), [third, *segment(third)])
    blocks = feature_maps("efficientnet_lite0", "se")
    assert all("attention" in key for key in blocks.load(weights))
    assert "these weights do not fit" in message(lambda: feature_maps("efficientnet_lite1", weights=weights))


@pytest.mark.parametrize("name", THEIRS)
@torch.inference_mode()
def test_maps_of_torchvisions_other_networks(name):
    theirs = randomised(torchvision.models.get_model(name))
    maps = feature_maps(name, weights=theirs.state_dict()).eval()
    read = []
    head = theirs.classifier if hasattr(theirs, "classifier") else theirs.fc
    head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    theirs(images(64, 64))
    *_, last = maps(images(64, 64)).values()
    torch.testing.assert_close(last if read[0].dim() == 4 else last.mean((2, 3)), read[0])
    blocks = feature_maps(name, "coord").eval()
    assert blocks.blocks and all(
        any(path in key for path in blocks.blocks) for key in blocks.load(theirs.state_dict())
    )


@pytest.mark.slow
def test_convolutional_networks_of_torchvision_run_their_chain_in_order():
    names = set(torchvision.models.list_models(module=torchvision.models)) - set(NETWORKS)
    for name in sorted(names)[:: 1 if THOROUGH else 8]:
        if name.startswith(("vit", "swin", "maxvit", "regnet")):  # RegNets cannot be made on the meta device
            continue
        with torch.device("meta"):
            maps = feature_maps(name)
        options = (
            {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
        )
        theirs, seen = theirs_on_meta(name, **options).eval(), []
        for path in maps._order:
            theirs.get_submodule(path).register_forward_hook(
                lambda m, i, out, path=path, seen=seen: seen.append((path, i[0], out))
            )
        theirs(torch.empty(1, 3, 299, 299, device="meta"))
        assert [path for path, _, _ in seen] == maps._order, name
        assert all(after[1] is before[2] for before, after in itertools.pairwise(seen)), name


# ---- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["cbam:reduction=4", "sk", "nonlocal"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_checkpoints_of_classifiers_load(block, dtype, tmp_path):
    config = ClassifierConfig(backbone="lenet", attention=block, image_size=32, classes=("a", "b"))
    model = Classifier(config)
    model.network = randomised(model.network)
    checkpoint.save(tmp_path / "best.pt", Checkpoint(model, None, Transform(32, "crop")), dtype)
    maps = feature_maps("lenet", block, weights=tmp_path / "best.pt")
    wanted = model.network.state_dict()
    for key, value in maps.trunk.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-3, atol=1e-3)
    assert {key.split(".")[0] for key in wanted.keys() - maps.trunk.state_dict().keys()} == {"classifier"}


def test_torchvisions_files_load_under_blocks(tmp_path):
    theirs = randomised(torchvision.models.resnet18())
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    maps = feature_maps("resnet18", "se", stages=("layer1", "layer2"))
    left = maps.load(str(tmp_path / "resnet18.pth"))
    assert left and all(".attention." in key and key.startswith(("layer1", "layer2")) for key in left)
    assert torch.equal(maps.trunk.layer2[1].conv2.weight, theirs.layer2[1].conv2.weight)
    assert torch.equal(maps.trunk.bn1.running_mean, theirs.bn1.running_mean)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_lite0", "squeezenet1_1"]
)
def test_weights_survive_a_strict_round_trip(name):
    first, second = made(name, "coord"), feature_maps(name, "coord")
    second.load_state_dict(first.state_dict(), strict=True)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    third = feature_maps(name, "coord", weights=first.trunk.state_dict())
    assert all(torch.equal(a, third.trunk.state_dict()[k]) for k, a in first.trunk.state_dict().items())


def test_weights_of_another_network_are_refused_with_the_parameters_that_differ():
    lenet = build_network("lenet", 5).state_dict()
    maps = feature_maps("lenet", "se")
    before = {key: value.clone() for key, value in maps.state_dict().items()}
    wrong = dict(lenet)
    del wrong["features.conv1.bias"]
    wrong["features.conv2.weight"] = torch.zeros(16, 6, 3, 3)
    wrong["stage.weight"] = torch.zeros(1)
    message(
        lambda: maps.load(wrong),
        "lenet with se",
        "missing: features.conv1.bias",
        "features.conv2.weight (16, 6, 3, 3) instead of (16, 6, 5, 5)",
        "unknown: stage.weight",
    )
    assert all(torch.equal(value, before[key]) for key, value in maps.state_dict().items())
    # A checkpoint with blocks does not load without them, nor with other ones.
    with_se = build_network("lenet", 5, attention="se").state_dict()
    message(lambda: feature_maps("lenet", weights=with_se), "unknown: features.conv1_attention.")
    message(lambda: feature_maps("lenet", "coord", weights=with_se), "unknown: features.conv1_attention.")
    message(
        lambda: feature_maps("lenet", "se", reduction=2, weights=with_se),
        "of another shape: features.conv1_att",
    )
    partial = {key: value for key, value in with_se.items() if not key.startswith("features.conv2_attention")}
    message(lambda: maps.load(partial), "missing: features.conv2_attention.")
    many = message(lambda: feature_maps("resnet18", weights=lenet), "missing: conv1.weight, bn1.weight")
    assert " more" in many and len(many) < 500


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_returned_stages_decide_what_is_kept_and_their_names():
    whole, part = feature_maps("mobilenet_v2"), feature_maps("mobilenet_v2", stages={"stage5": "out"})
    assert list(part(images(32, 32))) == ["out"] and part.out_channels == 96 and part.strides == {"out": 16}
    kept = [key for key in whole.state_dict() if int(key.split(".")[2]) <= 13]
    assert list(part.state_dict()) == kept
    two = feature_maps("mobilenet_v2", stages=("stage7", "stage3"))
    assert list(two.channels.items()) == [("stage3", 32), ("stage7", 320)]  # the order of computation


def test_options_of_blocks_are_those_of_build():
    (found,) = {
        block.mlp[0].out_channels if isinstance(block.mlp[0], nn.Conv2d) else block.mlp[0].out_features
        for block in attention_blocks(feature_maps("resnet18", "cbam", at=("layer4",), reduction=8)).values()
    }
    assert found == 64
    same = feature_maps("resnet18", "cbam:reduction=8", at=("layer4",))
    assert (
        same.trunk.state_dict().keys()
        == feature_maps("resnet18", "cbam", at=("layer4",)).trunk.state_dict().keys()
    )


@pytest.mark.parametrize(
    ("arguments", "options", "parts"),
    [
        (("resnet19",), {}, ("resnet19", "resnet18", "efficientnet_lite0", "squeezenet1_1")),
        (("vit_b_16",), {}, ("vit_b_16", "vgg16")),
        (("resnet18", "cbma"), {}, ("cbma", *BLOCKS)),
        (("resnet18", "cbam", ("stage1",)), {}, ("stage1", *stages("resnet18"))),
        (("resnet18",), {"stages": ("conv1",)}, ("conv1", *stages("resnet18"))),
        (("squeezenet1_1",), {"stages": ("stride32",)}, ("stride32", "stride8", "stride16")),
        (("resnet18", "cbam"), {"width": 3}, ("width", "reduction", "pools")),
        (("resnet18", "sk"), {"stride": 2}, ("stride",)),
        (("resnet18",), {"reduction": 8}, ("reduction", "block")),
        (("resnet18", "", ("layer1",)), {}, ("layer1", "block")),
        (("resnet18", "danet"), {"stages": ("layer2",)}, ("danet", "layer4.attention")),
        (("resnet18",), {"stem": "imagnet"}, ("imagnet", "cifar")),
        (("efficientnet_lite0",), {"stem": "cifar"}, ("cifar",)),
    ],
)
def test_wrong_arguments_are_refused_with_the_valid_ones(arguments, options, parts):
    message(lambda: feature_maps(*arguments, **options), *parts)


# ---- torchvision's models --------------------------------------------------------------------------------------------


def test_a_feature_pyramid_and_a_detector_on_it():
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork

    maps = feature_maps("resnet18", "cbam", stages=("layer2", "layer3"))
    backbone = nn.Sequential(maps, FeaturePyramidNetwork(list(maps.channels.values()), 16))
    backbone.out_channels = 16
    found = backbone(images(64, 64))
    assert [tuple(x.shape) for x in found.values()] == [(2, 16, 8, 8), (2, 16, 4, 4)]
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,), (1.0,)))
    model = RetinaNet(backbone, 3, min_size=64, max_size=64, anchor_generator=anchors, score_thresh=0.0)
    (first, second) = model.eval()(list(images(64, 64)))
    assert len(first["boxes"]) == len(first["scores"]) > 0 and len(second["labels"]) > 0
    assert set(first["labels"].tolist()) <= {0, 1, 2}


def test_deeplab_reads_one_map():
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3

    maps = feature_maps("mobilenet_v2", "danet", at=("stage5",), stages={"stage5": "out"})
    model = DeepLabV3(maps, DeepLabHead(maps.out_channels, 4)).eval()
    assert model(images(64, 48))["out"].shape == (2, 4, 64, 48)


def test_a_copy_computes_the_same_maps():
    maps = made("lenet", "se")
    twin = copy.deepcopy(maps)
    x: Tensor = images(32, 32)
    assert all(torch.equal(a, b) for a, b in zip(maps(x).values(), twin(x).values(), strict=True))
    assert twin.trunk is not maps.trunk

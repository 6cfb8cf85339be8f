"""Classification networks with attention blocks at the insertion points of the blocks' papers.

The networks are torchvision's, except MobileNeXt (`mobilenext`), LeNet (`lenet`) and ResNet-20 for CIFAR (`resnet20`),
and keep torchvision's parameter names. Blocks only add names, so ImageNet weights load into networks with blocks.
Default insertion points of each block:

    se cbam ccwh coord    in every residual unit: in ResNet after the last batch norm, before the sum; in MobileNetV2
                          after the depthwise convolution's ReLU6, unless the expansion is 1; in MobileNeXt after the
                          ReLU6 of the first depthwise convolution (the points in MobileNets are those of the coordinate
                          attention paper, which compares the blocks). Without residual units: after every stage
    csham                 as above, but in ResNet and MobileNetV2 only in units of stride 2; in VGG before pooling
    sk                    replaces a 3x3 convolution: the bottleneck's, the first one of ResNet-18/34's units, the
                          depthwise one of MobileNets (groups = channels, not from the paper). Without residual units:
                          after every stage
    bam                   after each stage that downsampling follows
    nonlocal              after every second unit of the stages at 1/8 and 1/16 of the image size (ResNet's res3 and
                          res4). Without residual units: after these stages
    all others            after the last stage

With `at`, the block is inserted into all units of the named stages, or after the named stages. "After a stage" means
before its pooling or transition.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sca_caption.attention import BLOCKS
from sca_caption.models import efficientnet_lite, mobilenet_v2
from sca_caption.models.feature_maps import (
    FeatureMaps,
    Shape,
    last_module,
    map_end,
    measure,
    points_after,
    skeleton,
    stride_stages,
)
from sca_caption.models.insertion import (
    Network,
    densenet_stages,
    insert_blocks,
    lite_stages,
    mobilenet_stages,
    parse_block,
    plain_stages,
    resnet_stages,
)
from sca_caption.models.lenet import LeNet
from sca_caption.models.mobilenext import SANDGLASS_STAGES, MobileNeXt
from sca_caption.models.pretrained import backbone_names, torchvision_network
from sca_caption.models.resnet import BasicBlock, Bottleneck, CifarResNet
from sca_caption.runtime.errors import UserError, choice
from sca_caption.runtime.torchvision_compat import torchvision

STEMS = ("imagenet", "cifar")
# Networks of torchvision without maps (B, C, H, W) of images of any size.
TRANSFORMERS = ("maxvit", "swin", "vit")


def make_resnet(name: str, classes: int, stem: str) -> nn.Module:
    """Stem cifar: a 3x3 convolution of stride 1, no max-pooling."""
    counts = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
    options = {"groups": 32, "width_per_group": 4} if name == "resnext50_32x4d" else {}
    unit = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
    model = torchvision.models.ResNet(
        unit, list(counts.get(name, (3, 4, 6, 3))), num_classes=classes, **options
    )
    if stem == "cifar":
        model.conv1 = init_he(nn.Conv2d(3, 64, 3, padding=1, bias=False))
        model.maxpool = nn.Identity()
    return model


def make_resnet20(classes: int, stem: str) -> nn.Module:
    """ResNet-20 expects 32 x 32 pixels and has a single stem."""
    return CifarResNet(3, classes)


def make_vgg(name: str, classes: int, stem: str) -> nn.Module:
    """Stem cifar: average pooling to one position and one linear layer."""
    model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if stem == "cifar":
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Sequential(nn.Linear(512, classes))
    return model


def make_mobilenet_v2(classes: int, stem: str) -> nn.Module:
    """Stem cifar: the stem and stage2 have stride 1, so that 32 x 32 pixels give 4 x 4 positions."""
    rows = [list(row) for row in mobilenet_v2.STAGES]
    if stem == "cifar":
        rows[1][3] = 1
    model = torchvision.models.MobileNetV2(num_classes=classes, inverted_residual_setting=rows)
    if stem == "cifar":
        model.features[0][0].stride = (1, 1)
    return model


def make_mobilenext(classes: int, stem: str) -> nn.Module:
    return MobileNeXt(classes, small_images=stem == "cifar")


def make_densenet(classes: int, stem: str) -> nn.Module:
    """Stem cifar: a 3x3 convolution of stride 1, no max-pooling."""
    model = torchvision.models.densenet121(weights=None, num_classes=classes)
    if stem == "cifar":
        model.features.conv0 = init_he(nn.Conv2d(3, 64, 3, padding=1, bias=False))
        model.features.pool0 = nn.Identity()
    return model


def make_lenet(classes: int, stem: str) -> nn.Module:
    """LeNet expects 32 x 32 pixels and has a single stem."""
    return LeNet(classes)


def init_he(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def numbered(name: str, count: int) -> tuple[str, ...]:
    return tuple(f"{name}{i}" for i in range(1, count + 1))


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d")
VGGS = ("vgg16", "vgg19", "vgg16_bn", "vgg19_bn")
LAYERS, CONVS, DENSE = numbered("layer", 4), numbered("conv", 5), numbered("denseblock", 4)


def resnet(name: str) -> Network:
    return Network(
        partial(make_resnet, name),
        LAYERS,
        resnet_stages,
        before_downsampling=LAYERS[:3],
        middle=LAYERS[1:3],
        head="fc",
        stride_2_only=("csham",),
    )


def vgg(name: str) -> Network:
    return Network(
        partial(make_vgg, name), CONVS, plain_stages, before_downsampling=CONVS[:4], middle=CONVS[3:]
    )


NETWORKS: dict[str, Network] = {
    **{name: resnet(name) for name in RESNETS},
    "resnet20": Network(
        make_resnet20,
        LAYERS[:3],
        resnet_stages,
        before_downsampling=LAYERS[:2],
        middle=LAYERS[1:3],
        head="fc",
        stride_2_only=("csham",),
    ),
    **{name: vgg(name) for name in VGGS},
    "mobilenet_v2": Network(
        make_mobilenet_v2,
        numbered("stage", 7),
        partial(mobilenet_stages, [n for _, _, n, _ in mobilenet_v2.STAGES]),
        before_downsampling=("stage1", "stage2", "stage3", "stage5"),
        middle=("stage3", "stage4", "stage5"),
        unexpanded=("stage1",),
        stride_2_only=("csham",),
    ),
    "mobilenext": Network(
        make_mobilenext,
        numbered("stage", 8),
        partial(mobilenet_stages, [n for _, _, n, _ in SANDGLASS_STAGES]),
        before_downsampling=("stage2", "stage3", "stage5"),
        middle=("stage3", "stage4", "stage5"),
    ),
    "densenet121": Network(
        make_densenet, DENSE, densenet_stages, before_downsampling=DENSE[:3], middle=DENSE[1:3]
    ),
    "lenet": Network(make_lenet, CONVS[:2], plain_stages, before_downsampling=CONVS[:1], middle=CONVS[1:2]),
}


def efficientnet_lite_network(name: str) -> Network:
    """Without a classifier: its published weights have their batch norms folded and are not meant to be trained alone."""
    count = efficientnet_lite.total_blocks(name)
    sizes = efficientnet_lite.block_counts(efficientnet_lite.VARIANTS[name][1])
    return Network(
        lambda classes, stem: efficientnet_lite.lite_backbone(name, count),
        numbered("stage", 7),
        partial(lite_stages, sizes),
        before_downsampling=("stage1", "stage2", "stage3", "stage5"),
        middle=("stage3", "stage4", "stage5"),
        unexpanded=("stage1",),
        stride_2_only=("csham",),
    )


LITE_NETWORKS = {name: efficientnet_lite_network(name) for name in efficientnet_lite.VARIANTS}


def build_network(
    name: str, classes: int = 1000, *, stem: str = "imagenet", attention: str = "", at: Sequence[str] = ()
) -> nn.Module:
    """Build a network of `NETWORKS` with random weights: normalised images (B, 3, H, W) -> logits (B, classes).

    attention: a block as `attention.parse` reads it ("cbam", "bam:combine=add"), or "" for none; initialised as in its
    paper. at: names of `stages(name)`; empty: the default insertion points (see the module's docstring). stem: "cifar"
    for small images. Raises UserError for unknown names; the message lists the valid ones.
    """
    network = NETWORKS[choice(name, NETWORKS, "backbone")]
    block, options = parse_block(network, name, attention, at)
    model = network.make(classes, choice(stem, STEMS, "stem"))
    insert_blocks(network, model, block, options, at)
    return model


def feature_maps(
    name: str,
    attention: str = "",
    at: Sequence[str] = (),
    stages: Sequence[str] | Mapping[str, str] = (),
    *,
    stem: str = "imagenet",
    weights: str | Path | Mapping[str, Tensor] | None = None,
    **options: object,
) -> FeatureMaps:
    """Build a network that returns the maps of its stages: normalised images (B, 3, H, W) -> OrderedDict of maps.

        backbone = feature_maps("mobilenet_v2", "coord", stages=("stage5", "stage7"), reduction=16)
        pyramid = FeaturePyramidNetwork(list(backbone.channels.values()), 256)

    name: a network of `NETWORKS`, an EfficientNet-Lite, or a convolutional classifier of torchvision; `feature_stages`
    returns its stages. attention, at, stem: as for `build_network`; options: of the block, as for `attention.build`.
    stages: those whose maps are returned (empty: all), or a dict stage -> name of its map, e.g. {"stage7": "out"}; the
    layers above the last of them are left out. weights: see `FeatureMaps.load`, which can also be called later.

    Raises UserError for unknown names, which lists the valid ones, for weights that do not fit, and if all blocks are
    above the last returned stage.
    """
    network = find_network(name)
    if stem != "imagenet" and name not in NETWORKS:
        raise UserError(f"{name} has no stem {choice(stem, STEMS, 'stem')!r}; leave the stem out")
    block, options = parse_block(network, name, attention, at, options)
    names = (
        dict(stages) if isinstance(stages, Mapping) else {stage: stage for stage in stages or network.stages}
    )
    for stage in names:
        choice(stage, network.stages, f"stage of {name}")
    if len(set(names.values())) < len(names):
        raise UserError(f"several maps have one name: {' '.join(names.values())}; give each its own")
    shapes, parameters = plain_network(name, choice(stem, STEMS, "stem"))
    model = network.make(1000, stem)
    last = {
        stage: last_module(model, found)
        for stage, found in insert_blocks(network, model, block, options, at).items()
    }
    blocks = [*attention_blocks(model)]
    title = f"{name} with {attention}" if attention else name
    maps = FeatureMaps(
        model,
        {map_name: map_end(model, last[stage], blocks) for stage, map_name in names.items()},
        {map_name: shapes[last[stage]] for stage, map_name in names.items()},
        blocks,
        parameters,
        title,
    )
    if blocks and not maps.blocks:
        raise UserError(
            f"{attention} is at {blocks[0]} of {name}, above the last returned stage, so nothing reads its output; "
            f"return a higher stage, or name lower stages for the block"
        )
    if weights is not None:
        maps.load(weights)
    return maps


def find_network(name: str) -> Network:
    """Return the network of `feature_maps`. Raises UserError for an unknown name."""
    theirs = [known for known in backbone_names() if not known.startswith(TRANSFORMERS)]
    choice(name, {*theirs, *NETWORKS, *LITE_NETWORKS}, "network")
    if found := NETWORKS.get(name) or LITE_NETWORKS.get(name):
        return found
    shapes, parameters = plain_network(name, "imagenet")
    ends = stride_stages(shapes, parameters)
    return Network(
        lambda classes, stem: torchvision_network(name),
        tuple(ends),
        partial(points_after, ends, shapes),
        before_downsampling=tuple(ends)[:-1],
        middle=tuple(stage for stage in ends if stage in ("stride8", "stride16")),
    )


@cache
def plain_network(name: str, stem: str) -> tuple[dict[str, Shape], frozenset[str]]:
    """Shapes of the maps of a network without blocks by path, see `measure`, and the names of its parameters."""
    found = NETWORKS.get(name) or LITE_NETWORKS.get(name)
    model = skeleton(partial(found.make, 1000, stem) if found else partial(torchvision_network, name))
    return measure(model), frozenset(model.state_dict())


def feature_stages(name: str) -> tuple[str, ...]:
    """Return the stages that `feature_maps` accepts, in the order of computation; see `find_network`."""
    return find_network(name).stages


def stages(name: str) -> tuple[str, ...]:
    """Return the stage names of a network, which `at` accepts, in the order of computation."""
    return NETWORKS[choice(name, NETWORKS, "backbone")].stages


def attention_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the attention blocks of a network by module path, without the blocks nested in them."""
    found: dict[str, nn.Module] = {}
    block_types = tuple(BLOCKS.values())
    for path, module in model.named_modules():
        if isinstance(module, block_types) and not any(path.startswith(f"{other}.") for other in found):
            found[path] = module
    return found


def load_pretrained(model: nn.Module, weights: dict[str, Tensor], name: str) -> list[str]:
    """Load a state dict with torchvision's names into a network of `build_network`. Returns the names not loaded.

    Names may be left only for blocks that `weights` lack and for a head with another number of classes. Raises UserError
    if any other tensor is missing or has another shape; nothing is loaded then.
    """
    head = f"{NETWORKS[choice(name, NETWORKS, 'backbone')].head}."
    inserted = tuple(f"{path}." for path in attention_blocks(model))
    expected = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    fitting = {k for k, v in expected.items() if k in weights and weights[k].shape == v.shape}
    left = [key for key in expected if key not in fitting]
    wrong = [
        key for key in left if not (key.startswith(head) or (key.startswith(inserted) and key not in weights))
    ]
    if wrong:
        key = wrong[0]
        found = f"has shape {tuple(weights[key].shape)}" if key in weights else "is missing"
        raise UserError(
            f"these weights do not fit {name}: {len(wrong)} of {len(expected)} tensors missing or of another shape, "
            f"first {key!r}, which {found} and should be {tuple(expected[key].shape)}; give a state dict of this "
            f"network with the same stem"
        )
    model.load_state_dict({key: weights[key] for key in fitting}, strict=False)
    return left


def gradcam_layer(model: Any, name: str) -> Any:
    """Return the module whose output (B, C, h, w) is the last feature map, after any block and before any max-pooling."""
    network = NETWORKS[choice(name, NETWORKS, "backbone")]
    if network.head == "fc":
        return model.get_submodule(network.stages[-1])
    *_, second_last, last = model.features.children()
    return second_last if isinstance(last, nn.MaxPool2d) else model.features

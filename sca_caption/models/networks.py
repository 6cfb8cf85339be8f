"""Classification networks with attention blocks at the insertion points of the blocks' papers.

The networks are torchvision's, except MobileNeXt (`mobilenext`) and LeNet (`lenet`), and keep torchvision's parameter
names. Blocks only add names, so ImageNet weights load into networks with blocks. Default insertion points of each block:

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

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from sca_caption.attention import BLOCKS, build, parse
from sca_caption.models import mobilenet_v2
from sca_caption.models.insertion import Stage, densenet_stages, mobilenet_stages, plain_stages, resnet_stages
from sca_caption.models.lenet import LeNet
from sca_caption.models.mobilenext import SANDGLASS_STAGES, MobileNeXt
from sca_caption.runtime.errors import UserError, choice
from sca_caption.runtime.torchvision_compat import torchvision

STEMS = ("imagenet", "cifar")
IN_UNITS = ("se", "cbam", "ccwh", "coord", "csham", "sk")  # blocks inserted inside residual units
tv_resnet: Any = torchvision.models.resnet


class BasicBlock(tv_resnet.BasicBlock):
    """Torchvision's unit with an insertion point, `attention`, before the sum."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.attention = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(tv_resnet.Bottleneck):
    """Torchvision's unit with an insertion point, `attention`, before the sum."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.attention = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def make_resnet(name: str, classes: int, stem: str) -> nn.Module:
    """Stem cifar: a 3x3 convolution of stride 1, no max-pooling."""
    counts = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
    options = {"groups": 32, "width_per_group": 4} if name == "resnext50_32x4d" else {}
    unit = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
    model = tv_resnet.ResNet(unit, list(counts.get(name, (3, 4, 6, 3))), num_classes=classes, **options)
    if stem == "cifar":
        model.conv1 = init_he(nn.Conv2d(3, 64, 3, padding=1, bias=False))
        model.maxpool = nn.Identity()
    return model


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


@dataclass(frozen=True)
class Network:
    """Constructor and stages of a network.

    make: (classes, stem) -> the network without blocks. find: its stages with their insertion points, in order.
    """

    make: Callable[[int, str], nn.Module]
    stages: tuple[str, ...]
    find: Callable[[nn.Module], list[Stage]]
    before_downsampling: tuple[str, ...]  # stages that downsampling follows
    middle: tuple[str, ...]  # stages at 1/8 and 1/16 of the image size
    head: str = "classifier"
    unexpanded: tuple[str, ...] = ()  # stages whose units have expansion 1: no blocks inside them by default
    stride_2_only: tuple[str, ...] = ()  # blocks that are inserted only into units of stride 2 by default


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


def build_network(
    name: str, classes: int = 1000, *, stem: str = "imagenet", attention: str = "", at: Sequence[str] = ()
) -> nn.Module:
    """Build a network of `NETWORKS` with random weights: normalised images (B, 3, H, W) -> logits (B, classes).

    attention: a block as `attention.parse` reads it ("cbam", "bam:combine=add"), or "" for none; initialised as in its
    paper. at: names of `stages(name)`; empty: the default insertion points (see the module's docstring). stem: "cifar"
    for small images. Raises UserError for unknown names; the message lists the valid ones.
    """
    network = NETWORKS[choice(name, NETWORKS, "backbone")]
    for each in at:
        choice(each, network.stages, f"stage of {name}")
    if not attention:
        if at:
            raise UserError(
                f"stages {' '.join(at)} are given without an attention block; name a block, or leave the stages out"
            )
        return network.make(classes, choice(stem, STEMS, "stem"))
    block, options = parse(attention)
    if block == "sk" and (given := [option for option in ("out_channels", "stride") if option in options]):
        raise UserError(f"{attention!r}: {given[0]} is determined by the network; leave it out")
    model = network.make(classes, choice(stem, STEMS, "stem"))
    chosen = at or default_stages(network, block)
    # Blocks are inserted after the constructor has run, which would overwrite their initialisation.
    for stage_name, stage in zip(network.stages, network.find(model), strict=True):
        if stage_name in chosen:
            insert(stage, block, options, network.stride_2_only if not at else ())
    return model


def default_stages(network: Network, block: str) -> tuple[str, ...]:
    """Return the stages that a block is inserted into, or after, by default."""
    if block == "bam":
        return network.before_downsampling
    if block == "nonlocal":
        return network.middle
    if block in IN_UNITS:
        return tuple(stage for stage in network.stages if stage not in network.unexpanded)
    return network.stages[-1:]


def insert(stage: Stage, block: str, options: dict[str, object], stride_2_only: Sequence[str]) -> None:
    """Insert blocks into, or after, one stage. stride_2_only: blocks that skip units of stride 1."""
    units = [unit for unit in stage.units if unit.inside]
    if units and block == "sk":
        for unit in units:
            unit.replace_3x3(options)
    elif units and block in IN_UNITS:
        for unit in units:
            if unit.inside and (unit.downsamples or block not in stride_2_only):
                unit.inside.insert(build(block, unit.inside.channels, **options))
    else:
        points = [stage.after]
        if stage.units and block == "nonlocal":
            points = [unit.after for unit in stage.units[1::2] or stage.units]
        for point in points:
            defaults = {"groups": math.gcd(32, point.channels)} if block == "sk" else {}
            point.insert(build(block, point.channels, **defaults | options))


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


def gradcam_layer(model: nn.Module, name: str) -> nn.Module:
    """Return the module whose output (B, C, h, w) is the last feature map, after any block and before any max-pooling."""
    if NETWORKS[choice(name, NETWORKS, "backbone")].head == "fc":
        return model.get_submodule("layer4")
    features = model.get_submodule("features")
    *_, second_last, last = features.children()
    return second_last if isinstance(last, nn.MaxPool2d) else features

"""Classification networks, with attention blocks where the blocks' authors put them.

The networks are torchvision's (MobileNeXt and LeNet: `small_networks`) and keep torchvision's parameter names; blocks
only add names, so ImageNet weights load underneath. Where a block goes when `at` names no stages:

    se cbam ccwh coord    in every residual unit: ResNet after the last batch norm, before the sum; MobileNetV2 after the
                          depthwise convolution's ReLU6, where the expansion is not 1; MobileNeXt after the first
                          depthwise convolution's. (The place in MobileNets is coordinate attention's, in whose paper
                          the blocks were compared there.) Without residual units: behind every stage
    csham                 the same, in ResNet and MobileNetV2 in units of stride 2 only; VGG before pooling
    sk                    instead of a 3x3: of a bottleneck's, of the first in ResNet-18/34's units, of the depthwise
                          one in MobileNets (our choice; groups = channels). Without residual units: behind every stage
    bam                   behind stages after which the map is halved
    nonlocal              behind every second unit of the stages at 1/8 and 1/16 of the image (ResNet's res3 and res4);
                          without residual units behind these stages
    all others            behind the last stage

With `at`, the same in all units of, or behind, the stages it names. Behind a stage is before its pooling or transition.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from sca_caption.attention import BLOCKS, build, parse
from sca_caption.models import mobilenet_v2
from sca_caption.models.insertion import Stage, densenet_stages, mobilenet_stages, plain_stages, resnet_stages
from sca_caption.models.lenet import LeNet
from sca_caption.models.mobilenext import SANDGLASS_STAGES, MobileNeXt
from sca_caption.runtime.errors import UserError, choice
from sca_caption.runtime.torchvision_compat import torchvision

STEMS = ("imagenet", "cifar")
IN_UNITS = ("se", "cbam", "ccwh", "coord", "csham", "sk")
tv_resnet = torchvision.models.resnet


class BasicBlock(tv_resnet.BasicBlock):
    """Torchvision's, with a slot for attention before the sum."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.attention = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.attention(self.bn2(self.conv2(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(tv_resnet.Bottleneck):
    """Torchvision's, with a slot for attention before the sum."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.attention = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def make_resnet(name: str, classes: int, stem: str) -> nn.Module:
    """cifar: a 3x3 convolution without stride for the stem, no max-pooling."""
    counts = {"resnet18": (2, 2, 2, 2), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
    options = {"groups": 32, "width_per_group": 4} if name == "resnext50_32x4d" else {}
    unit = BasicBlock if name in ("resnet18", "resnet34") else Bottleneck
    model = tv_resnet.ResNet(unit, list(counts.get(name, (3, 4, 6, 3))), num_classes=classes, **options)
    if stem == "cifar":
        model.conv1 = he(nn.Conv2d(3, 64, 3, padding=1, bias=False))
        model.maxpool = nn.Identity()
    return model


def make_vgg(name: str, classes: int, stem: str) -> nn.Module:
    """cifar: average pooling to one position and one linear layer."""
    model = torchvision.models.get_model(name, weights=None, num_classes=classes)
    if stem == "cifar":
        model.avgpool = nn.AdaptiveAvgPool2d(1)
        model.classifier = nn.Sequential(nn.Linear(512, classes))
    return model


def make_mobilenet_v2(classes: int, stem: str) -> nn.Module:
    """cifar: the stem and stage2 keep their stride at 1, so that 32 x 32 pixels end as 4 x 4 positions."""
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
    """cifar: a 3x3 convolution without stride for the stem, no max-pooling."""
    model = torchvision.models.densenet121(weights=None, num_classes=classes)
    if stem == "cifar":
        model.features.conv0 = he(nn.Conv2d(3, 64, 3, padding=1, bias=False))
        model.features.pool0 = nn.Identity()
    return model


def make_lenet(classes: int, stem: str) -> nn.Module:
    """Made for 32 x 32 pixels: one stem."""
    return LeNet(classes)


def he(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


@dataclass(frozen=True)
class Network:
    make: Callable[[int, str], nn.Module]  # (classes, stem) -> without blocks
    stages: tuple[str, ...]
    find: Callable[[nn.Module], list[Stage]]
    halved: tuple[str, ...]  # stages after which the map is halved
    middle: tuple[str, ...]  # stages at 1/8 and 1/16 of the image
    head: str = "classifier"
    narrow: tuple[str, ...] = ()  # stages whose units do not expand: without blocks in them by default
    strided: tuple[str, ...] = ()  # blocks that go only in units of stride 2 by default


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
        halved=LAYERS[:3],
        middle=LAYERS[1:3],
        head="fc",
        strided=("csham",),
    )


def vgg(name: str) -> Network:
    return Network(partial(make_vgg, name), CONVS, plain_stages, halved=CONVS[:4], middle=CONVS[3:])


NETWORKS: dict[str, Network] = {
    **{name: resnet(name) for name in RESNETS},
    **{name: vgg(name) for name in VGGS},
    "mobilenet_v2": Network(
        make_mobilenet_v2,
        numbered("stage", 7),
        partial(mobilenet_stages, [n for _, _, n, _ in mobilenet_v2.STAGES]),
        halved=("stage1", "stage2", "stage3", "stage5"),
        middle=("stage3", "stage4", "stage5"),
        narrow=("stage1",),
        strided=("csham",),
    ),
    "mobilenext": Network(
        make_mobilenext,
        numbered("stage", 8),
        partial(mobilenet_stages, [n for _, _, n, _ in SANDGLASS_STAGES]),
        halved=("stage2", "stage3", "stage5"),
        middle=("stage3", "stage4", "stage5"),
    ),
    "densenet121": Network(make_densenet, DENSE, densenet_stages, halved=DENSE[:3], middle=DENSE[1:3]),
    "lenet": Network(make_lenet, CONVS[:2], plain_stages, halved=CONVS[:1], middle=CONVS[1:2]),
}


def build_network(
    name: str, classes: int = 1000, *, stem: str = "imagenet", attention: str = "", at: Sequence[str] = ()
) -> nn.Module:
    """A network of `NETWORKS`: normalised images (B, 3, H, W) -> logits (B, classes), weights at random.

    attention: a block as `attention.parse` reads it ("cbam", "bam:combine=add"), or "" for none; it starts as its paper
    says. at: names of `stages(name)`; none: the authors' place (see the module's docstring). stem: "cifar" for small
    images. Raises UserError for an unknown name of anything, which lists the valid ones.
    """
    network = NETWORKS[choice(name, NETWORKS, "backbone")]
    for stage in at:
        choice(stage, network.stages, f"stage of {name}")
    if not attention:
        if at:
            raise UserError(
                f"stages {' '.join(at)} are named and no attention block to put there; name a block"
            )
        return network.make(classes, choice(stem, STEMS, "stem"))
    block, options = parse(attention)
    if block == "sk" and (given := [option for option in ("out_channels", "stride") if option in options]):
        raise UserError(f"{attention!r}: {given[0]} follows from the network; leave it out")
    model = network.make(classes, choice(stem, STEMS, "stem"))
    chosen = at or default_stages(network, block)
    # Blocks are put in when the network has its weights: its constructor would initialise them over.
    for stage_name, stage in zip(network.stages, network.find(model), strict=True):
        if stage_name in chosen:
            insert(stage, block, options, network.strided if not at else ())
    return model


def default_stages(network: Network, block: str) -> tuple[str, ...]:
    if block == "bam":
        return network.halved
    if block == "nonlocal":
        return network.middle
    if block in IN_UNITS:
        return tuple(stage for stage in network.stages if stage not in network.narrow)
    return network.stages[-1:]


def insert(stage: Stage, block: str, options: dict[str, object], strided: Sequence[str]) -> None:
    """Put blocks into one stage; those of `strided` only into units of stride 2."""
    units = [unit for unit in stage.units if unit.inside]
    if units and block == "sk":
        for unit in units:
            unit.replace_3x3(options)
    elif units and block in IN_UNITS:
        for unit in units:
            if unit.strides or block not in strided:
                unit.inside.put(build(block, unit.inside.channels, **options))
    else:
        behind = [stage.behind]
        if stage.units and block == "nonlocal":
            behind = [unit.behind for unit in stage.units[1::2] or stage.units]
        for place in behind:
            given = {"groups": math.gcd(32, place.channels)} if block == "sk" else {}
            place.put(build(block, place.channels, **given | options))


def stages(name: str) -> tuple[str, ...]:
    """The names that `at` takes for a network, in the order of computation."""
    return NETWORKS[choice(name, NETWORKS, "backbone")].stages


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The attention blocks in a network by module path; what a block is made of is not listed."""
    found: dict[str, nn.Module] = {}
    kinds = tuple(BLOCKS.values())
    for path, module in model.named_modules():
        if isinstance(module, kinds) and not any(path.startswith(f"{other}.") for other in found):
            found[path] = module
    return found


def load_pretrained(model: nn.Module, weights: dict[str, Tensor], name: str) -> list[str]:
    """Load a state dict of torchvision's layout under a network of `build_network`; the names left as they were.

    These are parameters and statistics of blocks that `weights` lack, and of a head for other classes. Raises UserError
    when anything else is missing or has another shape; nothing is loaded then.
    """
    head = f"{NETWORKS[choice(name, NETWORKS, 'backbone')].head}."
    inserted = tuple(f"{path}." for path in blocks(model))
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
    """The module whose output (B, C, h, w) is the last feature map, blocks included (VGG, LeNet: before pooling)."""
    if NETWORKS[choice(name, NETWORKS, "backbone")].head == "fc":
        return model.layer4
    *_, before, last = model.features.children()
    return before if isinstance(last, nn.MaxPool2d) else model.features

"""Where attention blocks can go in a network: the places in and behind its residual units, and behind its stages."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from sca_caption.attention import build
from sca_caption.models.mobilenext import Sandglass


@dataclass
class Place:
    """Where a block can go: into `parent` as its child `name`, behind its child `after` if that is given."""

    parent: nn.Module
    name: str
    channels: int
    after: str = ""

    def put(self, block: nn.Module) -> None:
        later = list(dict(self.parent.named_children()).items())
        setattr(self.parent, self.name, block)
        if self.after:  # a Sequential runs its children in order: those behind `after` move behind the block
            position = [name for name, _ in later].index(self.after)
            for name, module in later[position + 1 :]:
                delattr(self.parent, name)
                self.parent.add_module(name, module)


@dataclass
class Unit:
    """A residual unit: the place inside it, if it has one, the place behind it, and its 3x3 that SK replaces."""

    inside: Place | None
    behind: Place
    parent: nn.Module  # of the 3x3 `conv` and its `norm`
    conv: str
    norm: str
    strides: bool = False

    def replace_3x3(self, options: dict[str, object]) -> None:
        """Put a selective kernel in the 3x3's place, and nothing in its batch norm's: it has its own."""
        conv = getattr(self.parent, self.conv)
        groups = conv.groups if conv.groups == conv.in_channels else 32
        given = {"out_channels": conv.out_channels, "stride": conv.stride[0], "groups": groups}
        setattr(self.parent, self.conv, build("sk", conv.in_channels, **given | options))
        setattr(self.parent, self.norm, nn.Identity())


@dataclass
class Stage:
    """The place behind a stage, and its units."""

    behind: Place
    units: list[Unit] = field(default_factory=list)  # none in networks that are not residual


def resnet_stages(model: nn.Module) -> list[Stage]:
    stages = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        units = []
        for child, unit in layer.named_children():
            deep = hasattr(unit, "bn3")
            channels = (unit.bn3 if deep else unit.bn2).num_features
            units.append(
                Unit(
                    Place(unit, "attention", channels),
                    Place(layer, f"attention{child}", channels, child),
                    unit,
                    *(("conv2", "bn2") if deep else ("conv1", "bn1")),
                    strides=unit.stride == 2,
                )
            )
        stages.append(Stage(Place(layer, "attention", channels, child), units))
    return stages


def mobilenet_stages(sizes: Sequence[int], model: nn.Module) -> list[Stage]:
    """`sizes`: units of each stage. MobileNetV2 and MobileNeXt keep all of their units in one sequence."""
    stages, child = [], 0
    for stage, size in enumerate(sizes, 1):
        units = []
        for _ in range(size):
            child += 1
            unit = model.features[child]
            *_, channels = (m.num_features for m in unit.modules() if isinstance(m, nn.BatchNorm2d))
            behind = Place(model.features, f"attention{child}", channels, str(child))
            if isinstance(unit, Sandglass):
                first = unit.conv[0]
                inside = Place(unit.conv, "attention", first.in_channels, "2")
                # Units that only change the width have no first depthwise convolution.
                units.append(Unit(inside if first.groups > 1 else None, behind, unit.conv, "0", "1"))
            else:
                layers = unit.conv[-3]
                inside = Place(layers, "attention", layers[0].out_channels)
                units.append(Unit(inside, behind, layers, "0", "1", strides=unit.stride == 2))
        stages.append(Stage(Place(model.features, f"stage{stage}_attention", channels, str(child)), units))
    return stages


def plain_stages(model: nn.Module) -> list[Stage]:
    """Stages that end where a map is pooled: VGG, LeNet."""
    stages, before, channels = [], "", 0
    for child, module in model.features.named_children():
        if isinstance(module, nn.MaxPool2d):
            name = f"conv{len(stages) + 1}_attention"
            stages.append(Stage(Place(model.features, name, channels, before)))
        channels = getattr(module, "out_channels", channels)
        before = child
    return stages


def densenet_stages(model: nn.Module) -> list[Stage]:
    names = [name for name, _ in model.features.named_children() if name.startswith("denseblock")]
    following = [model.features.transition1, model.features.transition2, model.features.transition3]
    channels = [transition.norm.num_features for transition in following] + [
        model.features.norm5.num_features
    ]
    return [
        Stage(Place(model.features, f"{name}_attention", width, name))
        for name, width in zip(names, channels, strict=True)
    ]

"""Insertion points of attention blocks in a network: inside and after residual units, and after stages.

The networks are torchvision's or have its names; `Any` stands for their classes, whose attributes are not annotated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sca_caption.attention import build
from sca_caption.models.mobilenext import Sandglass


@dataclass
class InsertionPoint:
    """A block of `channels` channels becomes the child `name` of `parent`, after its child `predecessor` if given."""

    parent: nn.Module
    name: str
    channels: int
    predecessor: str = ""

    def insert(self, block: nn.Module) -> None:
        children = list(dict(self.parent.named_children()).items())
        setattr(self.parent, self.name, block)
        if self.predecessor:  # a Sequential runs its children in order: move the later ones after the block
            position = [name for name, _ in children].index(self.predecessor)
            for name, module in children[position + 1 :]:
                delattr(self.parent, name)
                self.parent.add_module(name, module)


@dataclass
class ResidualUnit:
    """A residual unit: its insertion points, and its 3x3 convolution, which SK replaces.

    inside: the insertion point in the residual branch, or None if the unit has none.
    """

    inside: InsertionPoint | None
    after: InsertionPoint
    parent: nn.Module  # module that holds the 3x3 convolution `conv` and its batch norm `norm`
    conv: str
    norm: str
    downsamples: bool = False  # stride 2

    def replace_3x3(self, options: dict[str, object]) -> None:
        """Replace the 3x3 convolution by a selective kernel, and its batch norm by nothing: SK has its own."""
        conv = getattr(self.parent, self.conv)
        groups = conv.groups if conv.groups == conv.in_channels else 32
        defaults = {"out_channels": conv.out_channels, "stride": conv.stride[0], "groups": groups}
        setattr(self.parent, self.conv, build("sk", conv.in_channels, **defaults | options))
        setattr(self.parent, self.norm, nn.Identity())


@dataclass
class Stage:
    """The insertion point after a stage, and the stage's residual units."""

    after: InsertionPoint
    units: list[ResidualUnit] = field(default_factory=list)  # empty in networks without residual units


def resnet_stages(model: Any) -> list[Stage]:
    """ResNet: blocks go after the last batch norm of a unit, before the sum."""
    stages = []
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        units = []
        for child, unit in layer.named_children():
            deep = hasattr(unit, "bn3")
            channels = (unit.bn3 if deep else unit.bn2).num_features
            units.append(
                ResidualUnit(
                    InsertionPoint(unit, "attention", channels),
                    InsertionPoint(layer, f"attention{child}", channels, child),
                    unit,
                    *(("conv2", "bn2") if deep else ("conv1", "bn1")),
                    downsamples=unit.stride == 2,
                )
            )
        stages.append(Stage(InsertionPoint(layer, "attention", channels, child), units))
    return stages


def mobilenet_stages(sizes: Sequence[int], model: Any) -> list[Stage]:
    """MobileNetV2 and MobileNeXt have all units in one Sequential. sizes: number of units per stage."""
    stages, child = [], 0
    for stage, size in enumerate(sizes, 1):
        units = []
        for _ in range(size):
            child += 1
            unit = model.features[child]
            *_, channels = (m.num_features for m in unit.modules() if isinstance(m, nn.BatchNorm2d))
            after = InsertionPoint(model.features, f"attention{child}", channels, str(child))
            if isinstance(unit, Sandglass):
                first: Any = unit.conv[0]
                inside = InsertionPoint(unit.conv, "attention", first.in_channels, "2")
                # Units that only change the number of channels have no first depthwise convolution.
                units.append(ResidualUnit(inside if first.groups > 1 else None, after, unit.conv, "0", "1"))
            else:
                layers = unit.conv[-3]
                inside = InsertionPoint(layers, "attention", layers[0].out_channels)
                units.append(ResidualUnit(inside, after, layers, "0", "1", downsamples=unit.stride == 2))
        stages.append(
            Stage(InsertionPoint(model.features, f"stage{stage}_attention", channels, str(child)), units)
        )
    return stages


def plain_stages(model: Any) -> list[Stage]:
    """VGG and LeNet: a stage ends before each max-pooling."""
    stages: list[Stage] = []
    previous, channels = "", 0
    for child, module in model.features.named_children():
        if isinstance(module, nn.MaxPool2d):
            name = f"conv{len(stages) + 1}_attention"
            stages.append(Stage(InsertionPoint(model.features, name, channels, previous)))
        channels = getattr(module, "out_channels", channels)
        previous = child
    return stages


def densenet_stages(model: Any) -> list[Stage]:
    """DenseNet: blocks go after a dense block, before its transition."""
    names = [name for name, _ in model.features.named_children() if name.startswith("denseblock")]
    transitions = [model.features.transition1, model.features.transition2, model.features.transition3]
    channels = [transition.norm.num_features for transition in transitions] + [
        model.features.norm5.num_features
    ]
    return [
        Stage(InsertionPoint(model.features, f"{name}_attention", width, name))
        for name, width in zip(names, channels, strict=True)
    ]

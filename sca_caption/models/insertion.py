"""Attention blocks in networks: their insertion points inside and after residual units and after stages, and inserting.

The default insertion points of each block are described in `networks`. `Any` stands for the classes of networks, whose
attributes are not annotated.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sca_caption.attention import build, parse
from sca_caption.models.mobilenext import Sandglass
from sca_caption.runtime.errors import UserError, choice

IN_UNITS = ("se", "cbam", "ccwh", "coord", "csham", "sk")  # blocks inserted inside residual units


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
    norm: str  # empty if the batch norm is folded into the convolution
    downsamples: bool = False  # stride 2

    def replace_3x3(self, options: dict[str, object]) -> None:
        """Replace the 3x3 convolution by a selective kernel, and its batch norm by nothing: SK has its own."""
        conv = getattr(self.parent, self.conv)
        width = math.gcd(32, conv.in_channels, conv.out_channels)
        groups = conv.groups if conv.groups == conv.in_channels else width
        defaults = {"out_channels": conv.out_channels, "stride": conv.stride[0], "groups": groups}
        setattr(self.parent, self.conv, build("sk", conv.in_channels, **defaults | options))
        if self.norm:
            setattr(self.parent, self.norm, nn.Identity())


@dataclass
class Stage:
    """The insertion point after a stage, and the stage's residual units."""

    after: InsertionPoint
    units: list[ResidualUnit] = field(default_factory=list)  # empty in networks without residual units


def resnet_stages(model: Any) -> list[Stage]:
    """ResNet: blocks go after the last batch norm of a unit, before the sum."""
    stages = []
    for layer in (module for name, module in model.named_children() if name.startswith("layer")):
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


def lite_stages(sizes: Sequence[int], model: Any) -> list[Stage]:
    """EfficientNet-Lite: as in MobileNetV2, after the depthwise convolution. sizes: number of units per stage."""
    stages, child = [], 0
    for stage, size in enumerate(sizes, 1):
        units = []
        for _ in range(size):
            child += 1
            unit = model.features[child]
            depthwise = unit[-2]
            name = str(len(unit) - 2)
            inside = InsertionPoint(unit, "attention", depthwise.out_channels, name)
            after = InsertionPoint(model.features, f"attention{child}", unit[-1].out_channels, str(child))
            units.append(ResidualUnit(inside, after, unit, name, "", downsamples=depthwise.stride == (2, 2)))
        point = InsertionPoint(model.features, f"stage{stage}_attention", after.channels, str(child))
        stages.append(Stage(point, units))
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


def parse_block(
    network: Network,
    name: str,
    attention: str,
    at: Sequence[str],
    options: Mapping[str, object] | None = None,
) -> tuple[str, dict[str, object]]:
    """Return the name and the options of a block, "" for none. options: further ones. Raises UserError for wrong ones."""
    for stage in at:
        choice(stage, network.stages, f"stage of {name}")
    if not attention:
        for what, given in (("stages", at), ("options", options)):
            if given:
                raise UserError(
                    f"{what} {' '.join(given)} are given without an attention block; name a block, or leave them out"
                )
        return "", {}
    block, parsed = parse(attention)
    parsed |= options or {}
    if block == "sk" and (given := [option for option in ("out_channels", "stride") if option in parsed]):
        raise UserError(f"{attention!r}: {given[0]} is determined by the network; leave it out")
    return block, parsed


def insert_blocks(
    network: Network, model: nn.Module, block: str, options: dict[str, object], at: Sequence[str]
) -> dict[str, Stage]:
    """Insert blocks into `network.make(...)`, whose constructor would overwrite their initialisation.

    Returns the stages by name.
    """
    found = dict(zip(network.stages, network.find(model), strict=True))
    chosen = (at or default_stages(network, block)) if block else ()
    for name, stage in found.items():
        if name in chosen:
            insert(stage, block, options, network.stride_2_only if not at else ())
    return found


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

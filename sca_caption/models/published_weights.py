"""Published weights of networks with attention: their authors' names to the names of `networks.build_network`.

    layout = layout_of(weights)                                       # weights: what torch.load reads from the file
    model = build_network("resnet50", attention=layout.attention)
    load_published(model, weights, "resnet50")

| weights | networks | blocks |
| --- | --- | --- |
| Jongchan/attention-module | ResNet-18/34/50/101 | CBAM, BAM |
| houqb/CoordAttention, `mbv2_ca.pth` | MobileNetV2 | coordinate attention |
| moskomule/senet.pytorch | ResNet | SE without biases |
| Cadene/pretrained-models.pytorch, `se_resnet*`, `se_resnext50_32x4d` | ResNet-50/101/152, ResNeXt-50 | SE |

Names stay as they are where the authors' are torchvision's. The `module.` of DataParallel and the `{"state_dict": ...}`
around a training checkpoint are taken off.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from sca_caption.runtime.errors import UserError


class Layout(NamedTuple):
    """How one repository names a network with its blocks. `place` and the keys of `trunk` are regular expressions."""

    source: str
    networks: tuple[str, ...]
    attention: str  # the specification of the block, for build_network
    place: str  # where the authors keep a block
    our_place: str
    names: dict[str, str]  # of layers within a block
    trunk: dict[str, str]  # of layers outside the blocks; the first that fits
    pointwise: bool = False  # linear layers are kept as 1x1 convolutions
    caffe: bool = False  # see `follow_caffe`


RESIDUAL_BLOCK, IN_RESIDUAL_BLOCK = r"(layer\d\.\d+)", r"\1.attention"
LAYOUTS = (
    Layout(
        source="Jongchan/attention-module",
        networks=("resnet18", "resnet34", "resnet50", "resnet101"),
        attention="cbam",
        place=rf"{RESIDUAL_BLOCK}\.cbam",
        our_place=IN_RESIDUAL_BLOCK,
        names={
            "ChannelGate.mlp.1": "mlp.0",
            "ChannelGate.mlp.3": "mlp.2",
            "SpatialGate.spatial.conv": "spatial.conv",
            "SpatialGate.spatial.bn": "spatial.bn",
        },
        trunk={},
    ),
    Layout(
        source="Jongchan/attention-module",
        networks=("resnet18", "resnet34", "resnet50", "resnet101"),
        attention="bam",
        place=r"bam(\d)",
        our_place=r"layer\1.attention",
        names={
            "channel_att.gate_c.gate_c_fc_0": "channel.0",
            "channel_att.gate_c.gate_c_bn_1": "channel.1",
            "channel_att.gate_c.gate_c_fc_final": "channel.3",
            "spatial_att.gate_s.gate_s_conv_reduce0": "spatial.0",
            "spatial_att.gate_s.gate_s_bn_reduce0": "spatial.1",
            "spatial_att.gate_s.gate_s_conv_di_0": "spatial.3",
            "spatial_att.gate_s.gate_s_bn_di_0": "spatial.4",
            "spatial_att.gate_s.gate_s_conv_di_1": "spatial.6",
            "spatial_att.gate_s.gate_s_bn_di_1": "spatial.7",
            "spatial_att.gate_s.gate_s_conv_final": "spatial.9",
        },
        trunk={},
    ),
    Layout(
        source="houqb/CoordAttention",
        networks=("mobilenet_v2",),
        attention="coord",
        place=r"features\.(\d+)\.conv\.6",
        our_place=r"features.\1.conv.1.attention",
        names={"conv1": "reduce", "bn1": "bn", "conv2": "rows", "conv3": "columns"},
        trunk={
            # The first block does not expand: depthwise, then 1x1. The others: 1x1, depthwise, attention, 1x1.
            r"features\.1\.conv\.([01])": r"features.1.conv.0.\1",
            r"features\.1\.conv\.3": r"features.1.conv.1",
            r"features\.1\.conv\.4": r"features.1.conv.2",
            r"features\.(\d+)\.conv\.([01])": r"features.\1.conv.0.\2",
            r"features\.(\d+)\.conv\.3": r"features.\1.conv.1.0",
            r"features\.(\d+)\.conv\.4": r"features.\1.conv.1.1",
            r"features\.(\d+)\.conv\.7": r"features.\1.conv.2",
            r"features\.(\d+)\.conv\.8": r"features.\1.conv.3",
            r"conv\.([01])": r"features.18.\1",
        },
    ),
    Layout(
        source="moskomule/senet.pytorch",
        networks=("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        attention="se:bias=false",
        place=rf"{RESIDUAL_BLOCK}\.se\.fc",
        our_place=IN_RESIDUAL_BLOCK,
        names={"0": "reduce", "2": "expand"},
        trunk={},
    ),
    Layout(
        source="Cadene/pretrained-models.pytorch",
        networks=("resnet50", "resnet101", "resnet152", "resnext50_32x4d"),
        attention="se",
        place=rf"{RESIDUAL_BLOCK}\.se_module",
        our_place=IN_RESIDUAL_BLOCK,
        names={"fc1": "reduce", "fc2": "expand"},
        trunk={r"layer0\.(conv1|bn1)": r"\1", "last_linear": "fc"},
        pointwise=True,
        caffe=True,
    ),
)


def layout_of(weights: Mapping[str, object]) -> Layout:
    """The layout whose blocks the names show. Raises UserError where no layout of `LAYOUTS` fits."""
    names = [*tensors_in(weights)]
    for layout in LAYOUTS:
        if any(re.match(rf"{layout.place}\.", name) for name in names):
            return layout
    known = ", ".join(dict.fromkeys(layout.source for layout in LAYOUTS))
    first = names[0] if names else "nothing"
    raise UserError(f"no attention block of a known layout in these weights ({first}, ...); known: {known}")


def rename(weights: Mapping[str, object], network: str) -> dict[str, Tensor]:
    """Published weights under the names of `build_network(network, attention=layout_of(weights).attention)`.

    Raises UserError where no layout fits, the network is not of that layout, or a block holds an unknown layer.
    """
    layout = layout_of(weights)
    if network not in layout.networks:
        raise UserError(
            f"weights with {layout.attention} of {layout.source} are for {', '.join(layout.networks)}; not {network}"
        )
    renamed = {}
    for name, tensor in tensors_in(weights).items():
        layer, _, parameter = name.rpartition(".")
        if found := re.match(rf"{layout.place}\.", name):
            within = layer[found.end() :]
            if within not in layout.names:
                raise UserError(
                    f"{name}: not a layer that {layout.attention} of {layout.source} is known to have"
                )
            ours = f"{found.expand(layout.our_place)}.{layout.names[within]}"
            if layout.pointwise and parameter == "weight":
                tensor = tensor.flatten(1)
        else:
            ours = outside_blocks(layer, layout.trunk)
        renamed[f"{ours}.{parameter}"] = tensor
    return renamed


def outside_blocks(layer: str, trunk: Mapping[str, str]) -> str:
    for place, ours in trunk.items():
        if found := re.fullmatch(place, layer):
            return found.expand(ours)
    return layer


def load_published(model: nn.Module, weights: Mapping[str, object], network: str) -> None:
    """Load published weights into `model`, built by `build_network(network, attention=layout_of(weights).attention)`.

    Everything must fit, the head too; for another number of classes, give what `rename` returns to
    `networks.load_pretrained`. Cadene's networks were converted from Caffe and stride and pool elsewhere than
    torchvision's: `model` is changed to compute what they do (`follow_caffe`), which no state dict holds, so a network
    built again must be loaded through this function again.

    Raises UserError as `rename`, and where a name is missing, unknown, or of another shape.
    """
    layout, renamed, ours = layout_of(weights), rename(weights, network), model.state_dict()
    hint = f"build the network {network} with attention {layout.attention}"
    for name, tensor in renamed.items():
        if name not in ours:
            raise UserError(f"the network has no {name}, which these weights of {layout.source} have; {hint}")
        if tensor.shape != ours[name].shape:
            shapes = f"{tuple(tensor.shape)} in weights of {layout.source}, {tuple(ours[name].shape)} in the network"
            raise UserError(f"{name} is {shapes}; {hint} and as many classes")
    # Files older than PyTorch 0.4.1 do not count batch norm's batches; nor is the count used.
    for name in ours:
        if name not in renamed and not name.endswith("num_batches_tracked"):
            raise UserError(f"these weights of {layout.source} have no {name}; {hint}")
    model.load_state_dict(renamed, strict=False)
    if layout.caffe:
        follow_caffe(model, stride_first=network.startswith("resnet"))


def tensors_in(weights: Mapping[str, object]) -> dict[str, Tensor]:
    """The state dict in what a published file holds. Raises UserError where it holds something else."""
    state = weights.get("state_dict", weights) if isinstance(weights, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(
            "published weights: expected names and tensors, or a checkpoint with them in 'state_dict'"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def follow_caffe(model: nn.Module, stride_first: bool) -> None:
    """Give a torchvision ResNet the geometry of the networks converted from Caffe.

    The first pool has no padding and keeps an incomplete last window. Where `stride_first` (not in ResNeXt), a
    bottleneck strides in its first 1x1 and not in its 3x3.
    """
    model.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    if stride_first:
        for stage in (model.layer2, model.layer3, model.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)

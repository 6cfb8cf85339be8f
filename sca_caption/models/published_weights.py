"""Published weights of networks with attention blocks, converted to the names of `networks.build_network`.

    layout = layout_of(weights)                                       # weights: the object that torch.load returns
    model = build_network("resnet50", attention=layout.attention)
    load_published(model, weights, "resnet50")

| weights | networks | blocks |
| --- | --- | --- |
| Jongchan/attention-module | ResNet-18/34/50/101 | CBAM, BAM |
| houqb/CoordAttention, `mbv2_ca.pth` | MobileNetV2 | coordinate attention |
| moskomule/senet.pytorch | ResNet | SE without biases |
| Cadene/pretrained-models.pytorch, `se_resnet*`, `se_resnext50_32x4d` | ResNet-50/101/152, ResNeXt-50 | SE |

Names that are torchvision's are not changed. The prefix `module.` of DataParallel and the `{"state_dict": ...}` of
training checkpoints are removed.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from sca_caption.runtime.errors import UserError


class Layout(NamedTuple):
    """Names of a network with attention blocks in one repository, and the names here.

    source: the repository. networks: the networks it has. attention: specification of the block for `build_network`.
    block: regular expression of a block's path. our_block: its path here. layers: names of a block's layers -> names
    here. trunk: regular expressions of layers outside the blocks -> names here; the first match counts.
    pointwise: the block's linear layers are stored as 1x1 convolutions. caffe: see `follow_caffe`.
    """

    source: str
    networks: tuple[str, ...]
    attention: str
    block: str
    our_block: str
    layers: dict[str, str]
    trunk: dict[str, str]
    pointwise: bool = False
    caffe: bool = False


RESIDUAL_BLOCK, IN_RESIDUAL_BLOCK = r"(layer\d\.\d+)", r"\1.attention"
LAYOUTS = (
    Layout(
        source="Jongchan/attention-module",
        networks=("resnet18", "resnet34", "resnet50", "resnet101"),
        attention="cbam",
        block=rf"{RESIDUAL_BLOCK}\.cbam",
        our_block=IN_RESIDUAL_BLOCK,
        layers={
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
        block=r"bam(\d)",
        our_block=r"layer\1.attention",
        layers={
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
        block=r"features\.(\d+)\.conv\.6",
        our_block=r"features.\1.conv.1.attention",
        layers={"conv1": "reduce", "bn1": "bn", "conv2": "rows", "conv3": "columns"},
        trunk={
            # First block: depthwise, 1x1. Others: 1x1, depthwise, attention, 1x1.
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
        block=rf"{RESIDUAL_BLOCK}\.se\.fc",
        our_block=IN_RESIDUAL_BLOCK,
        layers={"0": "reduce", "2": "expand"},
        trunk={},
    ),
    Layout(
        source="Cadene/pretrained-models.pytorch",
        networks=("resnet50", "resnet101", "resnet152", "resnext50_32x4d"),
        attention="se",
        block=rf"{RESIDUAL_BLOCK}\.se_module",
        our_block=IN_RESIDUAL_BLOCK,
        layers={"fc1": "reduce", "fc2": "expand"},
        trunk={r"layer0\.(conv1|bn1)": r"\1", "last_linear": "fc"},
        pointwise=True,
        caffe=True,
    ),
)


def layout_of(weights: Mapping[str, object]) -> Layout:
    """Return the layout of `LAYOUTS` whose blocks occur in the names. Raises UserError if there is none."""
    names = [*tensors_in(weights)]
    for layout in LAYOUTS:
        if any(re.match(rf"{layout.block}\.", name) for name in names):
            return layout
    known = ", ".join(dict.fromkeys(layout.source for layout in LAYOUTS))
    first = names[0] if names else "nothing"
    raise UserError(
        f"these weights have no attention block of a known layout; found {first}, ...; known layouts: {known}"
    )


def rename(weights: Mapping[str, object], network: str) -> dict[str, Tensor]:
    """Rename published weights to those of `build_network(network, attention=layout_of(weights).attention)`.

    Raises UserError if no layout fits, if the layout does not have the network, and if a block has an unknown layer.
    """
    layout = layout_of(weights)
    if network not in layout.networks:
        raise UserError(
            f"weights with {layout.attention} of {layout.source} do not fit {network}; "
            f"one of: {', '.join(layout.networks)}"
        )
    renamed = {}
    for name, tensor in tensors_in(weights).items():
        layer, _, parameter = name.rpartition(".")
        if found := re.match(rf"{layout.block}\.", name):
            within = layer[found.end() :]
            if within not in layout.layers:
                raise UserError(
                    f"{name}: unknown layer of {layout.attention} of {layout.source}; one of: {', '.join(layout.layers)}"
                )
            ours = f"{found.expand(layout.our_block)}.{layout.layers[within]}"
            if layout.pointwise and parameter == "weight":
                tensor = tensor.flatten(1)
        else:
            ours = outside_blocks(layer, layout.trunk)
        renamed[f"{ours}.{parameter}"] = tensor
    return renamed


def outside_blocks(layer: str, trunk: Mapping[str, str]) -> str:
    """Rename a layer outside the blocks; names without a match in `trunk` are torchvision's already."""
    for pattern, ours in trunk.items():
        if found := re.fullmatch(pattern, layer):
            return found.expand(ours)
    return layer


def load_published(model: nn.Module, weights: Mapping[str, object], network: str) -> None:
    """Load published weights into `model`, built by `build_network(network, attention=layout_of(weights).attention)`.

    All tensors must fit, including the head. For another number of classes, pass the result of `rename` to
    `networks.load_pretrained`. Cadene's networks were converted from Caffe, so their strides and pooling differ from
    torchvision's. `model` is changed accordingly (`follow_caffe`). A state dict does not store this change, so each newly
    built network must be loaded with this function.

    Raises UserError like `rename`, and if a name is missing or unknown or a tensor has another shape.
    """
    layout, renamed, ours = layout_of(weights), rename(weights, network), model.state_dict()
    hint = f"build the network {network} with attention {layout.attention}"
    for name, tensor in renamed.items():
        if name not in ours:
            raise UserError(f"the network has no {name}, which these weights of {layout.source} have; {hint}")
        if tensor.shape != ours[name].shape:
            shapes = f"{tuple(tensor.shape)} in weights of {layout.source}, {tuple(ours[name].shape)} in the network"
            raise UserError(f"{name} is {shapes}; {hint} and as many classes")
    # Files older than PyTorch 0.4.1 lack num_batches_tracked, which is not used.
    for name in ours:
        if name not in renamed and not name.endswith("num_batches_tracked"):
            raise UserError(f"these weights of {layout.source} have no {name}; {hint}")
    model.load_state_dict(renamed, strict=False)
    if layout.caffe:
        follow_caffe(model, stride_first=network.startswith("resnet"))


def tensors_in(weights: Mapping[str, object]) -> dict[str, Tensor]:
    """Return the state dict of a published file. Raises UserError for any other content."""
    state = weights.get("state_dict", weights) if isinstance(weights, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(
            "published weights are not a state dict; give names and tensors, or a checkpoint with them in 'state_dict'"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def follow_caffe(model: Any, stride_first: bool) -> None:
    """Change strides and pooling of a torchvision ResNet to those of networks converted from Caffe.

    The first pooling has no padding and keeps the incomplete last window. With `stride_first` (not in ResNeXt), the
    stride of a bottleneck is in its first 1x1 convolution instead of its 3x3 convolution.
    """
    model.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    if stride_first:
        for stage in (model.layer2, model.layer3, model.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)

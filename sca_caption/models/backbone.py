"""The captioner's CNN: a network, cut at the layers that SCA-CNN attends (Chen et al. 2017, section 3.1).

torch.fx traces the network once. The graph is cut at its attended layers V1, V2, ... into

    trunk:      image -> V1          computed once per image
    segment i:  attended Vi -> Vi+1  computed at every word

A segment may need values beside Vi, e.g. a residual shortcut that starts in a lower layer. They are its `carried`
tensors. Batch norms are in evaluation mode in captioning, so each one that follows a convolution is folded into it.
EfficientNet-Lite, and MobileNetV2 without pretrained weights, as checkpoints need it, are not traced: they are cut
between their blocks (see `block_network`).

With `attention`, the CNN is a network of `networks.NETWORKS` with attention blocks. Each block is one node of the graph.
Nothing inside a block is folded, so it is initialised and trained as in its paper, except that its batch norms are also
in evaluation mode.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from operator import attrgetter

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sca_caption.models import efficientnet_lite, mobilenet_v2
from sca_caption.models.block_network import (
    BlockNetwork,
    BlockNetworkSpec,
    Segment,
    block_numbers,
    build_block_network,
)
from sca_caption.models.pretrained import OWN_NETWORKS, backbone_names, torchvision_network
from sca_caption.runtime.errors import UserError, choice

_VGG19 = ("features.31", "features.33", "features.35")  # conv5_2, conv5_3, conv5_4 after their ReLU
_LITE_BLOCKS = {name: efficientnet_lite.total_blocks(name) for name in efficientnet_lite.VARIANTS}
_RESNET = ("layer4.2.relu", "layer4.2.relu_1", "layer4.2")  # res5c_branch2a, res5c_branch2b, res5c
# Default attended layers, lowest first. Attending n layers means the last n.
ATTENDED: dict[str, tuple[str, ...]] = {
    "vgg19": _VGG19,
    "resnet18": ("layer4.0", "layer4.1.relu", "layer4.1"),
    "resnet34": ("layer4.1", "layer4.2.relu", "layer4.2"),
    "resnet50": _RESNET,
    "resnet101": _RESNET,
    "resnet152": _RESNET,
    "mobilenet_v2": ("features.16", "features.17", "features.18"),
    **{name: tuple(f"features.{i}" for i in range(n - 3, n)) for name, n in _LITE_BLOCKS.items()},
}
# Networks that are cut between their blocks instead of traced.
BLOCK_NETWORKS: dict[str, BlockNetworkSpec] = {
    "mobilenet_v2": BlockNetworkSpec(mobilenet_v2.MobileNetV2, mobilenet_v2.BLOCK_COUNT),
    **{
        name: BlockNetworkSpec(
            partial(efficientnet_lite.lite_backbone, name), n, partial(efficientnet_lite.folded_weights, name)
        )
        for name, n in _LITE_BLOCKS.items()
    },
}
# Images per forward pass of frozen layers on a CPU: the early maps of more images exceed its caches.
CPU_CHUNK = 4


def attended_layers(backbone: str, layers: Sequence[str]) -> tuple[str, ...]:
    """Resolve `--layers`: a count such as "2" stands for the backbone's last default layers; names are returned as given.

    Raises UserError for a count out of range, an unknown backbone, and a backbone without default layers.
    """
    if len(layers) != 1 or not layers[0].isdigit():
        return tuple(layers)
    count = int(layers[0])
    if backbone not in ATTENDED:
        choice(backbone, backbone_names(), "backbone")
        raise UserError(
            f"no default layers for backbone {backbone!r}; name them, lowest first, e.g. --layers layer3 layer4 "
            f"(defaults exist for: {', '.join(sorted(ATTENDED))})"
        )
    defaults = ATTENDED[backbone]
    if not 1 <= count <= len(defaults):
        raise UserError(f"--layers {count} for {backbone}: choose 1 to {len(defaults)}, or name the layers")
    return defaults[-count:]


class Backbone(nn.Module):
    """A CNN of torchvision (or EfficientNet-Lite, MobileNeXt, LeNet), cut at `layers` (lowest first).

    weights: a state dict with torchvision's names for this network (of EfficientNet-Lite see
    `efficientnet_lite.folded_weights`), or None for random initialisation.
    attention, at: attention blocks and their stages, as for `networks.build_network`.
    neck: channels of a new last layer in place of the network's last 1x1 convolution, which has 1,280 and would run at
    every word; the old one stays as `head`, which runs once per image. 0: none.
    `channels[i]` is the number of channels of attended layer i.

    Raises UserError for unknown names, for weights that do not fit, if all blocks are above the attended layers, and for
    a neck without at least two attended layers, the last one the network's last block.
    """

    def __init__(
        self,
        name: str,
        layers: Sequence[str],
        weights: dict[str, Tensor] | None = None,
        attention: str = "",
        at: Sequence[str] = (),
        neck: int = 0,
    ):
        super().__init__()
        self.name, self.layers = name, tuple(layers)
        self.head: nn.Module | None = None
        # The segments are kept in a plain list, so that parameters are registered only once, under `network`.
        spec = None if attention or at else BLOCK_NETWORKS.get(name)
        network = build_block_network(spec, name, layers, weights) if spec else None
        self.network: BlockNetwork | fx.GraphModule
        self._segments: Sequence[nn.Module]
        self._block_paths: tuple[str, ...] = ()
        if spec and network:  # does not import torchvision
            self.network = network.eval()
            blocks = block_numbers(layers, spec.blocks)
            if neck:
                if len(layers) < 2 or blocks[-1] != spec.blocks - 1:
                    last = f"features.{spec.blocks - 1}"
                    raise UserError(
                        f"--neck {neck} needs two attended layers, the last one {last}; add --layers 2"
                    )
                self.head = network.replace_last(neck)
                self._block_paths = (f"features.{blocks[-1]}",)
            self._segments = network.cut(blocks)
            self.channels = tuple(network.channels[block] for block in blocks)
        elif neck:
            names = ", ".join(key for key, each in BLOCK_NETWORKS.items() if each.convert)
            raise UserError(
                f"--neck {neck}: {name} cannot have one; choose --backbone {names}, or leave it out"
            )
        else:
            self._segments = self._trace_and_cut(name, layers, weights, attention, at)
            self.channels = self._probe_channels()
        # Frozen and trainable part of the trunk, see `set_trainable`.
        self._trunk_parts: tuple[nn.Module, nn.Module | None] | None = None
        # With channels last, 1x1 convolutions are matrix products.
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch leaves it out

    def _trace_and_cut(
        self,
        name: str,
        layers: Sequence[str],
        weights: dict[str, Tensor] | None,
        attention: str,
        at: Sequence[str],
    ) -> list[fx.GraphModule]:
        """Build `self.network` and return the trunk and the segments."""
        model = (_build_with_blocks(name, attention, at) if attention or at else _build(name)).eval()
        inserted = _attention_blocks(model) if attention else {}
        graph, nodes = _trace(model, name, layers, inserted)
        used = {n.target for n in graph.nodes if n.op in ("call_module", "get_attr")}
        self._block_paths = tuple(path for path in inserted if path in used)
        if inserted and not self._block_paths:
            path = next(iter(inserted))
            raise UserError(
                f"{attention} is at {path} of {name}, above the last attended layer {layers[-1]}, so nothing reads its "
                f"output; attend {path} last (--layers), or name lower stages (--backbone-at)"
            )
        if weights is not None:
            _load(model, name, weights, used, inserted)
        self.network = network = fx.GraphModule(model, graph)  # holds only the parameters that the graph uses
        self._nodes = _fold_batchnorms(network, nodes)
        return _cut(network, self._nodes)

    def _probe_channels(self) -> tuple[int, ...]:
        """Run the network once to find the number of channels of each attended layer."""
        with torch.no_grad():
            maps = self.trunk(torch.zeros(1, 3, 96, 96))
            channels = [maps[0].shape[1]]
            for i in range(len(self.layers) - 1):
                maps = self.segment(i, maps[0], maps[1:])
                channels.append(maps[0].shape[1])
        if maps[0].dim() != 4:
            raise UserError(
                f"layer {self.layers[-1]!r} of {self.name} is not a feature map (it has no height and width)"
            )
        return tuple(channels)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: batch norms that were not folded keep their statistics, and dropout is off."""
        return super().train(False)

    def blocks(self) -> dict[str, nn.Module]:
        """Return the attention blocks of the CNN, and its neck, by module path: layers without pretrained weights."""
        return {path: self.network.get_submodule(path) for path in self._block_paths}

    def set_trainable(self, trainable: bool, first: str = "") -> None:
        """Train the CNN from layer `first` upwards (all of it if empty), or freeze it.

        The attention blocks are always trained, because no weights were loaded for them.
        Raises UserError if no parameter belongs to `first`.
        """
        self.requires_grad_(trainable)
        below = []
        for name, parameter in self.network.named_parameters():
            if f"{name}.".startswith(f"{first}.") or not first:
                break
            below.append(parameter)
        else:
            raise UserError(
                f"--finetune-from {first!r}: {self.name} has no such layer; e.g. {name.rpartition('.')[0]}"
            )
        for parameter in below:
            parameter.requires_grad_(False)
        for block in self.blocks().values():
            block.requires_grad_(True)
        self._trunk_parts = self._split_trunk()

    def _split_trunk(self) -> tuple[nn.Module, nn.Module | None] | None:
        """Split the trunk below its first trainable parameter.

        Returns the frozen part and the trainable part (None if the whole trunk is frozen), or None if nothing is frozen.
        """
        if not any(p.requires_grad for p in self._segments[0].parameters()):
            return self._segments[0], None
        if isinstance(self.network, BlockNetwork):
            trunk = self._segments[0]
            assert isinstance(trunk, Segment)
            return self.network.split(trunk)
        order = list(self.network.graph.nodes)
        first = next(node for node in order if self._is_trainable(node))
        before = order[order.index(first) - 1]
        if before.op == "placeholder":
            return None
        frozen, trainable, *_ = _cut(self.network, [before, *self._nodes])
        return frozen, trainable

    def _is_trainable(self, node: fx.Node) -> bool:
        if node.op == "get_attr":
            return attrgetter(str(node.target))(self.network).requires_grad
        if node.op != "call_module":
            return False
        return any(p.requires_grad for p in self.network.get_submodule(str(node.target)).parameters())

    def trunk(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (B, 3, H, W) -> V1 (B, C, h, w), then the carried tensors."""
        images = images.contiguous(memory_format=torch.channels_last)
        if not torch.is_grad_enabled():
            return forward_in_chunks(self._segments[0], images)
        if self._trunk_parts is None:
            return self._segments[0](images)
        frozen, trainable = self._trunk_parts
        with torch.no_grad():
            maps = forward_in_chunks(frozen, images)
        return maps if trainable is None else trainable(*maps)

    def segment(self, index: int, attended: Tensor, carried: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Attended map of layer `index` and its carried tensors -> map of layer `index + 1` and its carried tensors."""
        return self._segments[index + 1](attended, *carried)


def forward_in_chunks(forward: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor) -> tuple[Tensor, ...]:
    """Compute forward(images), on a CPU in chunks of CPU_CHUNK images: the early maps of more exceed its caches."""
    if images.device.type != "cpu" or torch.compiler.is_compiling() or len(images) <= CPU_CHUNK:
        return forward(images)
    chunks = [forward(chunk) for chunk in images.split(CPU_CHUNK)]
    return tuple(torch.cat(maps) for maps in zip(*chunks, strict=True))


def _build(name: str) -> nn.Module:
    choice(name, backbone_names(), "backbone")
    if name in OWN_NETWORKS:
        from sca_caption.models.networks import build_network

        return build_network(name)
    return torchvision_network(name)


def _build_with_blocks(name: str, attention: str, at: Sequence[str]) -> nn.Module:
    from sca_caption.models.networks import NETWORKS, build_network

    return build_network(choice(name, NETWORKS, "backbone with attention"), attention=attention, at=at)


def _attention_blocks(model: nn.Module) -> dict[str, nn.Module]:
    from sca_caption.models.networks import attention_blocks

    return attention_blocks(model)


def _trace(
    model: nn.Module, name: str, layers: Sequence[str], blocks: dict[str, nn.Module]
) -> tuple[fx.Graph, list[fx.Node]]:
    """Trace the network up to the last attended layer. Returns the graph and its attended nodes; a block is one node.

    Layers have torchvision's node names: a module such as "layer4.2" stands for its output, "layer4.2.relu_1" for one
    call in it. Raises UserError for unknown layers and for layers in the wrong order.
    """
    # The order matters: torchvision_compat must run before torchvision is imported.
    from sca_caption.runtime.torchvision_compat import torchvision  # noqa: F401, I001
    from torchvision.models.feature_extraction import NodePathTracer

    tracer = NodePathTracer(leaf_modules=list({type(block) for block in blocks.values()}))
    graph = tracer.trace(model)
    paths = dict(tracer.node_to_qualname.items())
    nodes = []
    for layer in layers:
        matches = [node for node, path in paths.items() if path == layer or path.startswith(layer + ".")]
        if not matches:
            known = dict.fromkeys(_shorten(path) for path in paths.values())
            raise UserError(f"{name} has no layer {layer!r}; its layers: {', '.join(known)}")
        nodes.append(matches[-1])
    order = list(graph.nodes)
    positions = [order.index(node) for node in nodes]
    if not nodes or positions != sorted(set(positions)):
        raise UserError(f"layers must be different and lowest first; found: {' '.join(layers)}")
    for node in reversed(order):  # remove the head and every branch that no attended layer needs
        if not node.users and node is not nodes[-1]:
            graph.erase_node(node)
    graph.output(nodes[-1])
    return graph, nodes


def _shorten(path: str) -> str:
    return ".".join(path.split(".")[:2])


def _load(
    model: nn.Module, name: str, weights: dict[str, Tensor], used: set[str], blocks: Collection[str]
) -> None:
    """Load a torchvision state dict. `used`: module paths in the graph.

    An unused head may be missing or have another number of classes, and parameters of blocks may be missing.
    Raises UserError if any other tensor is missing or has another shape.
    """
    expected = model.state_dict()
    needed = {key for key in expected if any(key == u or key.startswith(f"{u}.") for u in used)}
    needed -= {key for key in needed - weights.keys() if key.startswith(tuple(f"{b}." for b in blocks))}
    counted = {key for key in needed if not key.endswith("num_batches_tracked")}
    wrong = sorted(
        key
        for key in counted
        if key not in weights or tuple(weights[key].shape) != tuple(expected[key].shape)
    )
    if wrong:
        raise UserError(
            f"these weights do not fit {name}: {len(wrong)} of {len(counted)} tensors missing or of another shape, "
            f"first {wrong[0]!r}; give a state dict of torchvision's {name}"
        )
    model.load_state_dict({key: weights[key] for key in needed if key in weights}, strict=False)


def _fold_batchnorms(network: fx.GraphModule, attended: Sequence[fx.Node]) -> list[fx.Node]:
    """Fold each evaluation-mode batch norm into the convolution before it: the same output with one pass less.

    Returns the attended nodes, in which a folded batch norm is replaced by its convolution. Names and meaning of the
    parameters therefore do not depend on the attended layers, and `--init` can load a model with other layers.
    """
    attended = list(attended)
    modules = dict(network.named_modules())
    for node in list(network.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        conv = node.args[0]
        follows = conv.op == "call_module" and isinstance(modules[conv.target], nn.Conv2d)
        if not follows or len(conv.users) > 1 or conv in attended:
            continue
        fused = fuse_conv_bn_eval(modules[conv.target], modules[node.target])
        parent, _, child = conv.target.rpartition(".")
        setattr(network.get_submodule(parent), child, fused)
        node.replace_all_uses_with(conv)
        network.graph.erase_node(node)
        attended = [conv if n is node else n for n in attended]
    network.delete_all_unused_submodules()
    network.recompile()
    return attended


def _cut(network: fx.GraphModule, attended: Sequence[fx.Node]) -> list[fx.GraphModule]:
    """Cut the graph at the attended nodes. Returns the trunk and the segments, which share `network`'s parameters."""
    order = [node for node in network.graph.nodes if node.op != "output"]
    position = {node: i for i, node in enumerate(order)}
    segments = []
    inputs, start = [n for n in order if n.op == "placeholder"], 0
    for node in attended:
        end = position[node]
        carried = [
            n
            for n in order[:end]
            if any(position.get(user, -1) > end for user in n.users) and n.op != "get_attr"
        ]
        graph = fx.Graph()
        copies = {n: graph.placeholder(n.name) for n in inputs}
        for n in order[start : end + 1]:
            if n not in copies:
                copies[n] = graph.node_copy(n, copies.__getitem__)
        graph.output(tuple(copies[n] for n in (node, *carried)))
        segments.append(fx.GraphModule(network, graph))
        inputs, start = [node, *carried], end + 1
    return segments

"""Networks of consecutive blocks, which are cut into segments after whole blocks without tracing.

Importing torchvision and tracing a network take longer than captioning a photograph. Networks whose modules are in this
package are cut directly instead: block i is the layer "features.i", and nothing is carried past a block.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sca_caption.runtime.errors import UserError

Weights = dict[str, Tensor]


class Segment(nn.Sequential):
    """Consecutive blocks. Returns a tuple, as the segments of traced networks do."""

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class BlockNetwork(nn.Module):
    """Images (B, 3, H, W) -> the blocks `features`, one after the other.

    channels[i]: output channels of block i. scaling: applied to the images before block 0; it has no parameters.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], channels: Sequence[int], scaling: nn.Module | None = None
    ):
        super().__init__()
        self.channels = tuple(channels)
        self.scaling = scaling
        self.features = nn.Sequential(*blocks)

    def replace_last(self, channels: int) -> nn.Module:
        """Replace the last block, which is returned, by a 1x1 convolution with ReLU6.

        It starts as the `channels` outputs of the last block whose weights are largest.
        """
        old = self.features[-1]
        weight, bias = (p.detach() for p in old.parameters())
        kept = weight.flatten(1).norm(dim=1).topk(min(channels, len(weight))).indices.sort().values
        new = nn.Conv2d(weight.shape[1], channels, 1)
        assert new.bias is not None
        with torch.no_grad():
            new.weight[: len(kept)], new.bias[: len(kept)] = weight[kept], bias[kept]
        self.features[-1] = nn.Sequential(new, nn.ReLU6())
        self.channels = (*self.channels[:-1], channels)
        return old

    def cut(self, blocks: Sequence[int]) -> list[Segment]:
        """Cut the network after the given blocks (lowest first). The segments share its parameters."""
        starts = [0, *(block + 1 for block in blocks)]
        trunk, *segments = (list(self.features)[a:b] for a, b in pairwise(starts))
        if self.scaling is not None:
            trunk.insert(0, self.scaling)
        return [Segment(*modules) for modules in (trunk, *segments)]

    def split(self, segment: Segment) -> tuple[Segment, Segment] | None:
        """Split a segment before its first trainable block; None if no parameters are below this block."""
        modules = list(segment)
        first = [any(p.requires_grad for p in module.parameters()) for module in modules].index(True)
        frozen, trainable = Segment(*modules[:first]), Segment(*modules[first:])
        return (frozen, trainable) if any(True for _ in frozen.parameters()) else None

    def load_blocks(self, weights: Weights, name: str) -> None:
        """Load a state dict of `features`, which may have more blocks.

        Raises UserError, which calls the network `name`, if a tensor is missing or has another shape.
        """
        expected = self.features.state_dict()
        wrong = [
            key for key, value in expected.items() if key not in weights or weights[key].shape != value.shape
        ]
        if wrong:
            raise UserError(
                f"these weights do not fit {name}: {len(wrong)} of {len(expected)} tensors missing or of another "
                f"shape, first {wrong[0]!r}; copy the file again"
            )
        self.features.load_state_dict({key: weights[key] for key in expected})


class BlockNetworkSpec(NamedTuple):
    """How to build a BlockNetwork.

    build: number of lowest blocks -> network with random weights. blocks: number of blocks of the whole network.
    convert: pretrained weights -> state dict of `features`. None if torchvision has the network: it is then traced to
    load torchvision's weights, and to attend layers inside a block.
    """

    build: Callable[[int], BlockNetwork]
    blocks: int
    convert: Callable[[Weights], Weights] | None = None


def block_numbers(layers: Sequence[str], count: int) -> list[int]:
    """Block numbers of layers that are whole blocks, lowest first: ("features.17", "features.18") -> [17, 18].

    count: number of blocks of the network. Returns an empty list for any other layers.
    """
    numbers = {f"features.{block}": block for block in range(count)}
    blocks = [numbers[layer] for layer in layers if layer in numbers]
    return blocks if len(blocks) == len(layers) and blocks == sorted(set(blocks)) else []


def build_block_network(
    spec: BlockNetworkSpec, name: str, layers: Sequence[str], weights: Weights | None = None
) -> BlockNetwork | None:
    """Build the blocks up to the last one of `layers`; None if the network of torchvision must be traced.

    Raises UserError for unknown layers, for layers in the wrong order, and for weights that do not fit.
    """
    blocks = block_numbers(layers, spec.blocks)
    if spec.convert is None:
        return spec.build(blocks[-1] + 1) if blocks and weights is None else None
    if not blocks:
        known = [f"features.{block}" for block in range(spec.blocks)]
        for layer in layers:
            if layer not in known:
                raise UserError(f"{name} has no layer {layer!r}; its layers: {', '.join(known)}")
        raise UserError(f"layers must be different and lowest first; found: {' '.join(layers)}")
    network = spec.build(blocks[-1] + 1)
    if weights is not None:
        network.load_blocks(spec.convert(weights), name)
    return network

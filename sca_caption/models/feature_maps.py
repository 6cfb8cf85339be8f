"""Feature maps of a network's stages, for detectors, segmenters and feature-pyramid networks.

The networks of `networks.feature_maps` compute their maps in one chain of modules: each module reads the output of the
one before it. `FeatureMaps` runs this chain up to the last map that is wanted. The parameters keep torchvision's names,
so weights of classifiers load into it.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sca_caption.models import efficientnet_lite, quantization
from sca_caption.models.insertion import InsertionPoint, Stage
from sca_caption.models.pretrained import current_densenet_names, read_state_dict
from sca_caption.runtime.errors import UserError

SEQUENTIALS = ("features", "layers", "trunk_output")  # children whose own children are modules of the chain
HEADS = ("avgpool", "dropout", "classifier", "fc", "aux1", "aux2", "AuxLogits")  # children outside the chain
CLASSIFIER = "model.network."  # prefix of the network in checkpoints of classifiers
PROBES = (512, 1024)  # pixels
NAMED = 3  # parameters that an error names of each kind


class Shape(NamedTuple):
    """Channels of a map, and its stride in pixels per position."""

    channels: int
    stride: int


class FeatureMaps(nn.Module):
    """Normalised images (B, 3, H, W) -> OrderedDict: name -> map (B, channels[name], about H / strides[name], ...).

    network: it is taken apart; its layers above the last map are deleted. ends: name of each map -> path of the module in
    `chain` that computes it. shapes: of the maps. blocks: paths of the attention blocks. plain: names of all parameters
    of the network without blocks. title: the network in messages.

    Attributes:
        channels, strides: dicts with the names of the maps, in the order of computation.
        out_channels: channels as torchvision's detectors read them: an int for one map, a list for several.
        trunk: what is left of the network.
    """

    def __init__(
        self,
        network: nn.Module,
        ends: Mapping[str, str],
        shapes: Mapping[str, Shape],
        blocks: Sequence[str],
        plain: Collection[str],
        title: str,
    ):
        super().__init__()
        self.title = title
        self.trunk = network
        self._known = {*plain, *network.state_dict()}
        order = chain(network)
        self._map_names = {path: name for name, path in ends.items()}
        count = max(order.index(path) for path in self._map_names) + 1
        self._order = order[:count]
        above = [*order[count:], *(name for name, _ in network.named_children() if name in HEADS)]
        for path in above:
            parent, _, child = path.rpartition(".")
            delattr(network.get_submodule(parent), child)
        self.blocks = tuple(path for path in blocks if path in dict(network.named_modules()))
        names = [self._map_names[path] for path in self._order if path in self._map_names]
        self.channels = {name: shapes[name].channels for name in names}
        self.strides = {name: shapes[name].stride for name in names}
        self.out_channels = [*self.channels.values()] if len(names) > 1 else self.channels[names[0]]

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = OrderedDict()
        x = images
        for path in self._order:
            x = self.trunk.get_submodule(path)(x)
            if path in self._map_names:
                maps[self._map_names[path]] = x
        return maps

    def load(self, weights: str | Path | Mapping[str, Tensor]) -> list[str]:
        """Load weights of the whole network or of this part. Returns the names of parameters that they do not contain.

        weights: a state dict with torchvision's names, a file of one (.pth, .safetensors), or a checkpoint of `train.py
        --task classify`. Only attention blocks may be missing, and only if the weights contain none. Raises UserError,
        which names the parameters that differ, for weights of another network; nothing is loaded then.
        """
        found = network_weights(weights, self.trunk)
        state = self.trunk.state_dict()
        expected = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        inside = tuple(f"{path}." for path in self.blocks)
        of_blocks = [key for key in expected if key.startswith(inside)]
        left = [] if any(key in found for key in of_blocks) else of_blocks
        different = {
            "missing": [key for key in expected if key not in found and key not in left],
            "of another shape": [
                f"{key} {tuple(found[key].shape)} instead of {tuple(value.shape)}"
                for key, value in expected.items()
                if key in found and found[key].shape != value.shape
            ],
            "unknown": [key for key in found if key not in self._known],
        }
        if any(different.values()):
            listed = "; ".join(f"{kind}: {_first(keys)}" for kind, keys in different.items() if keys)
            raise UserError(
                f"these weights do not fit {self.title}: {listed}; give weights of this network with the same blocks and "
                f"stem, or of the network without blocks"
            )
        for key in state:
            state[key] = found.get(key, state[key])
        self.trunk.load_state_dict(state)
        return left


def _first(names: Sequence[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def network_weights(weights: str | Path | Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Names and tensors of the network in a state dict, in its file, or in a checkpoint of a classifier.

    Raises UserError if the file cannot be read, and for weights of another EfficientNet-Lite.
    """
    found = read_state_dict(Path(weights)) if isinstance(weights, str | Path) else dict(weights)
    if any(key.startswith(CLASSIFIER) for key in found):
        found = {
            key.removeprefix(CLASSIFIER): value
            for key, value in quantization.dequantize(found).items()
            if key.startswith(CLASSIFIER)
        }
    variant = efficientnet_lite.identify(found)
    if variant:
        folded = efficientnet_lite.folded_weights(variant, found)
        found = {f"features.{key}": value for key, value in folded.items()}
    return current_densenet_names(found)


def chain(network: nn.Module) -> list[str]:
    """Paths of the modules that compute the last map of a network, in order."""
    paths = []
    for name, child in network.named_children():
        if name in SEQUENTIALS:
            paths += [f"{name}.{inner}" for inner, _ in child.named_children()]
        elif name not in HEADS:
            paths.append(name)
    return paths


def measure(network: nn.Module) -> dict[str, Shape]:
    """Shapes of the maps of a network on the meta device, by path in the chain. No numbers are computed."""
    maps = [torch.empty(1, 3, side, side, device="meta") for side in PROBES]
    found = {}
    for path in chain(network.eval()):
        module = network.get_submodule(path)
        maps = [module(x) for x in maps]
        small, large = (x.shape[-1] for x in maps)
        found[path] = Shape(maps[0].shape[1], round((PROBES[1] - PROBES[0]) / (large - small)))
    return found


def skeleton(make: Callable[[], nn.Module]) -> nn.Module:
    """`make()` on the meta device: a network with shapes and without numbers."""
    try:
        with torch.device("meta"):
            return make()
    except NotImplementedError:  # RegNet reads tensors to compute its widths
        with torch.random.fork_rng(devices=[]):
            return make().to("meta")


def stride_stages(shapes: Mapping[str, Shape], parameters: Collection[str]) -> dict[str, str]:
    """Stages of a network that has none by name: "stride8" -> path of the last module of the chain with this stride.

    shapes: from `measure`. Strides of 1, and those at which no module has parameters, have no stage.
    """
    ends = {}
    for stride, group in groupby(shapes, lambda path: shapes[path].stride):
        paths = list(group)
        if stride > 1 and any(key.startswith(tuple(f"{path}." for path in paths)) for key in parameters):
            ends[f"stride{stride}"] = paths[-1]
    return ends


def points_after(ends: Mapping[str, str], shapes: Mapping[str, Shape], network: nn.Module) -> list[Stage]:
    """Stages with the insertion points after the modules `ends`, which are paths in the chain."""
    stages = []
    for name, path in ends.items():
        parent, _, child = path.rpartition(".")
        module = network.get_submodule(parent)
        stages.append(Stage(InsertionPoint(module, f"{name}_attention", shapes[path].channels, child)))
    return stages


def last_module(network: nn.Module, stage: Stage) -> str:
    """Path in the chain of the module that ends a stage, before blocks are inserted after it."""
    parent = next(path for path, module in network.named_modules() if module is stage.after.parent)
    if parent in chain(network):  # a stage of a ResNet is one module, into which its blocks are inserted
        return parent
    return f"{parent}.{stage.after.predecessor}".removeprefix(".")


def map_end(network: nn.Module, path: str, blocks: Collection[str]) -> str:
    """Path in the chain of the module that computes a stage's map, if `path` ends the stage without blocks.

    A stage includes the attention blocks after it, and a batch norm, which DenseNet has after its last stage.
    """
    order = chain(network)
    last = order.index(path)
    for following in order[last + 1 :]:
        if following not in blocks and not isinstance(network.get_submodule(following), nn.BatchNorm2d):
            break
        last += 1
    return order[last]
